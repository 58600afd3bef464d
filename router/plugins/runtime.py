"""The hooks of plugins while a server runs: its life, requests, observers, checks and metrics.

Code of plugins runs in threads or under a time limit. A fault is kept, counted and shown, and costs the
plugin's part alone.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from router.classifiers.isolation import Breaker, await_in_thread, fault_of
from router.errors import RouterError, Unavailable
from router.hookspecs import AnswerRecord, DecisionRecord
from router.plugins.host import PluginHost, PluginRecord
from router.plugins.loader import OBSERVERS, Hook, LoadedPlugin, describe
from router.types import Request

if TYPE_CHECKING:
    from router.extensions.experiments.report.model import Report
    from router.ports import End, Server
    from router.types import Decision

log = logging.getLogger(__name__)
STAGES = ("on_startup", "on_load", "on_loaded", "on_ready")  # of a server's life, in this order
STARTUP_SECONDS = 30.0  # for a hook of these
SHUTDOWN_SECONDS = 2.5  # for all plugins together, without the built-in ones
CHECK_SECONDS = 1.0  # between two rounds of checks
HANG_SECONDS = 30.0  # after which a check counts as hanging, on a slow machine too
MOST_RECORDS = 1000  # that wait for one plugin
FLUSH_SECONDS = 1.0  # for the records that wait at shutdown
RECENT_SECONDS = 60.0  # for so long a fault shows under `degraded`


@dataclass(slots=True)
class HookFault:
    """The faults of one hook of a plugin."""

    count: int = 0
    text: str = ""  # the last one: type and place
    time: float = 0.0  # of it, monotonic
    lasting: bool = False  # it does not pass


class Registering(Protocol):
    """What a plugin registers by: called by the plugin, and kept if its hook raises nothing."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """The `register` of the hook."""

    def commit(self) -> None:
        """Keep what was registered."""


class RunningPlugin:
    """One loaded version of a plugin in a running server."""

    def __init__(self, plugin: PluginRecord, loaded: LoadedPlugin) -> None:
        self.plugin, self.loaded = plugin, loaded
        self.stage = 0  # so many of STAGES it has had
        self.faults: dict[str, HookFault] = {}
        self.breaker = Breaker()  # of rewrite_request
        self.degraded: tuple[str, ...] = ()  # what its checks return
        self.observer: Observer | None = None

    @property
    def built_in(self) -> bool:
        """Whether it comes with the server, which trusts it to end by itself what it begins."""
        return self.plugin.source == "built-in"

    @property
    def failed(self) -> bool:
        """Whether its start failed, so that its other hooks are not called."""
        return any(fault.lasting for fault in self.faults.values())

    def hook(self, name: str) -> Hook | None:
        """Its implementation of a hook."""
        return self.loaded.hooks.get(name)

    def fault(self, hook: str, error: BaseException, lasting: bool = False, text: str = "") -> None:
        """Keep a fault; the first of a hook and every hundredth are logged."""
        known = self.faults.setdefault(hook, HookFault())
        known.count, known.text, known.time = known.count + 1, text or fault_of(error), time.monotonic()
        known.lasting = known.lasting or lasting
        if known.count % 100 == 1:
            fields = {"plugin": self.plugin.name, "hook": hook, "fault": known.text, "count": known.count}
            log.warning("a plugin failed", extra={"fields": fields})

    def warnings(self) -> list[str]:
        """Its faults, for `plugins list`."""
        lost = self.observer.dropped if self.observer is not None else 0
        shown = [
            f"{hook} failed {f.count} times, at last: {f.text}" for hook, f in tuple(self.faults.items())
        ]
        return [*shown, *([f"{lost} records were dropped: it is slower than requests come"] if lost else [])]

    def flaws(self, now: float) -> Iterator[str]:
        """What is wrong now, for `degraded`."""
        for hook, fault in tuple(self.faults.items()):
            if fault.lasting or now - fault.time < RECENT_SECONDS:
                yield f"plugin {self.plugin.name}: {hook}: {fault.text}"
        whose = "" if self.built_in else f"plugin {self.plugin.name}: "
        yield from (f"{whose}{text}" for text in self.degraded)


class Observer:
    """Calls a plugin's observers in a thread of its own, in the order of the records."""

    def __init__(self, running: RunningPlugin, server: Server | None) -> None:
        self._running, self._server = running, server
        self._waiting: queue.SimpleQueue[tuple[str, Callable[[], object]] | None] = queue.SimpleQueue()
        self.dropped = self.observed = 0
        self._thread = threading.Thread(target=self._run, name=f"observe {running.plugin.name}", daemon=True)
        self._thread.start()

    def put(self, hook: str, make: Callable[[], object]) -> None:
        """`make` makes the record, in the thread. Never blocks."""
        if self._waiting.qsize() >= MOST_RECORDS:
            self.dropped += 1
        else:
            self._waiting.put((hook, make))

    def close(self, seconds: float) -> None:
        """Blocks until all that waits is observed, or for so long; what is left is dropped."""
        self._waiting.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            self.dropped += max(0, self._waiting.qsize() - 1)

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            hook, make = item
            try:
                self._running.loaded.hooks[hook](**{OBSERVERS[hook]: make()}, server=self._server)
            except BaseException as error:
                self._running.fault(hook, error)
            self.observed += 1


