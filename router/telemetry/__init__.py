"""Traces and metrics by OTLP, in OpenTelemetry's names (extra `otel`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from router.errors import ConfigError, install_extra

if TYPE_CHECKING:
    from router.config import Settings
    from router.server.metrics import Metrics
    from router.telemetry.otlp import Telemetry


def opened(settings: Settings, metrics: Metrics, look: Callable[[], None]) -> Telemetry | None:
    """What sends to the collector of `otlp_endpoint`; None where there is none.

    `look` brings the metrics up to date, on the event loop. Raises ConfigError without the extra, and for a
    setting or variable that cannot be.
    """
    if not settings.otlp_endpoint:
        return None
    try:
        from router.telemetry.otlp import Telemetry
    except ModuleNotFoundError as error:
        text = f"otlp_endpoint needs {error.name}, which is not installed: {install_extra('otel')}"
        raise ConfigError(text) from None
    return Telemetry.of(settings.otlp_endpoint, metrics, look)
