"""A/B tests of adapter versions, with A/A tests and export.

One slice from the command line to the database. `assignment`, `stats` and the verdicts are pure code: no
state and no clock.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from router.errors import ConfigError
from router.hookspecs import RegisterService, RegisterSettings
from router.markers import hookimpl

if TYPE_CHECKING:
    from pathlib import Path

    import typer

    from router.extensions.experiments.runtime import LiveExperiments
    from router.extensions.experiments.shadow import Shadows
    from router.extensions.experiments.store.store import ExperimentStore
    from router.server.app import ServerApp

log = logging.getLogger(__name__)
OFF = (
    "experiments are off: set `experiments.enabled` to true, or see in the log why their file cannot be "
    "written, and start the server again"
)


class ExperimentSettings(BaseModel):
    """The table [experiments]."""

    model_config = ConfigDict(frozen=True)

    enabled: bool = Field(True, description="run experiments; their data is in `database`")
    holdout: float = Field(0.0, ge=0, lt=1, description="share of units that takes part in no experiment")


@hookimpl
def register_settings(register: RegisterSettings) -> None:
    """`[experiments]`."""
    register(ExperimentSettings)


@hookimpl
def register_commands(app: typer.Typer) -> None:
    """`lora-router experiments ...`."""
    from router.extensions.experiments.cli import app as commands

    app.add_typer(commands, name="experiments")


class Plugin:
    """The experiments of one server. Those that it has already are started and closed by who made them."""

    def __init__(self) -> None:
        self._served: LiveExperiments | None = None  # whose service is registered
        self._own: LiveExperiments | None = None  # to be started and closed
        self._shadows: Shadows | None = None

    @hookimpl
    async def on_startup(self, server: ServerApp, settings: ExperimentSettings) -> None:
        """Open the store. Raises ConfigError."""
        if server.pipeline.experiments is None:
            server.pipeline.experiments = self._own = experiments_of(server, settings)
        if server.pipeline.experiments is None:
            return
        from router.extensions.experiments.runtime import LiveExperiments

        if isinstance(server.pipeline.experiments, LiveExperiments):
            self._served = server.pipeline.experiments
            from router.extensions.experiments.service import ExperimentMetrics

            self._served.guardian.observers.append(server.hooks.reported)
            server.metrics.registry.register(ExperimentMetrics(self._served))

    @hookimpl
    async def register_service(self, register: RegisterService, server: ServerApp) -> None:
        """ExperimentService; where experiments are off it refuses."""
        from router.extensions.experiments.service import ROWS, experiment_service
        from router.server.policy import ServiceSpec
        from router.server.registration import Refusing
        from router.v1.experiments_pb2_grpc import add_ExperimentServiceServicer_to_server as add

        if (served := self._served) is None:
            register(ServiceSpec(add, Refusing(OFF), ROWS))
            return
        service = experiment_service(served, server.registry)
        register(ServiceSpec(add, service, ROWS, problem=lambda: served.flaw))

    @hookimpl
    async def on_loaded(self, server: ServerApp) -> None:
        """Read what runs and follow it, with shadow arms."""
        if self._own is None:
            return
        from router.extensions.experiments.shadow import ShadowAnswers, Shadows

        answers = ShadowAnswers(server.pipeline.complete, server.registry, server.engine.status)
        self._shadows = Shadows(self._own, answers)
        self._own.beside.append(self._shadows.beside)
        await self._own.start()

    @hookimpl
    async def on_shutdown(self) -> None:
        """Stop looking, and write what is queued."""
        if self._shadows is not None:
            await self._shadows.close()
        if self._own is not None:
            await self._own.close()


def experiments_of(server: ServerApp, settings: ExperimentSettings) -> LiveExperiments | None:
    """Not started yet; None where experiments are off. Raises ConfigError."""
    engine, router = server.engine, server.router
    store = store_of(server.settings.database, server.state_dir) if settings.enabled else None
    if store is None:
        return None
    from router import config
    from router.extensions.experiments.runtime import LiveExperiments

    return LiveExperiments(
        store,
        holdout=settings.holdout,
        base_digest=lambda: engine.info.served_digest,
        router_digest=router.digest,
        flush_seconds=config.FLUSH_SECONDS,
    )


def store_of(url: str, state: Path) -> ExperimentStore | None:
    """The store at that URL; without one in a file in `state`, the server's folder for what it keeps.

    Raises ConfigError for a URL that cannot work. The file stops no server: if it cannot be written, there is
    no store, and the log says so.
    """
    from router.extensions.experiments.store.store import FILE, ExperimentStore

    if url:
        return ExperimentStore(url)
    try:
        return ExperimentStore(f"sqlite:///{state / FILE}")
    except ConfigError as error:
        log.warning("experiments are off: %s", error.message)
        return None
