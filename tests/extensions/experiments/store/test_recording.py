"""Exposures and outcomes come in, each counted once."""

from __future__ import annotations

import logging

import pytest

from router.extensions.experiments.model import (
    NO_VALUE,
    OTHER_VALUE,
    Accepted,
    Kind,
    MetricSpec,
    SegmentSpec,
)
from tests.extensions.experiments.store.helpers import (
    START,
    WINDOW,
    experiment,
    exposed,
    outcome,
    row,
    unit_outcome,
    with_secondary,
)

COUNTED, DUPLICATE, LATE, UNKNOWN = Accepted.COUNTED, Accepted.DUPLICATE, Accepted.LATE, Accepted.UNKNOWN


@pytest.fixture
def running(store):
    store.create(experiment())
    return store


def test_a_unit_is_exposed_once_and_every_response_is_kept(running):
    running.expose([exposed("u", "r1"), exposed("u", "r2", at=50), exposed("v", "r3", "b")])
    running.expose([exposed("u", "r1"), exposed("u", "r4", at=900)])
    data = running.data("x", 1)
    assert [(b.arm, b.start, b.seconds, b.exposed) for b in data.buckets] == [
        ("a", START, 100.0, 1),
        ("b", START, 100.0, 1),
    ]
    assert data.responses == {"a": 3, "b": 1}


def test_units_by_the_time_of_their_first_exposure(running):
    running.expose([exposed(f"u{i}", f"r{i}", at=60.0 * i) for i in range(5)])
    assert [(b.start - START, b.exposed) for b in running.data("x", 1).buckets] == [
        (0, 2),
        (100, 2),
        (200, 1),
    ]


def test_exposures_before_the_phase_are_in_its_first_stretch(running):
    running.expose([exposed("u", "r", at=-7.0)])
    assert [b.start for b in running.data("x", 1).buckets] == [START]


def test_a_unit_with_two_arms_is_crossed_once(running):
    running.expose([exposed("u", "r1", "a"), exposed("u", "r2", "b")])
    running.expose([exposed("u", "r3", "b"), exposed("v", "r4", "b")])
    data = running.data("x", 1)
    assert data.crossed == 1
    assert [(b.arm, b.exposed) for b in data.buckets] == [("a", 1), ("b", 1)]


def test_degraded_units_stay_in_their_arm(running):
    running.expose([exposed("u", "r1"), exposed("u", "r2", degraded="did not load"), exposed("v", "r3")])
    running.expose([exposed("u", "r4", degraded="did not load")])
    (bucket,) = running.data("x", 1).buckets
    assert (bucket.exposed, bucket.degraded) == (2, 1)


def test_digests_in_the_order_in_which_they_came(running):
    def by(response: str, adapter: str, arm: str = "a", **more: str):
        return exposed(response, response, arm, adapter_digest=adapter, base_digest="B", **more)

    running.expose([by("r1", "2"), by("r2", "1"), by("r3", "2"), by("r4", "9", "b")])
    running.expose([by("r5", "", degraded="did not load"), by("r6", "0"), by("r7", "1")])
    assert running.data("x", 1).digests == {"a": ("2/B/", "1/B/", "0/B/"), "b": ("9/B/",)}


def test_exposures_of_nothing_are_dropped_with_a_word(running, caplog):
    with caplog.at_level(logging.WARNING):
        running.expose([exposed("u", "r1", phase=2), exposed("u", "r2", name="gone"), exposed("u", "r3")])
    assert "of gone, phase 1" in caplog.text
    assert "of x, phase 2" in caplog.text
    assert running.data("x", 1).responses == {"a": 1}


def test_an_outcome_counts_once(running):
    running.expose([exposed("u", "r")])
    first = outcome("r", key="k")
    assert running.record([first, first, outcome("r", key="other")]) == (COUNTED, DUPLICATE, COUNTED)
    assert running.record([first]) == (DUPLICATE,)
    assert row(running) == (1, 1.0)
    assert running.data("x", 1).buckets[0].answered == {"good": 1}


def test_a_unit_without_an_outcome_is_left_out(running):
    running.expose([exposed("u", "r1"), exposed("v", "r2")])
    running.record([outcome("r1", value=0.0)])
    assert row(running) == (1, 0.0)
    (bucket,) = running.data("x", 1).buckets
    assert (bucket.exposed, bucket.answered["good"]) == (2, 1)


def test_the_window_ends(running):
    running.expose([exposed("u", "r1", at=10)])
    at_end, after = outcome("r1", at=10 + WINDOW), outcome("r1", at=10 + WINDOW + 0.001)
    assert running.record([after, at_end, after]) == (LATE, COUNTED, LATE)
    assert running.record([after]) == (LATE,)
    assert row(running) == (1, 1.0)


