"""Writes one kind of what is kept, as the server does, and says how much is acknowledged: FOLDER WHAT CARE.

WHAT is `outcomes`, `choices` or `audit`: one alone, since anyone who waits for the disk makes it write what
others left to it. Each line is a number, of outcomes, of the last default version or of audit lines. CARE is
`careful`, or `careless` for a control that waits for no disk.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

NAME, METRIC, EACH = "intake", "points", 20
DATABASE, LINES = "experiments.db", "audit.jsonl"


def outcomes(folder: Path, careful: bool) -> Iterator[int]:
    """In batches."""
    from router.extensions.experiments.model import Aggregate, Kind, MetricSpec
    from router.extensions.experiments.store.store import ExperimentStore
    from router.shared import database
    from tests.extensions.experiments.store.helpers import experiment, exposed, outcome

    if not careful:
        database.SQLITE_PRAGMAS = (*database.SQLITE_PRAGMAS, "synchronous=OFF")
    store = ExperimentStore(f"sqlite:///{folder}/{DATABASE}")
    store.create(experiment(NAME, MetricSpec(METRIC, Kind.MEAN, aggregate=Aggregate.SUM)))
    for number in range(1 << 30):
        keys = [f"{number}-{i}" for i in range(EACH)]
        units = [f"u{number % 500}-{i}" for i in range(EACH)]
        store.expose([exposed(unit, key, at=1, name=NAME) for unit, key in zip(units, keys, strict=True)])
        store.record([outcome(key, METRIC, at=2, key=key) for key in keys])
        yield (number + 1) * EACH


def choices(folder: Path, careful: bool) -> Iterator[int]:
    """Default versions of medical, which are numbers here."""
    from router.registry.choices import DefaultChoices

    found = DefaultChoices(folder / "state", [folder])
    for number in range(1, 1 << 30):
        choice = found.with_default("medical", str(number))
        found.save("medical", choice)
        found.take("medical", choice)
        yield number


def audit(folder: Path, careful: bool) -> Iterator[int]:
    """Lines about administration."""
    from router.access.audit import Audit, AuditedCall

    act = AuditedCall("id", "local", "here", "router.v1.AdapterService/SetDefaultVersion", "medical", "OK")
    found = Audit(folder / LINES)
    for number in range(1, 1 << 30):
        found.acted(act).result()
        yield number


def main(folder: Path, what: str, careful: bool) -> None:
    """Until killed."""
    if not careful:
        os.fsync = lambda handle: None  # type: ignore[assignment]
    for acknowledged in {"outcomes": outcomes, "choices": choices, "audit": audit}[what](folder, careful):
        print(acknowledged, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "careful")
