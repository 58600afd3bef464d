"""Reports of planned experiments: verdicts that stay, and the advice to give up."""

from __future__ import annotations

from dataclasses import replace

from router.extensions.experiments.next_step import following
from router.extensions.experiments.report.build import report
from router.extensions.experiments.report.model import Report
from router.extensions.experiments.store.series import TimeBucket
from router.extensions.experiments.words import gives_up, heading
from tests.extensions.experiments.report.sums import (
    LONG_AFTER,
    SPEC,
    STARTED,
    SumsStore,
    both,
    bucket,
    ones,
    running,
)


def read(buckets: list[TimeBucket], now: float = LONG_AFTER, **plan: object) -> Report:
    return report(SumsStore(buckets, running(replace(SPEC, **plan))), "medical-v2", now=now)


def hourly(*new: int, units: int = 250, control: int = 125) -> list[TimeBucket]:
    """So many successes of the new arm in each hour; both arms have as many units."""
    return [
        made
        for hour, count in enumerate(new)
        for made in (bucket("control", units, control, 5, hour), bucket("new", units, count, 5, hour))
    ]


UNTIL = hourly(*[135] * 8)  # 4,000 units of 4,000, half a point more than the planned bound needs
LATER = hourly(*[135] * 8, *[122] * 12)


def test_a_better_arm_is_promoted_by_the_planned_size():
    found = read(UNTIL)
    assert found.verdict.rule == "primary-better"
    primary = found.arms[0].primary
    assert primary is not None
    assert primary.low > 0
    assert primary.method == "planned"
    assert primary.relative_low is not None
    assert (primary.relative_low > 0) is (primary.low > 0)


def test_units_behind_the_planned_size_take_nothing_back_and_add_no_looks():
    before, after = read(UNTIL), read(LATER)
    assert (before.verdict.rule, after.verdict.rule) == ("primary-better", "primary-better")
    assert before.arms[0].adjusted_p == after.arms[0].adjusted_p
    assert sum(n.units for n in after.numbers) == 10_000
    assert after.arms[0].primary is not None
    assert 0 < after.arms[0].primary.low <= after.arms[0].primary.effect
    late = hourly(*[125] * 8, *[135] * 8)
    assert read(late).verdict.rule == "planned-size-reached"


def test_what_is_shown_is_the_same_whenever_it_is_looked_at():
    """By the stored buckets of a look, which may come at any time."""
    store = SumsStore(LATER, running(SPEC))
    rules = [
        report(store, "medical-v2", now=STARTED + 3600.0 * hour + SPEC.window, details=False).verdict.rule
        for hour in range(2, 21)
    ]
    shown = rules.index("primary-better")
    assert set(rules[:shown]) <= {"primary-open", "immature"}
    assert set(rules[shown:]) <= {"primary-better", "immature"}


def test_at_the_planned_size_giving_up_is_advised():
    found = read(both(1000, 1010, hours=8))
    assert gives_up(found)
    assert (
        heading(found)
        == "GIVE UP: no difference between new and control is found with the planned 4,000 users."
    )
    assert following(found).endswith("no gain is in sight: lora-router experiments stop medical-v2")


def voting(control: int, new: int, votes: int, hours: int = 4) -> list[TimeBucket]:
    """600 users in two arms, of whom some in an arm vote; so many votes are good."""

    def part(whole: int, hour: int) -> int:
        return whole * (hour + 1) // hours - whole * hour // hours

    made = []
    for hour in range(hours):
        for arm, good in (("control", control), ("new", new)):
            n = part(votes, hour)
            sums = {"success": ones(part(good, hour), n), "error": ones(0, part(300, hour))}
            answered = {"success": n, "error": part(300, hour)}
            made.append(bucket(arm, part(300, hour), 0, at=hour, moments=sums, answered=answered))
    return made


def test_the_planned_users_decide_however_few_of_them_vote():
    """A z test of these votes has p = 0.006. The bound counted voters, and the plan users: p was 1."""
    found = read(voting(51, 72, votes=103), planned_units=600)
    primary = found.arms[0].primary
    assert primary is not None
    assert 0.001 < primary.p < 0.01
    assert primary.low > 0
    undecided = read(voting(51, 55, votes=103), planned_units=600)
    assert undecided.verdict.rule == "planned-size-reached"
    assert heading(undecided).startswith("GIVE UP")
    early = read(voting(51, 55, votes=103), planned_units=1200)
    assert early.verdict.rule == "primary-open"
