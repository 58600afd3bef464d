"""Sums kept up to date equal sums made anew from all rows, whatever comes, in whatever order, how often."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from router.experiments.model import Aggregate, Disagreement, Kind, MetricSpec, Unanswered
from router.experiments.stats import Moments
from router.experiments.store.port import PhaseData
from router.experiments.store.sql_store import SqlStore
from tests.experiments.memory_store import MemoryStore
from tests.experiments.store.helpers import START, WINDOW, experiment, exposed, said, told

METRICS = (
    MetricSpec("n", Kind.MEAN, aggregate=Aggregate.LAST, covariate=True),
    MetricSpec("m", Kind.RATIO, missing=Unanswered.ZERO, covariate=True),
    MetricSpec("per", Kind.RATIO, per="completion_tokens", covariate=True),
    MetricSpec("sum", Kind.MEAN, aggregate=Aggregate.SUM, missing=Unanswered.ZERO),
    MetricSpec("error", Kind.PROPORTION),
    MetricSpec("mean", Kind.MEAN, aggregate=Aggregate.MEAN, covariate=True),
)
NAMES = st.sampled_from([*(m.name for m in METRICS), "completion_tokens", "unread"])
PHASES = st.sampled_from([("x", 1), ("x", 2), ("y", 1)])
UNITS, RESPONSES = st.sampled_from("uvw"), st.sampled_from("pqrst")
TIMES = st.sampled_from([-700.0, -5.0, 0.0, 1.0, 130.0, 620.0, WINDOW, WINDOW + 1, WINDOW + 400])
ARMS, VALUES = st.sampled_from("ab"), st.sampled_from([0.0, 1.0, -2.5, 0.1, 1e3])
WHY = st.sampled_from(["", "", "did not load"])

EXPOSE = st.builds(
    lambda p, u, r, a, t, d: ("expose", p, u, r, a, t, d), PHASES, UNITS, RESPONSES, ARMS, TIMES, WHY
)
RECORD = st.builds(lambda *parts: ("record", *parts), st.integers(0, 12), RESPONSES, NAMES, VALUES, TIMES)
TELL = st.builds(lambda *parts: ("tell", *parts), st.integers(0, 12), UNITS, NAMES, VALUES, TIMES, PHASES)
DIFFER = st.builds(lambda *parts: ("differ", *parts), PHASES, UNITS, RESPONSES, st.booleans())
BATCHES = st.lists(
    st.one_of(*(st.lists(found, min_size=1, max_size=6) for found in (EXPOSE, RECORD | TELL, DIFFER))),
    max_size=12,
)
_runs = count()


def event(run: str, kind: str, *parts):
    """With names of this run, since runs share a database."""
    if kind == "expose":
        (name, phase), unit, response, arm, at, why = parts
        digest = f"{arm}{phase}"
        return exposed(
            run + unit, run + response, arm, at, run + name, phase, degraded=why, adapter_digest=digest
        )
    if kind == "record":
        key, response, metric, value, at = parts
        return said(run + response, metric, value, at, key=f"{run}{key}")
    if kind == "tell":
        key, unit, metric, value, at, (name, _) = parts
        return replace(told(run + unit, metric, value, at, run + name), key=f"{run}{key}")
    (name, phase), unit, response, same = parts
    return Disagreement(run + name, phase, run + unit, run + response, START, "base", "base" if same else "m")


def apply(store, batch: list):
    if batch[0][0] == "expose":
        return store.expose([found for _, found in batch])
    if batch[0][0] == "differ":
        return store.disagree([found for _, found in batch])
    return store.record([found for _, found in batch])


def near(found: Moments | None, wanted: Moments | None) -> bool:
    if found is None or wanted is None:
        return found is wanted
    return found.n == wanted.n and all(
        ours == pytest.approx(theirs, rel=1e-9, abs=1e-9)
        for ours, theirs in ((found.sums, wanted.sums), (found.products, wanted.products))
    )


def same(found: PhaseData, wanted: PhaseData) -> None:
    for ours, theirs in zip(found.buckets, wanted.buckets, strict=True):
        plain = {"moments": {}, "lengths": None}
        assert replace(ours, **plain) == replace(theirs, **plain)
        assert all(near(ours.moments[m.name], theirs.moments[m.name]) for m in METRICS), (ours, theirs)
        assert near(ours.lengths, theirs.lengths)
    for arm, means in wanted.built_in.items():
        assert found.built_in[arm] == pytest.approx(means)
    assert found.built_in.keys() == wanted.built_in.keys()
    rest = {"buckets": (), "built_in": {}}
    assert replace(found, **rest) == replace(wanted, **rest)


def check(store: SqlStore, batches: list) -> None:
    run, oracle = f"run{next(_runs)}-", MemoryStore()
    for name, phases in (("x", (START, START + 600)), ("y", (START - 1,))):
        for each in (store, oracle):
            each.create(experiment(run + name, *METRICS, phases=phases))
    for batch in batches:
        made = [(kind, event(run, kind, *parts)) for kind, *parts in batch]
        assert apply(store, made) == apply(oracle, made)
    for name, phase in (("x", 1), ("x", 2), ("y", 1)):
        same(store.data(run + name, phase), oracle.data(run + name, phase))
        same(store.triggered(run + name, phase), oracle.triggered(run + name, phase))


PHASES_RUN = (Phase.explicit, Phase.generate)  # what fails is printed; making it smaller takes minutes
SHARED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_sums_in_sqlite(sql_store):
    @settings(max_examples=60, deadline=None, phases=PHASES_RUN, suppress_health_check=SHARED)
    @given(BATCHES)
    def holds(batches):
        check(sql_store, batches)

    holds()


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_sums_in_postgresql(sql_store):
    @settings(max_examples=25, deadline=None, phases=PHASES_RUN, suppress_health_check=SHARED)
    @given(BATCHES)
    def holds(batches):
        check(sql_store, batches)

    holds()
