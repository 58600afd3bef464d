"""The benchmark of the store counts what it says it counts."""

from __future__ import annotations

from benchmarks.outcome_store import experiment, fill, read
from router.experiments.store.store import ExperimentStore


def test_everything_is_counted(tmp_path):
    store = ExperimentStore(f"sqlite:///{tmp_path}/x.db")
    for name in ("x", "large"):
        row = fill(store, name, responses=300, each=4, batch=100)
        assert (row["responses"], row["batch"]) == (300, 100)
        assert row["outcomes/s"] > 0
        assert 60 <= read(store, name)["units"] <= 80
    spec = experiment("x").spec
    buckets = store.data("x", 1).buckets
    for metric in (spec.primary, *spec.guardrails):
        assert 30 < sum(b.answered[metric.name] for b in buckets) < 80
    store.close()
