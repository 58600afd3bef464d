"""Corrections: who should have answered, kept beside the latest answers (setting `corrections`)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from router.hookspecs import hookimpl

if TYPE_CHECKING:
    from router.server.app import ServerApp


@hookimpl
async def on_startup(server: ServerApp) -> None:
    """Keep them in the state folder, unless the server has a recorder already."""
    from router.corrections.recorder import Corrections
    from router.corrections.store import FOLDER, CorrectionStore
    from router.extensions.corrections.metrics import CorrectionsCollector

    if server.corrections is None and server.settings.corrections != "off":
        store = CorrectionStore(server.state_dir / FOLDER)
        server.corrections = Corrections(store, server.settings.corrections)
    if server.corrections is not None:
        server.metrics.registry.register(CorrectionsCollector(server.corrections))


@hookimpl
async def on_shutdown(server: ServerApp) -> None:
    """Write what is left."""
    if server.corrections is not None:
        await asyncio.to_thread(server.corrections.close)
