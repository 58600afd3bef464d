"""How fast outcomes are taken in, and how fast sums are read: `python -m benchmarks.outcome_store`.

Straight into the store, without gRPC. PostgreSQL is a server of its own, durable as it comes (fsync on).
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks import report
from router.experiments.model import (
    Accepted,
    ArmSpec,
    Experiment,
    ExperimentPhase,
    Exposure,
    Kind,
    Lifecycle,
    MetricSpec,
    Spec,
    StoredOutcome,
)
from router.experiments.store.store import ExperimentStore
from tests.experiments.store.postgres import Server, binaries

ARMS = (ArmSpec("control", 0.5), ArmSpec("treatment", 0.5))
METRICS = (
    MetricSpec("resolved", Kind.PROPORTION),
    MetricSpec("thumbs", Kind.RATIO),
    MetricSpec("total_time", Kind.MEAN),
)
DAY = 86_400.0
BATCH, LARGE_BATCH = 1000, 5000  # a client's batch, and what the server puts into one transaction at most
SAMPLING = '{"max_tokens": 256, "temperature": 0.7, "top_p": 0.9}'
Events = tuple[list[Exposure], list[StoredOutcome]]


def experiment(name: str) -> Experiment:
    """A month old, with a window of a day."""
    primary, *rest = METRICS
    spec = Spec("h", "medical", ARMS, "control", primary, tuple(rest), window=DAY)
    return Experiment(name, spec, Lifecycle.RUNNING, (ExperimentPhase(1, 0.0, "e", "v", spec),))


def events(name: str, responses: int, each: int, batch: int) -> Iterator[Events]:
    """Batches of exposures with one outcome each, over 30 days: thumbs, resolved or seconds.

    A unit has about `each` responses, most of them within half a day, so that nearly all outcomes count.
    """
    rng, near = random.Random(name), 1 + responses // 60
    for start in range(0, responses, batch):
        shown, said = [], []
        for i in range(start, min(start + batch, responses)):
            unit = (i + rng.randrange(near)) // each
            at, key = 30 * DAY * i / responses, f"{rng.getrandbits(128):032x}"
            arm = ARMS[unit % 2].name
            shown.append(
                Exposure(name, 1, f"{unit:032x}", arm, at, key, 0.5, "a" * 64, "b" * 64, "", SAMPLING)
            )
            metric, value = rng.choice((("resolved", 1.0), ("thumbs", 1.0), ("total_time", rng.random())))
            said.append(StoredOutcome(f"{key}-{metric}", metric, value, at + 60, response_id=key))
        yield shown, said


def fill(store: ExperimentStore, name: str, responses: int, each: int, batch: int) -> dict[str, Any]:
    """Seconds of each batch."""
    store.create(experiment(name))
    exposing, recording = [], []
    for shown, said in events(name, responses, each, batch):
        began = time.perf_counter()
        store.expose(shown)
        middle = time.perf_counter()
        statuses = store.record(said)
        exposing.append(middle - began)
        recording.append(time.perf_counter() - middle)
        if not set(statuses) <= {Accepted.COUNTED, Accepted.LATE}:
            raise RuntimeError(f"outcomes were not counted: {set(statuses)}")
    return {
        "responses": responses,
        "responses of a unit": each,
        "exposures/s": responses / sum(exposing),
        "outcomes/s": responses / sum(recording),
        "batch": batch,
        "median ms": 1e3 * median(recording),
        "p95 ms": 1e3 * quantiles(recording, n=20)[-1],
    }


def read(store: ExperimentStore, name: str) -> dict[str, Any]:
    """Milliseconds to read all sums, five times."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        found = store.data(name, 1)
        times.append(1e3 * (time.perf_counter() - began))
    exposed = sum(b.exposed for b in found.buckets)
    return {"buckets": len(found.buckets), "units": exposed, "first ms": times[0], "median ms": median(times)}


@contextmanager
def stores() -> Iterator[dict[str, ExperimentStore]]:
    """One of each kind, empty."""
    where = binaries()
    if where is None:
        raise SystemExit("PostgreSQL is needed: apt-get install postgresql")
    server = Server(where)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "experiments.db"
        found = {"SQLite": ExperimentStore(f"sqlite:///{path}"), "PostgreSQL": ExperimentStore(server.url())}
        try:
            yield found
        finally:
            for store in found.values():
                store.close()
            server.close()


def main() -> None:
    """Fill both, then SQLite up to the size of a large experiment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outcomes", type=int, default=100_000, help="into each store")
    parser.add_argument(
        "--large", type=int, default=1_000_000, help="exposures and outcomes to report on; 0: none"
    )
    parser.add_argument("--note", action="append", default=[], help="what else ran on the machine")
    parser.add_argument("--dry", action="store_true", help="print, write nothing")
    chosen = parser.parse_args()
    rows, reads = [], []
    with stores() as found:
        for database, store in found.items():
            rows.append({"database": database, **fill(store, "x", chosen.outcomes, 4, BATCH)})
            reads.append({"database": database, "responses": chosen.outcomes, **read(store, "x")})
        if chosen.large:
            store, size = found["SQLite"], chosen.large
            rows.append({"database": "SQLite", **fill(store, "large", size, 1, LARGE_BATCH)})
            reads.append({"database": "SQLite", "responses": size, **read(store, "large")})
    print(report.table(rows), report.table(reads), sep="\n\n")
    if not chosen.dry:
        workload = (
            "A batch of exposures, then one of their outcomes, and so on, by one thread; 3 metrics, 2 arms, "
            "30 days in stretches of an hour. Every batch is on disk when it is acknowledged."
        )
        page = report.write("outcome-store", workload, rows, chosen.note, tables={"Reading all sums": reads})
        print(page)


if __name__ == "__main__":
    main()
