"""Reports as text."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from router.experiments.cli import report as tables
from router.experiments.cli import wording
from router.experiments.cli.report import document, following, print_report
from router.experiments.cli.wording import LEGEND
from router.experiments.model import Aggregate, ArmSpec, Kind, MetricSpec, Mode, NoInterval, SegmentSpec
from router.experiments.report.model import MetricReport, Pairs, Ruling, SegmentReport, VerdictForecast
from router.types import RouterVariant
from tests.experiments.report.sums import REPORT, SPEC, running

WAITS = NoInterval("too-few-events", "12 ones of success in both arms, 48 are needed at this split", 600)
YOUNG = MetricReport("success", (40, 38), (0.1, 0.2), 0.1, -math.inf, math.inf, 1.0, "burn-in", waiting=WAITS)


@pytest.fixture
def planned(cli, remote):
    cli(
        *("experiments", "create", "medical-v2", "--route", "medical", "--metric", "success"),
        *("--arm", "control=medical@1.0.0", "--arm", "new=medical@1.1.0", "--start"),
    )
    return remote.experiments


def test_the_verdict_comes_first_then_what_it_rests_on(cli, planned):
    lines = cli("experiments", "report", "medical-v2").out.splitlines()
    assert lines[0] == "PROMOTE new  (primary-better)"
    assert lines[1].startswith("success: 0.575 against 0.5 on 4000 units")
    text = "\n".join(lines)
    for part in (
        "95% INTERVAL",
        "+0.04 ± 0.03 at equal answer length (95.5† tokens an answer against 80†)",
        "new  30   10    5     75.0% [60.0%, 90.0%]",
        "within",
        "sample-ratio      ok",
        "120 ms",
        "NOTES",
    ):
        assert part in text
    assert lines[-1] == "next: lora-router experiments promote medical-v2"


def test_the_last_acts_are_told(capsys):
    entry = REPORT.audit[0]
    acts = tuple(replace(entry, act=f"act-{i}", reason="\x1b[2Jx") for i in range(9))
    print_report(replace(REPORT, audit=acts))
    lines = capsys.readouterr().out.split("WHAT WAS DONE\n")[1].splitlines()
    assert lines[0] == "... 3 before"
    assert lines[1].endswith("127.0.0.1 act-3: [2Jx")
    assert lines[6].endswith("act-8: [2Jx")


def test_json_has_every_number_and_null_for_what_is_not_known(cli, planned):
    found = json.loads(cli("experiments", "report", "medical-v2", "--json").out)
    assert found["verdict"]["decision"] == "promote"
    assert found["arms"][0]["everyone"]["low"] is None
    assert found["points"][-1]["share_low"] < 0.5


@pytest.mark.slow
def test_watch_ends_after_the_looks_or_with_the_experiment(cli, planned):
    done = cli("experiments", "watch", "medical-v2", "--every", "0.01", "--looks", "2", "--json")
    assert [json.loads(line)["phase"] for line in done.out.splitlines()] == [1, 1]
    cli("experiments", "stop", "medical-v2")
    done = cli("experiments", "watch", "medical-v2", "--every", "0.01")
    assert done.out.count("PROMOTE new") == 1
    done = cli("experiments", "watch", "medical-v2", "--every", "0")
    assert (done.code, "--every must be above 0 seconds" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("decision", "promoted", "phase", "told"),
    [
        ("promote", "", 1, "next: lora-router experiments promote medical-v2"),
        ("stop for harm", "", 1, "next: lora-router experiments stop medical-v2 --reason harm"),
        ("invalid", "", 1, "next: find out why the check failed"),
        ("undecided", "", 1, "next: wait; lora-router experiments watch medical-v2"),
        ("undecided", "", 0, "next: lora-router experiments start medical-v2"),
        ("promote", "new", 1, "promoted: new; undo: lora-router experiments rollback medical-v2"),
    ],
)
def test_every_verdict_has_a_next_step(decision, promoted, phase, told):
    made = replace(
        REPORT,
        verdict=Ruling(decision, "rule", "text"),
        phase=phase,
        experiment=replace(REPORT.experiment, promoted=promoted),
    )
    assert following(made).startswith(told)


def test_a_better_router_is_a_setting_and_no_version():
    arms = (SPEC.arms[0], ArmSpec("new", 0.5, router=RouterVariant(threshold=0.4)))
    made = replace(REPORT, experiment=running(replace(SPEC, route="", arms=arms)))
    assert following(made) == "next: make it the server's own: router with threshold 0.4"


def test_shadow_arms_have_pairs_by_user_and_no_table_of_effects(capsys):
    spec = replace(SPEC, mode=Mode.SHADOW)
    arm = replace(REPORT.arms[0], guardrails=(), pairs=Pairs(300, 100, 50, 0.7, 0.6, 0.8, 0.01, units=120))
    out = printed(capsys, replace(REPORT, experiment=running(spec), arms=(arm,)))
    assert "DIFFERENCE" not in out
    assert "SHARE WON" in out
    assert "120 users (400 pairs)" in out
    once = replace(arm, pairs=replace(arm.pairs, anytime=False))
    assert "70.0% [60.0%, 80.0%]†" in printed(capsys, replace(REPORT, arms=(once,)))


def printed(capsys, found):
    print_report(found)
    return capsys.readouterr().out


def with_arm(**fields):
    (arm,) = REPORT.arms
    return replace(REPORT, arms=(replace(arm, **fields),))


def test_what_may_not_be_looked_at_often_has_a_dagger_and_one_line_tells_so(capsys):
    out = printed(capsys, REPORT)
    assert out.count(LEGEND) == 1
    for head in ("VALUE†", "CONTROL†", "ARM'S†", "FIRST TOKEN†", "CANCELLED†"):
        assert head in out
    assert "[+0.0259, +0.124]  +15.0% [+4.9%, +26.1%]  0.00015 " in out  # any look: plain
    once = printed(capsys, with_arm(primary=replace(REPORT.arms[0].primary, anytime=False)))
    assert "[+0.0259, +0.124]†  +15.0% [+4.9%, +26.1%]†  0.00015†" in once


def test_a_missing_interval_says_why_and_how_long(capsys):
    out = printed(capsys, with_arm(primary=YOUNG, guardrails=(replace(YOUNG, state="open"),)))
    told = f"no interval yet: {WAITS.text}; about 600 more units"
    assert out.count(told) == 2
    assert "+0.1†" in out  # an effect without an interval is an average
    assert "inf" not in out.replace(WAITS.text, "")
    assert "nan" not in out
    never = replace(YOUNG, waiting=NoInterval("constant", "the same value for every unit"))
    assert "no interval yet: the same value for every unit\n" in printed(capsys, with_arm(primary=never))


def test_a_forecast_stands_under_the_verdict(capsys):
    words = "about 12 days more at 400 new units a day"
    found = replace(REPORT, forecast=VerdictForecast(400.0, 9000, 12.0, 0.03, words))
    assert printed(capsys, found).splitlines()[2] == f"forecast†: {words}"
    found = replace(REPORT, forecast=VerdictForecast(400.0, 9000, 12.0, 0.03, ""))
    assert printed(capsys, found).splitlines()[2] == "forecast†: about 12 more days at 400 units a day"


def test_the_holdout_is_told(capsys):
    experiment = running(replace(SPEC, mode=Mode.HOLDOUT))
    assert "everybody in experiments against the holdout" in printed(
        capsys, replace(REPORT, experiment=experiment)
    )


def test_watch_shows_what_is_waited_for(cli, planned):
    planned.report = replace(
        with_arm(primary=YOUNG), forecast=VerdictForecast(10.0, None, None, None, "nothing is on its way")
    )
    out = cli("experiments", "watch", "medical-v2", "--looks", "1").out
    assert "PROMOTE new" in out
    assert "forecast†: nothing is on its way" in out
    assert "about 600 more units" in out


def numbers_of(value, path=""):
    """Every object of a document that has a number, by its path."""
    if isinstance(value, dict):
        if any(isinstance(one, float) for one in value.values()):
            yield path, value
        for key, one in value.items():
            yield from numbers_of(one, f"{path}/{key}")
    elif isinstance(value, list):
        for one in value:
            yield from numbers_of(one, path)


def test_json_says_of_every_number_whether_it_may_be_looked_at_often():
    made = replace(
        with_arm(secondary=(YOUNG,), unadjusted=YOUNG),
        forecast=VerdictForecast(400.0, 9000, 12.0, 0.03, "text"),
    )
    found = document(made)
    told = {path: one.get("anytime") for path, one in numbers_of(found) if "/experiment" not in path}
    for audit_or_top in ("", "/audit", "/audit/detail", "/arms", "/numbers/built_in"):
        told.pop(audit_or_top, None)
    assert told == {
        "/arms/primary": True,
        "/arms/primary/length": True,
        "/arms/guardrails": True,
        "/arms/everyone": True,
        "/arms/pairs": True,
        "/arms/unadjusted": True,
        "/arms/secondary": True,
        "/numbers": False,
        "/points": True,
        "/forecast": False,
    }
    assert "†" in found["legend"]


def test_json_keeps_its_keys_and_has_null_for_infinity():
    found = document(with_arm(primary=YOUNG))
    assert {"experiment", "phase", "verdict", "arm", "arms", "checks", "numbers", "audit", "points"} <= set(
        found
    )
    primary = found["arms"][0]["primary"]
    assert (primary["low"], primary["high"]) == (None, None)
    assert primary["waiting"] == {"rule": WAITS.rule, "text": WAITS.text, "units": 600}
    json.dumps(found, allow_nan=False)


FOUND = MetricReport("success", (100, 90), (0.5, 0.6), 0.1, 0.05, 0.15, 0.01, "asymptotic", alpha=0.05)


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (0.05, 0.15, "[+0.05, +0.15]"),
        (-math.inf, 0.15, "below +0.15"),
        (0.05, math.inf, "above +0.05"),
        (-math.inf, math.inf, "no interval yet"),
        (math.nan, math.nan, "no interval yet"),
    ],
)
def test_an_interval_never_has_an_infinite_end(low, high, told):
    found = replace(FOUND, low=low, high=high)
    assert wording.interval(found) == told
    assert wording.effect(found).startswith("+0.1 [" if told.startswith("[") else "+0.1†, ")


@pytest.mark.parametrize("bounds", [(None, None), (-math.inf, math.inf), (math.nan, 0.3)])
def test_a_relative_effect_without_bounds_is_not_told(bounds):
    low, high = bounds
    assert wording.relative(replace(FOUND, relative=0.2, relative_low=low, relative_high=high)) == ""


def test_the_past_stands_beside_what_was_measured():
    plain = replace(FOUND, effect=0.08, low=-0.02, high=0.18)
    table = tables.past(with_arm(primary=FOUND, unadjusted=plain))
    assert table.rows == (
        ("new", "adjusted by the past (CUPED)", "+0.1", "[+0.05, +0.15]", "50% narrower"),
        ("new", "as measured", "+0.08", "[-0.02, +0.18]", ""),
    )
    assert wording.narrower(plain, FOUND) == "100% wider"
    assert tables.past(REPORT).rows == ()


def test_secondary_metrics_stand_by_metric_with_their_level_and_cap():
    many = replace(FOUND, alpha=0.05 / 3)
    found = tables.secondary(with_arm(secondary=(replace(many, metric="seconds", cap=30.0), many)))
    assert found.title == "Secondary metrics (decide nothing; intervals corrected for all 3)"
    assert [row[:2] for row in found.rows] == [("seconds (capped at 30)", "new"), ("success", "new")]
    assert ("98.3% interval, corrected for 3", "i") in found.columns
    assert not {"p", "verdict"} & {head for head, _ in found.columns}
    one = tables.secondary(with_arm(secondary=(FOUND,)))
    assert one.title == "Secondary metrics (decide nothing)"


@pytest.mark.parametrize(
    ("differ", "text", "told"),
    [
        (False, "", "no difference between values is shown: read the overall effect"),
        (True, "", "effects differ between values: p = 0.002"),
        (True, "as the server says", "as the server says"),
    ],
)
def test_segments_have_no_verdict_of_their_own(differ, text, told):
    segment = SegmentReport("language", {"en": FOUND, "(none)": FOUND}, 0.002, differ, text)
    (table,) = tables.segments(with_arm(segments=(segment,)))
    assert table.title == "success by language: new against control"
    assert table.rows[0] == ("en", "190", "0.5", "0.6", "+0.1", "[+0.05, +0.15]")
    assert table.notes == (told,)
    assert not {"p", "verdict"} & {head for head, _ in table.columns}


def test_a_label_without_values_yet_is_told_in_words():
    segment = SegmentReport("language", {}, 1.0, False, "no value has two mature units yet")
    found = list(tables.tables(with_arm(segments=(segment,))))
    assert found[-1].rows == ()
    assert found[-1].notes == ("no value has two mature units yet",)


def test_a_plan_tells_what_is_new_in_it():
    seconds = MetricSpec("seconds", Kind.MEAN, False, Aggregate.SUM, cap=30.0, least=-5.0)
    spec = replace(
        SPEC, secondary=(seconds,), segments=(SegmentSpec("language", ("en", "de")),), grace=7200.0
    )
    told = dict(wording.pairs_of(running(spec)))
    assert told["secondary"].startswith("seconds (capped at 30): mean, less is better")
    assert "-5 at least" in told["secondary"]
    assert told["segment"] == "label language: en, de"
    assert told["grace"] == "2 hours more for them to arrive"
