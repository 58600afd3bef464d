"""Running experiments as flags of OpenFeature over HTTP (OFREP)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from router.hookspecs import RegisterHttp, RegisterSettings
from router.markers import hookimpl

if TYPE_CHECKING:
    from router.server.app import ServerApp


class OfrepSettings(BaseModel):
    """The table [ofrep]."""

    model_config = ConfigDict(frozen=True)

    enabled: bool = Field(True, description="answer /ofrep/v1 at the HTTP address")


@hookimpl
def register_settings(register: RegisterSettings) -> None:
    """`[ofrep]`."""
    register(OfrepSettings)


@hookimpl
def register_http(register: RegisterHttp, server: ServerApp, settings: OfrepSettings) -> None:
    """All flags, and one flag by its name."""
    from router.extensions.ofrep.flags import ROWS, routes

    if settings.enabled:
        register(routes(server.pipeline.experiments), ROWS)
