"""Corrections: who should have answered, kept beside the latest answers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from router.hookspecs import RegisterSettings
from router.markers import hookimpl
from router.types import Keeping

if TYPE_CHECKING:
    from router.server.app import ServerApp


class CorrectionSettings(BaseModel):
    """The table [corrections]."""

    model_config = ConfigDict(frozen=True)

    keep: Keeping = Field(
        "off", description="corrections that are kept: off, labels, or texts (the requests, too)"
    )


@hookimpl
def register_settings(register: RegisterSettings) -> None:
    """`[corrections]`."""
    register(CorrectionSettings)


@hookimpl
async def on_startup(server: ServerApp, settings: CorrectionSettings) -> None:
    """Keep them in the state folder, unless the server has a recorder already."""
    from router.corrections.recorder import Corrections
    from router.corrections.store import FOLDER, CorrectionStore
    from router.extensions.corrections.metrics import CorrectionsCollector

    if server.corrections is None and settings.keep != "off":
        store = CorrectionStore(server.state_dir / FOLDER)
        server.corrections = Corrections(store, settings.keep)
    if server.corrections is not None:
        server.metrics.registry.register(CorrectionsCollector(server.corrections))


@hookimpl
async def on_shutdown(server: ServerApp) -> None:
    """Write what is left."""
    if server.corrections is not None:
        await asyncio.to_thread(server.corrections.close)
