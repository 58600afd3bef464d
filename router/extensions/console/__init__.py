"""The console: pages for operators at /console of the HTTP address."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from router.errors import install_extra
from router.hookspecs import RegisterHttp, RegisterSettings
from router.markers import hookimpl

if TYPE_CHECKING:
    from router.server.app import ServerApp

log = logging.getLogger(__name__)


class ConsoleSettings(BaseModel):
    """The table [console]."""

    model_config = ConfigDict(frozen=True)

    enabled: bool = Field(
        True, description="serve the console for operators at /console of the HTTP address, too"
    )


@hookimpl
def register_settings(register: RegisterSettings) -> None:
    """`[console]`."""
    register(ConsoleSettings)


@hookimpl
async def register_http(register: RegisterHttp, server: ServerApp, settings: ConsoleSettings) -> None:
    """Its pages, actions and files."""
    if not (server.settings.http_listen and settings.enabled):
        return
    if find_spec("jinja2") is None:
        log.warning("no console: its pages need the package jinja2: %s", install_extra("console"))
        return
    from router.extensions.console.pages import ENTRIES, routes, rows
    from router.extensions.console.site import Console

    console = Console(server, ENTRIES)
    register(routes(console), rows(console))
