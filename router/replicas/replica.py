"""One replica as its edge sees it: its stream, what was asked of it and is not answered, how it is."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import aclosing
from itertools import count
from typing import Literal, Protocol

from router.engine.base import EngineStatus
from router.errors import RouterError, Unavailable
from router.replicas.host import BEAT
from router.replicas.link import Link, LinkLost
from router.replicas.messages import differences, error_of, status_of
from router.v1 import engine_pb2 as pb

log = logging.getLogger(__name__)

SHORT = 1.0  # seconds of a stream: after two such the next is not tried at once
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds between two tries to have a replica again
PATIENCE = 3  # times `stall_seconds`, until one that stalls is ended: it takes long to load another
COUNTERS = ("steps", "preemptions", "background_dropped", "prefix_hit_tokens", "prefix_query_tokens")

State = Literal["starting", "serving", "lost", "draining"]


class Receiver(Protocol):
    """Who sent a command to a replica: a job on its way (`RoutedJob`), or a caller of one answer."""

    @property
    def adapter(self) -> str | None:
        """Digest of the adapter that the command loads, where it is absent."""
        ...

    def put(self, event: pb.EngineEvent) -> None:
        """Something came: deltas, then one other event."""
        ...

    def lost(self, why: str) -> None:
        """Nothing comes any more: the replica is lost."""
        ...

    def stop(self) -> None:
        """Nothing comes any more: the edge ends."""
        ...


class PendingCall:
    """A caller that waits for one answer."""

    def __init__(self, adapter: str | None) -> None:
        self.adapter = adapter
        self.answer: asyncio.Future[pb.EngineEvent] = asyncio.get_running_loop().create_future()

    def put(self, event: pb.EngineEvent) -> None:
        """The answer, or why there is none."""
        if event.HasField("error"):
            self._fail(error_of(event.error))
        elif not self.answer.done():
            self.answer.set_result(event)

    def lost(self, why: str) -> None:
        """Raises LinkLost where it is awaited."""
        self._fail(LinkLost(why))

    def stop(self) -> None:
        """Raises Unavailable where it is awaited."""
        self._fail(Unavailable("the engine has stopped"))

    def _fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class FleetReplica:
    """One of a fleet. `run` keeps it: when it is lost, it is started again, as often as it takes."""

    def __init__(
        self, link: Link, edge: str, stall_seconds: float, like: pb.HelloResponse | None = None
    ) -> None:
        """`like`: what it must be, once that is known of the others."""
        self._link, self._edge, self._stall = link, edge, stall_seconds
        self.name = link.name
        self.up = False
        self.since = time.time()  # seconds of the epoch: its state is the same since then
        self.lost_at = time.monotonic()
        self.draining = False  # it gets nothing new while there is another
        self.removed = False  # it drains since it is not a member any more
        self.stalls = ""  # why it gets nothing new, if another can have it
        self.problem = ""  # why it is not up
        self.losses = 0
        self.status = EngineStatus()
        self._past: Counter[str] = Counter()  # what those before it in its place had counted
        self.pending: dict[int, Receiver] = {}
        self.jobs: Counter[bool] = Counter()  # by whether they are in the background
        self.adapters: set[str] = set()  # in its memory, or on their way there
        self._calls = 0
        self._hello = like
        self._keys, self._sessions = count(), count()
        self._outbox: list[pb.EngineCommand] = []
        self._session = ""  # of the stream, once its first batch came
        self._sent = self._received = 0.0

    @property
    def held(self) -> int:
        """Commands of this edge that run or wait there."""
        return self.jobs.total() + self._calls

    @property
    def state(self) -> State:
        """What it does, in a word."""
        if self.draining:
            return "draining"
        return "serving" if self.up else "lost" if self.losses else "starting"

    @property
    def device(self) -> str:
        """Where it computes."""
        return self._hello.base.device if self._hello is not None else ""

    def counted(self) -> Counter[str]:
        """What it and those before it in its place have counted so far, by COUNTERS."""
        return self._past + Counter({name: getattr(self.status, name) for name in COUNTERS})

    # -- what the edge asks

    def expect(self, hello: pb.HelloResponse, up: bool) -> None:
        """What it must be, as the others are, and whether it is up."""
        self._hello = hello
        if up:
            self.up, self.problem, self.since = True, "", time.time()

    def remove(self) -> None:
        """It gets nothing new, and is not a member any more."""
        self.draining = self.removed = True
        self.since = time.time()

    async def idle(self) -> None:
        """Until it is lost or nothing that this edge asked for is there; looks every BEAT."""
        while self.up and self.pending:  # noqa: ASYNC110 - a flag for each answer would cost every request
            await asyncio.sleep(BEAT)

    def abandon(self) -> None:
        """Send all that it has elsewhere; what has begun to be answered ends."""
        moving, self.pending = self.pending, {}
        for key, receiver in moving.items():
            self.cancel(key)
            receiver.lost(f"replica {self.name} stalls ({self.stalls})")

    def close(self) -> None:
        """End it, for good; blocks."""
        self._link.close()

    def ask(self, receiver: Receiver, command: pb.EngineCommand) -> int:
        """Send a command with the next message; returns its key. Its events go to `receiver`."""
        sent = pb.EngineCommand()
        sent.CopyFrom(command)  # another replica may get the same one
        sent.key = next(self._keys)
        self._send(sent)
        self.pending[sent.key] = receiver
        if receiver.adapter is not None:
            self.adapters.add(receiver.adapter)
        return sent.key

    async def call(self, command: pb.EngineCommand, adapter: str | None = None) -> pb.EngineEvent:
        """The one answer to a command. Raises what the replica's engine raised, or LinkLost."""
        pending = PendingCall(adapter)
        key = self.ask(pending, command)
        self._calls += 1
        try:
            return await pending.answer
        except asyncio.CancelledError:
            if self.pending.pop(key, None) is not None:
                self.cancel(key)
            raise
        finally:
            self._calls -= 1

    def cancel(self, key: int) -> None:
        """Nobody waits for it any more."""
        self._send(pb.EngineCommand(key=key, cancel=pb.EngineCommand.Cancel()))

    # -- its life

    async def run(self) -> None:
        """Have it, and read its stream; when that ends tell who waits, and have the replica again."""
        short = 0
        if not self.up:
            await self._again(at_once=True)
        while not self.removed:
            began = time.monotonic()
            try:
                why = await self._read_stream()
            except Exception as error:
                log.exception("replica %s", self.name)
                why = type(error).__name__
            short = short + 1 if time.monotonic() - began < SHORT else 0
            self._lose(why)
            if not self.removed:
                await self._again(at_once=short < 2)

    async def _read_stream(self) -> str:
        """Until it ends or nothing goes on; returns why."""
        self._session = ""
        self._received = self._sent = looked = time.monotonic()
        name = f"{self._edge}/{next(self._sessions)}"
        reading = asyncio.get_running_loop().create_task(self._read(name))
        try:
            while not reading.done():
                await asyncio.wait((reading,), timeout=BEAT)
                now = time.monotonic()
                if now - looked > 2 * BEAT:  # this process was itself stopped, and received nothing
                    self._received = now
                looked = now
                self.stalls = self._quiet(now, self._stall)
                if self.stalls and (problem := self._quiet(now, PATIENCE * self._stall)):
                    await asyncio.to_thread(self._link.kill)
                    return problem
                if now - self._sent >= BEAT:
                    self._send()
            return _why(reading.exception())
        finally:
            reading.cancel()

    async def _read(self, session: str) -> None:
        async with aclosing(self._link.batches(session)) as stream:
            async for batch in stream:
                self._take(batch)
                if not self._session:
                    self._session = session
                    commands, self._outbox = self._outbox, []
                    self._send(*commands)

    def _take(self, batch: pb.AttachResponse) -> None:
        self._received = time.monotonic()
        if batch.HasField("state"):
            self.status = status_of(batch.state)
            coming = {r.adapter for r in self.pending.values() if r.adapter is not None}
            self.adapters = coming.union(self.status.host_adapters)
            if batch.state.draining and not self.draining:
                self.draining, self.since = True, time.time()
                log.info("replica %s drains, and ends when nothing is left", self.name)
        for event in batch.events:
            receiver = self.pending.get(event.key)
            if receiver is None:  # nobody waits for it any more
                continue
            what = event.WhichOneof("what")
            if what is None:
                raise ValueError("a replica sent an event that this release does not know")
            if what != "delta":
                del self.pending[event.key]
            receiver.put(event)

    def _quiet(self, now: float, most: float) -> str:
        """What has not come from there for `most` seconds; empty if all is well."""
        if now - self._received > most:
            return f"nothing came from it for {now - self._received:.0f} s"
        if self.status.failed:
            return "its engine failed"
        quiet = now - self.status.last_progress
        return f"it made no step for {quiet:.0f} s" if self.status.busy and quiet > most else ""

    def _lose(self, why: str) -> None:
        self.up, self.stalls, self.problem, self.losses = False, "", why, self.losses + 1
        self.since, self.lost_at = time.time(), time.monotonic()
        self._session = ""
        self._outbox.clear()
        self.adapters.clear()
        self._past = self.counted()
        self.status = EngineStatus()
        lost, self.pending = self.pending, {}
        level = logging.INFO if self.draining and not lost else logging.ERROR
        self.draining = self.removed
        log.log(level, "replica %s is lost: %s", self.name, why, extra={"fields": {"waiting": len(lost)}})
        for receiver in lost.values():
            receiver.lost(f"replica {self.name} was lost ({why})")

    async def _again(self, at_once: bool) -> None:
        """Have it, or another in its place, whatever it takes."""
        for pause in _pauses(at_once):
            await asyncio.sleep(pause)
            try:
                hello = await asyncio.to_thread(self._link.start)
                self._hello = self._hello or hello
                if not (found := differences(self._hello, hello)):
                    break
                await asyncio.to_thread(self._link.kill)
                self.problem = found
            except (LinkLost, RouterError) as error:
                self.problem = str(error)
            except Exception as error:
                log.exception("replica %s", self.name)
                self.problem = type(error).__name__
            log.warning("replica %s cannot be had: %s", self.name, self.problem)
        self.up, self.problem, self.since = True, "", time.time()
        log.info("replica %s is there", self.name)

    def _send(self, *commands: pb.EngineCommand) -> None:
        """Send now, or once the replica has answered the stream."""
        if self._session:
            self._sent = time.monotonic()
            self._link.send(*commands)
        else:
            self._outbox += commands


def _why(error: BaseException | None) -> str:
    if error is None:
        return "its stream has ended"
    if not isinstance(error, LinkLost):
        log.error("the stream of a replica cannot be read", exc_info=error)
    return str(error)


def _pauses(at_once: bool) -> Iterator[float]:
    pause = FIRST_PAUSE
    if at_once:
        yield 0.0
    while True:
        yield pause
        pause = min(2 * pause, LONGEST_PAUSE)
