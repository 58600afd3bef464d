"""Builds a server from settings, the one place that picks concrete classes, and says what it serves."""

from __future__ import annotations

import asyncio
import atexit
import faulthandler
import gc
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from router import optional
from router.carried import is_carried
from router.cli import units
from router.cli.base_files import equals_base
from router.cli.fleet import EdgeEncoder, membership_and_links, of_all_replicas
from router.cli.mirrors import Mirrors, how_to_add
from router.cli.plugins import host_of
from router.cli.routing_state import calibration_state, decision_shares
from router.cli.settings import calibration_file, rule_of
from router.cli.shared import sharing_of
from router.config import Settings
from router.corrections.keeper import Corrections
from router.corrections.store import FOLDER, CorrectionStore
from router.engine.access import EngineBase
from router.engine.base import BaseInfo, Engine
from router.errors import ConfigError, RouterError
from router.models import resolve_model
from router.plugins import Hooks, PluginHost
from router.plugins.loader import describe
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
    from router.plugins import PluginStatus
    from router.server.fleet import Fleet
    from router.types import AdapterInfo, AdapterProfile, Decision, Request

log = logging.getLogger(__name__)
TORCH = "torch"  # the engine of the core
AUTO = "auto"  # experiments in the user's own store, where that is possible
MOST_SHOWN = 50  # adapters in what `serve` says; it says that on the event loop
PRELOAD_SECONDS = 5.0  # requests are let in after so long, whatever is still being loaded
NO_CHAT_TEMPLATE = (
    "the base has no chat template: system text and turns are joined by empty lines and continued, not "
    "answered; an instruct model has one, or an adapter is trained on the form that [prompt] of its "
    "adapter.toml says"
)
COLUMNS = ["ADAPTER", "VERSION", "STATE", "DOMAIN", "TASK", "RANK", "SIZE", "NOTE"]
MOST_OF_QUESTION = 120  # characters of an adapter's example that the summary suggests to ask


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


def engine_of(settings: Settings, plugins: PluginHost) -> tuple[Engine, Path | None]:
    """The engine of the settings, not started, and the folder of its base, fetched; None without one.

    Raises ConfigError, before anything is fetched where the settings are wrong.
    """
    plugins.check_engine(settings.engine)
    if settings.replica_addresses and settings.engine != TORCH:  # the edge needs the tokenizer alone
        return make_fleet(settings), resolve_model(settings.model, any_weights=True)
    if settings.engine == TORCH:
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
    """The engine on torch; imported here, so that a wrong flag is told before torch is there."""
    from router.engine.torch_engine import TorchEngine

    return TorchEngine(settings)


def make_fleet(settings: Settings) -> Engine:
    """Replicas: children of this process, actors of Ray, or what is found at addresses."""
    from router.replicas.engine import FleetEngine

    membership, links = membership_and_links(settings)
    return FleetEngine(
        links,
        partial(EdgeEncoder, settings.model, settings.engine == "vllm"),
        max_running=settings.max_running,
        max_queue=settings.max_queue,
        host_bytes=settings.host_memory_mb << 20,
        stall_seconds=settings.stall_seconds,
        membership=membership,
        shared=bool(settings.fleet or settings.replica_addresses),
    )


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


# -- what `serve` says when it is ready: what runs, where, and lines to paste


def print_summary(app: ServerApp, plugins: Sequence[PluginStatus], calibration: str = "") -> None:
    """Base, adapters, plugins, addresses and three lines to paste."""
    from router import __version__
    from router.cli.output import print_pairs, print_table

    settings = app.settings
    adapters, shown = app.registry.count(), list(islice(app.registry.listed(), MOST_SHOWN))
    print(f"\nlora-router {__version__} is ready\n")
    print_pairs(
        [
            *base_lines(app.engine.info),
            *([("replicas", _replicas_line(settings))] if settings.replica_bounds[0] else []),
            (
                "adapters",
                f"{adapters} in {_folders_line(settings.adapters_dir, 'adapters')}{_trust_line(settings)}",
            ),
            ("plugins", f"{_classifiers_line(plugins)} in {_folders_line(settings.plugins_dir, 'plugins')}"),
            *(("plugin", f"{p.name} is broken: {p.error}") for p in plugins if p.error),
            ("calibration", calibration or "none: `lora-router route calibrate` makes one"),
            ("experiments", _experiments_line(app.experiments)),
            ("corrections", settings.corrections),
            *([("shared", "defaults, clients and quotas with other edges")] if settings.shared_state else []),
            ("gRPC", app.address),
            ("access", _access_line(settings)),
            *([("admin", settings.admin_listen)] if settings.admin_listen else []),
            *([("sidecar", app.sidecar_address)] if app.sidecar_address else []),
            *_web_lines(app),
            ("metrics", f"http://{app.metrics_address}/metrics" if app.metrics_address else "off"),
            *([("OTLP", app.tracing.endpoint)] if app.tracing is not None else []),
        ]
    )
    if shown:
        print()
        print_table(COLUMNS, [adapter_row(info) for info in shown])
    if adapters > len(shown):
        print(f"and {adapters - len(shown)} more: `lora-router adapters list` shows all")
    print()
    for line in lines_to_paste(app.address, settings, question_of(app.registry.profiles())):
        print(f"  {line}")
    print(flush=True)


