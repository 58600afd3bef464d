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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from grpc_health.v1 import health_pb2
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from router.access.hosts import Hosts
from router.config import Settings
from router.engine.base import EngineStatus
from router.errors import NotFound, RouterError
from router.server.admission import PhaseGate, ServerPhase
from router.server.call import Call, Endpoint
from router.server.http import App, HttpCall, Reply, Route, Serves, application
from router.server.metrics import ServerMetrics
from router.server.policy import PROBE, Policy

log = logging.getLogger(__name__)
PAGE = replace(PROBE, counted=False)
PAGES: Mapping[str, Policy] = {"GET /metrics": PAGE, "GET /healthz": PAGE, "GET /readyz": PAGE}
CLOSE = {"connection": "close"}
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
NAMES = ("", "router.v1.InferenceService", "router.v1.AdapterService")


class ServerHealth:
    """The health service, and the judgement of the engine that it reports.

    `flaws` are things that are wrong and hold up no request here. It answers NOT_SERVING from the first call.
    """

    def __init__(
        self,
        lifecycle: PhaseGate,
        status: Callable[[], EngineStatus],
        stall_seconds: float,
        flaws: Callable[[], Sequence[str]] = tuple,
        names: Sequence[str] = NAMES,
    ) -> None:
        """`names` of the services that it reports."""
        self._lifecycle, self._status, self._stall_seconds = lifecycle, status, stall_seconds
        self._flaws = flaws
        self._serving: bool | None = None
        self._reported: dict[str, bool] = dict.fromkeys(names, False)
        self._problems: Mapping[str, Callable[[], str]] = {}  # of services of plugins
        self._changed = asyncio.Event()  # set, and another one made, when anything reported has changed
        self._draining = False
        self._interval = min(stall_seconds / 10, 0.5)

    @property
    def names(self) -> Sequence[str]:
        """Of the services that are reported; the first is the whole server."""
        return tuple(self._reported)

    def know(self, services: Iterable[str], problems: Mapping[str, Callable[[], str]]) -> None:
        """Report these services of plugins, too; a problem says why one cannot work, '' while it can."""
        self._reported |= dict.fromkeys(services, False)
        self._problems = problems

    async def Check(
        self, request: health_pb2.HealthCheckRequest, call: Any
    ) -> health_pb2.HealthCheckResponse:
        """Of one service. Raises NotFound."""
        status = self._of(request.service)
        if status == UNKNOWN:
            raise NotFound("service", request.service)
        return health_pb2.HealthCheckResponse(status=status)

    async def List(self, request: Any, call: Any) -> health_pb2.HealthListResponse:
        """Of all services."""
        statuses = {name: health_pb2.HealthCheckResponse(status=self._of(name)) for name in self._reported}
        return health_pb2.HealthListResponse(statuses=statuses)

    async def Watch(self, request: health_pb2.HealthCheckRequest, call: Any) -> None:
        """Of one service now, and after each change."""
        told = None
        while True:
            changed, status = self._changed, self._of(request.service)
            if status != told:
                await call.write(health_pb2.HealthCheckResponse(status=status))
            told = status
            await changed.wait()

    async def follow(self) -> None:
        """Keep the answer right."""
        while True:
            self.update()
            await asyncio.sleep(self._interval)

    def update(self) -> None:
        """Look at the engine now."""
        if self._lifecycle.phase is not ServerPhase.SERVING:
            return
        problem = self._engine_problem()
        if problem and self._serving:
            log.error("not serving", extra={"fields": {"problem": problem}})
        if not problem and not self._serving:
            log.info("serving")
        self._serving = not problem
        for name in self._reported:
            own = self._problems.get(name)
            self._reported[name] = self._serving and not (own is not None and own())
        self._tell()

    def drain(self) -> None:
        """NOT_SERVING from now on."""
        self._draining = True
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _of(self, name: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        if name not in self._reported:
            return UNKNOWN
        return SERVING if self._reported[name] and not self._draining else NOT_SERVING

    @property
    def alive(self) -> bool:
        """What `healthz` says."""
        return not self._engine_problem()

    @property
    def ready(self) -> bool:
        """What `readyz` says."""
        return not self.reasons

    @property
    def reasons(self) -> list[str]:
        """Why it is not ready; empty if it is."""
        phases = {
            ServerPhase.LOADING: "the base model is still loading",
            ServerPhase.DRAINING: "the server is stopping",
        }
        return [*filter(None, (phases.get(self.phase, ""), self._engine_problem()))]

    def healthz(self) -> dict[str, Any]:
        """`status` is ok while it is alive, and `reasons` say why it is not. That this is answered at all
        shows that the event loop turns."""
        return self._report([*filter(None, (self._engine_problem(),))])

    def readyz(self) -> dict[str, Any]:
        """The same for whether it is ready for requests."""
        return self._report(self.reasons)

    @property
    def phase(self) -> ServerPhase:
        """Where the server is in its life."""
        return ServerPhase.DRAINING if self._draining else self._lifecycle.phase

    @property
    def degraded(self) -> list[str]:
        """What is wrong and holds up no request here."""
        of_services = (problem() for problem in self._problems.values())
        return [*filter(None, of_services), *self._flaws(), *self._status().flaws]

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

    def _engine_problem(self) -> str:
        """Why the engine cannot serve, or could not before the next look; empty if it can."""
        status = self._status()
        if status.failed:
            return "engine failed"
        quiet = time.monotonic() - status.last_progress
        stalled = status.busy and quiet + self._interval > self._stall_seconds
        return f"no step for {quiet:.1f} s" if stalled else ""


# -- The routes of `metrics_listen`.


class Unguarded:
    """Answers every call, for a process that knows no callers."""

    async def serve(self, endpoint: Endpoint, call: Call) -> None:
        """Answer one call, which has no body."""
        try:
            await call.reply(call.encode(await endpoint.answer(None, call)))
        except RouterError as error:
            await call.refuse(error)


class MetricsPage:
    """The page of metrics. One that is being made is for all callers that ask for it meanwhile."""

    def __init__(self, metrics: ServerMetrics, look: Callable[[], None]) -> None:
        """`look` brings the metrics up to date, on the event loop."""
        self._metrics, self._look = metrics, look
        self._making: asyncio.Future[bytes] | None = None

    async def answer(self, _: Any, call: HttpCall) -> Reply:
        """As text of Prometheus, made in a worker thread, since it may be long."""
        if self._making is None or self._making.done():
            self._look()
            self._making = asyncio.ensure_future(asyncio.to_thread(generate_latest, self._metrics.registry))
        body = await asyncio.shield(self._making)  # a caller that leaves takes it from nobody
        return Reply(body, CONTENT_TYPE_LATEST, headers=CLOSE)


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
) -> App:
    """The application; at a loopback address it answers under names of this machine only."""
    routes = (
        Route("GET", "/metrics", MetricsPage(metrics, look).answer),
        Route("GET", "/healthz", partial(probe, health.healthz)),
        Route("GET", "/readyz", partial(probe, health.readyz)),
    )
    hosts = Hosts(address, tls=False, hosts=settings.http_hosts)
    return application(interceptors, routes, PAGES, hosts=hosts if hosts.local else None)
