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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from router import optional
from router.cli.base_files import equals_base
from router.cli.engines import engine_of
from router.cli.fleet import of_all_replicas
from router.cli.mirrors import Mirrors
from router.cli.plugins import host_of
from router.cli.routing_state import calibration_state, decision_shares
from router.cli.settings import calibration_file, rule_of
from router.cli.shared import sharing_of
from router.cli.summary import NO_CHAT_TEMPLATE, print_summary
from router.config import Settings
from router.corrections.keeper import Corrections
from router.corrections.store import FOLDER, CorrectionStore
from router.engine.access import EngineBase
from router.engine.base import Engine
from router.errors import ConfigError
from router.plugins import Hooks, PluginHost
from router.ports import ClassifierState, RoutingState, ServedExperiments
from router.registry.options import RegistryOptions
from router.registry.registry import Registry
from router.registry.state import state_dir
from router.routing.baseline import BaselineFile
from router.routing.drift import Drift
from router.routing.router import Router
from router.server.app import ServerApp
from router.server.drift import DriftCollector
from router.server.lifecycle import in_daemon_thread
from router.server.listen import check_free
from router.server.logs import logging_to
from router.server.mirrors import MirrorsCollector

if TYPE_CHECKING:
    from router.classifiers.registration import ClassifierStatus
    from router.server.fleet import Fleet
    from router.types import Decision, Request

log = logging.getLogger(__name__)
AUTO = "auto"  # experiments in the user's own store, where that is possible
PRELOAD_SECONDS = 5.0  # requests are let in after so long, whatever is still being loaded


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
    engine, model = engine_of(settings, plugins)
    composition = Composition(settings, engine, model, plugins)

    def summarise(app: ServerApp) -> None:
        print_summary(app, composition.plugins.status(), composition.router.rule.status)

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


def members_of(settings: Settings, engine: Engine) -> Fleet | None:
    """The replicas that it is over; None for an engine in this process."""
    if not settings.replica_bounds[0]:
        return None
    from router.replicas.engine import FleetEngine

    return engine.members if isinstance(engine, FleetEngine) else None


class Composition:
    """Engine, registry, plugins, routing and server, started and closed in their order."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        model: Path | None = None,
        plugins: PluginHost | None = None,
    ) -> None:
        options = RegistryOptions.of(of_all_replicas(settings))
        if model is not None:
            options = replace(options, equals_base=equals_base(model))
        state = state_dir(settings.adapter_folders, options.state_dir)
        if plugins is None:
            plugins = host_of(settings)
            plugins.refresh()
        self.plugins, self.hooks = plugins, Hooks(plugins)
        self._engine, self._sharing = engine, sharing_of(settings, state)
        self.mirrors = Mirrors.of(settings, plugins.sources())
        shared = self._sharing.state
        self.registry = Registry(engine, settings.adapter_folders, options, caught_up=keep, shared=shared)
        calibration = calibration_file(settings)
        self.router = Router(
            self.registry,
            self.plugins,
            on_vote=lambda vote: self.app.voted(vote),
            base_for=partial(EngineBase, engine),
            rule=rule_of(settings, calibration),
            calibration=calibration,
            keep=state / "routing",
            ready_seconds=settings.classifiers_ready_seconds,
            continuity=settings.routing_continuity,
        )
        self.experiments = experiments_of(settings, engine, self.router, self.plugins, options.state_dir)
        self._baselines = BaselineFile(state, self.registry.profiles, lambda: self.router.digest())
        self._drift = Drift(lambda: self.router.rule.now, self._baselines)
        self.app = ServerApp(
            of_all_replicas(settings),
            engine,
            self.registry,
            self.router,
            startup=self._start,
            on_ready=self._ready,
            experiments=self.experiments,
            corrections=corrections_of(settings, options.state_dir),
            on_decision=self._drift.observe,
            on_answer=self._answering,
            routing=self._routing_state,
            replicas=members_of(settings, engine),
            plugins=self.plugins.status,
            hooks=self.hooks,
            flaws=lambda: [
                *self.mirrors.flaws(),
                *self._sharing.flaws,
                *self.registry.flaws,
                *self.plugins.flaws,
                *self.router.flaws,
            ],
        )
        self._sharing.serve(self.app)
        self.app.metrics.registry.register(DriftCollector(self._drift))
        self.app.metrics.registry.register(MirrorsCollector(self.mirrors.states))
        if self.experiments is not None:
            part = optional.experiments("compose")
            part.add_modes(self.experiments, self.app, engine, self.router, self.plugins)
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
            if self.experiments is not None:
                await self.experiments.close()
            await self.router.close()
            await self.registry.close()
            await asyncio.to_thread(self.mirrors.close)
            await self._sharing.close()
            await asyncio.to_thread(self._baselines.close)

    def _answering(self, request: Request, decision: Decision) -> None:
        self.router.answered(request, decision)
        self.hooks.decided(request, decision)

    def _routing_state(self) -> RoutingState:
        status, rule, seen = self.plugins.status(), self.router.rule, self._drift.seen
        return RoutingState(
            rule.status,
            tuple(classifier_state(plugin.name, c) for plugin in status for c in plugin.classifiers),
            tuple(f"{plugin.name}: {plugin.error}" for plugin in status if plugin.error),
            calibration_state(rule.now),
            seen.decisions,
            decision_shares(seen),
        )

    async def _start(self) -> None:
        await self.mirrors.opened()
        await in_daemon_thread(self._engine.start)
        keep(whole=True)
        await self._sharing.start()
        await self.mirrors.whole()
        await self.registry.start()
        await self.router.start()
        if self.experiments is not None:
            await self.experiments.start()
        await self.registry.settled(PRELOAD_SECONDS)
        keep()

    def _ready(self) -> None:
        if not self._engine.info.chat_template:
            log.warning(NO_CHAT_TEMPLATE)
        if self._when_ready is not None:
            self._when_ready(self.app)


def classifier_state(plugin: str, of: ClassifierStatus) -> ClassifierState:
    """As the console shows it."""
    counts = (of.requests, of.errors)
    problem = of.fit_error or of.last_error
    return ClassifierState(of.name, plugin, of.priority, of.state, of.breaker, *counts, problem)


def corrections_of(settings: Settings, state: Path | None) -> Corrections | None:
    """None where nothing is kept of them."""
    if settings.corrections == "off":
        return None
    store = CorrectionStore(state_dir(settings.adapter_folders, state) / FOLDER)
    return Corrections(store, settings.corrections)


def keep(whole: bool = False) -> None:
    """No collection of garbage looks again at what is there now, since it stays: each would hold up the event
    loop for a tenth of a second among 10,000 adapters. Garbage goes first, with `whole` all of it.
    """
    gc.collect(2 if whole else 1)
    gc.freeze()
    if whole:
        atexit.register(gc.unfreeze)  # at the end libraries' threads are taken apart in the usual order


def experiments_of(
    settings: Settings, engine: Engine, router: Router, plugins: PluginHost, state: Path | None
) -> ServedExperiments | None:
    """Not started yet; None where they are off or not installed. Raises ConfigError."""
    if optional.has_experiments():
        found: ServedExperiments | None = optional.experiments("compose").experiments_of(
            settings, engine, router, plugins, state
        )
        return found
    if settings.experiments not in ("", AUTO):
        raise ConfigError(f"{optional.NOT_INSTALLED}, and the setting `experiments` asks for them")
    return None
