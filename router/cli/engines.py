"""The engine that the settings ask for: on torch, of a plugin, or over replicas."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from router.cli.fleet import EdgeEncoder, membership_of
from router.errors import ConfigError, RouterError
from router.models import resolve_model
from router.plugins.loader import describe

if TYPE_CHECKING:
    from router.config import Settings
    from router.engine.base import Engine
    from router.plugins import PluginHost

TORCH = "torch"  # the engine of the core


def engine_of(settings: Settings, plugins: PluginHost) -> tuple[Engine, Path | None]:
    """The engine of the settings, not started, and the folder of its base, fetched; None without one.

    Raises ConfigError, before anything is fetched where the settings are wrong.
    """
    plugins.check_engine(settings.engine)
    if settings.replica_addresses or settings.engine == TORCH:  # an edge needs the tokenizer alone
        model = resolve_model(settings.model)
        return make_fleet(settings) if settings.replica_bounds[0] else make_engine(settings), model
    entry = plugins.engines().get(settings.engine)
    if entry is None:
        known = ", ".join(sorted({TORCH, *plugins.engines()}))
        broken = [f"plugin {p.name} is broken: {p.error}" for p in plugins.status() if p.error]
        text = f"engine (from the settings) is {settings.engine!r}, and there are {known}"
        raise ConfigError("; ".join([text, *broken]))
    try:
        base = entry.base(settings) if entry.base is not None else None
        return make_fleet(settings) if settings.replica_bounds[0] else entry.make(settings), base
    except RouterError:
        raise
    except Exception as error:
        raise ConfigError(f"the engine {settings.engine} cannot be made: {describe(error)}") from error


def make_engine(settings: Settings) -> Engine:
    """The engine on torch. Imported here, so that a wrong flag is reported before torch is loaded.

    While it is imported, a thread reads the base's files and computes their digest.
    """
    from router.engine.checkpoint import open_files

    files = open_files(resolve_model(settings.model), settings.model)
    from router.engine.torch_engine import TorchEngine

    return TorchEngine(settings, files=files)


def make_fleet(settings: Settings) -> Engine:
    """Replicas: children of this process, or what is found at addresses."""
    from router.replicas.engine import FleetEngine

    return FleetEngine(
        membership_of(settings),
        partial(EdgeEncoder, settings.model),
        max_running=settings.max_running,
        max_queue=settings.max_queue,
        stall_seconds=settings.stall_seconds,
    )
