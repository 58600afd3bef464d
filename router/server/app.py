"""The server: its parts are made, started in order, and stopped in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from grpc_health.v1.health import SERVICE_NAME
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from router.access.access import Access
from router.access.audit import Audit
from router.access.hosts import Hosts
from router.classifiers.isolation import await_in_thread
from router.config import Settings
from router.engine.base import Engine
from router.engine.constrained.templates import ConstraintTemplates
from router.errors import ConfigError, NotLoaded
from router.plugins import Hooks, PluginHost
from router.ports import AdapterRegistry, TextEncoder
from router.registry.state import state_dir
from router.server import home
from router.server.adapters import AdapterService
from router.server.admission import BODY_MEMORY, BODY_SECONDS, Admission, PhaseGate, ServerPhase
from router.server.call import Endpoint
from router.server.embedding import Embedding
from router.server.grpc_adapter import GrpcServer
from router.server.health import ServerHealth, probes
from router.server.http import application
from router.server.inference import InferenceService
from router.server.interceptors import Interceptors
from router.server.lifecycle import Ending, Following, signals
from router.server.listen import (
    LAST_PROBES_SECONDS,
    Listener,
    add_reflection,
    bind,
    has_default_http,
    metrics_listener,
    server_options,
)
from router.server.metrics import ServerMetrics
from router.server.pipeline import Pipeline
from router.server.policy import ROWS, ServiceSpec
from router.server.registration import PluginsCollector, Registered
from router.server.tls import Tls
from router.v1.adapters_pb2_grpc import add_AdapterServiceServicer_to_server
from router.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server

if TYPE_CHECKING:
    from router.routing.router import Router
    from router.server.call import Tracing

log = logging.getLogger(__name__)
T = TypeVar("T")
ENGINE_SECONDS = 2.0  # for a step to end at shutdown
AT_ONCE_SECONDS = 1.0  # for the tasks to end when a second signal came
REFUSING_SECONDS = 0.5  # from the first refusal of a drain until connections are told to close


class ServerApp:
    """One server in one event loop. `run` is its whole life; tests use `start` and `stop`.

    It listens before the base is loaded, so that health can say NOT_SERVING. `startup` loads everything
    (default: the engine); `on_ready` is called once when requests are let in. In `on_startup` a plugin may
    set `tracing` and `pipeline.experiments`, and `provide` what others ask for.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        registry: AdapterRegistry,
        router: Router,
        startup: Callable[[], Awaitable[None]] | None = None,
        on_ready: Callable[[], None] | None = None,
        hooks: Hooks | None = None,
        encoder: TextEncoder | None = None,
    ) -> None:
        self.settings, self.engine, self.registry, self.router = settings, engine, registry, router
        self.hooks = hooks if hooks is not None else Hooks(PluginHost([]))
        self.plugins, self.state_dir = self.hooks.host, state_dir(settings.adapters_dir)
        self._startup, self._on_ready = (
            startup or partial(await_in_thread, engine.start, "engine start"),
            on_ready,
        )
        self._parts: dict[type, Any] = {}
        self.tracing: Tracing | None = None
        self.paths: frozenset[str] = frozenset()  # of the HTTP address
        self.tls, self.lifecycle = Tls.of(settings), PhaseGate()
        self.access: Access  # from `start` on, as `interceptors`
        self.interceptors: Interceptors  # around every call
        self.audit = Audit(settings.audit) if settings.audit is not None else None
        self.admission = Admission(
            settings.max_running,
            settings.max_queue,
            memory=BODY_MEMORY,
            body_seconds=BODY_SECONDS,
            largest=settings.max_body_bytes,
        )
        self.metrics = ServerMetrics()
        self.metrics.registry.register(PluginsCollector(self.hooks))
        self.health = ServerHealth(self.lifecycle, engine.status, settings.stall_seconds, self._flaws)
        templates = ConstraintTemplates(self.plugins.constraint_templates)
        self.pipeline = Pipeline(settings, engine, registry, router, hooks=self.hooks, templates=templates)
        self.inference = InferenceService(settings, self.pipeline, registry, self.admission)
        self.embedding = Embedding(engine, encoder)
        self.background = Following()
        self.follow = self.background.follow
        self.methods: Mapping[str, Endpoint] = {}  # of gRPC services, by /SERVICE/METHOD
        self._grpc: GrpcServer | None = None
        self._web: Listener | None = None
        self._probes: Listener | None = None
        self.address = self.metrics_address = self.http_address = ""
        self.http_problem = ""  # why there is no HTTP at its default address
        self.listening, self.ready = asyncio.Event(), asyncio.Event()
        self.ending = Ending()
        self.engine_hangs = False

    def provide(self, part: object) -> None:
        """Let extensions find it by its class."""
        self._parts[type(part)] = part

    def part(self, kind: type[T]) -> T | None:
        """What was provided of that class; None where nothing was."""
        return self._parts.get(kind)

    async def run(self, end_by: Callable[[float], None] | None = None) -> None:
        """Serve until a signal or `request_stop`; raises what stopped the server before that.

        A second signal ends it at once. Each calls `end_by` with the seconds after which the process must
        have ended, whatever hangs.
        """

        def stop() -> None:
            if end_by is not None:
                end_by(AT_ONCE_SECONDS if self.ending.asked.is_set() else self.settings.shutdown_seconds)
            self.request_stop()

        with signals(stop, self._read_again):
            try:
                await self.start()
                await self.background.until(self.ending.asked)
            finally:
                await self.stop()

    async def start(self) -> None:
        """Bind, answer NOT_SERVING, and begin to load. Raises ConfigError where an address is taken."""
        await self.hooks.startup(self)
        self.follow("checks of plugins", self.hooks.check)
        settings = self.settings
        self.access = Access(settings.clients)
        self.interceptors = Interceptors(
            self.access, self.admission, self.lifecycle, self.metrics, settings, self.audit
        )
        self.interceptors.tracing = self.tracing
        self._grpc = server = GrpcServer(self.interceptors, server_options(settings))
        self.methods = server.endpoints
        self._bind(server)
        await self._open(server)
        self.listening.set()
        self.background.spawn(self._load())
        self.follow("the event loop's lag", self.metrics.follow_lag)
        self.follow("the clients file", self.access.follow)
        self.follow("what waits to be sent", self.interceptors.sending.follow)

    def _bind(self, server: GrpcServer) -> None:
        """Take all addresses. Raises ConfigError for one that cannot be had."""
        settings = self.settings
        self.address = bind(server.main, settings.listen, self.tls)
        if settings.metrics_listen:
            self._probes = metrics_listener(settings, self.metrics.shed.labels("http").inc)
            self._probes.bind()
            self.metrics_address = self._probes.address
        if settings.http_listen:
            self._web = Listener(settings.http_listen, self.tls)
            try:
                self._web.bind()
            except ConfigError:
                if not has_default_http(settings):
                    raise
                self._web = None
                self.http_problem = f"{settings.http_listen} is in use: choose another with --http-listen"
                log.warning("no HTTP: %s", self.http_problem)
            else:
                self.http_address = self._web.address

    async def _open(self, server: GrpcServer) -> None:
        """Answer with the services of the core and with what plugins register. Raises ConfigError."""
        settings, known = self.settings, self.health
        server.add_service(ServiceSpec(add_InferenceServiceServicer_to_server, self.inference, ROWS))
        adapters = AdapterService(self.registry, self.plugins.status)
        server.add_service(ServiceSpec(add_AdapterServiceServicer_to_server, adapters, ROWS))
        registered = Registered(server, self.access)
        await registered.by(self.hooks, "register_authenticators")
        await registered.by(self.hooks, "register_service")
        known.know(registered.services, registered.problems)
        server.add_service(ServiceSpec(add_HealthServicer_to_server, known, ROWS))
        add_reflection((*known.names[1:], SERVICE_NAME), server)
        if self._probes is not None:
            pages = (self.metrics, known, self.look)
            await self._probes.start(probes(self.interceptors, settings, self.metrics_address, *pages))
        if self._web is not None:
            await registered.by(self.hooks, "register_http")
            found = registered.routes
            own = home.own_routes(known, found)
            hosts = Hosts(settings.http_listen, self.tls is not None, settings.http_hosts)
            site = application(
                self.interceptors,
                [*found, *own],
                home.ROWS | registered.rows,
                # Where clients have tokens, a page of another name has none.
                hosts=hosts if hosts.local and settings.clients is None else None,
                origins=settings.http_origins,
            )
            self.paths = frozenset(route.path for route in found)
            await self._web.start(site)
        await server.start()
        addresses = {"address": self.address, "http": self.http_address, "metrics": self.metrics_address}
        log.info("listening", extra={"fields": {name: at for name, at in addresses.items() if at}})

    async def _load(self) -> None:
        await self._startup()
        with suppress(NotLoaded):  # an engine that something else starts, later
            self.metrics.built(self.engine.info, self.settings.engine)
        await self.hooks.reach("on_loaded")
        await self.hooks.look()  # what was wrong while it loaded may be past
        self.lifecycle.phase = ServerPhase.SERVING
        self.background.spawn(self.health.follow())  # a server that cannot judge itself ends
        self.follow("states of adapters", lambda: self.metrics.follow_adapters(self.registry.watch()))
        self.health.update()
        await self.hooks.reach("on_ready")
        self.ready.set()
        if self._on_ready is not None:
            self._on_ready()

    def request_stop(self) -> None:
        """Begin to drain; asked again, end at once."""
        if self.ending.asked.is_set() and self._grpc is not None:
            log.warning("stopping at once")
            if self._web is not None:
                self._web.end()
            self.background.spawn(self._grpc.stop(0))
        self.ending.ask()

    def _read_again(self) -> None:
        log.info("SIGHUP: files are read again where they changed, as they are without it")
        self.access.look()
        if self.tls is not None and self.tls.problem:
            log.error("TLS goes on with what it had", extra={"fields": {"problem": self.tls.problem}})

    async def stop(self) -> None:
        """NOT_SERVING, refuse, let running calls end, then close what plugins have, and the engine."""
        if self._grpc is not None:
            await self._drain(self._grpc)
        await self.background.close()
        if self._probes is not None:
            await self._probes.stop(LAST_PROBES_SECONDS)
        await self.hooks.shutdown()
        self.pipeline.close()
        self.embedding.close()
        if self._grpc is not None:
            self.interceptors.bodies.close()
        try:  # a step that hangs holds up nothing that comes after
            async with asyncio.timeout(ENGINE_SECONDS):
                await await_in_thread(self.engine.close, "engine close")
        except TimeoutError:
            self.engine_hangs = True
            log.error("the engine did not stop", extra={"fields": {"seconds": ENGINE_SECONDS}})
        if self.audit is not None:
            await asyncio.to_thread(self.audit.close)
        log.info("stopped")

    async def _drain(self, server: GrpcServer) -> None:
        serving = self.lifecycle.phase is ServerPhase.SERVING
        self.health.drain()
        if serving:
            log.info("draining", extra={"fields": {"running": self.admission.in_flight}})
            await self.ending.pause(self.settings.lame_duck_seconds)
        self.lifecycle.drain()
        self.pipeline.draining = True
        # The library cancels calls that came and that nobody has looked at yet, so these are refused first.
        refusing = min(REFUSING_SECONDS, self.settings.drain_seconds) if self.admission.in_flight else 0.0
        await self.ending.pause(refusing)
        left = self.settings.drain_seconds - refusing
        web = [self._web.stop(left)] if self._web is not None else []
        await asyncio.gather(server.stop(left), *web)

    def _flaws(self) -> list[str]:
        files = [*(self.tls.flaws if self.tls is not None else []), *self.access.flaws]
        of_parts = [*self.hooks.flaws, *self.registry.flaws, *self.router.flaws]
        return [*files, *self.background.flaws, *of_parts]

    def look(self) -> None:
        """What is now, for a page of metrics; on the event loop."""
        registry, metrics = self.registry, self.metrics
        metrics.look(self.engine.status(), registry.resident(), registry.leases(), registry.mixtures())
        metrics.probes.labels("healthz").set(self.health.alive)
        metrics.probes.labels("readyz").set(self.health.ready)
        metrics.look_at_files(self.access, self.tls, self.audit)
