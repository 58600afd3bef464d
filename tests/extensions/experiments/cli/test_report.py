"""Reports as text."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest

from router.extensions.experiments import document as tables
from router.extensions.experiments import words
from router.extensions.experiments.cli.report import print_report
from router.extensions.experiments.model import Aggregate, Kind, MetricSpec, Mode, NoInterval, SegmentSpec
from router.extensions.experiments.next_step import following
from router.extensions.experiments.plan_lines import pairs_of
from router.extensions.experiments.report.model import (
    MetricReport,
    PipelineCheck,
    Ruling,
    SegmentReport,
)
from router.quantities import PLAIN, SHARE
from tests.extensions.experiments.report.sums import REPORT, SPEC, running

WAITS = NoInterval("too-few-events", "success is 1 for 12 units of both arms, 48 are needed", 600)
YOUNG = MetricReport("success", (40, 38), (0.1, 0.2), 0.1, -math.inf, math.inf, 1.0, "burn-in", waiting=WAITS)


@pytest.fixture
def planned(cli, remote):
    cli(
        *("experiments", "create", "medical-v2", "--metric", "success"),
        *("--arm", "control=medical@1.0.0", "--arm", "new=medical@1.1.0", "--start"),
    )
    return remote.experiments


def test_the_verdict_comes_first_then_its_number_and_what_to_do(cli, planned):
    lines = cli("experiments", "report", "medical-v2").out.splitlines()
    assert lines[:6] == [
        "PROMOTE new: it is better than control.",
        "Difference: success: +7.5 points (4.2 to 12.4) ✓ better: 57.5 % of users with new, 50.0 % with"
        " control. More is better.",
        "How sure: shown, chance alone does not explain it; such ranges are right in 95 of 100 experiments,"
        " however often you look",
        "Users so far: 4,000 of 5,000 planned users (80 %)",
        "Risk if promoted now: none, success is at least 4.2 points better",
        "Next: promote new: lora-router experiments promote medical-v2",
    ]
    text = "\n".join(lines)
    for part in (
        "✓ within what is allowed  3.0 points worse",
        "✓ All 5 checks of the data are fine.",
        "Notes",
    ):
        assert part in text
    assert lines[-1] == "Statistics: lora-router experiments report medical-v2 --details"


INSIDE = re.compile(
    r"p = |\bp-value|interval|asymptotic|Holm|alpha|open|beyond|[a-z]+-[a-z]+-?ratio|arm's|\["
)


def test_names_of_the_inside_stand_in_the_details_only(capsys):
    print_report(replace(REPORT, notes=()))
    shown = capsys.readouterr().out
    assert INSIDE.findall(shown) == []
    print_report(REPORT, details=True)
    details = capsys.readouterr().out
    for part in (
        "primary-better",
        "planned",
        "up to twice as large",
        "95%",
        "within",
    ):
        assert part in details


def test_acts_are_told_without_their_control_characters(capsys):
    acts = tuple(replace(REPORT.audit[0], act=f"act-{i}", reason="\x1b[2Jx") for i in range(9))
    print_report(replace(REPORT, audit=acts), details=True)
    lines = capsys.readouterr().out.split("History\n")[1].splitlines()
    assert re.search(r"127.0.0.1 +act-8 +\[2Jx", lines[1])


def test_json_has_every_number_and_null_for_what_is_not_known(cli, planned):
    found = json.loads(cli("experiments", "report", "medical-v2", "--json").out)
    assert found["verdict"]["decision"] == "promote"
    assert found["arms"][0]["primary"]["low"] > 0


@pytest.mark.parametrize(
    ("decision", "promoted", "phase", "told"),
    [
        ("promote", "", 1, "Next: promote new: lora-router experiments promote medical-v2"),
        ("stop for harm", "", 1, "Next: stop it: lora-router experiments stop medical-v2 --reason harm"),
        ("invalid", "", 1, "Next: repair what the failed check names. Then start anew: lora-router"),
        (
            "undecided",
            "",
            1,
            "Next: wait. After a day of traffic the report says how long; lora-router experiments report",
        ),
        ("undecided", "", 0, "Next: start it: lora-router experiments start medical-v2"),
        (
            "promote",
            "new",
            1,
            "Next: nothing. new is promoted; to undo this: lora-router experiments rollback",
        ),
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


def test_shadow_arms_have_no_table_of_effects(capsys):
    arm, ruling = replace(REPORT.arms[0], guardrails=()), Ruling("undecided", "shadow", "in the log")
    spec = replace(SPEC, mode=Mode.SHADOW)
    out = printed(capsys, replace(REPORT, experiment=running(spec), arms=(arm,), verdict=ruling))
    assert out.startswith("RESULT: in the log. They do not say what users prefer.")
    assert "DIFFERENCE" not in out


def printed(capsys, found):
    print_report(found)
    return capsys.readouterr().out


def with_arm(**fields):
    (arm,) = REPORT.arms
    return replace(REPORT, arms=(replace(arm, **fields),))


def test_a_missing_range_says_why_and_how_long(capsys):
    out = printed(capsys, with_arm(primary=YOUNG, guardrails=(replace(YOUNG, state="open"),)))
    assert out.count(f"no range yet: {WAITS.text}; about 600 more users") == 2
    assert "+10.0 points, no range yet" in out
    assert "inf" not in out.replace(WAITS.text, "")
    assert "nan" not in out
    never = replace(YOUNG, waiting=NoInterval("constant", "the same value for every unit"))
    assert "no range yet: the same value for every unit\n" in printed(capsys, with_arm(primary=never))


WAITING = replace(REPORT, verdict=Ruling("undecided", "primary-open", "text"))


@pytest.mark.parametrize(
    ("per_day", "told"),
    [
        (
            400.0,
            "Next: wait until about 1970-01-15 05:46 UTC, when the planned 4,000 users had their time."
            " About 400 new users come each day.",
        ),
        (
            0.0,
            "Next: no new users came in the last week. Check that requests arrive and carry their unit, or"
            " stop it: lora-router experiments stop medical-v2",
        ),
    ],
)
def test_waiting_has_its_end(per_day, told):
    young = tuple(replace(one, matured=0) for one in REPORT.numbers)
    assert following(replace(WAITING, units_per_day=per_day, numbers=young)) == told


def test_giving_up_is_said_when_all_planned_units_had_their_time():
    found = replace(WAITING, verdict=Ruling("undecided", "planned-size-reached", "text"), units_per_day=9.0)
    assert words.heading(found).startswith("GIVE UP: no difference between new and control is found")
    assert following(found).startswith("Next: give up. All planned users took part, and no gain is in sight")
    assert words.heading(WAITING).startswith("WAIT: ")


@pytest.mark.parametrize("check", [check.name for check in REPORT.checks])
def test_a_check_that_fails_says_what_is_wrong_and_what_to_do(check):
    failed = PipelineCheck(check, True, "3 of 4")
    found = replace(REPORT, verdict=Ruling("invalid", check, "3 of 4"), checks=(failed,))
    (line,) = words.failed_checks(found)
    assert check not in line
    assert "{" not in line + following(found)
    assert following(found).count(". ") == 1
    assert words.effect_lines(found) == []  # numbers of a broken pipeline are no news


def test_the_holdout_is_told(capsys):
    experiment = running(replace(SPEC, mode=Mode.HOLDOUT))
    assert "Everybody in experiments against the holdout" in printed(
        capsys, replace(REPORT, experiment=experiment)
    )


def test_what_is_waited_for_is_told(capsys):
    found = replace(
        with_arm(primary=YOUNG),
        verdict=Ruling("undecided", "too-few-events", WAITS.text),
        units_per_day=10.0,
    )
    out = printed(capsys, found)
    assert out.startswith(f"WAIT: {WAITS.text}.\n")
    assert "about 600 more users" in out


def test_json_keeps_its_keys_and_has_null_for_infinity(cli, planned):
    planned.report = with_arm(primary=YOUNG)
    found = json.loads(cli("experiments", "report", "medical-v2", "--json").out)
    assert {"experiment", "phase", "verdict", "arm", "arms", "checks", "numbers", "audit"} <= set(found)
    primary = found["arms"][0]["primary"]
    assert (primary["low"], primary["high"]) == (None, None)
    assert primary["waiting"] == {"rule": WAITS.rule, "text": WAITS.text, "units": 600}


def test_an_open_window_is_said_first():
    young = tuple(replace(one, matured=one.units - 100) for one in REPORT.numbers)
    assert next(tables.facts(replace(REPORT, numbers=young))) == (
        "Open window",
        "200 of 4,000 users did not have their whole window of 1 day yet: they are not compared",
    )


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"low": -0.02, "high": 0.1}, "success may be up to 2.0 points worse"),
        ({"low": -math.inf, "high": math.inf}, "not known: success has no range yet"),
        ({"higher_is_better": False, "low": -0.1, "high": 0.03}, "success may be up to 3.0 points worse"),
    ],
)
def test_the_risk_of_a_promotion_is_the_worse_end_of_the_range(fields, told):
    primary = replace(REPORT.arms[0].primary, **fields)
    assert dict(tables.facts(with_arm(primary=primary)))["Risk if promoted now"] == told


def test_a_guardrail_that_is_open_is_a_risk():
    rails = tuple(replace(rail, state="open") for rail in REPORT.arms[0].guardrails)
    told = dict(tables.facts(with_arm(guardrails=rails)))["Risk if promoted now"]
    assert told.endswith("; error may be worse than allowed")


FOUND = MetricReport("success", (100, 90), (0.5, 0.6), 0.1, 0.05, 0.15, 0.01, "asymptotic", alpha=0.05)


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (0.05, 0.15, "+10.0 points (5.0 to 15.0)"),
        (-math.inf, 0.15, "+10.0 points (15.0 or less)"),
        (0.05, math.inf, "+10.0 points (5.0 or more)"),
        (-math.inf, math.inf, "+10.0 points, no range yet"),
        (math.nan, math.nan, "+10.0 points, no range yet"),
    ],
)
def test_a_range_never_has_an_infinite_end(low, high, told):
    assert words.change(SHARE, replace(FOUND, low=low, high=high)) == told


@pytest.mark.parametrize("bounds", [(None, None), (-math.inf, math.inf), (math.nan, 0.3)])
def test_a_relative_effect_without_bounds_is_not_told(bounds):
    low, high = bounds
    assert words.relative(replace(FOUND, relative=0.2, relative_low=low, relative_high=high)) == ""


def test_a_mean_has_its_relative_change_beside_it():
    found = replace(FOUND, metric="tokens", relative=0.2, relative_low=0.1, relative_high=0.3)
    assert words.change(PLAIN, found) == "+0.100 (0.050 to 0.150), +20.0 % (10.0 to 30.0)"
    assert words.change(SHARE, found) == "+10.0 points (5.0 to 15.0)"


def test_metrics_stand_in_one_table_and_say_that_they_hold_together():
    many = replace(FOUND, alpha=0.05 / 3)
    found = tables.document(
        with_arm(early=(), secondary=(replace(many, metric="seconds", cap=30.0), many))
    ).compared
    assert [row[:2] for row in found.rows] == [
        ("success (more is better)", "4,000"),
        ("error (less is better)", "4,000"),
        ("seconds (capped at 30; more is better)", "190"),
        ("success (more is better)", "190"),
    ]
    assert found.notes[-1].startswith("These ranges are wider, so that all 3 of them hold at once")
    assert "These ranges" not in str(tables.document(with_arm(secondary=(FOUND,))).compared.notes)


@pytest.mark.parametrize(
    ("differ", "told"),
    [
        (False, "It is not shown that the difference depends on language"),
        (True, "The difference is not the same for all values of language: read each row."),
    ],
)
def test_segments_have_no_verdict_of_their_own(differ, told):
    segment = SegmentReport("language", {"en": FOUND, "(none)": FOUND}, 0.002, differ)
    (table,) = tables.segments(with_arm(segments=(segment,)))
    assert table.title == "success by language: new against control"
    assert table.rows[0] == ("en", "190", "50.0 %", "60.0 %", "+10.0 points (5.0 to 15.0)", "✓ better")
    assert table.notes[0].startswith(told)
    assert not {"p", "verdict"} & {head for head, _ in table.columns}


def test_a_label_without_values_yet_is_told_in_words():
    segment = SegmentReport("language", {}, 1.0, False)
    (found,) = tables.segments(with_arm(segments=(segment,)))
    assert found.rows == ()
    assert found.notes == ("No value of language has two units in both arms yet.",)


def test_a_plan_tells_what_is_new_in_it():
    seconds = MetricSpec("seconds", Kind.MEAN, False, Aggregate.SUM, cap=30.0, least=-5.0)
    spec = replace(
        SPEC, secondary=(seconds,), segments=(SegmentSpec("language", ("en", "de")),), grace=7200.0
    )
    told = dict(pairs_of(running(spec)))
    assert told["secondary"].startswith("seconds (capped at 30): mean, less is better")
    assert "-5 at least" in told["secondary"]
    assert told["segment"] == "label language: en, de"
    assert told["grace"] == "2 hours more for them to arrive"
