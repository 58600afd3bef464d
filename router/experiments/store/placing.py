"""Outcomes at their units: which count, which are late, and the rows that are kept of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from router.experiments.model import Accepted, Outcome
from router.experiments.store.bulk import Clash
from router.experiments.store.session import Session
from router.experiments.store.tables import outcomes as table
from router.experiments.store.units import Unit


@dataclass(slots=True)
class Placed:
    """An outcome with the units it is newly an outcome of. `known`: names it was under before."""

    outcome: Outcome
    units: list[Unit] = field(default_factory=list)
    known: frozenset[str] = frozenset()

    @property
    def status(self) -> Accepted:
        """What becomes of it."""
        if not self.units:
            return Accepted.UNKNOWN
        counted = any(u.in_window(self.outcome.time) for u in self.units)
        return Accepted.COUNTED if counted else Accepted.LATE


def place(session: Session, found: Iterable[Placed]) -> None:
    """Count them, and keep their rows. Values must be loaded."""
    now = time.time()
    rows = (row for placed in found for row in _rows(placed, now))
    session.bulk.write(session.conn, table, rows, Clash.KEEP)


def _rows(placed: Placed, now: float) -> Iterator[tuple[Any, ...]]:
    said = placed.outcome
    what = (said.metric, said.value, said.time, said.response_id, said.experiment, said.unit)
    for unit in placed.units:
        late = not unit.in_window(said.time)
        if not late:
            unit.count(said.metric, said.value, said.time)
        yield said.key, unit.info.id, unit.id, *what, int(late), now
    if not placed.units:
        yield said.key, 0, None, *what, 0, now
