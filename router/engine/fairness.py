"""Fair queueing: of several tenants that wait, the one that was served least is next.

Virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024,
arxiv.org/abs/2401.00588): tokens are counted for each tenant as it is served, those of answers twice, and the
next place goes to the tenant with the lowest count. No place is reserved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from router.engine.rows import BatchRow

TURN = 0.1  # of a scheduler's patience: what a tenant of which nothing runs waits for a place at most


class VirtualCounters:
    """How much each tenant was served, and which tenants wait. Keeps a number for each tenant.

    A tenant that begins to wait is lifted to the least count of those that wait, or to that of the tenant
    that waited last: time in which it requested nothing is no credit.
    """

    def __init__(self) -> None:
        self._served: dict[str, float] = {}
        self._waiting: Counter[str] = Counter()
        self._last = ""  # of which the last that waited was served

    def enter(self, tenant: str, *, again: bool = False) -> None:
        """One more of the tenant waits; `again` if it was served and has to wait once more."""
        if not again and not self.waits(tenant):
            least = min(map(self.served, self._waiting), default=self.served(self._last))
            self._served[tenant] = max(self.served(tenant), least)
        self._waiting[tenant] += 1

    def leave(self, tenant: str) -> None:
        """One less waits."""
        self._waiting[tenant] -= 1
        if not self._waiting[tenant]:
            del self._waiting[tenant]
            self._last = tenant

    def waits(self, tenant: str) -> bool:
        """Whether anything of the tenant waits."""
        return tenant in self._waiting

    def charge(self, tenant: str, cost: float) -> None:
        """It was served so much more."""
        self._served[tenant] = self.served(tenant) + cost

    def served(self, tenant: str) -> float:
        """How much it was served, or would have been."""
        return self._served.get(tenant, 0.0)


class FairQueue:
    """The order in which requests of several tenants are admitted, computed and preempted.

    With requests of one tenant it is the order of rank. Pooling requests and rows in the background are not
    counted. Counts are updated when a request waits, not at every step.
    """

    def __init__(self) -> None:
        self._counters = VirtualCounters()
        self._rows: Counter[str] = Counter()  # in the engine
        self._running: Counter[str] = Counter()  # of these
        self._waiting: list[dict[str, list[BatchRow]]] = []  # by priority and tenant; none once that changed

    @property
    def several(self) -> bool:
        """Whether there are requests of more than one tenant."""
        return len(self._rows) > 1

    def runs(self, tenant: str) -> bool:
        """Whether anything of the tenant runs."""
        return tenant in self._running

    # -- What happens to requests.

    def add(self, row: BatchRow, running: Iterable[BatchRow]) -> None:
        """It begins to wait."""
        if _counts(row):
            if not self._counters.waits(row.tenant) and self._rows.keys() - {row.tenant}:
                self._settle(running)
            self._rows[row.tenant] += 1
            self._counters.enter(row.tenant)
            self._waiting = []

    def admitted(self, row: BatchRow) -> None:
        """It runs. Its tenant is charged for the prompt now, so that another tenant may be next."""
        if _counts(row):
            self._counters.leave(row.tenant)
            self._running[row.tenant] += 1
            self._settle([row])
            self._waiting = []

    def preempted(self, row: BatchRow) -> None:
        """It was preempted, and waits again."""
        if _counts(row):
            self._settle([row])
            _less(self._running, row.tenant)
            self._counters.enter(row.tenant, again=True)
            self._waiting = []

    def ended(self, row: BatchRow, *, ran: bool) -> None:
        """It is gone; `ran`: it was not waiting."""
        if _counts(row):
            _less(self._rows, row.tenant)
            if ran:
                _less(self._running, row.tenant)
            else:
                self._counters.leave(row.tenant)
                self._waiting = []
            self._settle([row])

    def _settle(self, rows: Iterable[BatchRow]) -> None:
        """Count what they were served since that was last done."""
        for row in rows:
            if (new := row.cost - row.paid) > 0:
                self._counters.charge(row.tenant, new / row.share)
                row.paid = row.cost

    # -- Orders.

    def queue(self, waiting: Sequence[BatchRow], running: Iterable[BatchRow]) -> Iterator[BatchRow]:
        """The waiting rows in the order of admission; `waiting` is in the order of rank.

        Of equal priority it is the first of the tenant that was served least, what is admitted meanwhile
        included.
        """
        if not self.several:
            yield from tuple(waiting)
            return
        self._settle(running)
        self._waiting = self._waiting or _by_tenant(waiting)
        for queues in self._waiting:
            left = {tenant: iter(queue) for tenant, queue in queues.items()}
            firsts = {tenant: next(queue) for tenant, queue in left.items()}
            while firsts:
                first = min(firsts.values(), key=self._turn)
                yield first
                if (second := next(left[first.tenant], None)) is not None:
                    firsts[first.tenant] = second
                else:
                    del firsts[first.tenant]

    def _turn(self, row: BatchRow) -> tuple[float, int, int]:
        return self._counters.served(row.tenant), self._running[row.tenant], row.number

    def prompt_order(self, prompts: Sequence[BatchRow]) -> Sequence[BatchRow]:
        """In which order prompts get what of a step the first in rank does not; given in the order of rank.

        With several tenants the first of each other, then the next of each.
        """
        if not self.several:
            return prompts
        places = Counter(prompt.tenant for prompt in prompts[:1])

        def key(row: BatchRow) -> tuple[int, int, float, int]:
            places[row.tenant] += 1
            return -row.priority, places[row.tenant], self._counters.served(row.tenant), row.number

        return sorted(prompts, key=key)

    def giving_way(self, rows: Iterable[BatchRow], running: Sequence[BatchRow]) -> list[BatchRow]:
        """These rows in the order in which they are preempted: the last in rank first.

        Of several tenants, those of equal priority whose tenant was served most, but the first of each tenant
        last. A pooling request counts as of who was served most.
        """
        if not self.several:
            return sorted(rows, key=lambda row: row.rank, reverse=True)
        firsts, most = _firsts(running), max(map(self._counters.served, self._rows))

        def key(row: BatchRow) -> tuple[int, bool, float, int]:
            served = self._counters.served(row.tenant) if _counts(row) else most
            return row.priority, row in firsts, -served, -row.number

        return sorted(rows, key=key)

    def yielding(self, row: BatchRow, running: Sequence[BatchRow]) -> list[BatchRow]:
        """Rows that may be preempted, beside those behind it in rank, where one that runs needs a block.

        Of tenants that were served as much at least, its own included, all but the first of each.
        """
        if not self.several:
            return []
        self._settle(running)
        return [other for other in self._heavier(row, running) if other.rank <= row.rank]

    def displaceable(self, row: BatchRow, running: Sequence[BatchRow]) -> list[BatchRow]:
        """Rows that one that has waited too long may preempt, where there are several tenants.

        Those of its own tenant behind it in rank. Of tenants that were served as much at least, all but the
        first of each: those behind it in rank, any where nothing of its own tenant runs.
        """
        own = [other for other in running if other.tenant == row.tenant and other.rank > row.rank]
        heavier = [other for other in self._heavier(row, running) if other.tenant != row.tenant]
        any_rank = not self.runs(row.tenant)
        return [*own, *(other for other in heavier if any_rank or other.rank > row.rank)]

    def _heavier(self, row: BatchRow, running: Sequence[BatchRow]) -> Iterator[BatchRow]:
        """Of no higher priority, of tenants that were served as much at least, and not the first of one."""
        firsts, served = _firsts(running), self._counters.served(row.tenant)
        for other in running:
            as_much = self._counters.served(other.tenant) >= served
            if as_much and other.priority <= row.priority and other not in firsts:
                yield other


def _by_tenant(waiting: Sequence[BatchRow]) -> list[dict[str, list[BatchRow]]]:
    """The queue of each, apart for each priority."""
    found: list[dict[str, list[BatchRow]]] = []
    for _, equal in groupby(waiting, lambda row: row.priority):
        queues: dict[str, list[BatchRow]] = {}
        for row in equal:
            queues.setdefault(row.tenant, []).append(row)
        found.append(queues)
    return found


def _counts(row: BatchRow) -> bool:
    return row.samples and not row.background


def _firsts(running: Iterable[BatchRow]) -> set[BatchRow]:
    """The first in rank of each tenant."""
    firsts: dict[str, BatchRow] = {}
    for row in running:
        if row.tenant not in firsts or row.rank < firsts[row.tenant].rank:
            firsts[row.tenant] = row
    return set(firsts.values())


def _less(rows: Counter[str], tenant: str) -> None:
    rows[tenant] -= 1
    if not rows[tenant]:
        del rows[tenant]
