"""One replica as its edge sees it: its stream, what was asked of it and is not answered, how it is."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import aclosing, suppress
from itertools import count
from typing import TYPE_CHECKING, Literal, Protocol

from router.engine.base import EngineStatus
from router.errors import RouterError, Unavailable
from router.replicas.host import BEAT
from router.replicas.link import Link, LinkLost
from router.replicas.messages import differences, error_of, status_of
from router.v1 import engine_pb2 as pb

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)

SHORT = 1.0  # seconds of a stream: after two such the next is not tried at once
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds between two tries to have a replica again
PATIENCE = 3  # times `stall_seconds`, until one that stalls is ended: it takes long to load another


State = Literal["starting", "serving", "lost", "draining"]


class Fleet(Protocol):
    """What a replica tells the fleet that it belongs to."""

    def came(self, replica: FleetReplica) -> None:
        """It is up again."""
        ...

    def went(self, replica: FleetReplica) -> None:
        """It is down. Its jobs are moved or ended afterwards."""
        ...

    def stalled(self, replica: FleetReplica) -> None:
        """It makes no steps."""
        ...

    def ends(self, replica: FleetReplica) -> None:
        """It takes nothing new and ends itself."""
        ...


class Receiver(Protocol):
    """Who sent a command to a replica: a job on its way (`RoutedJob`), or a caller of one answer."""

    @property
    def moves(self) -> bool:
        """Whether another replica can do it instead."""
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

    moves = False

    def __init__(self) -> None:
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
    """One of a fleet. `run` keeps it: when it is lost, it is started again, as often as it takes, unless it
    is draining.
    """

    def __init__(
        self,
        link: Link,
        edge: str,
        stall_seconds: float,
        fleet: Fleet,
        like: pb.HelloResponse | None = None,
    ) -> None:
        """`fleet` is called when it comes, goes, stalls or drains; `like`: what it must be, once that is
        known of the others.
        """
        self._link, self._edge, self._stall, self._fleet = link, edge, stall_seconds, fleet
        self.name = link.name
        self.up = False
        self.since = time.time()  # seconds of the epoch: its state is the same since then
        self.draining = False
        self.stalls = ""  # why it gets nothing new, if another can have it
        self.problem = ""  # why it is not up
        self.losses = 0
        self.status = EngineStatus()
        self.pending: dict[int, Receiver] = {}
        self.ending = False  # it drains by itself: it takes nothing new
        self._hello = like
        self._leaves = asyncio.Event()
        self._keys, self._sessions = count(), count()
        self._outbox: list[pb.EngineCommand] = []
        self._session = ""  # of the stream, once its first batch came
        self._sent = self._received = 0.0
        self._reading: asyncio.Task[None] | None = None

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

    @property
    def takes(self) -> bool:
        """Whether it gets anything new."""
        return self.up and not self.draining and not self.ending

    @property
    def left(self) -> bool:
        """Whether it is let go."""
        return self._leaves.is_set()

    # -- what the edge asks

    def expect(self, hello: pb.HelloResponse, up: bool) -> None:
        """What it must be, as the others are, and whether it is up."""
        self._hello = hello
        if up:
            self.up, self.problem, self.since = True, "", time.time()

    def drain(self) -> None:
        """It gets nothing new and, when it is lost, is not had again. One that is not up leaves."""
        self.draining, self.since = True, time.time()
        if not self.up:
            self.leave()

    async def idle(self) -> None:
        """Until nothing that this edge asked for is there; looks every BEAT."""
        while self.up and self.pending:  # noqa: ASYNC110 - a flag for each answer would cost every request
            await asyncio.sleep(BEAT)

    def abandon(self) -> None:
        """Send all that may move elsewhere; what has begun to be answered ends."""
        moving = {key: receiver for key, receiver in self.pending.items() if receiver.moves}
        for key, receiver in moving.items():
            del self.pending[key]
            self.cancel(key)
            receiver.lost(f"replica {self.name} stalls ({self.stalls})")

    def detach(self) -> None:
        """End the stream, so that the replica releases what it holds for this edge."""
        if self._reading is not None:
            self._reading.cancel()

    def leave(self) -> None:
        """Nothing of this edge is there: `run` ends, its replica does not."""
        self._leaves.set()

    def close(self) -> None:
        """End it, for good; blocks."""
        self._link.close()

    def ask(self, receiver: Receiver, command: pb.EngineCommand) -> int:
        """Send a command with the next message; returns its key. Its events go to `receiver`.

        Raises LinkLost if it has left.
        """
        if self._leaves.is_set():
            raise LinkLost(f"replica {self.name} has left")
        command.key = next(self._keys)
        self._send(command)
        self.pending[command.key] = receiver
        return command.key

    async def call(self, command: pb.EngineCommand) -> pb.EngineEvent:
        """The one answer to a command. Raises what the replica's engine raised, or LinkLost."""
        pending = PendingCall()
        key = self.ask(pending, command)
        try:
            return await pending.answer
        except asyncio.CancelledError:
            if self.pending.pop(key, None) is not None:
                self.cancel(key)
            raise

    def cancel(self, key: int) -> None:
        """Nobody waits for it any more."""
        self._send(pb.EngineCommand(key=key, cancel=pb.EngineCommand.Cancel()))

    # -- its life

    async def run(self) -> None:
        """Have it, and read its stream; when that ends tell who waits, and have the replica again."""
        short = 0
        if not self.up:
            await self._again(at_once=True)
        while not self._leaves.is_set():
            began = time.monotonic()
            try:
                why = await self._read_stream()
            except Exception as error:
                log.exception("replica %s", self.name)
                why = type(error).__name__
            if self._leaves.is_set():
                break
            short = short + 1 if time.monotonic() - began < SHORT else 0
            self._lose(why)
            if self.draining:
                self.leave()
            await self._again(at_once=short < 2)
        self.up = False

    async def _read_stream(self) -> str:
        """Until it ends or nothing goes on; returns why."""
        self._session = ""
        self._received = self._sent = time.monotonic()
        loop = asyncio.get_running_loop()
        reading = self._reading = loop.create_task(self._read(f"{self._edge}/{next(self._sessions)}"))
        leaving = loop.create_task(self._leaves.wait())
        try:
            looked = time.monotonic()
            while not reading.done() and not leaving.done():
                await asyncio.wait((reading, leaving), timeout=BEAT, return_when=asyncio.FIRST_COMPLETED)
                now = time.monotonic()
                if now - looked > 2 * BEAT:  # this process was itself stopped, and received nothing
                    self._received = now
                looked = now
                stalled, self.stalls = self.stalls, self._quiet(now, self._stall)
                if self.stalls and not stalled:
                    self._fleet.stalled(self)
                if self.stalls and (problem := self._quiet(now, PATIENCE * self._stall)):
                    await asyncio.to_thread(self._link.kill)
                    return problem
                if now - self._sent >= BEAT:
                    self._send()
            if leaving.done():
                reading.cancel()
                await asyncio.wait((reading,))
                return "it was let go"
            return "it drains" if reading.cancelled() else _why(reading.exception())
        finally:
            leaving.cancel()
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
            if batch.state.draining and not self.ending:
                self.ending = True
                self._fleet.ends(self)
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
        self.since = time.time()
        self._session = ""
        self._outbox.clear()
        lost, self.pending = self.pending, {}
        level = logging.INFO if self.ending and not lost else logging.ERROR
        log.log(level, "replica %s is lost: %s", self.name, why, extra={"fields": {"waiting": len(lost)}})
        self._fleet.went(self)
        for receiver in lost.values():
            receiver.lost(f"replica {self.name} was lost ({why})")

    async def _again(self, at_once: bool) -> None:
        """Have it, or another in its place, whatever it takes."""
        for pause in _pauses(at_once):
            if await self._leaves_within(pause):
                return
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
        if self._leaves.is_set():  # while it started
            return
        self.up, self.problem, self.status = True, "", EngineStatus()
        self.ending = False
        self.since = time.time()
        log.info("replica %s is there", self.name)
        self._fleet.came(self)

    async def _leaves_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._leaves.wait(), seconds)
        return self._leaves.is_set()

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
