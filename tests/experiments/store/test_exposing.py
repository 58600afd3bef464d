"""The effect by segment: which values are told apart, and their sums."""

from __future__ import annotations

import pytest

from router.experiments.model import (
    MAX_SEGMENT_VALUES,
    NO_VALUE,
    OTHER_VALUE,
    Disagreement,
    Kind,
    MetricSpec,
    SegmentSpec,
)
from router.experiments.store.recording import LONGEST
from router.experiments.store.store import ExperimentStore
from tests.experiments.store.helpers import START, act, experiment, exposed, outcome, with_secondary

NAMED, OPEN = SegmentSpec("plan", ("free", "paid")), SegmentSpec("country")
SECONDS = MetricSpec("seconds", Kind.MEAN)


def shown(unit: str, arm: str = "a", at: float = 0.0, **labels: str):
    return exposed(unit, f"r-{unit}-{at}", arm, at, segments=labels)


def units(store, label: str, arm: str = "a", triggered: bool = False) -> dict[str, tuple]:
    """Value -> (units, sum) of one arm in its first stretch."""
    data = store.data("x", 1, only_differing=True) if triggered else store.data("x", 1)
    found = next(b for b in data.buckets if b.arm == arm).segments
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


def test_the_first_values_are_told_apart(store):
    store.create(experiment(segments=(OPEN,)))
    names = [f"c{i}" for i in range(MAX_SEGMENT_VALUES + 3)]
    for part in (names[:5], [*names[5:], names[0]]):
        store.expose([shown(f"{n}-{len(part)}", country=n) for n in part])
        store.record([outcome(f"r-{n}-{len(part)}-0.0") for n in part])
    found = units(store, "country")
    assert found.pop(OTHER_VALUE) == (3, 3.0)
    assert found.pop("c0") == (2, 2.0)
    assert set(found) == set(names[1:MAX_SEGMENT_VALUES])
    store.expose([shown("none")])
    store.record([outcome("r-none-0.0")])
    assert units(store, "country")[NO_VALUE] == (1, 1.0)


def test_units_move_with_their_segments_where_the_routers_differ(store):
    store.create(experiment(segments=(NAMED,)))
    store.expose([shown("u", plan="free"), shown("v", plan="free")])
    store.record([outcome("r-u-0.0"), outcome("r-v-0.0")])
    store.disagree([Disagreement("x", 1, "u", "r", START, "base", "adapters/m/versions/1")])
    assert units(store, "plan", triggered=True) == {"free": (1, 1.0)}
    assert units(store, "plan") == {"free": (2, 2.0)}


@pytest.mark.slow
def test_two_servers_agree(url):
    first, second = ExperimentStore(url), ExperimentStore(url)
    first.create(experiment(segments=(OPEN,)))
    for i in range(MAX_SEGMENT_VALUES):
        (first if i % 2 else second).expose([shown(f"u{i}", country=f"c{i}")])
    for store in (first, second):
        store.expose(
            [shown(f"late-{id(store)}", country="one more"), shown(f"old-{id(store)}", country="c1")]
        )
        store.record([outcome(f"r-{name}-{id(store)}-0.0") for name in ("late", "old")])
    assert units(first, "country") == units(second, "country") == {OTHER_VALUE: (2, 2.0), "c1": (2, 2.0)}
    first.close()
    second.close()


@pytest.mark.slow
@pytest.mark.parametrize("value", ["a\x1fb", "%_\\", "Ünal 名", "", "x" * LONGEST, '"'])
def test_any_value_is_kept_as_it_is(sql_store, value):
    sql_store.create(experiment(segments=(OPEN,)))
    sql_store.expose([shown("u", country=value)])
    sql_store.record([outcome("r-u-0.0")])
    assert units(sql_store, "country") == {value: (1, 1.0)}
    sql_store.replace(with_secondary(sql_store.get("x"), SECONDS), act())
    assert units(sql_store, "country") == {value: (1, 1.0)}


@pytest.mark.parametrize(("value", "kept"), [("x" * (LONGEST + 1), OTHER_VALUE), ("a\0b", "ab")])
def test_what_no_database_can_have_in_a_key(sql_store, value, kept):
    sql_store.create(experiment(segments=(OPEN,)))
    sql_store.expose([shown("u", country=value)])
    sql_store.record([outcome("r-u-0.0")])
    assert units(sql_store, "country") == {kept: (1, 1.0)}
