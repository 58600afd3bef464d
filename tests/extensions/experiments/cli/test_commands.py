"""Commands against a scripted server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture
def planned(cli, remote):
    """An experiment on the scripted server."""
    done = cli(
        *("experiments", "create", "medical-v2", "--metric", "thumbs_up"),
        *("--arm", "old=medical@1.0.0", "--arm", "new=medical@1.1.0"),
    )
    assert done.code == 0, done.err
    return remote.experiments


@pytest.mark.slow
def test_what_runs_is_listed_with_its_warnings(cli, planned):
    cli("experiments", "start", "medical-v2")
    planned.kept["experiments/medical-v2"].warnings.append("units look like request ids")
    header, row = cli("experiments", "list").out.splitlines()
    assert header.split()[:3] == ["NAME", "STATE", "ROUTE"]
    assert row.startswith(
        "medical-v2  running  medical  old 0.5, new 0.5  thumbs_up  PROMOTE new  new +7.5 points"
    )
    assert "4,000 of 5,000 planned users (80 %)" in row
    assert row.endswith("units look like request ids")
    (found,) = json.loads(cli("experiments", "list", "--json").out)
    assert found["spec"]["arms"][1]["adapter"] == "adapters/medical/versions/1.1.0"


def test_an_empty_list_says_how_to_begin(cli, remote):
    assert "experiments create --example" in cli("experiments", "list").out


def test_show_tells_the_plan_and_the_salts(cli, planned):
    cli("experiments", "start", "medical-v2", "--etag", "e1")
    assert planned.requests[-1].etag == "e1"
    lines = dict(line.split("  ", 1) for line in cli("experiments", "show", "medical-v2").out.splitlines())
    shown = {key: value.strip() for key, value in lines.items()}
    assert shown["arm old"] == "0.5 of units: medical@1.0.0 (control)"
    assert shown["decides"] == "thumbs_up: proportion, more is better"
    assert shown["phase 1"].endswith("salts: enrolment a, variant b")
    assert shown["window"] == "1 day for outcomes"


def test_stop_says_why(cli, planned):
    done = cli("experiments", "stop", "medical-v2", "--reason", "release moved")
    assert "stopped: release moved" in done.out
    assert planned.requests[-1].reason == "release moved"


def test_promote_tells_the_versions_and_how_to_undo(cli, planned):
    done = cli("experiments", "promote", "medical-v2")
    assert done.out.splitlines() == [
        "medical@1.1.0 is the default, before it was medical@1.0.0",
        "undo it: lora-router experiments rollback medical-v2",
    ]
    assert (planned.requests[-1].arm, planned.requests[-1].force) == ("", False)
    cli("experiments", "promote", "medical-v2", "new", "--force", "--reason", "ticket 7")
    sent = planned.requests[-1]
    assert (sent.arm, sent.force, sent.reason) == ("new", True, "ticket 7")
    done = cli("experiments", "rollback", "medical-v2", "--reason", "complaints", "--json")
    assert json.loads(done.out)["default"] == "adapters/medical/versions/1.0.0"


def test_delete_forgets_and_a_missing_one_is_told(cli, planned):
    assert cli("experiments", "delete", "medical-v2").out == "medical-v2 is forgotten\n"
    done = cli("experiments", "show", "medical-v2")
    assert (done.code, done.out) == (1, "")
    assert "experiment 'experiments/medical-v2' not found" in done.err
    assert "lora-router experiments list" in done.err


HERE = ("experiments", "plan", "--baseline", "0.5", "--split", "90/10", "--per-day", "800")


def test_everything_given_needs_no_server(cli):
    done = cli(*HERE, "--effect", "0.05")
    assert (done.code, done.err) == (0, "")
    header, *rows, _, sentence = done.out.splitlines()
    assert header.split()[:2] == ["EFFECT", "UNITS"]
    assert [row.split()[:2] for row in rows] == [["+5", "points"]]
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
    assert 0.04 < found["effect"] < 0.05
    assert found["units"] <= 11_200


def a_plan(metric, more=""):
    """The file of a plan that is decided by a metric."""
    arms = "".join(f"[[arms]]\nname = '{name}'\nweight = {w}\n" for name, w in (("old", 0.98), ("new", 0.02)))
    path = Path("plan.toml")
    path.write_text(f"route = 'medical'\ncontrol = 'old'\n{more}\n{arms}[primary]\n{metric}\n")
    return path


@pytest.mark.slow
def test_a_mean_with_and_without_a_cap(cli):
    mean, numbers = "name = 'seconds'\nkind = 'mean'", ("--baseline", "12", "--deviation", "9")
    done = cli("experiments", "plan", a_plan(mean), *numbers, "--per-day", "800")
    assert done.code == 0
    assert done.out.startswith("note: no effect is found in 5,000 units: 750 units are needed in each arm")
    done = cli("experiments", "plan", a_plan(f"{mean}\ncap = 60"), *numbers, "--per-day", "800")
    assert "98/2 at 800 units a day: +2.79 is" in done.out


def test_a_plan_gives_what_it_has(cli):
    file = a_plan("name = 'total_time_over_4s'", "enrolment = 0.5\nplanned_units = 9000")
    done = cli("experiments", "plan", file, "--baseline", "0.1", "--effect", "+10%", "--per-day", "800")
    assert "98/2 at 800 units a day, 0.5 of which take part: +1 points are" in done.out
    wide = cli("experiments", "plan", file, "--baseline", "0.1", "--split", "50/50", "--json")
    assert json.loads(wide.out)["answer"]["units"] <= 9000


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--effect", "much"), "--effect: 'much' is not a number"),
        (("--effect", "x%"), "--effect: 'x' is not a number"),
        (("--effect", "0"), "effect: must be a finite number other than 0"),
        (("--effect", "0.7"), "effect: is impossible: 0.5 and +0.7 make 1.2"),
        (("--split", "100"), "split: must be shares above 0"),
        (("--baseline", "1.5"), "baseline: of thumbs_up must lie within 0 and 1"),
        (("--days", "-1"), "days: must be above 0"),
        (("--deviation", "1"), "deviation: of a proportion follows from"),
    ],
)
def test_what_is_wrong_is_told(cli, arguments, told):
    done = cli(*HERE, *arguments)
    assert (done.code, done.out) == (2, "")
    assert told in done.err


def test_what_is_needed_is_asked_for(cli):
    done = cli("experiments", "plan", a_plan("name = 's'\nkind = 'mean'"), "--effect", "10%")
    assert (done.code, done.out) == (2, "")
    assert "Give the --baseline, too" in done.err
    done = cli("experiments", "plan", a_plan("name = 's'\nkind = 'mean'"))
    assert "deviation: is needed" in done.err