@dataclass(slots=True)
class Hooks:
    """The hooks of all plugins of a host. Lives on the server's event loop.

    A request meets `rewrites`, `decided` and `watcher`, each one comparison where no plugin has the hook.
    """

    host: PluginHost
    _running: dict[LoadedPlugin, RunningPlugin] = field(default_factory=dict)
    _rewriters: tuple[RunningPlugin, ...] = ()
    _observers: dict[str, tuple[RunningPlugin, ...]] = field(default_factory=dict)
    _server: Server | None = None
    _stage: int = 0  # so many of STAGES all plugins have had
    _following: asyncio.Lock = field(default_factory=asyncio.Lock)

    # -- the server's life

    async def startup(self, server: Server) -> None:
        """Load plugins if that was not done, and call `on_startup`. Raises as `reach` does."""
        self._server = server
        await self.host.pick_up()
        await self.reach("on_startup")
        self.host.refreshed = self._follow

    async def reach(self, stage: str) -> None:
        """Call that hook of STAGES: of built-in plugins, then of the others.

        Raises RouterError of a built-in plugin: the server cannot start as it is set up.
        """
        self._stage = STAGES.index(stage) + 1
        await self._follow()

    async def register(self, name: str, registering: Callable[[RunningPlugin], Registering]) -> None:
        """Call a hook that registers with the server: of built-in plugins, then of the others.

        `registering(running)` returns what a plugin registers by. What a hook registers that raises is
        dropped.
        """
        for running in tuple(self._running.values()):
            if running.hook(name) is not None and not running.failed:
                register = registering(running)
                await self._life(running, name, register=register)
                if not running.failed:
                    register.commit()
        self._sort()

    async def shutdown(self) -> None:
        """Call `on_shutdown`, last started first, after their records; built-in ones end last."""
        self.host.refreshed = None
        started = [*reversed(self._running.values())]
        try:
            async with asyncio.timeout(SHUTDOWN_SECONDS):
                for running in started:
                    if not running.built_in:
                        await self._end(running)
        except TimeoutError:
            log.error("plugins did not end", extra={"fields": {"seconds": SHUTDOWN_SECONDS}})
        for running in started:
            if running.built_in:
                await self._end(running)
        self._running.clear()
        self._sort()

    async def _follow(self) -> None:
        """Bring what runs to what is loaded: end old versions, start new ones."""
        async with self._following:
            await self._bring(self.host.running())

    async def _bring(self, loaded: dict[LoadedPlugin, PluginRecord]) -> None:
        for version in [version for version in self._running if version not in loaded]:
            await self._end(self._running.pop(version))
        for version, plugin in sorted(loaded.items(), key=lambda item: item[1].source != "built-in"):
            running = self._running.setdefault(version, RunningPlugin(plugin, version))
            running.plugin = plugin
            plugin.faults = running.warnings
            while running.stage < self._stage and not running.failed:
                running.stage += 1
                await self._life(running, STAGES[running.stage - 1])
            watches = any(hook in version.hooks for hook in OBSERVERS)
            if watches and running.observer is None and not running.failed:
                running.observer = Observer(running, self._server)
        self._sort()

    def _sort(self) -> None:
        running = tuple(self._running.values())
        self._rewriters = tuple(r for r in running if _rewrites(r))
        self._observers = {
            hook: found
            for hook in OBSERVERS
            if (found := tuple(r for r in running if r.observer and r.hook(hook) and not r.failed))
        }

    async def _life(self, running: RunningPlugin, name: str, **given: object) -> None:
        """Call a hook of the server's life; a fault stays. Raises RouterError of a built-in plugin."""
        hook = running.hook(name)
        if hook is None:
            return
        limit = None if running.built_in and name in ("on_load", "on_loaded") else STARTUP_SECONDS
        try:
            async with asyncio.timeout(limit):
                await _called(hook, name, server=self._server, **given)
        except TimeoutError as error:
            running.fault(name, error, lasting=True, text=f"did not return within {STARTUP_SECONDS:g} s")
        except Exception as error:
            if isinstance(error, RouterError) and running.built_in:
                raise
            running.fault(name, error, lasting=True, text=describe(error))

    async def _end(self, running: RunningPlugin) -> None:
        if running.observer is not None:
            await await_in_thread(lambda: _close(running), "observer close")
        hook = running.hook("on_shutdown")
        if hook is None or running.failed:
            return
        try:
            async with asyncio.timeout(None if running.built_in else SHUTDOWN_SECONDS):
                await _called(hook, "on_shutdown", server=self._server)
        except Exception as error:
            log.exception("on_shutdown of plugin %s failed", running.plugin.name, exc_info=error)

    # -- requests

    async def rewrite(self, request: Request) -> Request:
        """What the plugins make of it. Raises a plugin's RouterError, and Unavailable for a required one."""
        for running in self._rewriters:
            request = await self._rewritten(running, request)
        return request

    async def _rewritten(self, running: RunningPlugin, request: Request) -> Request:
        hook = running.loaded.hooks["rewrite_request"]
        try:
            if running.failed or not running.breaker.allow(time.monotonic()):
                raise _NotAsked
            async with asyncio.timeout(hook.limits.timeout_ms / 1000):
                found = await _called(hook, "rewrite", request=request)
            if found is not None and not isinstance(found, Request):
                raise TypeError(f"rewrite_request returned a {type(found).__name__}, no Request and not None")
            if found is not None and (found.raw_prompt is None) != bool(found.turns):
                raise ValueError(
                    "rewrite_request returned a Request with both turns and raw_prompt, or neither"
                )
        except RouterError:
            running.breaker.succeeded()
            raise
        except asyncio.CancelledError:
            running.breaker.abandoned()
            raise
        except (_NotAsked, Exception) as error:
            if not isinstance(error, _NotAsked):
                late = (
                    f"did not return within {hook.limits.timeout_ms} ms"
                    if isinstance(error, TimeoutError)
                    else ""
                )
                running.fault("rewrite_request", error, text=late)
                running.breaker.failed(time.monotonic())
            if hook.limits.required:
                raise Unavailable(
                    f"plugin {running.plugin.name} must rewrite the request and failed"
                ) from None
            return request
        running.breaker.succeeded()
        if found is None or found is request:
            return request
        return replace(
            request,
            turns=tuple(found.turns),
            raw_prompt=found.raw_prompt,
            sampling=found.sampling,
            routing=found.routing,
            labels=found.labels,
        )

    @property
    def rewrites(self) -> bool:
        """Whether any plugin rewrites requests."""
        return bool(self._rewriters)

    def decided(self, request: Request, decision: Decision) -> None:
        """A decision for a request that is to be answered."""
        if not self._observers:
            return
        now = time.time()
        for running in self._observers.get("on_decision", ()):
            if running.observer is not None:
                running.observer.put("on_decision", lambda: decision_record(now, request, decision))

    def reported(self, report: Report) -> None:
        """A look at a running experiment. From any thread."""
        for running in self._observers.get("on_report", ()):
            if running.observer is not None:
                running.observer.put("on_report", lambda: report)

    def watcher(self, request: Request, decision: Decision) -> Watching | None:
        """What tells `on_answer` how the answer ends; None where no plugin observes answers."""
        running = self._observers.get("on_answer")
        return Watching(request, decision, running) if running else None

    # -- checks and metrics

    async def check(self) -> None:
        """Ask the checks of all plugins, again and again."""
        while True:
            await self.look()
            await asyncio.sleep(CHECK_SECONDS)

    async def look(self) -> None:
        """Ask the checks of all plugins now; takes `HANG_SECONDS` at most."""
        checked = [r for r in tuple(self._running.values()) if r.loaded.checks and not r.failed]
        await asyncio.gather(*map(self._checked, checked))

    async def _checked(self, running: RunningPlugin) -> None:
        def call_checks() -> tuple[str, ...]:
            return tuple(text for check in running.loaded.checks for text in _texts(check()))

        try:
            async with asyncio.timeout(HANG_SECONDS):
                running.degraded = await await_in_thread(call_checks, f"checks {running.plugin.name}")
        except Exception as error:
            running.degraded = ()
            running.fault("register_checks", error)

    @property
    def flaws(self) -> list[str]:
        """What is wrong with plugins and their hooks, and what checks return."""
        now = time.monotonic()
        of_hooks = [text for running in tuple(self._running.values()) for text in running.flaws(now)]
        return [*of_hooks, *self.host.flaws]

    def running(self) -> Sequence[RunningPlugin]:
        """For metrics."""
        return tuple(self._running.values())


