"""The console over HTTP: each of its requests is a call like those by gRPC."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from router.server.http import Route
from router.server.policy import Policy

if TYPE_CHECKING:
    from router.config import Settings
    from router.server.call import Endpoint
    from router.server.inference import InferenceService
    from router.server.insight import Insight
    from router.server.interceptors import Interceptors

Follow = Callable[[], Awaitable[None]]


def console_routes(
    interceptors: Interceptors,
    inference: InferenceService,
    settings: Settings,
    endpoints: Mapping[str, Endpoint],
    insight: Insight,
    address: str,
) -> tuple[Sequence[Route], Mapping[str, Policy], Sequence[Follow]]:
    """Routes of the console at `address`, their rows, and what runs beside it for as long as it is served."""
    from router.web.console import ENTRIES, ROWS, Console, routes

    made = Console(interceptors, endpoints, inference, settings, insight, address, ENTRIES)
    return routes(made), ROWS, (made.history.follow, made.events.follow)
