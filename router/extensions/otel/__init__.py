"""Traces and metrics by OTLP, in OpenTelemetry's names (extra `otel`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from router.errors import ConfigError, install_extra
from router.hookspecs import hookimpl

if TYPE_CHECKING:
    from router.config import Settings
    from router.extensions.otel.otlp import Telemetry
    from router.server.app import ServerApp
    from router.server.metrics import Metrics

CLOSE_SECONDS = 2.0


@hookimpl
async def on_startup(server: ServerApp) -> None:
    """Trace calls and send metrics where `otlp_endpoint` names a collector. Raises ConfigError."""
    telemetry = opened(server.settings, server.metrics, server.look)
    if telemetry is not None:
        server.tracing = telemetry
        telemetry.start()


@hookimpl
async def on_shutdown(server: ServerApp) -> None:
    """Send what is left."""
    if server.tracing is not None:
        from router.extensions.otel.otlp import Telemetry

        if isinstance(server.tracing, Telemetry):
            await server.tracing.close(CLOSE_SECONDS)


def opened(settings: Settings, metrics: Metrics, look: Callable[[], None]) -> Telemetry | None:
    """What sends to the collector of `otlp_endpoint`; None where there is none.

    `look` brings the metrics up to date, on the event loop. Raises ConfigError without the extra, and for a
    setting or variable that cannot be.
    """
    if not settings.otlp_endpoint:
        return None
    try:
        from router.extensions.otel.otlp import Telemetry
    except ModuleNotFoundError as error:
        text = f"otlp_endpoint needs {error.name}, which is not installed: {install_extra('otel')}"
        raise ConfigError(text) from None
    return Telemetry.of(settings.otlp_endpoint, metrics, look)
