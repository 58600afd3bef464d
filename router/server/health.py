"""Whether the server lives and whether it is ready, from one judgement, by grpc.health.v1 and by HTTP.

The routes of `metrics_listen` are these probes and the page of metrics.

SERVING and ready: the base is loaded, the step loop makes progress, and no drain has begun. Alive: event loop
and step loop make progress, whatever the server is doing; one that is not is mended by a new process only.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio
from starlette.applications import Starlette

from router.access.hosts import Hosts
from router.config import Settings
from router.engine.base import EngineStatus
from router.errors import RouterError
from router.server.admission import PhaseGate, ServerPhase
from router.server.call import Call, Endpoint
from router.server.grpc_adapter import GrpcServer
from router.server.http import HttpCall, Reply, Route, Serves, application
from router.server.metrics import OPENMETRICS, ServerMetrics
from router.server.policy import PROBE, ROWS, Policy, ServiceSpec

log = logging.getLogger(__name__)
Page: TypeAlias = tuple[bytes, str]
PAGE = replace(PROBE, counted=False)
PAGES: Mapping[str, Policy] = {"GET /metrics": PAGE, "GET /healthz": PAGE, "GET /readyz": PAGE}
CLOSE = {"connection": "close"}
NAMES = ("", "router.v1.InferenceService", "router.v1.AdapterService")


class ServerHealth:
    """The health servicer, and the judgement of the engine that it reports.

    `flaws` are things that are wrong and hold up no request here.
    """

    def __init__(
        self,
        lifecycle: PhaseGate,
        status: Callable[[], EngineStatus],
        stall_seconds: float,
        flaws: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._servicer = aio.HealthServicer()
        self._lifecycle, self._status, self._stall_seconds = lifecycle, status, stall_seconds
        self._flaws = flaws
        self.names: Sequence[str] = NAMES  # of the services, those of plugins, too
        self._problems: Mapping[str, Callable[[], str]] = {}  # of services of plugins
        self._serving: bool | None = None
        self._reported: dict[str, bool] = {}
        self._draining = False
        self._interval = min(stall_seconds / 10, 0.5)

    def know(self, services: Iterable[str], problems: Mapping[str, Callable[[], str]]) -> None:
        """Report these services of plugins, too; a problem says why one cannot work, '' while it can."""
        self.names = tuple(dict.fromkeys((*self.names, *services)))
        self._problems = problems

    async def register(self, server: GrpcServer) -> None:
        """Add the service; it answers NOT_SERVING from the first call."""
        await self._begin()
        add = health_pb2_grpc.add_HealthServicer_to_server
        server.add_service(ServiceSpec(add, self._servicer, ROWS), library=True)

    async def register_unguarded(self, server: grpc.aio.Server) -> None:
        """The same for a server without interceptors."""
        await self._begin()
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def _begin(self) -> None:
        await self._set(False)
        self._servicer.List = self._list  # which the library leaves unanswered

    async def follow(self) -> None:
        """Keep the answer right."""
        while True:
            await self.update()
            await asyncio.sleep(self._interval)

    async def update(self) -> None:
        """Look at the engine now."""
        if self._lifecycle.phase is not ServerPhase.SERVING:
            return
        problem = self._problem(self._status(), time.monotonic())
        if problem and self._serving:
            log.error("not serving", extra={"fields": {"problem": problem}})
        if not problem and not self._serving:
            log.info("serving")
        await self._set(not problem)

    async def drain(self) -> None:
        """NOT_SERVING from now on."""
        self._draining = True
        await self._servicer.enter_graceful_shutdown()

    async def _list(self, request: Any, context: Any) -> Any:
        """What Check says of each name."""
        kinds = health_pb2.HealthCheckResponse
        statuses = {
            name: kinds(status=kinds.SERVING if state and not self._draining else kinds.NOT_SERVING)
            for name, state in self._reported.items()
        }
        return health_pb2.HealthListResponse(statuses=statuses)

    @property
    def alive(self) -> bool:
        """What `healthz` says."""
        return not self._engine_problems()

    @property
    def ready(self) -> bool:
        """What `readyz` says."""
        return not self._unready()

    def healthz(self) -> dict[str, Any]:
        """`status` is ok while it is alive, and `reasons` say why it is not. That this is answered at all
        shows that the event loop turns."""
        return self._report(self._engine_problems())

    def readyz(self) -> dict[str, Any]:
        """The same for whether it is ready for requests."""
        return self._report(self._unready())

    @property
    def phase(self) -> ServerPhase:
        """Where the server is in its life."""
        return ServerPhase.DRAINING if self._draining else self._lifecycle.phase

    @property
    def degraded(self) -> list[str]:
        """What is wrong and holds up no request here."""
        of_services = (problem() for problem in self._problems.values())
        return [*filter(None, of_services), *self._flaws(), *self._status().flaws]

    @property
    def reasons(self) -> list[str]:
        """Why it is not ready; empty if it is."""
        return self._unready()

    def _unready(self) -> list[str]:
        problems = self._engine_problems()
        if self._lifecycle.phase is ServerPhase.LOADING:
            problems.insert(0, "the base model is still loading")
        if self._draining or self._lifecycle.phase is ServerPhase.DRAINING:
            problems.insert(0, "the server is stopping")
        return problems

    def _report(self, problems: list[str]) -> dict[str, Any]:
        """For a person who looks why a probe fails."""
        status = self._status()
        return {
            "status": "failing" if problems else "ok",
            "reasons": problems,
            "phase": self.phase.name.lower(),
            "degraded": self.degraded,
            "requests": {"running": status.running, "waiting": status.waiting},
        }

    def _engine_problems(self) -> list[str]:
        problem = self._problem(self._status(), time.monotonic())
        return [problem] if problem else []

    def _problem(self, status: EngineStatus, now: float) -> str:
        """Why the engine cannot serve, or could not before the next look; empty if it can."""
        if status.failed:
            return "engine failed"
        quiet = now - status.last_progress
        stalled = status.busy and quiet + self._interval > self._stall_seconds
        return f"no step for {quiet:.1f} s" if stalled else ""

    async def _set(self, serving: bool) -> None:
        self._serving = serving
        kinds = health_pb2.HealthCheckResponse
        for name in self.names:
            problem = self._problems.get(name)
            state = serving and not (problem is not None and problem())
            if self._reported.get(name) is not state:
                self._reported[name] = state
                await self._servicer.set(name, kinds.SERVING if state else kinds.NOT_SERVING)


# -- The routes of `metrics_listen`.


class Unguarded:
    """Answers every call, for a process that knows no callers."""

    async def serve(self, endpoint: Endpoint, call: Call) -> None:
        """Answer one call, which has no body."""
        try:
            await call.reply(call.encode(await endpoint.answer(None, call)))
        except RouterError as error:
            await call.refuse(error)


class MetricsPages:
    """The page of metrics. One that is being made is for all callers that ask for it meanwhile."""

    def __init__(self, metrics: ServerMetrics, look: Callable[[], None]) -> None:
        """`look` brings the metrics up to date, on the event loop."""
        self._metrics, self._look = metrics, look
        self._making: dict[bool, asyncio.Future[Page]] = {}

    async def answer(self, _: Any, call: HttpCall) -> Reply:
        """As text, or as OpenMetrics for a caller that accepts it."""
        accepted = (
            part.partition(";")[0].strip().lower() for part in ",".join(call.sent_as("accept")).split(",")
        )
        exemplars = OPENMETRICS in accepted
        making = self._making.get(exemplars)
        if making is None:
            self._look()
            page: Callable[[], Awaitable[Page]] = (
                self._metrics.page_with_exemplars if exemplars else self._metrics.page
            )
            making = self._making[exemplars] = asyncio.ensure_future(page())
            making.add_done_callback(lambda _: self._making.pop(exemplars))
        body, content_type = await asyncio.shield(making)  # a caller that leaves takes it from nobody
        return Reply(body, content_type, headers=CLOSE)


async def probe(report: Callable[[], dict[str, Any]], _: Any, call: HttpCall) -> Reply:
    """200, or 503 with the reasons; a probe reads the status alone."""
    found = report()
    status = 503 if found["reasons"] else 200
    return Reply(json.dumps(found).encode() + b"\n", status=status, headers=CLOSE)


def probes(
    interceptors: Serves,
    settings: Settings,
    address: str,
    metrics: ServerMetrics,
    health: ServerHealth,
    look: Callable[[], None],
) -> Starlette:
    """The application; at a loopback address it answers under names of this machine only."""
    routes = (
        Route("GET", "/metrics", MetricsPages(metrics, look).answer),
        Route("GET", "/healthz", partial(probe, health.healthz)),
        Route("GET", "/readyz", partial(probe, health.readyz)),
    )
    hosts = Hosts(address, tls=False, hosts=settings.console_hosts)
    return application(interceptors, routes, PAGES, hosts=hosts if hosts.local else None)
