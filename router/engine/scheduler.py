"""Which tokens of which rows the next step computes.

The scheduler admits rows where there is room, takes cache blocks for them as they grow, and cuts what they
have left to compute into the chunks of a step.
"""

from __future__ import annotations

import logging
import math
import time
from bisect import insort
from collections.abc import Iterable, Iterator, Sequence

from router.engine.fairness import TURN, FairQueue
from router.engine.lora import DeviceSlots
from router.engine.ops import BLOCK
from router.engine.rows import BatchRow, BlockPool, CacheSalts, Chain, Chunk, activated, chain_root

log = logging.getLogger(__name__)

POOLING_ROWS = 8
DEEP_PRICE = 1.5  # of a token deep in a prompt, in tokens without context, from which chunks are smaller
POOLING_TOKENS = 256  # of one step: each may need its logits kept
AHEAD = 4  # blocks that each answer in progress may still take before a new one preempts any row


class Scheduler:
    """Waiting and running rows of one engine; used by the engine thread only.

    Answers that decode get one token each; the rest of the step's token budget goes to prompts, in chunks.
    The oldest prompt gets at least half. Of the rest, prompts with much less left come first, so that a short
    question begins beside long ones. Deep in a long prompt each token costs more, since it attends to all
    before it: chunks are smaller there while others decode, so that the next token takes no longer.

    A waiting row is admitted when there are a place, blocks for its tokens so far and a slot for its adapter;
    a row that has to wait for slot or blocks is passed over. An answer takes more blocks as it grows. Where
    there are none, the row of the lowest rank (the lowest priority, then the latest arrival) is preempted:
    its place, blocks and hold on the slot are free, and it waits again in the order of arrival. When it is
    admitted, its prompt and its answer so far are computed again, as far as the prefix cache does not have
    them. So the row of the highest rank is never preempted and always goes on. Admission leaves some blocks
    for the running rows, so that they do not preempt each other at once.

    Waiting is bounded: the first row in the queue, when it has waited for more than `patience` seconds, gets
    the place and the blocks of rows behind it in rank, if that is enough; and while it waits for a slot, no
    row with another adapter is admitted.

    With requests of several tenants, the order of admission, of preemption and of prompts follows how much
    each tenant was served (`FairQueue`). The row of the highest rank of all is never preempted; the first row
    of a tenant is preempted only for one ahead of it. A row of a tenant of which nothing runs has less
    patience, and gets the place, the blocks or the slot of rows whose tenants were served more.

    An answer whose masks are much work skips as many steps as they count tokens, unless nothing else is to be
    computed: the next token of others waits no longer for it than for an answer without masks.

    Pooling requests have a queue and places of their own: they neither take nor wait for an answer's place.
    Of a step they get what answers leave, up to a bound, but an eighth always; those in the background get no
    more than that eighth while there are answers.

    Background answers (shadows) run while no row waits and places and blocks are plenty, with the step's
    tokens that all others leave, an eighth at most beside them. One that cannot begin in the step it comes in
    is dropped; the newest are dropped one by one before any request waits for a place, blocks or a slot, and
    before any is preempted.
    """

    def __init__(
        self,
        pool: BlockPool,
        slots: DeviceSlots,
        *,
        base_digest: str,
        max_running: int,
        max_step_tokens: int,
        patience: float = 1.0,
        even_context: float = math.inf,
    ) -> None:
        """`even_context`: tokens of context at which a token's attention costs as much as all else."""
        self.pool = pool
        self.slots = slots
        self.waiting: list[BatchRow] = []
        self.running: list[BatchRow] = []
        self.pooling_queue: list[BatchRow] = []  # pooling requests that wait
        self.pooling: list[BatchRow] = []  # and those in progress
        self.offered: list[BatchRow] = []  # background rows that came since the last step
        self.background: list[BatchRow] = []  # and those that run, oldest first
        self.failed: list[tuple[BatchRow, Exception]] = []  # their adapters cannot be brought in
        self.dropped: list[BatchRow] = []  # background rows: the next step ends them
        self.preemptions = 0
        self._fair = FairQueue()
        self._full: dict[BatchRow, None] = {}  # rows with full blocks that the prefix cache does not know yet
        self._decoded: list[Chunk] = []  # of a step in which all of `running` decode; none once that changed
        self._base_digest, self._salts = base_digest, CacheSalts()
        self._max_running = max_running
        self._max_step_tokens = max_step_tokens
        self._patience = patience
        self._even_context = even_context

    @property
    def busy(self) -> bool:
        """Whether there is anything to compute or admit."""
        return self.active or bool(self.waiting or self.pooling_queue or self.offered)

    @property
    def active(self) -> bool:
        """Whether there is anything to compute now."""
        return bool(self.running or self.pooling or self.background)

    def add(self, row: BatchRow) -> None:
        """Queue it behind all of its priority."""
        row.queued = row.arrived
        row.chain = self._chain(row)
        self._fair.add(row, self.running)
        self._queue(row)

    def schedule(self) -> list[Chunk]:
        """The next step: what the base computes first, then one contiguous range for each adapter.

        The very same list again means the same rows in the same blocks.
        """
        self._admit()
        self._grow()
        return self._decoding() or self._mixed()

    def _decoding(self) -> list[Chunk]:
        """The step of answers that all decode; none if there is anything else to compute, or too many.

        Most steps are of this kind, so its chunks are made anew only when a row has come or gone.
        """
        running = self.running
        if self.pooling or self.background or len(running) > self._max_step_tokens:
            return []
        for row in running:
            if len(row.tokens) - row.computed != 1 or row.steps_to_skip:
                return []
        if not self._decoded:
            self._decoded = sorted((Chunk(row, 1, samples=True) for row in running), key=_step_order)
        return self._decoded

    def _mixed(self) -> list[Chunk]:
        eighth = max(1, self._max_step_tokens // 8)
        kept = eighth if self.pooling else 0
        running = _not_skipping(self.running, beside=bool(self.pooling))
        chunks = list(_answers(running, self._max_step_tokens - kept, self._fair))
        if any(chunk.row.remaining == 1 for chunk in chunks):
            chunks = list(self._lighter(chunks))
        if self.pooling:
            left = min(self._left(chunks), POOLING_TOKENS)
            chunks += self._pooling_chunks(left, min(left, kept) if self.running else left)
        if self.background:
            left = self._left(chunks)
            background = _not_skipping(self.background, beside=bool(chunks))
            chunks += _answers(background, min(left, eighth) if chunks else left, self._fair)
        return sorted(_parted(chunks), key=_step_order)

    def computed(self, chunk: Chunk) -> None:
        """Note that the keys and values of a chunk's tokens are in the cache now; its drafts do not count."""
        self.advance(chunk.row, chunk.count - len(chunk.drafts))

    def advance(self, row: BatchRow, count: int) -> None:
        """Note that the next `count` tokens of a row are in the cache."""
        row.computed += count
        if row.computed % BLOCK < count and not row.background:  # theirs are not worth others' blocks
            self._full[row] = None

    def room(self, row: BatchRow, wanted: int) -> int:
        """How many of `wanted` tokens behind its own a row has blocks for. It gets one if many are free."""
        if (held := row.allocation) is None:
            return 0
        room = len(held.blocks) * BLOCK - len(row.tokens)
        plenty = self.pool.free > self.pool.total // 8 and not self.waiting
        if (
            room < wanted
            and plenty
            and len(held.blocks) < self.pool.needed(row.total)
            and self.pool.grow(held)
        ):
            room += BLOCK
        return min(room, wanted)

    def finish(self, row: BatchRow) -> None:
        """Free its place, its blocks and its hold on the slot, wherever it is. Idempotent."""
        running, waiting = self._queues(row)
        if row in running:
            self._leave(row)
            self._fair.ended(row, ran=True)
        elif row in waiting:
            waiting.remove(row)
            self._fair.ended(row, ran=False)

    def expired(self) -> Iterator[BatchRow]:
        """Rows whose deadline has passed."""
        now = time.monotonic()
        for row in (*self.running, *self.waiting, *self.pooling, *self.pooling_queue, *self.background):
            if row.deadline is not None and row.deadline <= now:
                yield row

    # -- The tokens of a step.

    def _lighter(self, chunks: Sequence[Chunk]) -> Iterator[Chunk]:
        """As much of them as costs half as much again as a step's tokens without context; one at least.

        What has little context goes first, lest the deep ones leave nothing.
        """
        budget = DEEP_PRICE * self._max_step_tokens
        for price, chunk in sorted(((self._price(c), c) for c in chunks), key=lambda pair: pair[0]):
            count = min(chunk.count, max(1, int(budget / price)))
            budget = max(0.0, budget - count * price)
            yield chunk if count == chunk.count else Chunk(chunk.row, count, samples=False)

    def _price(self, chunk: Chunk) -> float:
        """Of its last token, in tokens without context."""
        return 1 + (chunk.row.computed + chunk.count) / self._even_context

    def _left(self, chunks: list[Chunk]) -> int:
        return self._max_step_tokens - sum(chunk.count for chunk in chunks)

    def _pooling_chunks(self, budget: int, background: int) -> Iterator[Chunk]:
        for row in sorted(self.pooling, key=lambda r: r.rank):
            patient = row.priority < 0
            count = min(row.remaining, budget, background if patient else budget)
            if count > 0:
                yield Chunk(row, count, samples=False)
                budget -= count
                background -= count if patient else 0

    # -- Places, blocks and slots.

    def _chain(self, row: BatchRow) -> Chain:
        base, salt = self._base_digest, self._salts.of(row.owner)
        if row.adapter is None or not row.inactive:
            return Chain(chain_root(base, row.adapter), salt, row.shared)
        late = activated(row.adapter, row.inactive)
        return Chain(chain_root(base, None), salt, row.shared, late, row.inactive)

    def _queues(self, row: BatchRow) -> tuple[list[BatchRow], list[BatchRow]]:
        if not row.samples:
            return self.pooling, self.pooling_queue
        return (self.background, self.offered) if row.background else (self.running, self.waiting)

    def _queue(self, row: BatchRow) -> None:
        _, waiting = self._queues(row)
        insort(waiting, row, key=lambda r: r.rank)

    def _publish(self, rows: Iterable[BatchRow]) -> None:
        """Add their full blocks to the prefix cache: before a lookup, and before they are freed."""
        for row in rows:
            if row in self._full and row.allocation is not None:
                prefix = row.prefix
                self.pool.publish(row.allocation, row.chain, prefix, min(row.computed, len(prefix)))
            self._full.pop(row, None)

    def _leave(self, row: BatchRow) -> None:
        running, _ = self._queues(row)
        running.remove(row)
        self._decoded = []
        self.slots.release(row.adapter)
        self._publish([row])
        if row.allocation is not None:
            self.pool.release(row.allocation)
            row.allocation = None

    def _drop(self, row: BatchRow) -> None:
        self.finish(row)
        self.dropped.append(row)

    def _preempt(self, row: BatchRow) -> None:
        log.debug("preempted: a row of %d tokens gives its cache blocks back", len(row.tokens))
        self._leave(row)
        self._fair.preempted(row)
        row.restart()
        row.queued = time.monotonic()
        row.preempted += 1
        self.preemptions += 1
        self._queue(row)

    def _behind(self, row: BatchRow) -> list[BatchRow]:
        return [r for r in (*self.running, *self.pooling) if r.rank > row.rank]

    def _last_for(self, row: BatchRow) -> BatchRow:
        """The row that is preempted where this one needs a block: itself if there is no other."""
        rows = [*self._behind(row), *self._fair.yielding(row, self.running)]
        return next(iter(self._fair.giving_way(rows, self.running)), row)

    def _displaceable(self, row: BatchRow) -> list[BatchRow]:
        """The rows that may be preempted for one that has waited too long, in order."""
        rows = self._behind(row)
        if row.samples and self._fair.several and not self._first_of_all(row):
            rows = [r for r in rows if not r.samples]
            rows += self._fair.displaceable(row, self.running)
        return self._fair.giving_way(rows, self.running)

    def _first_of_all(self, row: BatchRow) -> bool:
        """Whether it is the first in rank of all requests."""
        return row is self.waiting[0] and all(r.rank > row.rank for r in self.running)

    def _grow(self) -> None:
        """Blocks for each answer whose tokens need more: several where a grammar forces many tokens."""
        short = [
            row
            for row in self.running
            if (held := row.allocation) is not None and len(row.tokens) > len(held.blocks) * BLOCK
        ]
        for row in sorted(short, key=lambda r: r.rank):
            while (held := row.allocation) is not None and len(row.tokens) > len(held.blocks) * BLOCK:
                if self.pool.grow(held):
                    continue
                if self.background:
                    self._drop(self.background[-1])
                else:
                    self._preempt(self._last_for(row))  # which may be the row itself

    def _spare(self, behind: Sequence[BatchRow] = ()) -> int:
        """Blocks that admission leaves to the answers in progress; `behind` are not among them."""
        wanted = 0
        for row in self.running:
            if row.allocation is not None and row not in behind:
                wanted += min(AHEAD, self.pool.needed(row.total) - len(row.allocation.blocks))
        return min(wanted, self.pool.total // 8)

    def _admit(self) -> None:
        if not (self.waiting or self.pooling_queue or self.offered or self.background):
            return
        self._publish(list(self._full))
        now = time.monotonic()
        self._admit_requests(now)
        for place, row in enumerate(tuple(self.pooling_queue[: POOLING_ROWS - len(self.pooling)])):
            if row.priority < 0:
                self._try_admit(row, now)
            elif not (self._admit_first(row, now) or place) and self._waits_for_blocks(row, now):
                self._make_way(row, now)
        self._admit_background(now)

    def _admit_requests(self, now: float) -> None:
        slot_awaited = False  # by one that has waited too long: no other adapter gets one before
        for place, row in enumerate(self._fair.queue(self.waiting, self.running)):
            full = len(self.running) >= self._max_running
            if full and place:
                break
            if (slot_awaited and row.adapter is not None) or (not full and self._admit_first(row, now)):
                continue
            if not place and now - row.queued > self._patience_of(row):
                if (
                    not self.slots.has_room(row.adapter)
                    and self._free_slot(row)
                    and self._admit_first(row, now)
                ):
                    continue
                slot_awaited = not self.slots.has_room(row.adapter)
                if not slot_awaited:
                    self._make_way(row, now)

    def _waits_for_blocks(self, row: BatchRow, now: float) -> bool:
        """Whether a pooling request has waited too long, and for no slot."""
        return now - row.queued > self._patience and self.slots.has_room(row.adapter)

    def _patience_of(self, row: BatchRow) -> float:
        alone = self._fair.several and not self._fair.runs(row.tenant)
        return self._patience * (TURN if alone else 1)

    def _free_slot(self, row: BatchRow) -> bool:
        """Take a slot from tenants that were served more, for one of which nothing runs."""
        if not self._fair.several or self._fair.runs(row.tenant):
            return False
        may = set(self._fair.displaceable(row, self.running))
        users: dict[str, list[BatchRow]] = {}
        for other in self.running:
            if other.adapter is not None:
                users.setdefault(other.adapter, []).append(other)
        fewest = min((rows for rows in users.values() if may.issuperset(rows)), key=len, default=[])
        for other in fewest:
            self._preempt(other)
        return bool(fewest)

    def _admit_first(self, row: BatchRow, now: float) -> bool:
        """Admit it, if need be in place of background rows, the newest first."""
        while not self._try_admit(row, now):
            if not self.background or self.slots.coming(row.adapter):
                return False
            self._drop(self.background[-1])
        return True

    def _make_way(self, row: BatchRow, now: float) -> None:
        """Admit the first in a queue in place of as few of those that may be preempted for it as will do."""
        behind = self._displaceable(row)
        answers = sum(r.samples for r in behind)
        placed = not row.samples or len(self.running) - answers < self._max_running
        if not behind or not placed or not self._fits(row, behind):
            return
        for last in behind:
            if self.slots.coming(row.adapter):
                return  # nothing but its upload is missing
            if not last.samples and self._fits(row):
                continue  # only a place is missing, and a pooling request takes none
            self._preempt(last)
            if (not row.samples or len(self.running) < self._max_running) and self._try_admit(row, now):
                return

    def _admit_background(self, now: float) -> None:
        most = self._max_running - max(1, self._max_running // 4)
        while self.background and len(self.running) + len(self.background) > most:
            self._drop(self.background[-1])
        for row in tuple(self.offered):
            plenty = len(self.running) + len(self.background) < most and (
                self.pool.free - self.pool.needed(row.total) >= self.pool.total // 4
            )
            if self.waiting or not plenty or not self._try_admit(row, now):
                self._drop(row)

    def _fits(self, row: BatchRow, without: Sequence[BatchRow] = ()) -> bool:
        """Whether there are blocks for it, once those of `without` are given back."""
        given_back = [r.allocation for r in without if r.allocation is not None]
        return self.pool.fits(row.chain, row.prefix, row.room, self._spare(without), given_back)

    def _try_admit(self, row: BatchRow, now: float) -> bool:
        """False while there is no room for it. One whose admission raises fails alone."""
        if not self._fits(row):
            return False
        try:
            return self._admitted(row, now)
        except Exception as error:
            self.failed.append((row, error))
            try:
                self.finish(row)
            except Exception:
                log.exception("a row that failed cannot be finished")
            return True

    def _admitted(self, row: BatchRow, now: float) -> bool:
        if not self.slots.acquire(row.adapter, spare=row.background):
            return False
        first = not row.admitted
        allocation = self.pool.allocate(row.chain, row.prefix, row.room, counted=first)
        if allocation is None:
            self.slots.release(row.adapter)
            raise RuntimeError("what fits could not be allocated")
        row.allocation, row.computed = allocation, allocation.cached_tokens
        if first:
            row.admitted, row.cached = now, allocation.cached_tokens
        running, waiting = self._queues(row)
        waiting.remove(row)
        running.append(row)
        self._fair.admitted(row)
        self._decoded = []
        return True


def _step_order(chunk: Chunk) -> tuple[str, int]:
    return (chunk.adapter or "", chunk.row.number)


def _parted(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """The chunks, each in two where the row's adapter begins to act in it: the base's, then the adapter's.

    Keys and values of the first part are in the cache before the second looks at them: every operation writes
    all of a step's before it reads any.
    """
    for chunk in chunks:
        before = chunk.row.inactive - chunk.row.computed
        if 0 < before < chunk.count:
            yield Chunk(chunk.row, before, samples=False)
            yield Chunk(chunk.row, chunk.count - before, chunk.samples, after=before)
        else:
            yield chunk


def _not_skipping(rows: Sequence[BatchRow], *, beside: bool) -> Sequence[BatchRow]:
    """Those that do not skip this step; `beside`: there is something else to compute.

    Where all rows would skip it, they count as many steps as skipped as the next one needs.
    """
    owed = {row: steps for row in rows if (steps := row.steps_to_skip)}
    passed = 0 if beside or len(owed) < len(rows) else min(owed.values(), default=0)
    for row, steps in owed.items():
        row.skipped += passed + (steps > passed)
    return [row for row in rows if owed.get(row, 0) <= passed]


def _answers(rows: Sequence[BatchRow], budget: int, fair: FairQueue) -> Iterator[Chunk]:
    """Rows that decode, the first in rank first, then prompts, within `budget` tokens."""
    prompts = sorted((r for r in rows if r.remaining > 1), key=lambda r: r.rank)
    kept = max(1, budget // 8) if prompts else 0
    decoding = sorted((r for r in rows if r.remaining == 1), key=lambda r: r.rank)[: max(0, budget - kept)]
    for row in decoding:
        yield Chunk(row, 1, samples=True)
    for row, tokens in _shared(prompts, fair.prompt_order(prompts), budget - len(decoding)).items():
        yield Chunk(row, tokens, tokens == row.remaining)


def _shared(prompts: Sequence[BatchRow], in_turn: Sequence[BatchRow], budget: int) -> dict[BatchRow, int]:
    """Tokens of each prompt, given in the order of rank, then in turn; the first gets half of them at least.

    Before what it gets beyond that come those that have not half as much left, the shortest first.
    """
    shares: dict[BatchRow, int] = {}

    def give(row: BatchRow, most: int) -> int:
        tokens = min(row.remaining - shares.get(row, 0), most)
        if tokens > 0:
            shares[row] = shares.get(row, 0) + tokens
        return max(0, tokens)

    if prompts:
        budget -= give(prompts[0], budget - budget // 2)
    short = [r for r in prompts if 2 * r.remaining <= prompts[0].remaining]
    for row in (*sorted(short, key=lambda r: r.remaining), *in_turn):
        budget -= give(row, budget)
    return shares