def test_what_comes_after_the_grace_is_late_whenever_it_happened(store):
    store.create(experiment(grace=60.0))
    store.expose([exposed("u", "r", at=10), exposed("v", "r2", "b", at=20)])
    end = 10 + WINDOW + 60
    found = [
        outcome("r", at=11, came=end),
        outcome("r", at=12, came=end + 0.001),
        outcome("r2", at=12, came=end + 1),
    ]
    assert store.record(found) == (COUNTED, LATE, COUNTED)
    assert store.record([found[1], found[0]]) == (LATE, DUPLICATE)
    assert store.record([outcome("r", at=10 + WINDOW + 1, came=end)]) == (LATE,)
    assert store.record([unit_outcome("u", at=13)]) == (COUNTED,)  # at once
    assert row(store) == (1, 1.0)


def test_an_outcome_that_waited_came_when_it_came(store):
    """Not when its exposure was written."""
    store.create(experiment())
    waits = [outcome("r", at=5, key="in time", came=WINDOW), outcome("r", at=5, key="not", came=WINDOW + 1)]
    assert store.record(waits) == (UNKNOWN, UNKNOWN)
    store.expose([exposed("u", "r")])
    assert store.record(waits) == (DUPLICATE, LATE)
    assert row(store) == (1, 1.0)


def test_a_past_that_is_told_after_the_first_exposure_changes_nothing(store):
    store.create(experiment("x", MetricSpec("n", Kind.MEAN, covariate=True)))
    store.record([unit_outcome("u", "n", 7.0, at=-9)])
    store.expose([exposed("u", "r")])
    store.record([outcome("r", "n", 2.0), unit_outcome("u", "n", 60.0, at=-9)])
    assert row(store, "n") == (1, 2.0, 7.0)


def test_the_window_is_of_the_first_exposure(running):
    running.expose([exposed("u", "r1"), exposed("u", "r2", at=WINDOW + 5)])
    assert running.record([outcome("r2", at=WINDOW + 6)]) == (LATE,)


def test_a_clock_that_is_behind_costs_no_outcome(running):
    running.expose([exposed("u", "r", at=10)])
    assert running.record([outcome("r", at=9)]) == (COUNTED,)


def test_outcomes_of_units(running):
    running.expose([exposed("u", "r", at=10)])
    found = running.record(
        [
            unit_outcome("u", at=11),
            unit_outcome("nobody"),
            unit_outcome("u", name="other"),
            unit_outcome("u", at=9),
        ]
    )
    assert found == (COUNTED, UNKNOWN, UNKNOWN, UNKNOWN)
    assert row(running) == (1, 1.0)


def test_outcomes_that_come_before_their_exposure_count_when_it_comes(running):
    early = [outcome("r1", key="k1"), unit_outcome("v"), outcome("r9"), unit_outcome("v", at=-1)]
    assert running.record(early) == (UNKNOWN,) * 4
    assert running.record([outcome("r1", key="k1")]) == (UNKNOWN,)
    running.expose([exposed("u", "r1"), exposed("v", "r2", "b")])
    assert row(running) == (1, 1.0)
    assert row(running, arm="b") == (1, 1.0)
    assert running.record([outcome("r1", key="k1"), early[1], early[2]]) == (DUPLICATE, DUPLICATE, UNKNOWN)


def test_a_waiting_outcome_may_be_late(running):
    assert running.record([outcome("r", at=WINDOW + 1, key="k")]) == (UNKNOWN,)
    running.expose([exposed("u", "r")])
    assert running.record([outcome("r", at=WINDOW + 1, key="k")]) == (LATE,)
    assert row(running) == (0, 0.0)


@pytest.mark.slow
def test_an_outcome_no_metric_reads_is_kept(running):
    running.expose([exposed("u", "r")])
    assert running.record([outcome("r", "csat", 5.0, key="k")]) == (COUNTED,)
    assert running.record([outcome("r", "csat", 5.0, key="k")]) == (DUPLICATE,)
    assert running.data("x", 1).buckets[0].answered == {"good": 0}


def test_one_response_in_two_experiments(store):
    for name in ("x", "y"):
        store.create(experiment(name))
    store.expose([exposed("u", "r"), exposed("session", "r", "b", name="y")])
    store.record([outcome("r", key="k"), outcome("r2", key="k2")])
    store.expose([exposed("u", "r2")])
    store.expose([exposed("session", "r2", "b", name="y")])
    assert store.record([outcome("r", key="k"), outcome("r2", key="k2")]) == (DUPLICATE, DUPLICATE)
    assert row(store) == (1, 1.0)
    assert row(store, arm="b", name="y") == (1, 1.0)


