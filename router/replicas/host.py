"""A replica's side: any engine, served to edges over gRPC in one stream each.

Nobody can be sure that an edge says goodbye: its process is killed, its machine is lost, the network between
is cut. So an edge that was silent for `silence` seconds loses its stream and its jobs.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from router import __version__
from router.engine.base import (
    AdapterArtifact,
    Delta,
    Engine,
    Finished,
    Generation,
    Job,
    PoolingRequest,
    with_grammar,
)
from router.errors import (
    EngineFailed,
    FailedPrecondition,
    FieldViolation,
    Findings,
    InvalidRequest,
    NotLoaded,
    Overloaded,
    ResourceExhausted,
    RouterError,
    Unavailable,
)
from router.replicas.memory import AdapterMemory
from router.replicas.messages import (
    MOST_NAME,
    MOST_REPLY,
    MOST_REQUEST,
    constraint_of,
    error_message,
    hello_message,
    job_of,
    reading_of,
    state_message,
    write_event,
)
from router.types import Constraint, FinishReason, Usage
from router.v1 import engine_pb2 as pb
from router.v1.engine_pb2_grpc import EngineServiceServicer, add_EngineServiceServicer_to_server

log = logging.getLogger(__name__)

SERVICE = "router.v1.EngineService"
SILENCE = 3.0  # seconds; an edge sends something every BEAT
BEAT = 0.5
MOST_EDGES = 64  # streams at once
MOST_COMMANDS = 4096  # of an edge that are not answered yet
MOST_EVENTS = 65536  # for an edge that it has not read yet
MOST_CONNECTIONS = 256
CALLS = 4  # of one connection: a stream, and a Hello beside it
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MOST_REQUEST),
    ("grpc.max_send_message_length", MOST_REPLY),
    ("grpc.http2.bdp_probe", 0),  # a call whose message is not read yet has 64 KiB here
    ("grpc.max_concurrent_streams", CALLS),
    ("grpc.max_allowed_incoming_connections", MOST_CONNECTIONS),
    ("grpc.max_metadata_size", 12 << 10),
    ("grpc.absolute_max_metadata_size", 16 << 10),
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)


@dataclass(eq=False, slots=True)
class EdgeSession:
    """One stream to one edge: what it wants, and what happened since the last batch."""

    edge: str
    received: float = field(default_factory=time.monotonic)
    batch: pb.AttachResponse = field(default_factory=pb.AttachResponse)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    generations: dict[int, Generation] = field(default_factory=dict)
    tasks: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    stated: float = 0.0  # when the edge last got a state
    ended: str = ""  # why

    def generated(self, key: int, what: Delta | Finished) -> None:
        """One more event of a generation for the next batch."""
        event = self.batch.events.add()
        event.key = key
        write_event(event, what)
        self.changed.set()

    def put(self, key: int, event: pb.EngineEvent) -> None:
        """The last event of a key for the next batch."""
        event.key = key
        self.batch.events.append(event)
        self.changed.set()

    def refuse(self, key: int, error: Exception) -> None:
        """The error as the edge gets it; one that no engine raises on purpose goes to the log whole."""
        if not isinstance(error, RouterError):
            log.error("a replica's engine raised", exc_info=error)
            error = EngineFailed(f"{type(error).__name__}: {error}")
        self.put(key, pb.EngineEvent(error=error_message(error)))

    def taken(self) -> pb.AttachResponse:
        """All events that wait; those of one step are together, since the engine hands them over together."""
        batch, self.batch = self.batch, pb.AttachResponse()
        self.changed.clear()
        return batch


class EngineHost(EngineServiceServicer):
    """Serves an engine to edges: the methods of `proto/router/v1/engine.proto`, on an `engine_server`.

    Everything but `start` and `close` is called on one event loop.
    """

    def __init__(
        self,
        engine: Engine,
        read: Callable[[Path], AdapterArtifact],
        most_bytes: int,
        silence: float = SILENCE,
    ) -> None:
        """`read` reads the adapter in a folder, in a worker thread; it raises AdapterRejected. Adapters take
        at most `most_bytes`. An edge that was silent for `silence` seconds loses its stream.
        """
        self._engine, self._silence = engine, silence
        self._memory = AdapterMemory(engine, read, most_bytes)
        self._sessions: dict[str, EdgeSession] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._guard: asyncio.Task[None] | None = None
        self._hello: pb.HelloResponse | None = None
        self.loaded = asyncio.Event()  # set when `start` has ended
        self.draining = asyncio.Event()

    def start(self) -> None:
        """Load the base; blocks."""
        self._engine.start()
        self._hello = hello_message(self._engine.info)

    def close(self) -> None:
        """End the engine; blocks. What runs ends as CANCELLED."""
        self._engine.close()

    @property
    def hello(self) -> pb.HelloResponse:
        """What the replica is. Raises NotLoaded before `start` has ended."""
        if self._hello is None:
            raise NotLoaded("the base model is still loading")
        return self._hello

    @property
    def edges(self) -> tuple[str, ...]:
        """Those that are served now."""
        return tuple(self._sessions)

    def drain(self) -> None:
        """Tell every edge to send nothing new; what runs goes on."""
        self.draining.set()
        for session in self._sessions.values():
            session.stated = -math.inf
            session.changed.set()

    @property
    def idle(self) -> bool:
        """Whether no command of any edge is under way."""
        return not self._leaving and not any(session.tasks for session in self._sessions.values())

    def open(self, edge: str) -> EdgeSession:
        """Begin a stream. Raises InvalidRequest for one without a name, Unavailable for one that has a stream
        already, and where MOST_EDGES have.
        """
        if not 0 < len(edge) <= MOST_NAME:
            raise InvalidRequest([FieldViolation("edge", f"must be a name of 1 to {MOST_NAME} characters")])
        if edge in self._sessions:
            raise Unavailable(f"edge {edge} has a stream already")
        if len(self._sessions) >= MOST_EDGES:
            raise Unavailable(f"this replica serves {MOST_EDGES} edges already")
        session = self._sessions[edge] = EdgeSession(edge)
        if self._guard is None or self._guard.done():
            self._guard = asyncio.get_running_loop().create_task(self._watch())
        return session

    def receive(self, session: EdgeSession, request: pb.AttachRequest) -> None:
        """Begin what an edge wants. One whose stream has ended is ignored."""
        if session.ended:
            return
        session.received = time.monotonic()
        for command in request.commands:
            try:
                self._do(session, command)
            except Exception as error:
                session.refuse(command.key, error)

    async def batches(self, session: EdgeSession) -> AsyncGenerator[pb.AttachResponse, None]:
        """The stream of an edge: a batch at once, with every step, and every BEAT seconds with a state.

        Raises Unavailable where the replica ends the stream, as for an edge that is silent.
        """
        try:
            while True:
                batch = session.taken()
                if time.monotonic() - session.stated >= BEAT / 2:
                    session.stated = time.monotonic()
                    batch.state.CopyFrom(state_message(self._engine.status(), self.draining.is_set()))
                yield batch
                await session.changed.wait()
                if session.ended:
                    raise Unavailable(session.ended)
        finally:
            self.end(session, "the stream was left")

    # -- what edges want

    def _do(self, session: EdgeSession, command: pb.EngineCommand) -> None:
        key, what = command.key, command.WhichOneof("what")
        if what == "cancel":
            self._cancel(session, key)
            return
        if key in session.tasks:
            raise InvalidRequest([FieldViolation("key", f"{key} is that of a command under way")])
        if len(session.tasks) >= MOST_COMMANDS:
            raise Overloaded(f"{MOST_COMMANDS} commands of this edge are under way", bound="replicas")
        vocabulary = self._engine.info.vocab_size
        if what == "submit":
            job = job_of(command.submit, vocabulary)
            load = command.submit.adapter if job.adapter else None
            _spawn(session, key, self._generate(session, key, job, load))
        elif what == "read":
            _spawn(session, key, _answer(session, key, self._read(reading_of(command.read, vocabulary))))
        elif what == "compile":
            found = Findings()
            constraint = constraint_of(command.compile.constraint, found)
            found.check()
            work = self._compile(constraint, command.compile.tenant)
            _spawn(session, key, _answer(session, key, work))
        elif what == "load":
            _spawn(session, key, _answer(session, key, self._load(command.load)))
        elif what == "drain":
            self.drain()
            session.put(key, pb.EngineEvent(done=pb.EngineEvent.Done()))
        else:  # of a later release
            text = f"this replica, of version {__version__}, cannot do that"
            session.refuse(key, FailedPrecondition(text))

    def _cancel(self, session: EdgeSession, key: int) -> None:
        generation, task = session.generations.get(key), session.tasks.get(key)
        if generation is not None:
            generation.cancel()
        elif task is not None and task.cancel():
            session.generated(key, Finished(FinishReason.CANCELLED, Usage()))

    async def _generate(
        self, session: EdgeSession, key: int, job: Job, load: pb.EngineCommand.Load | None
    ) -> None:
        async with AsyncExitStack() as stack:
            try:
                if load is not None:
                    async with asyncio.timeout_at(job.deadline):
                        await stack.enter_async_context(self._memory.held(load))
                generation = self._engine.submit(await with_grammar(self._engine, job))
            except TimeoutError:
                usage = Usage(prompt_tokens=len(job.tokens))
                session.generated(key, Finished(FinishReason.DEADLINE, usage))
                return
            except ResourceExhausted as full:  # of the load: another replica may have memory for it
                session.refuse(key, Overloaded(full.message, bound="replicas"))
                return
            except Exception as error:
                session.refuse(key, error)
                return
            session.generations[key] = generation
            try:
                async for event in generation:
                    session.generated(key, event)
            except Exception as error:
                session.refuse(key, error)
            finally:
                session.generations.pop(key, None)
                generation.cancel()

    async def _read(self, reading: PoolingRequest) -> pb.EngineEvent:
        return pb.EngineEvent(numbers=(await self._engine.read(reading)).astype("<f4").tobytes())

    async def _compile(self, constraint: Constraint, tenant: str) -> pb.EngineEvent:
        await self._engine.compile(constraint, tenant)
        return pb.EngineEvent(done=pb.EngineEvent.Done())

    async def _load(self, load: pb.EngineCommand.Load) -> pb.EngineEvent:
        async with self._memory.held(load) as size:
            return pb.EngineEvent(size=size)

    # -- edges that are gone

    async def _watch(self) -> None:
        """Wake every stream for its sign of life, and end those whose edge is silent.

        A process that was itself stopped for a while received nothing: then all edges get the time again.
        """
        looked = time.monotonic()
        while self._sessions:
            await asyncio.sleep(BEAT)
            now = time.monotonic()
            late, looked = now - looked - BEAT, now
            for session in tuple(self._sessions.values()):
                if late > BEAT:
                    session.received += late
                if now - session.received > self._silence:
                    log.warning("edge %s is silent, so its jobs end", session.edge)
                    self.end(session, f"this edge was silent for {self._silence:g} s")
                elif len(session.batch.events) > MOST_EVENTS:
                    log.warning("edge %s does not read its events, so its jobs end", session.edge)
                    self.end(session, f"this edge left {MOST_EVENTS} events unread")
                session.changed.set()

    def end(self, session: EdgeSession, why: str) -> None:
        """End a stream and what its edge wants."""
        if session.ended:
            return
        session.ended = why
        session.changed.set()
        self._sessions.pop(session.edge, None)
        task = asyncio.get_running_loop().create_task(self._leave(session))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _leave(self, session: EdgeSession) -> None:
        for generation in tuple(session.generations.values()):
            generation.cancel()
        for key, task in tuple(session.tasks.items()):
            if key not in session.generations:
                task.cancel()
        if left := tuple(session.tasks.values()):
            await asyncio.wait(left)

    # -- the methods

    def register(self, server: grpc.aio.Server) -> None:
        """Add the service."""
        add_EngineServiceServicer_to_server(self, server)  # type: ignore[no-untyped-call]

    async def Hello(self, request: pb.HelloRequest, context: Context) -> pb.HelloResponse:
        """What this replica is."""
        await self.loaded.wait()
        if self.draining.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the replica is stopping")
        return self.hello

    async def Attach(
        self, requests: AsyncIterator[pb.AttachRequest], context: Context
    ) -> AsyncIterator[pb.AttachResponse]:
        """The stream of one edge."""
        await self.loaded.wait()
        first = await anext(aiter(requests), None)
        if first is None:
            text = "the stream ended before its first message, which names the edge"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
            return
        try:
            session = self.open(first.edge)
            self.receive(session, first)
            reading = asyncio.get_running_loop().create_task(self._receive_all(session, requests))
            try:
                async with aclosing(self.batches(session)) as batches:
                    async for batch in batches:
                        yield batch
            finally:
                reading.cancel()
        except Unavailable as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, error.message)
        except InvalidRequest as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.message)

    async def _receive_all(self, session: EdgeSession, requests: AsyncIterator[pb.AttachRequest]) -> None:
        async for request in requests:
            self.receive(session, request)
        self.end(session, "the edge ended the stream")


def _spawn(session: EdgeSession, key: int, work: Coroutine[Any, Any, None]) -> None:
    task = session.tasks[key] = asyncio.get_running_loop().create_task(work)
    task.add_done_callback(lambda _: session.tasks.pop(key, None))


async def _answer(session: EdgeSession, key: int, work: Coroutine[Any, Any, pb.EngineEvent]) -> None:
    try:
        session.put(key, await work)
    except Exception as error:
        session.refuse(key, error)


class SecretGuard(grpc.aio.ServerInterceptor):
    """Ends calls of EngineService by those who do not know the secret, before a message of theirs is read."""

    def __init__(self, secret: str) -> None:
        """Without a `secret` everybody who can connect may call, which TLS with a CA for clients decides."""
        self._secret = f"Bearer {secret}".encode() if secret else b""

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        """The method, or one that refuses."""
        if not self._secret or not details.method.startswith(f"/{SERVICE}/"):
            return await continuation(details)
        given = dict(details.invocation_metadata or ()).get("authorization", "")
        found = given.encode() if isinstance(given, str) else given
        if hmac.compare_digest(found, self._secret):
            return await continuation(details)
        return grpc.stream_stream_rpc_method_handler(_refuse)


async def _refuse(requests: AsyncIterator[bytes], context: Context) -> None:
    log.warning("%s does not know the secret of this replica", context.peer())
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the secret is not that of this replica")


def engine_server(secret: str) -> grpc.aio.Server:
    """A server for an EngineService, with bounds on what strangers and edges can have it keep."""
    return grpc.aio.server(options=OPTIONS, interceptors=[SecretGuard(secret)])
