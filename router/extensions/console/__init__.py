"""The console: pages for operators at /console of the HTTP address, rendered here (docs/console.md)."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from router.access.audit import RecentAudit
from router.errors import install_extra
from router.hookspecs import RegisterHttp, RegisterSettings, hookimpl

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
async def on_startup(server: ServerApp, settings: ConsoleSettings) -> None:
    """Remember what administrators do, beside the file that the setting `audit` names."""
    if server.settings.http_listen and settings.enabled:
        server.recent = RecentAudit(server.audit)
        if server.settings.audit is not None:
            server.recent.remember(server.settings.audit)


@hookimpl
async def register_http(register: RegisterHttp, server: ServerApp) -> None:
    """Its pages, actions and files."""
    if server.recent is None:
        return
    if find_spec("jinja2") is None:
        log.warning("no console: its pages need the package jinja2: %s", install_extra("console"))
        return
    from router.extensions.console.pages import ENTRIES, routes, rows
    from router.extensions.console.site import Console, ConsoleContext

    made = (server.interceptors, server.methods, server.inference, server.settings)
    console = Console(*made, ConsoleContext.of(server, server.recent), server.http_address, ENTRIES)
    register(routes(console), rows(console))
    for work in (console.watch.follow, console.events.follow):
        server.follow("the console", work)
