"""Experiments as a plugin of the server: the store that the settings name, and all that runs on it."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from router.errors import ConfigError
from router.hookspecs import RegisterServices, hookimpl

if TYPE_CHECKING:
    from pathlib import Path

    import typer

    from router.config import Settings
    from router.experiments.service.served import ServedExperiments
    from router.experiments.store.port import Store
    from router.server.app import ServerApp

log = logging.getLogger(__name__)
AUTO = "auto"
FILE = "experiments.db"
NOTICES = "experiments_notices"
STORE_DOWN = "the store of experiments does not answer"
OFF = (
    "experiments are off, since the setting `experiments` is empty: set it to auto or to the URL of a "
    "database, and start the server again"
)


@hookimpl
def register_commands(app: typer.Typer) -> None:
    """`lora-router experiments ...`."""
    from router.experiments.cli import app as commands

    app.add_typer(commands, name="experiments")


class Plugin:
    """The experiments of one server. Those that it has already are started and closed by who made them."""

    def __init__(self) -> None:
        self._served: ServedExperiments | None = None  # whose service is registered
        self._own: ServedExperiments | None = None  # to be started and closed

    @hookimpl
    async def on_startup(self, server: ServerApp) -> None:
        """Open the store. Raises ConfigError."""
        server.no_experiments = OFF
        if server.experiments is None:
            server.experiments = self._own = experiments_of(server)
        if server.experiments is None:
            return
        from router.experiments.service.served import ServedExperiments

        if isinstance(server.experiments, ServedExperiments):
            self._served = server.experiments
            self._served.observe(server.hooks.reported)
            server.metrics.registry.register(self._served.metrics)

    @hookimpl
    async def register_services(self, register: RegisterServices, server: ServerApp) -> None:
        """ExperimentService."""
        if (served := self._served) is None:
            return
        from router.server.policy import ROWS
        from router.v1.experiments_pb2_grpc import add_ExperimentServiceServicer_to_server

        service = served.service(server.registry)
        register(
            add_ExperimentServiceServicer_to_server,
            service,
            ROWS,
            problem=lambda: STORE_DOWN if served.problem else "",
        )

    @hookimpl
    async def on_loaded(self, server: ServerApp) -> None:
        """Read what runs and follow it, with what runs beside answers."""
        if self._own is None:
            return
        from router.engine.base_model import EngineBaseModel
        from router.experiments.live.shadow import JudgePanel, ShadowAnswers
        from router.experiments.service.served import Modes

        answers = ShadowAnswers(server.pipeline.complete, server.registry, server.engine.status)
        panel = JudgePanel(server.plugins.judges, partial(EngineBaseModel, server.engine))
        modes = server.plugins.experiment_modes()
        self._own.modes = Modes(self._own.live, server.router, answers, panel.judge, modes)
        await self._own.start()

    @hookimpl
    async def on_shutdown(self) -> None:
        """Write what is queued."""
        if self._own is not None:
            await self._own.close()


def experiments_of(server: ServerApp) -> ServedExperiments | None:
    """Not started yet; None where experiments are off. Raises ConfigError."""
    settings, engine, router, plugins = server.settings, server.engine, server.router, server.plugins
    if settings.experiments_webhook and NOTICES not in {plugin.name for plugin in plugins.status()}:
        raise ConfigError(f"experiments_webhook needs the extension {NOTICES}, which is not there")
    store = store_of(settings, server.state_dir)
    if store is None:
        return None
    from router.experiments.live.runtime import Experiments
    from router.experiments.service.served import ServedExperiments

    live = Experiments(
        store,
        holdout=settings.experiments_holdout,
        look_seconds=settings.experiments_look_seconds,
        base_digest=lambda: engine.info.served_digest,
        router_digest=router.digest,
        flush_seconds=settings.flush_seconds,
    )
    live.classifiers = lambda: [r.name for r in plugins.registrations()]
    live.judges = plugins.judges
    return ServedExperiments(live)


def store_of(settings: Settings, state: Path) -> Store | None:
    """The store, or None where there is to be none. `state`: the server's folder for what it keeps.

    Raises ConfigError for a URL that cannot work. The store that nobody asked for stops no server: if its
    file cannot be written, experiments are off, and the log says so.
    """
    if not settings.experiments:
        return None
    from router.experiments.store.sql_store import SqlStore  # SQLAlchemy, only where there are experiments

    if settings.experiments != AUTO:
        return SqlStore(settings.experiments, max_waiting=settings.max_waiting_outcomes)
    try:
        url = f"sqlite:///{state / FILE}"
        return SqlStore(url, max_waiting=settings.max_waiting_outcomes)
    except ConfigError as error:
        log.warning("experiments are off: %s", error.message)
        return None
