"""`experiments plan`: computed here where everything is given, asked of a server where not."""

import json

import pytest

from router.errors import Findings
from router.experiments.messages import answer_message, question_of
from router.experiments.model import Kind, SizeAnswer

HERE = ("experiments", "plan", "--baseline", "0.5", "--split", "90/10", "--per-day", "800")


def test_everything_given_needs_no_server(cli):
    done = cli(*HERE, "--effect", "0.05")
    assert (done.code, done.err) == (0, "")
    header, row, _, sentence = done.out.splitlines()
    assert header.split("  ")[0] == "EFFECT"
    assert row.startswith("+5 points  ")
    assert sentence.startswith("90/10 at 800 units a day: +5 points are found with 80 % power by ")
    assert "one look at the end would take " in sentence


def test_a_share_of_the_baseline(cli):
    points, share = (json.loads(cli(*HERE, "--effect", e, "--json").out) for e in ("0.05", "+10%"))
    assert points == share
    assert set(points) == {"answer", "table"}
    assert json.loads(cli(*HERE, "--effect", "-10%", "--json").out)["answer"]["effect"] == -0.05


@pytest.mark.slow
def test_a_table_where_nothing_is_said(cli):
    done = cli(*HERE)
    rows = [line for line in done.out.splitlines() if line.startswith("+")]
    assert len(rows) == 4
    assert "note: neither effect nor days nor units given" in done.out
    near_the_end = cli("experiments", "plan", "--baseline", "0.95", "--per-day", "9")
    assert len([line for line in near_the_end.out.splitlines() if line.startswith("+")]) == 3


def test_days_give_the_smallest_effect(cli):
    found = json.loads(cli(*HERE, "--days", "14", "--json").out)["answer"]
    assert 0.05 < found["effect"] < 0.07
    assert found["units"] <= 11_200


@pytest.mark.slow
def test_a_mean_with_and_without_a_cap(cli):
    mean = ("experiments", "plan", "--metric", "mean:seconds", "--baseline", "12", "--deviation", "9")
    done = cli(*mean, "--split", "98/2", "--units", "5000")
    assert done.code == 0
    assert done.out.startswith("note: no effect is found in 5,000 units: 750 units are needed in each arm")
    assert (
        json.loads(cli(*mean, "--split", "98/2", "--units", "5000", "--json").out)["answer"]["effect"] is None
    )
    done = cli(*mean, "--split", "98/2", "--units", "5000", "--cap", "60")
    assert "98/2: +3." in done.out


def test_what_is_not_given_is_asked_of_the_server(cli, remote):
    answer = SizeAnswer(0.4, 0.49, 0.04, 2760, 4830, 2800, 1.75, 1000, 6.0, 800.0, ("baseline 0.4 from a",))
    remote.experiments.planned = answer_message(answer)
    done = cli("experiments", "plan", "--route", "adapters/medical", "--metric", "solved", "--effect", "+10%")
    assert done.code == 0, done.err
    assert "note: baseline 0.4 from a" in done.out
    first, second = (question_of(request, Findings()) for request in remote.experiments.requests)
    assert (first.route, first.metric, first.kind, first.effect) == ("medical", "solved", None, None)
    assert second.effect == pytest.approx(0.04)
    cli("experiments", "plan", "--metric", "total_time", "--route", "base", "--lower-is-better")
    asked = question_of(remote.experiments.requests[-1], Findings())
    assert (asked.kind, asked.higher_is_better, asked.route) == (Kind.MEAN, False, "base")


def test_what_the_server_does_not_know_is_told(cli, remote):
    done = cli("experiments", "plan", "--metric", "solved")
    assert (done.code, done.out) == (1, "")
    assert "baseline: is not known" in done.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--effect", "much"), "--effect: 'much' is not a number"),
        (("--effect", "x%"), "--effect: 'x' is not a number"),
        (("--effect", "0"), "effect: must be a finite number other than 0"),
        (("--effect", "0.7"), "effect: is impossible: 0.5 and +0.7 make 1.2"),
        (("--split", "100"), "--split takes shares above 0"),
        (("--metric", "odd:seconds"), "--metric odd:seconds: 'seconds' is no kind"),
        (("--metric", "a b"), "metric.name: must be 1 to 63 letters"),
        (("--baseline", "1.5"), "baseline: of a proportion lies within 0 and 1"),
        (("--alpha", "0.9"), "alpha: must be above 0 and at most 0.2"),
        (("--days", "-1"), "days: must be above 0"),
        (("--metric", "proportion:s", "--deviation", "1"), "deviation: of a proportion follows from"),
        (("--metric", "mean:s", "--deviation", "0"), "s would have the same value for every unit"),
        (("--metric", "mean:s", "--deviation", "nan"), "deviation: must be a finite number above 0"),
        (("--cap", "0", "--deviation", "1"), "metric.cap: must be a finite number above 0"),
    ],
)
def test_what_is_wrong_is_told(cli, arguments, told):
    done = cli(*HERE, *arguments)
    assert (done.code, done.out) == (2, "")
    assert told in done.err


def test_a_share_of_what_is_not_known(cli):
    done = cli("experiments", "plan", "--metric", "mean:s", "--deviation", "1", "--effect", "10%")
    assert done.code == 1  # a server is asked for the baseline, and there is none
    assert "no server answers" in done.err
