"""How many outcomes may wait for their response or unit: anybody can make those, so their rows are bounded.

The number is counted now and then, and kept up in between: rows that found their exposure or were removed,
and those of other servers, show at the next count.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import Connection, func, select

from router.experiments.store.tables import WAITING, outcomes

MOST = 1_000_000  # rows, each of about a kilobyte
COUNT_SECONDS, FULL_SECONDS = 60.0, 5.0  # between two counts; where none more may wait


class Waiting:
    """`most` rows may wait. One writer at a time."""

    def __init__(self, most: int = MOST, now: Callable[[], float] = time.monotonic) -> None:
        self._most, self._now = most, now
        self._rows, self._counted = 0, float("-inf")

    def room(self, conn: Connection) -> int:
        """How many more may wait."""
        after = FULL_SECONDS if self._rows >= self._most else COUNT_SECONDS
        if self._now() - self._counted >= after:
            some = select(outcomes.c.received).where(WAITING).limit(self._most).subquery()
            query = select(func.count()).select_from(some)  # of an index of those that wait, and no further
            self._rows, self._counted = conn.execute(query).scalar_one(), self._now()
        return max(self._most - self._rows, 0)

    def add(self, rows: int) -> None:
        """So many more wait."""
        self._rows += rows
