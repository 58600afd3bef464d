"""Experiments of a server: the store that the settings name, and all that runs on it."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from router.errors import ConfigError
from router.registry.state import state_dir

if TYPE_CHECKING:
    from router.config import Settings
    from router.engine.base import Engine
    from router.experiments.service.served import ServedExperiments
    from router.experiments.store.port import Store
    from router.plugins import PluginHost
    from router.routing.router import Router
    from router.server.app import ServerApp

log = logging.getLogger(__name__)
AUTO = "auto"
FILE = "experiments.db"
NOTICES = "experiments_notices"


def store_of(settings: Settings, state: Path | None = None) -> Store | None:
    """The store, or None where there is to be none. `state`: the folder for all state; None: the user's.

    Raises ConfigError for a URL that cannot work. The store that nobody asked for stops no server: if its
    file cannot be written, experiments are off, and the log says so.
    """
    if not settings.experiments:
        return None
    from router.experiments.store.sql_store import SqlStore  # SQLAlchemy, only where there are experiments

    if settings.experiments != AUTO:
        return SqlStore(settings.experiments, max_waiting=settings.max_waiting_outcomes)
    try:
        url = f"sqlite:///{state_dir(settings.adapter_folders, state) / FILE}"
        return SqlStore(url, max_waiting=settings.max_waiting_outcomes)
    except ConfigError as error:
        log.warning("experiments are off: %s", error.message)
        return None


def experiments_of(
    settings: Settings, engine: Engine, router: Router, plugins: PluginHost, state: Path | None = None
) -> ServedExperiments | None:
    """Not started yet; None where experiments are off. Raises ConfigError."""
    if settings.experiments_webhook and NOTICES not in {plugin.name for plugin in plugins.status()}:
        raise ConfigError(f"experiments_webhook needs the extension {NOTICES}, which is not there")
    store = store_of(settings, state)
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


def add_modes(
    served: ServedExperiments, app: ServerApp, engine: Engine, router: Router, plugins: PluginHost
) -> None:
    """Shadow arms, router experiments and bandits, which need the server that they run in."""
    from router.engine.access import EngineBase
    from router.experiments.live.shadow import JudgePanel, ShadowAnswers
    from router.experiments.service.served import Modes

    answers = ShadowAnswers(app.pipeline.complete, app.registry, engine.status)
    panel = JudgePanel(plugins.judges, partial(EngineBase, engine))
    served.modes = Modes(served.live, router, answers, panel.judge, plugins.experiment_modes())
