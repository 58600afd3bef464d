"""The routes of `metrics_listen`: metrics for a scraper, and probes for what restarts servers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

from starlette.applications import Starlette

from router.access.hosts import Hosts
from router.config import Settings
from router.server.call import Call, Endpoint
from router.server.health import Health
from router.server.http import HttpCall, Reply, Route, Serves, application
from router.server.listener import Listener, Probes
from router.server.metrics import OPENMETRICS, Metrics
from router.server.policy import PROBE, Policy

Page: TypeAlias = tuple[bytes, str]
ROWS: Mapping[str, Policy] = {"GET /metrics": PROBE, "GET /healthz": PROBE, "GET /readyz": PROBE}
CLOSE = {"connection": "close"}


class Unguarded:
    """Answers every call, for a process that knows no callers."""

    async def serve(self, endpoint: Endpoint, call: Call) -> None:
        """Answer one call, which has no body."""
        await call.reply(call.encode(await endpoint.answer(None, call)))


class MetricsPages:
    """The page of metrics. One that is being made is for all callers that ask for it meanwhile."""

    def __init__(self, metrics: Metrics, look: Callable[[], None]) -> None:
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
    metrics: Metrics,
    health: Health,
    look: Callable[[], None],
) -> Starlette:
    """The application; at a loopback address it answers under names of this machine only."""
    routes = (
        Route("GET", "/metrics", MetricsPages(metrics, look).answer),
        Route("GET", "/healthz", partial(probe, health.healthz)),
        Route("GET", "/readyz", partial(probe, health.readyz)),
    )
    hosts = Hosts(address, tls=False, hosts=settings.console_hosts)
    return application(interceptors, routes, ROWS, hosts=hosts if hosts.local else None)


def listener(settings: Settings, shed: Callable[[], None]) -> Listener:
    """The listener; `shed` is called for each connection that is ended to make room for another."""
    protocol = partial(Probes, open={}, shed=shed)
    return Listener(settings.metrics_listen, None, "metrics_listen", protocol)