class _NotAsked(Exception):
    """A rewriter whose start failed, or that failed too often a moment ago."""


class Watching:
    """Tells observers how an answer ended (`router.ports.Watcher`)."""

    __slots__ = ("_decision", "_request", "_running")

    def __init__(self, request: Request, decision: Decision, running: Sequence[RunningPlugin]) -> None:
        self._request, self._decision, self._running = request, decision, running

    def began(self) -> None:
        """As Watcher."""

    def ended(self, end: End) -> None:
        """As Watcher."""
        now = time.time()
        for running in self._running:
            if running.observer is not None:
                running.observer.put(
                    "on_answer", lambda: answer_record(now, self._request, self._decision, end)
                )


def decision_record(now: float, request: Request, decision: Decision) -> DecisionRecord:
    """A decision as observers get it."""
    adapter, version = decision.answered_by
    return DecisionRecord(
        time=now,
        request_id=request.request_id,
        tenant=request.tenant,
        labels=tuple(request.labels.items()),
        text=request.text,
        adapter=adapter,
        version=version,
        reason=decision.reason.value,
        classifier=decision.classifier,
        confidence=decision.confidence,
        seconds=decision.latency,
        experiment=decision.experiment,
        arm=decision.arm,
    )


def answer_record(now: float, request: Request, decision: Decision, end: End) -> AnswerRecord:
    """An answer as observers get it."""
    adapter, version = decision.answered_by
    return AnswerRecord(
        time=now,
        request_id=request.request_id,
        tenant=request.tenant,
        labels=tuple(request.labels.items()),
        adapter=adapter,
        version=version,
        text=end.text,
        finish=end.reason.value if end.reason is not None else "",
        error=end.error,
        cancelled=end.cancelled,
        prompt_tokens=end.usage.prompt_tokens,
        cached_tokens=end.usage.cached_tokens,
        completion_tokens=end.usage.completion_tokens,
        queue_seconds=end.usage.queue_time,
        first_token_seconds=end.usage.time_to_first_token,
        seconds=end.usage.total_time,
    )


async def _called(hook: Hook, name: str, **given: object) -> Any:
    """What the hook returns: awaited on the event loop if it is asynchronous, else computed in a thread."""
    try:
        if hook.is_async:
            return await hook(**given)
        found = await await_in_thread(lambda: hook(**given), name)
        return await found if inspect.isawaitable(found) else found
    except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:  # raised by the plugin
        raise RuntimeError(f"{name} raised {type(error).__name__}") from error


def _rewrites(running: RunningPlugin) -> bool:
    """A required rewriter whose start failed stays, and refuses."""
    hook = running.hook("rewrite_request")
    return hook is not None and (hook.limits.required or not running.failed)


def _texts(found: str | Iterable[str] | None) -> Iterable[str]:
    return () if not found else (found,) if isinstance(found, str) else map(str, found)


def _close(running: RunningPlugin) -> None:
    if running.observer is not None:
        running.observer.close(FLUSH_SECONDS)
