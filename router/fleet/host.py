"""A replica's side: any engine, served to edges in one stream each. Knows nothing of how messages travel.

Nobody can be sure that an edge says goodbye: its process is killed, its machine is lost, the network between
is cut. So an edge that was silent for `silence` seconds loses its stream, its jobs and its holds on adapters.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from router import __version__
from router.engine.base import AdapterArtifact, Engine, EngineStatus, Finished, Generation, Job, with_grammar
from router.errors import EngineFailed, RouterError, Unavailable
from router.fleet.holds import Fetch, Holds
from router.fleet.messages import (
    Batch,
    Cancel,
    Command,
    Compile,
    Event,
    Hello,
    Load,
    Post,
    Read,
    Submit,
    Unload,
    arrived,
    arrived_reading,
    flipped,
)
from router.types import Constraint, FinishReason, Usage

log = logging.getLogger(__name__)

SILENCE = 3.0  # seconds; an edge says something every BEAT
BEAT = 0.5
MOST_AHEAD = 1000  # posts that came before one that is still missing


async def as_it_is(weights: object) -> AdapterArtifact:
    """Weights that came with the message itself."""
    if not isinstance(weights, AdapterArtifact):
        raise TypeError("these weights were put down where this replica cannot fetch them")
    return weights


@dataclass(eq=False, slots=True)
class Session:
    """One stream to one edge: what it wants, and what has come of it since the last batch."""

    edge: str
    heard: float = field(default_factory=time.monotonic)
    events: list[Event] = field(default_factory=list)
    something: asyncio.Event = field(default_factory=asyncio.Event)
    generations: dict[int, Generation] = field(default_factory=dict)
    tasks: dict[int, asyncio.Task[None]] = field(default_factory=dict)  # answers, readings, grammars
    moves: dict[int, asyncio.Task[None]] = field(default_factory=dict)  # loads and unloads, never broken off
    told: float = 0.0  # when the edge last got a status
    ended: str = ""  # why
    expected: int = 0
    early: dict[int, Post] = field(default_factory=dict)

    def put(self, key: int, what: Any) -> None:
        """One more event for the next batch."""
        self.events.append(Event(key, what))
        self.something.set()

    def taken(self) -> tuple[Event, ...]:
        """All events that wait; those of one step are together, since the engine hands them over together."""
        events, self.events = tuple(self.events), []
        self.something.clear()
        return events

    def in_order(self, post: Post) -> list[Post]:
        """The posts whose turn it is now that this one is here."""
        self.early[post.number] = post
        if len(self.early) > MOST_AHEAD:
            raise ValueError(f"post {self.expected} never came")
        ready = []
        while (following := self.early.pop(self.expected, None)) is not None:
            ready.append(following)
            self.expected += 1
        return ready


class EngineHost:
    """Serves an engine to edges. Everything but `start` and `close` is called on one event loop."""

    def __init__(self, engine: Engine, fetch: Fetch = as_it_is, silence: float = SILENCE) -> None:
        """`fetch` gets weights from where edges put them down."""
        self._engine, self._silence = engine, silence
        self._holds = Holds(engine, fetch)
        self._sessions: dict[str, Session] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._guard: asyncio.Task[None] | None = None

    def start(self) -> Hello:
        """Load the base; blocks."""
        self._engine.start()
        return Hello(self._engine.info, __version__)

    def close(self) -> None:
        """End the engine; blocks. What runs ends as CANCELLED."""
        self._engine.close()

    def problem(self, patience: float) -> str:
        """Why the engine has to be ended, for whoever asks beside the streams; empty if it goes on."""
        status = self._engine.status()
        if status.failed:
            return "its engine failed"
        quiet = time.monotonic() - status.last_progress
        return f"it made no step for {quiet:.0f} s" if status.busy and quiet > patience else ""

    @property
    def edges(self) -> tuple[str, ...]:
        """Those that are served now."""
        return tuple(self._sessions)

    def holders(self, digest: str) -> frozenset[str]:
        """The edges that hold an adapter here."""
        return self._holds.of(digest)

    def post(self, post: Post) -> None:
        """Begin what an edge wants. One whose stream has ended is not listened to."""
        session = self._sessions.get(post.edge)
        if session is None:
            return
        session.heard = time.monotonic()
        try:
            for following in session.in_order(post):
                for command in following.commands:
                    self._do(session, command)
        except Exception as error:  # the edge is told by the end of its stream
            log.exception("a post cannot be carried out")
            self._end(session, f"{type(error).__name__}: {error}")

    async def batches(self, edge: str) -> AsyncGenerator[Batch, None]:
        """The stream of an edge, from its first batch on, which comes at once, until it is silent.

        An edge posts nothing before its first batch. A batch comes with every step, and every BEAT seconds
        with a status.
        """
        if edge in self._sessions:
            raise Unavailable(f"edge {edge} has a stream already")
        session = self._sessions[edge] = Session(edge)
        if self._guard is None or self._guard.done():
            self._guard = asyncio.get_running_loop().create_task(self._watch())
        try:
            for number in count():
                yield Batch(number, session.taken(), self._news(session))
                await session.something.wait()
                if session.ended:
                    raise Unavailable(session.ended)
        finally:
            self._end(session, "the stream was left")

    def _news(self, session: Session) -> EngineStatus | None:
        """The status, unless the edge has had one just now: it names all adapters, too much for each step."""
        now = time.monotonic()
        if now - session.told < BEAT / 2:
            return None
        session.told = now
        return flipped(self._engine.status())

    # -- what edges want

    def _do(self, session: Session, command: Command) -> None:
        key = command.key
        match command:
            case Cancel():
                self._cancel(session, key)
            case Submit(job=job) if job.params.constraint is None:
                self._begin(session, key, arrived(job))
            case Submit(job=job):
                _spawn(session.tasks, key, self._compiled(session, key, arrived(job)))
            case Read(reading=reading):
                read = self._engine.read(arrived_reading(reading))
                _spawn(session.tasks, key, self._told(session, key, read))
            case Compile(constraint=constraint, tenant=tenant):
                _spawn(session.tasks, key, self._told(session, key, self._compile(constraint, tenant)))
            case Load(digest=digest, weights=weights):
                held = self._holds.take(session.edge, digest, weights)
                _spawn(session.moves, key, self._told(session, key, held))
            case Unload(digest=digest):
                freed = self._holds.give(session.edge, digest)
                _spawn(session.moves, key, self._told(session, key, freed))

    def _cancel(self, session: Session, key: int) -> None:
        generation, task = session.generations.get(key), session.tasks.get(key)
        if generation is not None:
            generation.cancel()
        elif task is not None and task.cancel():
            session.put(key, Finished(FinishReason.CANCELLED, Usage()))

    def _begin(self, session: Session, key: int, job: Job) -> None:
        try:
            generation = session.generations[key] = self._engine.submit(job)
        except Exception as error:
            session.put(key, _told_as(error))
            return
        _spawn(session.tasks, key, self._answer(session, key, generation))

    async def _compiled(self, session: Session, key: int, job: Job) -> None:
        try:
            generation = self._engine.submit(await with_grammar(self._engine, job))
        except Exception as error:
            session.put(key, _told_as(error))
            return
        session.generations[key] = generation
        await self._answer(session, key, generation)

    async def _answer(self, session: Session, key: int, generation: Generation) -> None:
        try:
            async for event in generation:
                session.put(key, event)
        except Exception as error:
            session.put(key, _told_as(error))
        finally:
            session.generations.pop(key, None)
            generation.cancel()

    async def _told(self, session: Session, key: int, work: Coroutine[Any, Any, Any]) -> None:
        try:
            session.put(key, await work)
        except Exception as error:
            session.put(key, _told_as(error))

    async def _compile(self, constraint: Constraint, tenant: str) -> None:
        await self._engine.compile(constraint, tenant)

    # -- edges that are gone

    async def _watch(self) -> None:
        """Wake every stream for its sign of life, and end those whose edge is silent.

        A process that was itself stopped for a while heard nobody: then everybody gets the time again.
        """
        looked = time.monotonic()
        while self._sessions:
            await asyncio.sleep(BEAT)
            now = time.monotonic()
            late, looked = now - looked - BEAT, now
            for session in tuple(self._sessions.values()):
                if late > BEAT:
                    session.heard += late
                if now - session.heard > self._silence:
                    log.warning("edge %s is silent, so its jobs end", session.edge)
                    self._end(session, f"nothing was heard of this edge for {self._silence:g} s")
                session.something.set()

    def _end(self, session: Session, why: str) -> None:
        if session.ended:
            return
        session.ended = why
        session.something.set()
        self._sessions.pop(session.edge, None)
        task = asyncio.get_running_loop().create_task(self._leave(session))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _leave(self, session: Session) -> None:
        """Jobs first: an adapter may be unloaded only when nobody uses it."""
        for generation in tuple(session.generations.values()):
            generation.cancel()
        for key, task in tuple(session.tasks.items()):
            if key not in session.generations:
                task.cancel()
        if left := (*session.tasks.values(), *session.moves.values()):
            await asyncio.wait(left)
        with suppress(RouterError):  # an engine that is closed has nothing to unload
            await self._holds.leave(session.edge)


def _spawn(where: dict[int, asyncio.Task[None]], key: int, work: Coroutine[Any, Any, None]) -> None:
    task = where[key] = asyncio.get_running_loop().create_task(work)
    task.add_done_callback(lambda _: where.pop(key, None))


def _told_as(error: Exception) -> RouterError:
    """The error as the edge gets it; one that nobody made on purpose goes to the log whole."""
    if isinstance(error, RouterError):
        return error
    log.error("a replica's engine raised", exc_info=error)
    return EngineFailed(f"{type(error).__name__}: {error}")
