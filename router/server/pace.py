"""Whether an answer can come in time, known before anything is done for it.

Who waits longer than its deadline in the queue takes a place from those that could be answered, and under
lasting overload that is everybody: so such a request is refused when it comes. The same where the event loop
is late while all rows are busy: what comes then would make those late that were let in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from router.engine.base import EngineStatus
from router.errors import Overloaded
from router.server.call import Call
from router.types import Usage

LATEST = 1 / 16  # weight of the answer that ended last
MARGIN = 1.5  # a queue that is just short enough would make half of the answers late
DRIFT = 1.02  # how fast the quickest is forgotten, an answer
LATE_SECONDS = 0.1  # of the event loop: each request needs it some ten times before its first token


class Pace:
    """What the latest answers took, and who waits. Times are seconds; lives on one event loop."""

    def __init__(
        self, rows: int, status: Callable[[], EngineStatus], lag: Callable[[], float] = lambda: 0.0
    ) -> None:
        """`lag`: seconds by which the event loop is late now."""
        self.rows, self._status, self._lag = rows, status, lag
        self._inside: Counter[str] = Counter()  # requests by tenant
        self.mean = self.quickest = 0.0  # from the first step to the end

    def look(self) -> None:
        """Raise Overloaded where there is more to do than can be looked at; costs next to nothing."""
        if self._inside.total() >= self.rows and self._lag() > LATE_SECONDS:
            raise Overloaded("more is asked than can be looked at", retry_after=1.0, bound="busy")

    @contextmanager
    def inside(self, call: Call) -> Iterator[None]:
        """The block of a request. Raises Overloaded where it could not be answered before its deadline."""
        tenant = call.client.tenant
        self._check(tenant, call.seconds_left)
        self._inside[tenant] += 1
        try:
            yield
        finally:
            self._inside[tenant] -= 1
            if not self._inside[tenant]:
                del self._inside[tenant]
            if call.usage is not None and call.usage.completion_tokens:
                self._ended(call.usage)

    def _ended(self, usage: Usage) -> None:
        took = max(0.0, usage.total_time - usage.queue_time)
        self.mean = self.mean + (took - self.mean) * LATEST if self.mean else took
        self.quickest = min(self.quickest * DRIFT, took) if self.quickest else took

    def wait(self, tenant: str) -> float:
        """Seconds until a request of the tenant would begin, if it came now; 0 where nobody waits.

        Tenants take turns, so those of another count as far as this one has as many.
        """
        if self._inside.total() < self.rows or not self.mean:
            return 0.0
        running = self._status().running or self.rows
        mine = self._inside[tenant] + 1
        ahead = sum(min(count, mine) for count in self._inside.values())
        return max(0.0, ahead - running + 1) * self.mean / running

    def _check(self, tenant: str, seconds: float) -> None:
        wait = self.wait(tenant)
        if wait and (wait + self.quickest) * MARGIN > seconds:
            text = f"about {wait:.1f} s of requests wait already, too long for this one's deadline"
            raise Overloaded(text, retry_after=max(0.1, wait / 2), bound="deadline")
