"""The server: bind, load, serve, drain."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from grpc_health.v1 import health

from router import optional
from router.access import certificates
from router.access.access import Access
from router.access.audit import Audit
from router.access.hosts import Hosts
from router.access.quotas import Quotas
from router.access.recent import Recent
from router.config import Settings
from router.corrections.keeper import Corrections
from router.engine.base import Engine
from router.ports import AdapterRegistry, RequestRouter, RoutingState, ServedExperiments
from router.server import fleet
from router.server.absent import absent
from router.server.adapters import AdapterService
from router.server.admission import Admission
from router.server.bodies import Bodies
from router.server.call import CURRENT, Endpoint
from router.server.compat import VllmNames
from router.server.corrections import CorrectionsCollector
from router.server.following import Following
from router.server.grpc_adapter import GrpcServer
from router.server.health import Health
from router.server.http import application
from router.server.inference import InferenceService
from router.server.interceptors import Interceptors
from router.server.lifecycle import Lifecycle, Phase, in_daemon_thread
from router.server.listen import add_reflection, bind, bind_sidecar, bind_socket, server_options
from router.server.listener import Listener
from router.server.metrics import Metrics
from router.server.pipeline import Pipeline
from router.server.plugins import PluginsCollector
from router.server.policy import ROWS
from router.server.probes import listener, probes
from router.server.registration import Authenticators, Registered, Routes, Services
from router.server.sending import Sending
from router.server.tls import Tls
from router.types import AdapterState, Decision, Request, Vote
from router.v1 import experiments_pb2 as pb
from router.v1.adapters_pb2_grpc import add_AdapterServiceServicer_to_server
from router.v1.experiments_pb2_grpc import ExperimentServiceServicer, add_ExperimentServiceServicer_to_server
from router.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server

if TYPE_CHECKING:
    from router.plugins import Hooks, PluginStatus
    from router.server.tracing import Tracing

log = logging.getLogger(__name__)
ENGINE_SECONDS = 2.0  # for a step to end at shutdown
AT_ONCE_SECONDS = 1.0  # for the tasks to end when a second signal came
PLACES_SECONDS = 0.5  # between two looks at how many replicas are up
REFUSING_SECONDS = 0.5  # from the first refusal of a drain until connections are told to close
PROBE_SECONDS = 1.0  # for probes to end at shutdown
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class ServerApp:
    """One server in one event loop. `run` is its whole life; tests use `start` and `stop`.

    It listens before the base is loaded, so that health can say NOT_SERVING. `startup` loads everything
    (default: the engine); `on_ready` is called once when requests are let in, `on_decision` and `on_answer`
    as `Pipeline` says; `hooks` are those of plugins; `routing` tells the console what decides, `flaws` what
    else is wrong and holds up no request, `plugins` what AdapterService lists. The maker of `experiments`
    starts and closes it.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        registry: AdapterRegistry,
        router: RequestRouter,
        startup: Callable[[], Awaitable[None]] | None = None,
        on_ready: Callable[[], None] | None = None,
        experiments: ServedExperiments | None = None,
        corrections: Corrections | None = None,
        on_decision: Callable[[Request, Decision], None] | None = None,
        on_answer: Callable[[Request, Decision], None] | None = None,
        routing: Callable[[], RoutingState] = RoutingState,
        replicas: fleet.Fleet | None = None,
        flaws: Callable[[], Sequence[str]] = tuple,
        plugins: Callable[[], Sequence[PluginStatus]] = tuple,
        hooks: Hooks | None = None,
    ) -> None:
        self.settings, self.engine, self.registry = settings, engine, registry
        self.experiments, self.corrections, self.fleet = experiments, corrections, replicas
        if settings.clients is not None and settings.tls_client_ca is not None:
            certificates.check_library()
        self.access, self.quotas = Access(settings.clients, bool(settings.admin_listen)), Quotas()
        self.tls = Tls.of(settings)
        self.audit = Audit(settings.audit) if settings.audit is not None else None
        self.recent: Recent | None = None  # set by the console's on_startup: it shows what is audited
        self.lifecycle = Lifecycle()
        self.admission = Admission(
            settings.max_running,
            settings.max_queue,
            memory=settings.body_memory_mb << 20,
            body_seconds=settings.body_seconds,
            largest=settings.max_body_bytes,
        )
        self.metrics = Metrics()
        self.health = Health(
            self.lifecycle,
            engine.status,
            settings.stall_seconds,
            self._store_up,
            self._flaws,
        )
        self.pipeline = Pipeline(
            settings, engine, registry, router, experiments, corrections, on_decision, on_answer, hooks
        )
        self.inference = InferenceService(settings, self.pipeline, registry, corrections)
        self.interceptors: Interceptors  # around every call; from `start` on
        self.methods: Mapping[str, Endpoint] = {}  # of gRPC services, by /SERVICE/METHOD
        self._bodies = Bodies(self.admission.memory, settings.body_seconds)
        self._sending = Sending(lambda: self.admission.pressed)
        self.address = self.metrics_address = self.sidecar_address = self.http_address = ""
        self.listening, self.ready = asyncio.Event(), asyncio.Event()
        self._plugins, self._hooks = plugins, hooks
        if hooks is not None:
            self.metrics.registry.register(PluginsCollector(hooks))
        self._startup, self._on_ready, self.routing, self._more_flaws = startup, on_ready, routing, flaws
        if experiments is not None:
            self.metrics.registry.register(experiments.metrics)
        if corrections is not None:
            self.metrics.registry.register(CorrectionsCollector(corrections))
        if replicas is not None:
            self.metrics.registry.register(fleet.FleetCollector(replicas))
        self._vllm = VllmNames() if settings.metrics_compat == "vllm" else None
        if self._vllm is not None:
            self.metrics.registry.register(self._vllm)
        self._probes = listener(settings, self.metrics.shed.labels("http").inc)
        self.tracing: Tracing | None = None  # set by a plugin's on_startup
        self._server: GrpcServer | None = None
        self._web: Listener | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._following = Following()
        self._stop_asked, self._at_once = asyncio.Event(), asyncio.Event()
        self.engine_hangs = False

    async def run(self, end_by: Callable[[float], None] | None = None) -> None:
        """Serve until a signal or `request_stop`; raises what stopped the server before that.

        A second signal ends it at once. Each calls `end_by` with the seconds after which the process must
        have ended, whatever hangs.
        """
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._signalled, end_by)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # else it was started by nohup
            loop.add_signal_handler(signal.SIGHUP, self._hung_up, end_by)
        try:
            await self.start()
            await self._until_asked()
        finally:
            await self.stop()
            for number in (*SIGNALS, signal.SIGHUP):
                loop.remove_signal_handler(number)

    async def start(self) -> None:
        """Bind, answer NOT_SERVING, and begin to load. Raises ConfigError where an address is taken."""
        if self._hooks is not None:
            await self._hooks.startup(self)
        interceptors = self.interceptors = self._interceptors()
        server = self._bound(interceptors)
        server.add_service(add_InferenceServiceServicer_to_server, self.inference, ROWS)
        adapters = AdapterService(self.registry, self._plugins)
        server.add_service(add_AdapterServiceServicer_to_server, adapters, ROWS)
        fleet.register(self.fleet, server)
        if self.experiments is None:
            service = pb.DESCRIPTOR.services_by_name["ExperimentService"]
            refusing = absent(ExperimentServiceServicer, service, optional.why_absent())
            server.add_service(add_ExperimentServiceServicer_to_server, refusing, ROWS)
        else:
            self.experiments.register(server, self.registry)
        self.methods = server.endpoints
        registered = Registered(server, self.access)
        if self._hooks is not None:
            await self._hooks.register("register_authenticators", partial(Authenticators, registered))
            await self._hooks.register("register_services", partial(Services, registered))
        self.health.names = (*self.health.names, *registered.services)
        await self.health.register(server)
        if self.settings.reflection:
            add_reflection((*self.health.names[1:], health.SERVICE_NAME), server)
        if self.settings.metrics_listen:
            self._probes.bind()
            found_at = self._probes.address
            pages = (self.metrics, self.health, self.look)
            await self._probes.start(probes(interceptors, self.settings, found_at, *pages))
            self.metrics_address = found_at
        if self.settings.http_listen:
            await self._http(interceptors, registered)
        await server.start()
        addresses = {"address": self.address, "http": self.http_address, "metrics": self.metrics_address}
        log.info("listening", extra={"fields": {name: at for name, at in addresses.items() if at}})
        self.listening.set()
        self._spawn(self._load())
        self.follow("the event loop's lag", self.metrics.follow_lag)
        self.follow("the clients file", self.access.follow)
        self.follow("what waits to be sent", self._sending.follow)
        if self.fleet is not None:
            self.follow("the places of replicas", partial(self._follow_places, self.fleet))

    async def _http(self, interceptors: Interceptors, registered: Registered) -> None:
        """Serve at `http_listen`."""
        settings, tls = self.settings, self.tls is not None
        found = self._web = Listener(settings.http_listen, self.tls)
        found.bind()
        self.http_address = found.address
        if self._hooks is not None:
            await self._hooks.register("register_http", partial(Routes, registered))
        hosts = Hosts(settings.http_listen, tls, settings.console_hosts)
        # Where clients have tokens, a page of another name has none; the console checks names itself.
        guarded = hosts if hosts.local and settings.clients is None else None
        await found.start(application(interceptors, registered.routes, registered.rows, hosts=guarded))

    def _interceptors(self) -> Interceptors:
        return Interceptors(
            self.access,
            self.recent or self.audit,
            self.lifecycle,
            self.metrics,
            self._bodies,
            self._sending,
            self.admission,
            self.settings,
            self.tracing,
            self.quotas,
        )

    def _bound(self, interceptors: Interceptors) -> GrpcServer:
        """With all its addresses taken."""
        self._server = server = GrpcServer(interceptors, server_options(self.settings))
        self.address = bind(server.main, self.settings.listen, self.tls)
        if self.settings.admin_listen:
            bind_socket(server.main, self.settings.admin_listen, "admin_listen")
        if self.settings.sidecar_listen:
            self.sidecar_address = bind_sidecar(server.with_sidecar(), self.settings.sidecar_listen)
        return server

    def request_stop(self) -> None:
        """Begin to drain; asked again, end at once."""
        if self._stop_asked.is_set() and self._server is not None:
            log.warning("stopping at once")
            self._at_once.set()
            self._spawn(self._server.stop(0))
            if self._web is not None:
                self._web.end()
        self._stop_asked.set()

    def _hung_up(self, end_by: Callable[[float], None] | None) -> None:
        """The terminal that it was started from was closed; else somebody wants files to be read again."""
        if sys.stdin is not None and sys.stdin.isatty():
            self._signalled(end_by)
            return
        log.info("SIGHUP: files are read again where they changed, as they are without it")
        self.access.look()
        if self.tls is not None and self.tls.problem:
            log.error("TLS goes on with what it had", extra={"fields": {"problem": self.tls.problem}})

    def _signalled(self, end_by: Callable[[float], None] | None) -> None:
        if end_by is not None:
            end_by(AT_ONCE_SECONDS if self._stop_asked.is_set() else self.settings.shutdown_seconds)
        self.request_stop()

    async def stop(self) -> None:
        """NOT_SERVING, refuse, let running calls end, then close the engine."""
        if self._server is not None:
            await self._drain(self._server)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._probes.stop(PROBE_SECONDS)
        if self._hooks is not None:
            await self._hooks.shutdown()
        self.pipeline.close()
        self._bodies.close()
        if self.corrections is not None:
            await asyncio.to_thread(self.corrections.close)
        await self._close_engine()
        if self.audit is not None:
            await asyncio.to_thread(self.audit.close)
        log.info("stopped")

    async def _close_engine(self) -> None:
        """A step that hangs holds up nothing that comes after: experiments still write what is queued."""
        try:
            async with asyncio.timeout(ENGINE_SECONDS):
                await in_daemon_thread(self.engine.close)
        except TimeoutError:
            self.engine_hangs = True
            log.error("the engine did not stop", extra={"fields": {"seconds": ENGINE_SECONDS}})

    async def _drain(self, server: GrpcServer) -> None:
        serving = self.lifecycle.phase is Phase.SERVING
        await self.health.drain()
        if serving:
            log.info("draining", extra={"fields": {"running": self.admission.in_flight}})
            await self._pause(self.settings.lame_duck_seconds)
        self.lifecycle.drain()
        self.pipeline.draining = True
        # The library cancels calls that came and that nobody has looked at yet, so these are refused first.
        refusing = min(REFUSING_SECONDS, self.settings.drain_seconds) if self.admission.in_flight else 0.0
        await self._pause(refusing)
        left = self.settings.drain_seconds - refusing
        await asyncio.gather(server.stop(left), *([self._web.stop(left)] if self._web is not None else []))

    async def _pause(self, seconds: float) -> None:
        """So long, but no longer than until a second signal."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._at_once.wait()

    async def _load(self) -> None:
        if self._startup is None:
            await in_daemon_thread(self.engine.start)
        else:
            await self._startup()
        self.lifecycle.phase = Phase.SERVING
        self._spawn(self.health.follow())  # a server that cannot judge itself ends, and a new one begins
        self.follow("states of adapters", lambda: self.metrics.follow_adapters(self.registry.watch()))
        await self.health.update()
        if self._hooks is not None:
            await self._hooks.ready()
            self.follow("checks of plugins", self._hooks.check)
        self.ready.set()
        if self._on_ready is not None:
            self._on_ready()

    async def _until_asked(self) -> None:
        """Wait for a stop; a background task that fails is raised here."""
        asked = asyncio.ensure_future(self._stop_asked.wait())
        try:
            while not asked.done():
                for task in self._tasks:
                    if task.done():
                        task.result()
                running = [task for task in self._tasks if not task.done()]
                await asyncio.wait((asked, *running), return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(work))

    def follow(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """In the background for as long as the server; an exception does not end it."""
        self._spawn(self._following.keep(name, work))

    async def _follow_places(self, replicas: fleet.Fleet) -> None:
        """As many are let in as the replicas that are up have places for."""
        while True:
            running, places = replicas.places()
            self.admission.resize(places, running)
            await asyncio.sleep(PLACES_SECONDS)

    def _store_up(self) -> bool:
        return self.experiments is None or not self.experiments.problem

    def _flaws(self) -> list[str]:
        expired = self.tls is not None and self.tls.expired
        own = ["the certificate has expired, so clients do not connect"] if expired else []
        stale = {
            "the clients file": self.access.problem,
            "the TLS files": self.tls.problem if self.tls is not None else "",
        }
        own += [f"{what} cannot be used, those from before hold: {why}" for what, why in stale.items() if why]
        own += [self.access.keys_problem] if self.access.keys_problem else []
        hooks = self._hooks.flaws if self._hooks is not None else []
        return [*own, *self._following.flaws, *hooks, *self._more_flaws()]

    def voted(self, vote: Vote) -> None:
        """A classifier has answered: for the metrics, and for the trace of the call that it was asked for."""
        self.metrics.vote(vote)
        if (call := CURRENT.get(None)) is not None:
            call.votes.append(vote)

    def look(self) -> None:
        """What is now, for a page of metrics; on the event loop."""
        registry, status = self.registry, self.engine.status()
        resident = tuple(registry.resident())
        self.metrics.look(status, resident, registry.leases(), registry.mixtures())
        if self._vllm is not None:
            states = self.metrics.states.items()
            self._vllm.look(status, resident, (ref for ref, s in states if s is AdapterState.LOADING))
        self.metrics.probes.labels("healthz").set(self.health.alive)
        self.metrics.probes.labels("readyz").set(self.health.ready)
        self.metrics.stale.labels("clients").set(bool(self.access.problem))
        self.metrics.stale.labels("jwks").set(bool(self.access.keys_problem))
        self.metrics.unaudited.set(self.audit.failed if self.audit is not None else 0)
        self.metrics.stale.labels("tls").set(self.tls is not None and bool(self.tls.problem))
        if self.tls is not None:
            self.metrics.certificate_ends.set(self.tls.expires)