def test_an_outcome_of_a_unit_belongs_to_the_last_phase_it_was_exposed_in(store):
    store.create(experiment(phases=(START, START + 500)))
    store.expose([exposed("u", "r1"), exposed("u", "r2", "b", at=600, phase=2)])
    store.record([unit_outcome("u", at=599), unit_outcome("u", at=600), outcome("r1", at=700)])
    assert row(store) == (1, 1.0)
    assert row(store, arm="b", phase=2) == (1, 1.0)


def test_nothing_changes_nothing(running):
    running.expose([])
    assert running.record([]) == ()
    assert running.data("x", 1).buckets == ()


NAMED = SegmentSpec("plan", ("free", "paid"))
OPEN = SegmentSpec("country", ("de", "a b", "%_\\", "Ünal 名"))
SECONDS = MetricSpec("seconds", Kind.MEAN)


def shown(unit: str, arm: str = "a", at: float = 0.0, **labels: str):
    return exposed(unit, f"r-{unit}-{at}", arm, at, segments=labels)


def units(store, label: str, arm: str = "a") -> dict[str, tuple]:
    """Value -> (units, sum) of one arm in its first stretch."""
    found = next(b for b in store.data("x", 1).buckets if b.arm == arm).segments
    return {value: (m.n, *m.sums) for (of, value), m in found.items() if of == label}


def test_units_are_summed_up_by_the_label_of_their_first_exposure(store):
    store.create(experiment(segments=(NAMED, OPEN)))
    store.expose([shown("u", plan="free", country="de"), shown("v", plan="paid"), shown("w", plan="team")])
    store.expose([shown("u", at=1, plan="paid", country="fr"), shown("z", "b", plan="free", more="x")])
    store.record([outcome(f"r-{unit}-0.0", value=float(unit != "v")) for unit in "uvwz"])
    assert units(store, "plan") == {"free": (1, 1.0), "paid": (1, 0.0), OTHER_VALUE: (1, 1.0)}
    assert units(store, "country") == {"de": (1, 1.0), NO_VALUE: (2, 1.0)}
    assert units(store, "plan", "b") == {"free": (1, 1.0)}
    store.record([outcome("r-v-0.0")])
    assert units(store, "plan")["paid"] == (1, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("value", ["a b", "%_\\", "Ünal 名"])
def test_any_named_value_is_kept_as_it_is(sql_store, value):
    sql_store.create(experiment(segments=(OPEN,)))
    sql_store.expose([shown("u", country=value)])
    sql_store.record([outcome("r-u-0.0")])
    assert units(sql_store, "country") == {value: (1, 1.0)}


def test_only_the_primary_metric_is_told_by_segment(store):
    store.create(experiment("x", MetricSpec("good", Kind.PROPORTION), SECONDS, segments=(NAMED,)))
    store.expose([shown("u", plan="free")])
    store.record([outcome("r-u-0.0", "seconds", 3.0)])
    assert units(store, "plan") == {}
    store.record([outcome("r-u-0.0")])
    assert units(store, "plan") == {"free": (1, 1.0)}


def test_a_plan_without_segments_has_none(store):
    store.create(experiment())
    store.expose([shown("u", plan="free")])
    store.record([outcome("r-u-0.0")])
    assert store.data("x", 1).buckets[0].segments == {}


def test_a_unit_is_slow_if_any_of_its_answers_was(store):
    slow = MetricSpec("total_time_over_4s", Kind.PROPORTION, False)
    first = MetricSpec("time_to_first_token_over_500ms", Kind.PROPORTION, False)
    store.create(with_secondary(experiment(), slow, first))
    store.expose([exposed(unit, f"{unit}{n}") for unit in "uvwx" for n in "12"])
    times = {"u1": (1.0, 0.1), "u2": (9.0, 0.6), "v1": (4.0, 0.5), "v2": (0.1, 0.1), "w1": (5.0, 0.4)}
    for response, (total, token) in times.items():
        store.record(
            [outcome(response, "total_time", total), outcome(response, "time_to_first_token", token)]
        )
    store.record([outcome("w2", "time_without_token", 0.7)])
    (bucket,) = store.data("x", 1).buckets
    assert bucket.answered == {"good": 0, slow.name: 3, first.name: 3}  # x was not answered
    assert [(bucket.moments[m.name].n, bucket.moments[m.name].sums[0]) for m in (slow, first)] == [
        (3, 2.0),  # u and w; v has just 4 s
        (3, 2.0),  # u, and w, who waited for a token that did not come
    ]
