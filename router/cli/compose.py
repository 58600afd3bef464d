"""Builds a server from settings, the one place that picks concrete classes, and runs it."""

from __future__ import annotations

import asyncio
import atexit
import faulthandler
import gc
import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from router.classifiers.isolation import await_in_thread
from router.cli.engines import engine_of
from router.cli.fleet import of_all_replicas
from router.cli.plugins import host_of
from router.cli.settings import calibration_file, rule_of
from router.cli.summary import NO_CHAT_TEMPLATE, print_summary
from router.config import Settings
from router.engine.base import Engine
from router.engine.base_model import EngineBaseModel
from router.engine.constrained.templates import ConstraintTemplates
from router.models.encoder import WholeTexts
from router.plugins import Hooks, PluginHost
from router.registry.registry import Registry, RegistryOptions
from router.registry.state import state_dir
from router.routing.router import Router
from router.server.app import ServerApp
from router.server.listen import check_free
from router.server.logs import logging_to

log = logging.getLogger(__name__)
PRELOAD_SECONDS = 5.0  # requests are let in after so long, whatever is still being loaded


class Composition:
    """Engine, registry, plugins, routing and server, started and closed in their order."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        plugins: PluginHost | None = None,
    ) -> None:
        if plugins is None:
            plugins = host_of(settings)
            plugins.refresh()
        plugins.check_tables()
        self.plugins, self.hooks, self._engine = plugins, Hooks(plugins), engine
        for_all = of_all_replicas(settings)
        options = RegistryOptions.of(for_all)
        templates = ConstraintTemplates(plugins.constraint_templates)
        self.registry = Registry(engine, settings.adapters_dir, options, templates=templates)
        calibration = calibration_file(settings)
        self.router = Router(
            self.registry,
            plugins,
            base_for=partial(EngineBaseModel, engine),
            rule=rule_of(settings, calibration),
            calibration=calibration,
            keep=state_dir(settings.adapters_dir),
        )
        parts = (for_all, engine, self.registry, self.router, self._start, self._ready, self.hooks)
        self.app = ServerApp(*parts, encoder=WholeTexts())
        self.router.observe_votes(self.app.metrics.vote)
        self._when_ready: Callable[[ServerApp], None] | None = None

    async def run(
        self,
        when_ready: Callable[[ServerApp], None] | None = None,
        end_by: Callable[[float], None] | None = None,
    ) -> None:
        """Serve until a signal; raises what stopped the server before that. `end_by`: see `ServerApp.run`."""
        self._when_ready = when_ready
        try:
            await self.app.run(end_by)
        finally:
            await self.router.close()
            await self.registry.close()

    async def _start(self) -> None:
        await asyncio.gather(self.hooks.reach("on_load"), await_in_thread(self._engine.start, "engine start"))
        keep(whole=True)
        await self.registry.start()
        await self.router.start()
        await self.registry.settled(PRELOAD_SECONDS)
        keep()

    def _ready(self) -> None:
        if not self._engine.info.chat_template:
            log.warning(NO_CHAT_TEMPLATE)
        if self._when_ready is not None:
            self._when_ready(self.app)


def keep(whole: bool = False) -> None:
    """No collection of garbage looks again at what is there now, since it stays: each would hold up the event
    loop for a tenth of a second among 10,000 adapters. Garbage goes first, with `whole` all of it, and from
    then on it is collected by itself again.
    """
    gc.collect(2 if whole else 1)
    gc.freeze()
    if whole:
        gc.enable()
        atexit.register(gc.unfreeze)  # at the end libraries' threads are taken apart in the usual order


def serve_until_stopped(settings: Settings) -> int:
    """Fetch the base with a progress bar, then serve; returns the exit code.

    Raises ConfigError, for an address that is in use before anything is fetched or loaded.

    From the first signal on a clock runs that no thread can hold up. If it runs out, the stacks of all
    threads go to standard error and the exit code is 1.
    """
    check_free(settings)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # no bars in a log
    # Read when torch is loaded, and of use where torch's own operations compute. Threads that sleep at once
    # make them half as fast, those that watch for work for long take the core from everybody else.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    plugins = host_of(settings)
    plugins.refresh()
    plugins.check_tables()
    engine, _ = engine_of(settings, plugins)
    composition = Composition(settings, engine, plugins)

    def summarise(app: ServerApp) -> None:
        print_summary(app, composition.plugins.status(), composition.router.rule.status())

    with logging_to(settings.log_level):
        asyncio.run(composition.run(summarise, partial(faulthandler.dump_traceback_later, exit=True)))
    if composition.app.engine_hangs:
        _leave_at_once()
    return 0


def _leave_at_once() -> NoReturn:
    """End without waiting for a thread that hangs; nothing is left to be written."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
