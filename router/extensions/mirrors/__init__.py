"""Object stores among the adapters folders: each is mirrored into a folder that the registry watches."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from router.extensions.mirrors.metrics import MirrorsCollector
from router.extensions.mirrors.mirrors import Mirrors
from router.extensions.mirrors.settings import MirrorSettings
from router.hookspecs import RegisterCheck, RegisterSettings, hookimpl

if TYPE_CHECKING:
    from router.server.app import ServerApp


@hookimpl
def register_settings(register: RegisterSettings) -> None:
    """`[mirrors]`."""
    register(MirrorSettings)


class Plugin:
    """The mirrors of one server."""

    def __init__(self) -> None:
        self._mirrors = Mirrors()

    @hookimpl
    def register_checks(self, register: RegisterCheck) -> None:
        """What is wrong with them."""
        register(self._flaws)

    @hookimpl
    def on_startup(self, server: ServerApp, settings: MirrorSettings) -> None:
        """Find the plugin of each store. Raises ConfigError."""
        self._mirrors = Mirrors.of(server.settings, settings, server.plugins.sources())
        server.metrics.registry.register(MirrorsCollector(self._mirrors.states))

    @hookimpl
    async def on_load(self) -> None:
        """Fetch what the stores have, or as much as is to be had for now."""
        await self._mirrors.opened()
        await self._mirrors.whole()

    @hookimpl
    async def on_shutdown(self) -> None:
        """Fetch no more."""
        await asyncio.to_thread(self._mirrors.close)

    def _flaws(self) -> Sequence[str]:
        return self._mirrors.flaws()
