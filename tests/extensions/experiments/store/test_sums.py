"""Sums kept up to date equal sums made anew from all rows, whatever comes, in whatever order, how often."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from router.extensions.experiments.model import (
    Aggregate,
    Kind,
    MetricSpec,
    SegmentSpec,
    Unanswered,
)
from router.extensions.experiments.stats.moments import Moments
from router.extensions.experiments.store.series import PhaseData
from router.extensions.experiments.store.store import ExperimentStore
from tests.extensions.experiments.memory_store import MemoryStore
from tests.extensions.experiments.store.helpers import (
    START,
    WINDOW,
    experiment,
    exposed,
    outcome,
    unit_outcome,
)

pytestmark = pytest.mark.slow

METRICS = (
    MetricSpec("n", Kind.MEAN, aggregate=Aggregate.LAST, covariate=True),
    MetricSpec("m", Kind.RATIO, missing=Unanswered.ZERO, covariate=True),
    MetricSpec("per", Kind.RATIO, per="completion_tokens", covariate=True),
    MetricSpec("sum", Kind.MEAN, aggregate=Aggregate.SUM, missing=Unanswered.ZERO),
    MetricSpec("error", Kind.PROPORTION),
    MetricSpec("mean", Kind.MEAN, aggregate=Aggregate.MEAN, covariate=True, cap=50.0, least=-2.0),
)
SECONDARY = (
    MetricSpec("later", Kind.MEAN, aggregate=Aggregate.SUM),
    MetricSpec("past", Kind.MEAN, aggregate=Aggregate.LAST, covariate=True, cap=90.0),
    MetricSpec("share", Kind.RATIO, per="sum", missing=Unanswered.ZERO, covariate=True),
)
SEGMENTS = (SegmentSpec("plan", ("f", "g")), SegmentSpec("land", ("r", "s", "t")))
GRACE = 300.0
NAMES = st.sampled_from([*(m.name for m in (*METRICS, *SECONDARY)), "completion_tokens", "unread"])
PHASES = st.sampled_from([("x", 1), ("x", 2), ("y", 1)])
UNITS, RESPONSES = st.sampled_from("uvw"), st.sampled_from("pqrst")
TIMES = st.sampled_from([-700.0, -5.0, 0.0, 1.0, 130.0, 620.0, WINDOW, WINDOW + 1, WINDOW + 400])
ARMS, VALUES = st.sampled_from("ab"), st.sampled_from([0.0, 1.0, -2.5, 0.1, 1e2])
WHY = st.sampled_from(["", "", "did not load"])

CAME = st.sampled_from([0.0, 0.0, 1.0, WINDOW, WINDOW + GRACE, WINDOW + GRACE + 5, WINDOW + 650 + GRACE])
LABELS = st.fixed_dictionaries(
    {}, optional={"plan": st.sampled_from("fgh"), "land": st.sampled_from("rstuv")}
)


def some(kind: str, *parts: st.SearchStrategy) -> st.SearchStrategy:
    return st.tuples(st.just(kind), *parts)


EXPOSE = some("expose", PHASES, UNITS, RESPONSES, ARMS, TIMES, WHY, LABELS)
RECORD = some("record", st.integers(0, 12), RESPONSES, NAMES, VALUES, TIMES, CAME)
TELL = some("tell", st.integers(0, 12), UNITS, NAMES, VALUES, TIMES, CAME, PHASES)
BATCHES = st.lists(
    st.one_of(st.lists(found, min_size=1, max_size=6) for found in (EXPOSE, RECORD | TELL)), max_size=14
)
_runs = count()


def event(run: str, kind: str, *parts):
    """With names of this run, since runs share a database."""
    if kind == "expose":
        (name, phase), unit, response, arm, at, why, labels = parts
        more = {"degraded": why, "adapter_digest": f"{arm}{phase}", "segments": labels}
        return exposed(run + unit, run + response, arm, at, run + name, phase, **more)
    if kind == "record":
        key, response, metric, value, at, came = parts
        return outcome(run + response, metric, value, at, f"{run}{key}", came)
    if kind == "tell":
        key, unit, metric, value, at, came, (name, _) = parts
        made = unit_outcome(run + unit, metric, value, at, run + name)
        return replace(made, key=f"{run}{key}", received=START + came if came else 0.0)
    raise AssertionError(kind)


def apply(store, batch: list):
    if batch[0][0] == "expose":
        return store.expose([found for _, found in batch])
    return store.record([found for _, found in batch])


def near(found: Moments | None, wanted: Moments | None) -> bool:
    if found is None or wanted is None:
        return found is wanted
    return found.n == wanted.n and all(
        ours == pytest.approx(theirs, rel=1e-9, abs=least)  # what was added and taken away leaves some digits
        for ours, theirs, least in (
            (found.sums, wanted.sums, 1e-9),
            (found.products, wanted.products, 1e-8),
            (found.cubes, wanted.cubes, 1e-5),
        )
    )


def same(found: PhaseData, wanted: PhaseData) -> None:
    for ours, theirs in zip(found.buckets, wanted.buckets, strict=True):
        plain = {"moments": {}, "segments": {}}
        assert replace(ours, **plain) == replace(theirs, **plain)
        for mine, yours in ((ours.moments, theirs.moments), (ours.segments, theirs.segments)):
            assert mine.keys() == yours.keys()
            assert all(near(mine[name], yours[name]) for name in yours), (mine, yours)
    assert replace(found, buckets=()) == replace(wanted, buckets=())


def check(store: ExperimentStore, batches: list) -> None:
    run, oracle = f"run{next(_runs)}-", MemoryStore()
    for name, phases in (("x", (START, START + 600)), ("y", (START - 1,))):
        for each in (store, oracle):
            more = {"secondary": SECONDARY, "segments": SEGMENTS, "grace": GRACE}
            each.create(experiment(run + name, *METRICS, phases=phases, **more))
    for batch in batches:
        made = [(kind, event(run, kind, *parts)) for kind, *parts in batch]
        assert apply(store, made) == apply(oracle, made)
    for name, phase in (("x", 1), ("x", 2), ("y", 1)):
        same(store.data(run + name, phase), oracle.data(run + name, phase))


PHASES_RUN = (Phase.explicit, Phase.generate)  # what fails is printed; making it smaller takes minutes
SHARED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_sums_in_sqlite(sql_store):
    @settings(max_examples=30, deadline=None, phases=PHASES_RUN, suppress_health_check=SHARED)
    @given(BATCHES)
    def holds(batches):
        check(sql_store, batches)

    holds()


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_sums_in_postgresql(sql_store):
    @settings(max_examples=10, deadline=None, phases=PHASES_RUN, suppress_health_check=SHARED)
    @given(BATCHES)
    def holds(batches):
        check(sql_store, batches)

    holds()
