"""The one way into the store for everything that requests leave behind: ordered, bounded, in batches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from router.errors import Overloaded, StoreDown
from router.experiments.live.availability import Availability
from router.experiments.live.counts import Counts
from router.experiments.live.writer import Entry, Kind, Writer
from router.experiments.model import Accepted, Disagreement, Exposure, Outcome, Pair
from router.experiments.store.port import Store

log = logging.getLogger(__name__)
LIMIT = 50_000  # records in the queue
CLOSE_SECONDS = 10.0


class Recorder:
    """Call it on the event loop; a thread of its own writes, and nothing here waits but `record` and `flush`.

    What is put in first is written first, exposures of one batch before its outcomes. While the store is
    down, records wait in the queue; past `limit` records, new ones are dropped and counted.
    """

    def __init__(
        self,
        store: Store,
        availability: Availability | None = None,
        counts: Counts | None = None,
        limit: int = LIMIT,
    ) -> None:
        self.availability = availability or Availability()
        self.counts = counts or Counts()
        self._limit, self._put = limit, 0
        self._writer = Writer(store, self.availability, self.counts.lose)
        self._open = False

    def start(self) -> None:
        """Begin to write; on the event loop."""
        self._writer.begin(asyncio.get_running_loop())
        self._open = True

    @property
    def queued(self) -> int:
        """Records that are not durable yet."""
        return self._put - self._writer.done

    def expose(self, exposure: Exposure) -> None:
        """An arm began to answer. Returns at once; durable within about half a second."""
        self._later(Kind.EXPOSURES, (exposure,))

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """Outcomes that the server itself makes. Returns at once."""
        self._later(Kind.OUTCOMES, outcomes)

    def pairs(self, pairs: Sequence[Pair]) -> None:
        """Judged shadow answers. Returns at once."""
        self._later(Kind.PAIRS, pairs)

    def disagree(self, found: Sequence[Disagreement]) -> None:
        """What both routers said. Returns at once."""
        self._later(Kind.DISAGREEMENTS, found)

    async def record(self, outcomes: Sequence[Outcome]) -> tuple[Accepted, ...]:
        """What became of each, in order, once they are durable, after all that was put in before.

        Batches of many callers share a transaction. Raises StoreDown (send them again, with the same keys)
        and Overloaded (the queue is full).
        """
        if not outcomes:
            return ()
        if self.queued + len(outcomes) > self._limit:
            raise Overloaded("too many outcomes wait to be written; send them again")
        found: tuple[Accepted, ...] = await self._awaited(Kind.OUTCOMES, outcomes)
        self.counts.outcomes.update(found)
        return found

    async def flush(self) -> None:
        """Return once all that was put in before is durable. Raises StoreDown."""
        await self._awaited(Kind.NOTHING, ())

    async def close(self) -> None:
        """Write what is there, then let the thread go; gives up after seconds, or if the store is down."""
        if not self._open:
            return
        self._open = False
        if not await asyncio.to_thread(self._writer.end, CLOSE_SECONDS):
            log.error("%d records of experiments were not written: the store did not answer", self.queued)

    def _later(self, kind: Kind, rows: Sequence[Any]) -> None:
        if not rows:
            return
        if not self._open or self.queued + len(rows) > self._limit:
            self.counts.lose(kind.value, len(rows))
            return
        self._put += len(rows)
        self._writer.put(Entry(kind, rows))

    async def _awaited(self, kind: Kind, rows: Sequence[Any]) -> Any:
        if not self._open:
            raise StoreDown("the server takes no records now")
        if problem := self.availability.problem:
            raise StoreDown(problem)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._put += len(rows)
        self._writer.put(Entry(kind, rows, answer), urgent=True)
        return await answer
