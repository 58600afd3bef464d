"""Writes all that is kept, in the ways of the server, and says what is acknowledged: FOLDER SYNCHRONOUS.

Each line has the number of outcomes, the last default version (a number) and the number of audit lines.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.intake_server import METRIC, NAME
from router.access.audit import Act, Audit
from router.experiments.model import Aggregate, Kind, MetricSpec
from router.experiments.store import database
from router.experiments.store.sql_store import SqlStore
from router.registry.state import Choices
from tests.experiments.store.helpers import experiment, exposed, said

EACH = 20
ACT = Act("id", "local", "here", "router.v1.AdapterService/SetDefaultVersion", "medical", "OK")


def main(folder: Path, synchronous: str) -> None:
    """Until killed."""
    database.SQLITE_PRAGMAS = tuple(
        f"synchronous={synchronous}" if pragma.startswith("synchronous") else pragma
        for pragma in database.SQLITE_PRAGMAS
    )
    store = SqlStore(f"sqlite:///{folder}/experiments.db")
    store.create(experiment(NAME, MetricSpec(METRIC, Kind.MEAN, aggregate=Aggregate.SUM)))
    choices, audit = Choices(folder / "state", [folder]), Audit(folder / "audit.jsonl")
    number = 0
    while True:
        keys = [f"{number}-{i}" for i in range(EACH)]
        store.expose([exposed(f"u{number % 500}-{i}", key, at=1, name=NAME) for i, key in enumerate(keys)])
        store.record([said(key, METRIC, at=2, key=key) for key in keys])
        number += 1
        choices.save(choices.planned("medical", str(number)))
        audit.acted(ACT).result()
        print(number * EACH, number, number, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
