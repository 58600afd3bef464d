"""Traces and metrics by OTLP in OpenTelemetry's names (extra `otel`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from router.errors import ConfigError, install_extra
from router.hookspecs import RegisterSettings
from router.markers import hookimpl

if TYPE_CHECKING:
    from router.extensions.otel.otlp import Telemetry
    from router.server.app import ServerApp
    from router.server.metrics import ServerMetrics

CLOSE_SECONDS = 2.0


class OtelSettings(BaseModel):
    """The table [otel]."""

    model_config = ConfigDict(frozen=True)

    endpoint: str = Field(
        "", description="OTLP collector (gRPC) of traces and metrics: a URL, or env for OTEL_*; empty: off"
    )


@hookimpl
def register_settings(register: RegisterSettings) -> None:
    """`[otel]`."""
    register(OtelSettings)


@hookimpl
async def on_startup(server: ServerApp, settings: OtelSettings) -> None:
    """Trace calls and send metrics where `endpoint` names a collector. Raises ConfigError."""
    telemetry = opened(settings.endpoint, server.metrics, server.look)
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


def opened(endpoint: str, metrics: ServerMetrics, look: Callable[[], None]) -> Telemetry | None:
    """What sends to the collector at `endpoint`; None where there is none.

    `look` brings the metrics up to date, on the event loop. Raises ConfigError without the extra, and for a
    setting or variable that cannot be.
    """
    if not endpoint:
        return None
    try:
        from router.extensions.otel.otlp import Telemetry
    except ModuleNotFoundError as error:
        text = f"otel.endpoint needs {error.name}, which is not installed: {install_extra('otel')}"
        raise ConfigError(text) from None
    return Telemetry.of(endpoint, metrics, look)
