"""The engine on vLLM: a thread with an event loop of its own, in which all of vLLM's client lives."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from router.engine.base import (
    AdapterArtifact,
    BaseInfo,
    EngineStatus,
    Job,
    PoolingRequest,
    Prompt,
    check_job,
    check_pooling,
)
from router.engine.checkpoint import NAMES
from router.engine.constrained.compiler import CompiledGrammar, Grammars
from router.engine.constrained.source import spec_of
from router.engine.output import Event, Events, EventStream, PendingPooling, Receiver, deliver
from router.errors import (
    FailedPrecondition,
    NotLoaded,
    Overloaded,
    Unavailable,
)
from router.extensions.vllm.adapters import VllmAdapters, check_base_is_alone
from router.extensions.vllm.answers import VllmAnswer
from router.extensions.vllm.arguments import slots_of
from router.extensions.vllm.base import VllmBase, read_base
from router.extensions.vllm.dispatcher import Dispatcher
from router.extensions.vllm.link import DEAD, VllmClient, VllmLora
from router.extensions.vllm.process import Environment, Processes, environment
from router.extensions.vllm.staging import AdapterStaging
from router.types import Constraint, FinishReason

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from router.config import Settings

log = logging.getLogger(__name__)
T = TypeVar("T")
Connect = Callable[["Settings", VllmBase], VllmClient]
CLOSE_SECONDS = 1.4  # that vLLM gets to end its processes
GRACE_SECONDS = 0.2
GIVE_UP = 3  # times stall_seconds without a step: slow ones come back, and what is ended does not
NO_STATES = "vLLM gives no hidden states: classifiers that read them, such as probe, need the engine torch"


class VllmEngine:
    """Implements `router.engine.base.Engine` with vLLM's processes."""

    def __init__(
        self,
        settings: Settings,
        connect: Connect,
        find_base: Callable[[str], VllmBase] = read_base,
    ) -> None:
        """`connect` starts vLLM: `link.connect`, or a test's."""
        self._settings, self._connect, self._find_base = settings, connect, find_base
        self._live: set[EventStream] = set()
        self._background: set[EventStream] = set()
        self._readings: set[PendingPooling] = set()
        self._loads = 0
        self._busy_since = 0.0
        self._failed = ""
        self._closed = False
        self._info: BaseInfo | None = None
        self._thread: threading.Thread | None = None
        self._outbox: Events = []

    @property
    def info(self) -> BaseInfo:
        """The base; raises NotLoaded before `start` is done."""
        if self._info is None:
            raise NotLoaded("the base model is still loading")
        return self._info

    def start(self) -> None:
        """Start vLLM's processes, which load the base. Blocks for many seconds. Raises ConfigError."""
        self._base = self._find_base(self._settings.model)
        self._grammars = Grammars(
            lambda: spec_of(self._base.tokenizer, self._base.vocabulary, self._base.ends)
        )
        self._processes = Processes()
        self._environment = Environment(
            environment(self._processes.sockets, self._settings.log_level, self._settings.threads)
        )
        self._loop = asyncio.new_event_loop()
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="engine", daemon=True)
        self._thread.start()
        started.result()

    def close(self) -> None:
        """End every job as CANCELLED, and vLLM's processes."""
        if self._closed or self._thread is None:
            self._closed = True
            return
        self._closed = True
        self._grammars.close()
        if self._info is None:  # it is still starting, and cannot be asked
            self._processes.kill()
            return
        self._loop.call_soon_threadsafe(self._stop)
        self._thread.join()

    # -- what the server asks

    def encode(
        self, prompt: Prompt, most: int | None = None, check: Callable[[], None] | None = None
    ) -> list[int]:
        """Token ids of a prompt, PromptTooLong if they are certain to be more than `most`. Thread-safe."""
        encoder = self._base.encoder
        tokens = encoder.encode(prompt, most, check)
        if prompt.raw is None:
            encoder.beginning(prompt.template)  # `shared` finds it made
        return tokens

    def shared(self, prompt: Prompt, tokens: Sequence[int]) -> int:
        """How many of its `tokens` every prompt under its template begins with."""
        return self._base.encoder.shared(prompt, tokens)

    async def load(self, artifact: AdapterArtifact) -> int:
        """Stage an adapter and have vLLM read it; returns its bytes."""
        self._check_up()
        return await self._counted(self._adapters.load(artifact))

    async def unload(self, digest: str) -> int:
        """Have vLLM drop an adapter; returns the bytes freed."""
        if self._info is None:
            raise NotLoaded("the base model is still loading")
        if self._closed or self._problem:
            return 0
        return await self._counted(self._adapters.unload(digest))

    async def compile(self, constraint: Constraint, tenant: str = "") -> CompiledGrammar:
        """The constraint, tried as every engine tries it; vLLM compiles it again for itself."""
        self._check_up()
        return await self._grammars.compile(constraint, tenant)

    def submit(self, job: Job) -> EventStream:
        """Queue a job; refuses at once what cannot be served."""
        self._check_up()
        lora = self._check(job)
        live = self._background if job.background else self._live
        stream = EventStream(self._end, live.discard)
        answer = VllmAnswer(job, stream, self._base.tokenizer, self._base.ends, lora)
        self._begins()
        live.add(stream)
        self._loop.call_soon_threadsafe(self._dispatcher.add, answer)
        return stream

    async def read(self, reading: PoolingRequest) -> NDArray[np.float32]:
        """Log-probabilities. Raises FailedPrecondition where hidden states are asked for."""
        self._check_up()
        check_pooling(reading, self.info.context_length - 1, len(self._readings))
        if reading.depth is not None:
            raise FailedPrecondition(NO_STATES)
        pending = PendingPooling(self._end, self._readings.discard)
        self._begins()
        self._readings.add(pending)
        self._loop.call_soon_threadsafe(self._dispatcher.read, reading, pending)
        return await pending.wait()

    def status(self) -> EngineStatus:
        """A snapshot. Which adapters are in a slot is known to vLLM alone."""
        if self._info is None:
            return EngineStatus(failed=self._failed)
        dispatcher, meter, facts = self._dispatcher, self._client.meter, self._client.facts
        digests, total = self._adapters.snapshot()
        return EngineStatus(
            running=dispatcher.running,
            waiting=dispatcher.waiting,
            reading=dispatcher.reading,
            background=dispatcher.background,
            background_dropped=dispatcher.dropped,
            preemptions=meter.preemptions,
            steps=meter.steps,
            last_progress=self._progress,
            busy=self._busy,
            failed=self._problem,
            cache_blocks=facts.blocks,
            block_size=facts.block_size,
            cache_blocks_free=round(facts.blocks * (1 - meter.usage)),
            prefix_hit_tokens=meter.hits,
            prefix_query_tokens=meter.queries,
            slots=self._settings.slots,
            host_bytes=total,
            host_adapters=digests,
        )

    def _check_up(self) -> None:
        if self._info is None:
            raise NotLoaded("the base model is still loading")
        if self._closed or self._problem:
            raise Unavailable(f"the engine has stopped{': ' + self._problem if self._problem else ''}")

    def _check(self, job: Job) -> VllmLora | None:
        """The adapter of a job that can be served."""
        settings = self._settings
        check_job(job, self.info.context_length)
        held = None if job.adapter is None else self._adapters.get(job.adapter)
        if job.adapter is not None and held is None:
            raise FailedPrecondition("the adapter is not loaded")
        if job.background and len(self._background) >= settings.max_running:
            raise Overloaded("enough runs in the background", bound="engine")
        if not job.background and len(self._live) >= settings.max_running + settings.max_queue:
            raise Overloaded("the queue is full", bound="engine")
        return None if held is None else held.lora

    # -- how it does, for monitoring

    @property
    def _problem(self) -> str:
        """Why it cannot go on; empty if it can. A death shows at once, before it was acted on."""
        dead = self._info is not None and not self._closed and self._client.dead
        return self._failed or (DEAD if dead else "")

    @property
    def _busy(self) -> bool:
        return bool(self._live or self._background or self._readings or self._loads)

    @property
    def _progress(self) -> float:
        return max(self._busy_since, self._client.meter.progress)

    def _begins(self) -> None:
        """Work comes."""
        if not self._busy:
            self._busy_since = time.monotonic()

    def _end(self, receiver: Receiver) -> None:
        """The waiting caller has left."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._dispatcher.end, receiver, FinishReason.CANCELLED)

    async def _counted(self, work: Coroutine[Any, Any, int]) -> int:
        """Done on the engine's loop; a load counts as work that has to go on."""
        self._begins()
        self._loads += 1
        try:
            done = asyncio.run_coroutine_threadsafe(self._unless_down(work), self._loop)
            return await asyncio.wrap_future(done)
        finally:
            self._loads -= 1
            self._client.meter.progress = time.monotonic()

    async def _unless_down(self, work: Coroutine[Any, Any, T]) -> T:
        """Its result, or Unavailable as soon as the engine fails."""
        task = self._loop.create_task(work)
        waited: set[asyncio.Future[Any]] = {task, self._down}
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise Unavailable(f"the engine has stopped: {self._failed or 'it was closed'}")
        finally:
            task.cancel()

    # -- the engine's thread

    def _run(self, started: Future[None]) -> None:
        try:
            with self._environment, self._processes.beginning():
                client = self._connect(self._settings, self._base)
        except BaseException as error:  # handed to the caller that waits for the start
            self._release()
            started.set_exception(error)
            return
        try:
            self._prepare(client)
        except BaseException as error:  # likewise
            self._end_client(client)
            started.set_exception(error)
            return
        started.set_result(None)
        self._loop.run_forever()
        self._end_client(client)

    def _prepare(self, client: VllmClient) -> None:
        settings, base, facts = self._settings, self._base, client.facts
        self._client = client
        self._down: asyncio.Future[None] = self._loop.create_future()
        self._adapters = VllmAdapters(
            client, AdapterStaging(self._processes.folder, base.sites, NAMES[facts.dtype])
        )
        self._dispatcher = Dispatcher(client, settings.max_running, settings.slots, self._send)
        if facts.device == "cpu":
            slots = slots_of(settings, facts.device)
            self._loop.run_until_complete(check_base_is_alone(client, self._adapters, slots))
        if self._closed:
            raise Unavailable("the engine was closed before it had started")
        self._loop.create_task(self._watch())
        self._info = BaseInfo(
            name=base.name,
            digest=base.digest,
            architecture=base.architecture,
            dtype=facts.dtype,
            device=facts.device,
            context_length=facts.context,
            vocab_size=base.vocabulary,
            sites=base.sites,
            size_bytes=base.size_bytes,
            kernels=f"vLLM {facts.version}",
            weights=facts.quantization,
            abilities=frozenset(),
            chat_template=bool(base.tokenizer.chat_template),
            tool_form=base.encoder.has_tool_form,
        )

    def _end_client(self, client: VllmClient) -> None:
        """What runs on the loop, and vLLM. Told to end, it waits for workers who have nothing to keep."""
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self._loop.run_until_complete(asyncio.wait(tasks, timeout=GRACE_SECONDS))
        soon = threading.Timer(GRACE_SECONDS, self._processes.end_workers)
        soon.start()
        client.close(CLOSE_SECONDS)
        soon.join()
        self._release()

    def _release(self) -> None:
        self._processes.close()
        self._environment.take_back()
        self._loop.close()

    async def _watch(self) -> None:
        """Look whether vLLM lives and goes on."""
        stall = self._settings.stall_seconds
        while not self._failed:
            quiet = time.monotonic() - self._progress
            if self._client.dead:
                self._fail(DEAD)
            elif self._dispatcher.spoilt:
                self._fail("vLLM computed numbers that are none, and its cache may hold more of them")
            elif self._busy and quiet > GIVE_UP * stall:
                self._fail(f"vLLM made no step for {quiet:.1f} s")
            await asyncio.sleep(min(stall / 10, 0.25))

    def _fail(self, reason: str) -> None:
        """It cannot go on: waiting callers get an error, and its processes are ended."""
        self._failed = reason
        log.error("the engine has failed: %s", reason)
        self._dispatcher.fail(Unavailable(f"the engine has stopped: {reason}"))
        if not self._down.done():
            self._down.set_result(None)
        self._processes.kill()

    def _stop(self) -> None:
        self._dispatcher.stop()
        self._flush()
        if not self._down.done():
            self._down.set_result(None)
        self._loop.call_soon(self._loop.stop)

    def _send(self, receiver: Receiver, event: Event) -> None:
        """Delivered with all else of this turn of the loop: one wake-up for the server's loop a step."""
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append((receiver, event))

    def _flush(self) -> None:
        events, self._outbox = self._outbox, []
        deliver(events)
