"""The base model for classifiers that ask it, without a server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from router.config import Settings
    from router.engine.base import Engine
    from router.routing import BaseModel

PATIENCE_SECONDS = 600.0  # nobody waits for a single request here


@contextmanager
def resident_base(settings: Settings) -> Iterator[BaseModel]:
    """Fetch and load the base of these settings; let it go at the end. Raises ConfigError."""
    from router.cli.compose import make_engine
    from router.models import resolve_model

    resolve_model(settings.model)
    engine = make_engine(settings)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="base", daemon=True)
    thread.start()
    try:
        engine.start()
        yield asyncio.run_coroutine_threadsafe(_access(engine), loop).result()
    finally:
        engine.close()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _access(engine: Engine) -> BaseModel:
    from router.engine.access import EngineBase

    return EngineBase(engine, PATIENCE_SECONDS)