def base_lines(info: BaseInfo) -> list[tuple[str, str]]:
    """The resident base and how it runs."""
    size = f", {units.size(info.size_bytes)}" if info.size_bytes else ""
    return [
        ("base", f"{info.name} ({info.architecture}{size}, context {info.context_length})"),
        ("device", f"{info.device}, {info.precision}"),
        ("kernels", info.kernels),
        *([("cannot", info.inabilities)] if info.inabilities else []),
        *([] if info.chat_template else [("warning", NO_CHAT_TEMPLATE)]),
    ]


def adapter_row(info: AdapterInfo) -> tuple[str, ...]:
    """One line of the table."""
    return (
        info.ref.name,
        info.ref.version + (" *" if info.default else ""),
        info.state.value,
        info.domain,
        info.task,
        str(info.rank or ""),
        units.size(info.size_bytes) if info.size_bytes else "",
        info.error or info.gate or "; ".join([*["carried"] * info.carried, *info.notes]),
    )


def question_of(profiles: Sequence[AdapterProfile]) -> str:
    """A question that an adapter here knows: its first example of one short line."""
    examples = (example for profile in profiles for example in profile.examples)
    short = (text for text in examples if len(text) <= MOST_OF_QUESTION and text.isprintable())
    return next(short, "Hello")


def lines_to_paste(address: str, settings: Settings, question: str) -> list[str]:
    """Ask, ask with no .proto at hand, add an adapter."""
    from router.client.channel import DEFAULT_TARGET

    tls, token = settings.tls_cert is not None, settings.clients is not None
    server = "" if address == DEFAULT_TARGET else f" --server {address}"
    server += (" --tls-ca CA.pem" if tls else "") + (" --token TOKEN" if token else "")
    how = "--cacert CA.pem" if tls else "--http2-prior-knowledge"
    if token:  # one whose client has the roles infer and observe: reflection needs the second
        how += ' -H "authorization: Bearer TOKEN" --reflect-header "authorization: Bearer TOKEN"'
    body = shlex.quote('{"input":{"text":"Hello"}}')
    url = f"{'https' if tls else 'http'}://{address}/router.v1.InferenceService/StreamGenerate"
    return [
        f"lora-router ask{server} {shlex.quote(question)}",
        f"buf curl --protocol grpc {how} -d {body} {url}",
        how_to_add(settings),
    ]


def _web_lines(app: ServerApp) -> list[tuple[str, str]]:
    if not app.http_address:
        return []
    url = f"{'https' if app.settings.tls_cert else 'http'}://{app.http_address}"
    console = [("console", f"{url}/console")] if app.recent is not None else []
    return [("HTTP", f"{url}/v1"), *console]


def _replicas_line(settings: Settings) -> str:
    if settings.replica_addresses:
        return f"at {', '.join(settings.replica_addresses)}"
    where = f"in the Ray cluster at {settings.ray}" if settings.ray else "on this machine"
    return f"{settings.replicas} {where}"


def _access_line(settings: Settings) -> str:
    who = f"clients of {settings.clients}" if settings.clients else "everybody may do everything"
    mutual = ", certificates of clients checked" if settings.tls_client_ca else ""
    return f"{who}; {'TLS' if settings.tls_cert else 'plain text'}{mutual}"


def _folders_line(folders: Sequence[Path | str], name: str) -> str:
    """`adapters, over those that come with lora-router (/usr/lib/.../adapters)`."""
    mine = [str(one) for one in folders if isinstance(one, str) or not is_carried(one, name)]
    below = [f"those that come with lora-router ({one})" for one in folders if str(one) not in mine]
    return ", over ".join(filter(None, [", ".join(mine), *below])) or "no folder"


def _trust_line(settings: Settings) -> str:
    asked = ["signed"] if settings.require_signed else []
    asked += [f"listed in {settings.adapters_lock}"] if settings.adapters_lock else []
    return f"; only those {' and '.join(asked)} are served" if asked else ""


def _classifiers_line(plugins: Sequence[PluginStatus]) -> str:
    classifiers = sorted((c.priority, c.name) for plugin in plugins for c in plugin.classifiers)
    return ", ".join(name for _, name in classifiers) or "no classifier"


def _experiments_line(found: ServedExperiments | None) -> str:
    if found is not None:
        return found.summary
    return "off" if optional.has_experiments() else "not installed"
