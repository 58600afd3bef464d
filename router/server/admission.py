"""Admission: which requests the server takes, and which it refuses at once.

First the phase: a server that loads or drains takes no request (`PhaseGate`). Then bounds: the requests in
flight, by place, tenant and deadline; the calls whose body is awaited; the memory of bodies; the calls that
have no end of their own. Every refusal by a bound has the error reason QUEUE_FULL and the status UNAVAILABLE,
except for a body that does not come within BODY_SECONDS (`bodies.py`): BODY_INCOMPLETE and
DEADLINE_EXCEEDED. The error's metadata name the bound, and `lora_router_shed_total` counts it.

docs/limits.md#load says when each bound is met. Here are `queue`, `part`, `tenant`, `deadline`, `turns`,
`no_body`, `memory`, `not_reading` and `watches`. Elsewhere in the server are `http` (`listen.py`) and
`encoding` (`encoding.py`); `mixtures` is in `registry/residency.py`, and the others are in the engines and
in extensions.

A late event loop refuses no request: as long as the queue has room, requests wait.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import Enum, auto

from router.access.quotas import Quotas
from router.errors import DeadlineExceeded, Draining, NotLoaded, Overloaded
from router.server.call import Call, caller_of
from router.types import Request

SHARE_OF_FREE = 3  # a tenant holds at most so many times the free places: a quarter stays for other tenants
READ_SLOTS = 128  # calls whose body is awaited
READING_BYTES = 48 << 20  # of all large bodies that are awaited
CONNECTION_PART = 4  # a connection holds one in four slots at most; as many are reserved for new connections
MOST_WAITING = 512  # calls that wait for a slot
GRACE_SECONDS = 0.5  # a slot is not reclaimed earlier
RECLAIM_SECONDS = 0.1  # between the two looks at a slot that is reclaimed; a body that is there is read first
MOST_RECLAIMED = 16  # slots in one look
NO_SLOT = "too many calls wait for their body to be read"

WEIGHT = 1 / 16  # of the latest answer in the mean of its size
UNLIMITED = 1 << 32  # tokens, where a request does not say `max_tokens`
TOLERANCE = 0.9  # of the mean of a size, in the least wait: means are not exact
LASTING = 1.0  # times a request's deadline, for which a queue is a burst
MARGIN = 1.25  # of the likely time, above the mean
ENDING_SECONDS = 0.1  # before its deadline gRPC may end a request that is late
SAMPLES = 256  # answers of a queue that the likely time is made of
FEWEST = 32  # of them, before it counts

BODY_MEMORY = 256 << 20  # bytes of request bodies that are read or held at once
BODY_SECONDS = 10.0  # in which the body of a request must arrive

SEND_SECONDS = 30.0  # that the caller's windows may be full
PRESSED_SECONDS = 2.0  # the same where others need the place
LOOK_SECONDS = 1.0  # between two looks at open answers

MOST_WATCHES = 1000  # calls without an end of their own, in all
WATCHES_EACH = {"connection": 100, "address": 500}

Size = tuple[int, int]  # bits of the prompt's characters, and of `max_tokens`


class Admission:
    """All bounds of one server. Lives on one event loop; times are seconds of `clock`."""

    def __init__(
        self,
        running: int,
        queue: int,
        *,
        memory: int = BODY_MEMORY,
        body_seconds: float = BODY_SECONDS,
        largest: int = 1 << 21,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`running` rows and `queue` places to wait for one; `memory` bytes of bodies; a quarter of
        them, READING_BYTES at most, is for bodies of up to `largest` bytes that are awaited, which the
        library and this process both hold for a moment; a body is awaited for `body_seconds`.
        """
        self.limit, self._rows, self._clock = running + queue, running, clock
        self.in_flight, self.quotas = 0, Quotas()
        self.body_seconds = body_seconds
        self.memory = Memory(memory)
        slots = max(CONNECTION_PART, min(READ_SLOTS, min(memory // 4, READING_BYTES) // largest))
        self._slots = {True: ReadSlots(slots, body_seconds), False: ReadSlots(READ_SLOTS, body_seconds)}
        self._held: Counter[str] = Counter()  # places by tenant
        self._in_part: Counter[str] = Counter()  # places by method, of those with a part of them
        self._generations: dict[int, Generating] = {}  # by the id of their call, in the order of arrival
        self._forecast = WaitForecast(clock)

    def resize(self, limit: int, running: int) -> None:
        """`limit` places from now on, `running` of them rows; a request that holds a place keeps it."""
        self.limit, self._rows = limit, running

    @property
    def pressed(self) -> bool:
        """More than half of the places are taken."""
        return 2 * self.in_flight > self.limit

    def read_slot(self, peer: str, large: bool) -> AbstractAsyncContextManager[ReadSlot]:
        """Wait for the right to read one body from that connection. `large`: its memory is bounded."""
        return self._slots[large].slot(peer)

    def check(self, call: Call) -> None:
        """Raise Overloaded where a request would be refused if it had its read slot now.

        It takes nothing and is cheap: under overload most requests end here.
        """
        self._check_queue(call.client.tenant)
        self._check_part(call)
        if call.policy.generates:
            self._check_deadline(call)

    @contextmanager
    def admitted(self, call: Call) -> Iterator[None]:
        """Hold a place for the block. Raises Overloaded at once where none is free.

        Where tenants have names, each may wait as long as it holds less than three times what is free: one
        alone gets three quarters of all, two that want all three sevenths each, and others still find room.
        """
        tenant, generates = call.client.tenant, call.policy.generates
        self._check_queue(tenant)
        self._check_part(call)
        self.in_flight += 1
        self._in_part[call.method] += call.policy.part > 1
        self._held[tenant] += 1
        if generates:
            self._generations[id(call)] = Generating(call)
            if len(self._generations) > self._rows:
                self._forecast.queue_formed()
        try:
            yield
        finally:
            self.in_flight -= 1
            self._in_part[call.method] -= call.policy.part > 1
            self._held[tenant] -= 1
            if not self._held[tenant]:
                del self._held[tenant]
            if generates:
                self._forecast.ended(self._generations.pop(id(call)))
                if len(self._generations) <= self._rows:
                    self._forecast.queue_emptied()

    def request_known(self, call: Call) -> None:
        """The body of a call was read. Raises Overloaded where its request would be late.

        What is before it is known now: of a burst, little was before bodies were read.
        """
        one = self._generations.get(id(call))
        if one is not None and call.answer.request is not None:
            size = size_of(call.answer.request)
            wait = self._check_deadline(call, size)
            one.size, one.known, one.wait = size, self._clock(), wait

    def _check_queue(self, tenant: str) -> None:
        if self.in_flight >= self.limit:
            text = f"{self.limit} requests are running or waiting already"
            raise Overloaded(text, limit=str(self.limit), bound="queue")
        waits = self.in_flight >= self._rows
        if tenant and waits and self._held[tenant] >= SHARE_OF_FREE * (self.limit - self.in_flight):
            raise Overloaded("this tenant has its part of the places that requests wait in", bound="tenant")

    def _check_part(self, call: Call) -> None:
        most = max(1, self.limit // call.policy.part)
        if self._in_part[call.method] >= most:
            text = f"{most} requests of this method are running or waiting already"
            raise Overloaded(text, limit=str(most), bound="part")

    def _check_deadline(self, call: Call, size: Size | None = None) -> float:
        """Seconds that the request waits for a row at least. Raises Overloaded if it would be late."""
        wait = self.least_wait(call.client.tenant)
        if wait > 0 and call.deadline is not None:
            left = call.deadline - self._clock()
            estimate = self._forecast.estimate(wait, size, left)
            if estimate > left:
                text = f"about {estimate:.1f} s of requests wait already, too long for this one's deadline"
                raise Overloaded(text, retry_after=max(0.1, wait / 2), bound="deadline")
        return wait

    def least_wait(self, tenant: str) -> float:
        """A lower bound of the seconds until a request of the tenant would begin, if it came now.

        It counts only requests whose body was read and that have no token yet, less those that rows are free
        for, each up to its deadline; rows count as if all of them worked, and what runs as if it ended now.
        The engine serves tenants in turn: another tenant's work counts up to that of this one.
        """
        if len(self._generations) < self._rows:
            return 0.0
        free, waiting = self._rows, list[tuple[Call, Size]]()
        for one in self._generations.values():
            if one.call.answer.first_token:
                free -= 1
            elif one.size is not None:
                waiting.append((one.call, one.size))
        now, before, work = self._clock(), 0.0, defaultdict[str, float](float)
        for call, size in waiting[max(0, free) :]:
            seconds = TOLERANCE * self._forecast.seconds(size)
            if call.deadline is not None:
                seconds = min(seconds, max(0.0, call.deadline - now - before / self._rows))
            work[call.client.tenant] += seconds
            before += seconds
        mine = work[tenant]
        return sum(min(other, mine) for other in work.values()) / self._rows


@dataclass(slots=True, eq=False)
class Generating:
    """An admitted request for an answer. Times are seconds of the clock."""

    call: Call
    size: Size | None = None  # once its body was read
    known: float = 0.0  # when that was
    wait: float = 0.0  # the least wait for a row, then; 0 if a row was free


class WaitForecast:
    """When a request would be answered, as far as that is known before.

    For a burst this is the least wait. In a queue that lasts, requests would be let in up to this bound, and
    all be late by a little. So once a request of the queue was late, and the queue has lasted for as long as
    a request has left, the likely time counts: least wait and mean time in a row, scaled by what the answers
    of this queue took against them, and by MARGIN.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._took: dict[Size, float] = {}  # mean seconds in a row
        self._formed = self._emptied = -math.inf  # when the queue did
        self._forget()

    def _forget(self) -> None:
        self._actual = self._expected = 0.0  # decaying sums over answers of this queue
        self._samples, self._late = 0, False

    def estimate(self, wait: float, size: Size | None, left: float) -> float:
        """Seconds until a request with `left` seconds that waits for `wait` at least is answered."""
        lasts = self._late and self._clock() - self._formed > LASTING * left
        if not lasts or self._samples < FEWEST or not self._expected:
            return wait
        own = min(self._took.values()) if size is None else self.seconds(size)
        return (wait + own) * MARGIN * self._actual / self._expected

    def queue_formed(self) -> None:
        """More requests than rows: a new queue, unless the last one ended less than an answer's time ago."""
        if self._clock() - self._emptied > max(self._took.values(), default=0.0):
            self._forget()
            self._formed = self._clock()
        self._emptied = math.inf

    def queue_emptied(self) -> None:
        """There is a row for each request."""
        self._emptied = min(self._emptied, self._clock())

    def seconds(self, size: Size) -> float:
        """Time in a row: the mean of that size, else the most that a smaller size takes.

        A request takes at least as long as one with a shorter prompt and fewer tokens to answer with. So
        nothing that was learned from long answers counts for short ones.
        """
        if (took := self._took.get(size)) is not None:
            return took
        prompt, answer = size
        smaller = (took for (p, a), took in self._took.items() if p <= prompt and a <= answer)
        return max(smaller, default=0.0)

    def ended(self, one: Generating) -> None:
        """Learn from a request that ended, in whatever way."""
        now, usage = self._clock(), one.call.answer.usage
        if one.size is None:
            return
        answered = usage is not None and usage.completion_tokens > 0
        left = math.inf if one.call.deadline is None else one.call.deadline - now
        late = left <= (0 if answered else ENDING_SECONDS)
        actual, expected = now - one.known, one.wait + self.seconds(one.size)
        if late:
            actual += self.seconds(one.size)  # it would have taken longer
        elif usage is not None and answered:
            took = max(0.0, usage.total_time - usage.queue_time)
            mean = self._took.get(one.size, took)
            self._took[one.size] = mean + (took - mean) * WEIGHT
        else:
            return  # it failed, or its caller left
        if one.wait:
            kept = 1 - 1 / SAMPLES
            self._actual = self._actual * kept + actual
            self._expected = self._expected * kept + expected
            self._samples += 1
            self._late |= late


def size_of(request: Request) -> Size:
    """What is known of an answer's cost beforehand, by powers of two."""
    prompt = len(request.raw_prompt or "") + sum(len(turn.text) for turn in request.turns)
    return prompt.bit_length(), (request.sampling.max_tokens or UNLIMITED).bit_length()


class Memory:
    """A number of bytes, given in the order of the calls. Lives on one event loop."""

    def __init__(self, most: int) -> None:
        self._most = self.free = most
        self._turn, self._given = asyncio.Lock(), asyncio.Event()

    async def take(self, size: int) -> int:
        """Wait until `size` bytes, at most all there are, are free, and take them; returns how many."""
        size = min(size, self._most)
        async with self._turn:
            while size > self.free:
                self._given.clear()
                await self._given.wait()
            self.free -= size
        return size

    async def take_within(self, size: int, seconds: float) -> int:
        """The same, for so long at most. Raises Overloaded."""
        timeout = asyncio.timeout(seconds)
        try:
            async with timeout:
                return await self.take(size)
        except TimeoutError:
            if not timeout.expired():
                raise
            text = "too many large requests are being read or answered"
            raise Overloaded(text, bound="memory") from None

    def give(self, size: int) -> None:
        """Give back."""
        self.free += size
        self._given.set()


class ReadSlot:
    """A call's right to have its body read, until `end`. `peer` is its connection, `address` its host."""

    def __init__(self, peer: str, slots: ReadSlots) -> None:
        self.peer, self.address = peer, caller_of(peer)
        self.began = math.inf  # when it was given
        self.suspect = False  # it was overdue at the last look
        self.reclaimed = asyncio.timeout(None)
        self._slots = slots

    def end(self) -> None:
        """The body is there, or the call ends; may be called again."""
        if self._slots.freed(self) and self.reclaimed.when() is not None and not self.reclaimed.expired():
            self.reclaimed.reschedule(None)  # it was to be reclaimed, and ends by itself


class ReadSlots:
    """Slots for calls whose body is awaited. Lives on one event loop.

    A call that sends headers and no body holds nothing but a slot. A connection has a part of the slots at
    most, the last part is for connections that have none at addresses that have few, and a slot whose body
    does not come is reclaimed while other calls wait. So a flood of half-open calls delays no other
    connection. A slot is reclaimed only if it is overdue at two looks: after a pause of the event loop,
    bodies that came meanwhile are read between them.
    """

    def __init__(self, slots: int, seconds: float, most_waiting: int = MOST_WAITING) -> None:
        """A call waits for `seconds` at most; of more than `most_waiting` one is refused."""
        self._slots, self._seconds, self._most_waiting = slots, seconds, most_waiting
        self._each = self._reserved = max(1, slots // CONNECTION_PART)
        self._given: dict[ReadSlot, None] = {}  # the oldest first
        self._waiting: dict[ReadSlot, asyncio.Future[None]] = {}  # likewise
        self._held: Counter[str] = Counter()  # slots by connection, and by address
        self._timer: asyncio.TimerHandle | None = None

    @property
    def given(self) -> int:
        """Calls that have a slot."""
        return len(self._given)

    @asynccontextmanager
    async def slot(self, peer: str) -> AsyncIterator[ReadSlot]:
        """Wait for a slot. Raises Overloaded if none is free in time, or if it is reclaimed before `end`."""
        slot = ReadSlot(peer, self)
        try:
            if self._fits(slot):  # a call that waits does not fit
                self._give(slot)
            else:
                await self._wait(slot)
            async with slot.reclaimed:
                try:
                    yield slot
                finally:
                    slot.end()
        except TimeoutError:
            if not slot.reclaimed.expired():
                raise
            raise Overloaded("the body did not come, and other calls wait", bound="no_body") from None
        finally:
            slot.end()  # where it was given to a call that leaves just then

    def freed(self, slot: ReadSlot) -> bool:
        """Take the slot back, and give it to the next call; False if the call had none."""
        if slot not in self._given:
            return False
        del self._given[slot]
        self._held -= Counter((slot.peer, slot.address))
        while (waiting := self._next()) is not None and self._fits(waiting):
            ready = self._waiting.pop(waiting)
            if not ready.done():
                self._give(waiting)
                ready.set_result(None)
        return True

    async def _wait(self, slot: ReadSlot) -> None:
        ready = self._waiting[slot] = asyncio.get_running_loop().create_future()
        if len(self._waiting) > self._most_waiting:
            self._refuse_one()
        self._look_later(GRACE_SECONDS)
        timeout = asyncio.timeout(self._seconds)
        try:
            async with timeout:
                await ready
        except TimeoutError:
            if not timeout.expired():
                raise
            raise Overloaded(NO_SLOT, bound="turns") from None
        finally:
            self._waiting.pop(slot, None)

    def _fits(self, slot: ReadSlot) -> bool:
        """Whether it may have one now: the last are for connections with none, at addresses with few."""
        free, held = self._slots - len(self._given), self._held[slot.peer]
        if free > self._reserved:
            return held < self._each
        return free > 0 and not held and self._held[slot.address] < self._slots // 2

    def _give(self, slot: ReadSlot) -> None:
        slot.began = asyncio.get_running_loop().time()
        self._given[slot] = None
        self._held.update((slot.peer, slot.address))

    def _next(self) -> ReadSlot | None:
        """The call that gets the next slot: of the address and the connection that hold fewest."""
        return min(self._waiting, key=self._rank, default=None)

    def _rank(self, slot: ReadSlot) -> tuple[int, int]:
        return self._held[slot.address], self._held[slot.peer]

    def _look_later(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        """Reclaim overdue slots for calls that wait, the oldest of the address and connection with most.

        A connection that has its part of the slots gets one of its own: many callers may share it (a proxy).
        """
        self._timer = None
        if not self._waiting:
            return
        overdue = asyncio.get_running_loop().time() - GRACE_SECONDS
        held = [slot for slot in self._given if slot.began <= overdue and slot.reclaimed.when() is None]
        suspects = [slot for slot in held if slot.suspect]
        for slot in held:
            slot.suspect = True
        for waiting in sorted(self._waiting, key=self._rank)[:MOST_RECLAIMED]:
            full = self._held[waiting.peer] >= self._each
            found = (slot for slot in suspects if not full or slot.peer == waiting.peer)
            if (reclaimed := max(found, key=self._rank, default=None)) is not None:
                suspects.remove(reclaimed)
                reclaimed.reclaimed.reschedule(0)
        self._look_later(RECLAIM_SECONDS)

    def _refuse_one(self) -> None:
        """Refuse the last of the address, and there of the connection, with most calls that wait."""
        waits = Counter(key for slot in self._waiting for key in (slot.address, slot.peer))
        slot = max(reversed(self._waiting), key=lambda one: (waits[one.address], waits[one.peer]))
        ready = self._waiting.pop(slot)
        if not ready.done():
            ready.set_exception(Overloaded(NO_SLOT, bound="turns"))


# -- Answers that no client reads: a write that the transport cannot take for long ends its call.


class Sending:
    """The open answers of a server; `pressed` tells whether places are scarce. Lives on one event loop.

    A call notes when its present write began. A timer for every write would cost more than to look at all
    of them now and then.
    """

    def __init__(self, pressed: Callable[[], bool]) -> None:
        self._pressed = pressed
        self._open: set[Call] = set()

    @contextmanager
    def watched(self, call: Call) -> Iterator[None]:
        """The block answers the call. A write that takes too long ends it with DeadlineExceeded."""
        self._open.add(call)
        try:
            yield
        finally:
            self._open.discard(call)

    async def follow(self) -> None:
        """End those that wait too long, again and again."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """End those that wait too long now."""
        latest = time.monotonic() - (PRESSED_SECONDS if self._pressed() else SEND_SECONDS)
        for call in self._open:
            if 0 < call.writing_since < latest:
                call.writing_since = 0.0
                call.end(DeadlineExceeded("the answer was not read in time", bound="not_reading"))


# -- The phase of the server, and the calls that only a drain ends.


class ServerPhase(Enum):
    """Where the server is in its life."""

    LOADING = auto()
    SERVING = auto()
    DRAINING = auto()


class PhaseGate:
    """The phase, and the watches that a drain ends. Lives on one event loop."""

    def __init__(self) -> None:
        self.phase = ServerPhase.LOADING
        self.ending = asyncio.Event()  # set when a drain begins
        self._watches: dict[Call, bool] = {}  # whether a drain ends it
        self._watched: Counter[str] = Counter()  # by connection, and by address

    def gate(self) -> None:
        """Raise NotLoaded or Draining unless the server is serving."""
        if self.phase is ServerPhase.LOADING:
            raise NotLoaded("the base model is still loading")
        if self.phase is ServerPhase.DRAINING:
            raise Draining("the server is stopping")

    @contextmanager
    def watching(self, call: Call) -> Iterator[None]:
        """A call with no end of its own: a drain ends it with Draining, or leaves that to one that carries.

        Raises Overloaded where too many are open, in all or from where this one comes.
        """
        whose = {"connection": call.peer, "address": caller_of(call.peer)}
        for what, most in WATCHES_EACH.items():
            if self._watched[whose[what]] >= most:
                raise Overloaded(f"{most} calls without an end are open on this {what}", bound="watches")
        if len(self._watches) >= MOST_WATCHES:
            raise Overloaded(f"{MOST_WATCHES} calls without an end are open", bound="watches")
        self._watched.update(whose.values())
        self._watches[call] = not call.policy.carries
        try:
            yield
        finally:
            del self._watches[call]
            self._watched -= Counter(whose.values())

    def drain(self) -> None:
        """Refuse new calls and end the watches; what was admitted goes on."""
        if self.phase is ServerPhase.DRAINING:
            return
        self.phase = ServerPhase.DRAINING
        self.ending.set()
        for call, cut in self._watches.items():
            if cut:
                call.end(Draining("the server is stopping"))
