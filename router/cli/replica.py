"""`lora-router replica`: one engine as a process, for edges (`serve --set replica_addresses=...`)."""

from __future__ import annotations

import asyncio
import faulthandler
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from router.cli import serve
from router.cli.setting_flags import WithSettings
from router.cli.settings import ConfigFile, Sets
from router.errors import ConfigError

if TYPE_CHECKING:
    from router.config import Settings
    from router.engine.base import AdapterArtifact, Engine

log = logging.getLogger(__name__)

LISTEN, METRICS_LISTEN = "127.0.0.1:50060", "127.0.0.1:9465"
PATIENCE = 3  # times `stall_seconds` without a step, after which the process ends
LOOK_SECONDS = 0.25
ENGINE_SECONDS = 10.0  # for the end of an engine


class ReplicaCommand(WithSettings):
    """With the settings that people type."""

    settings = (
        *("listen", "metrics_listen", "tls_cert", "tls_key", "tls_client_ca"),
        *("engine", "model", "quantize", "device"),
    )
    defaults = {"listen": LISTEN, "metrics_listen": METRICS_LISTEN}  # noqa: RUF012 -- never changed


def replica(
    context: typer.Context,
    config: ConfigFile = None,
    set_: Sets = None,
    insecure_listen: serve.Insecure = False,
    insecure_metrics: serve.InsecureMetrics = False,
    child: Annotated[
        bool, typer.Option("--child", hidden=True, help="Settings come from standard input.")
    ] = False,
) -> None:
    """Run one engine, for servers that name its address.

    Servers reach it with `serve --set replica_addresses=HOST:PORT`. Those that other machines reach need TLS
    with a CA for clients (--tls-client-ca), or TLS and a secret (LORA_ROUTER_REPLICA_SECRET, the same for
    all).

    SIGTERM drains: it takes nothing new, finishes what it has, and ends. It also ends, with exit code 1, when
    its engine has work and makes no step for three times stall_seconds; what started it starts it again.

    \b
    Examples:
      lora-router replica
      lora-router replica --listen 10.0.0.7:50060 --tls-cert r.pem --tls-key r.key --tls-client-ca edges.pem
    """
    fake: dict[str, Any] = {}
    if child:
        from pydantic import SecretStr

        from router.config import Settings
        from router.plugins.tables import SettingsTable

        start = json.loads(sys.stdin.readline())
        tables = {
            name: SettingsTable.of_json(values)
            for name, values in start["settings"].pop("tables", {}).items()
        }
        made = Settings.model_construct(
            **start["settings"], engine=start["engine"], replica_secret=SecretStr(start["secret"])
        )
        settings = made.with_tables(tables)
        fake = start["fake"]
    else:
        from router.cli.settings import load_settings, parse_sets

        loaded = load_settings(parse_sets(set_ or []) | context.obj, config)
        own = {
            name: value
            for name, value in ReplicaCommand.defaults.items()
            if name not in loaded.model_fields_set
        }
        settings = loaded.model_copy(update=own)
        check_reach(settings, insecure_listen, insecure_metrics)
    raise typer.Exit(run(settings, child=child, fake=fake))


def check_reach(settings: Settings, insecure: bool, insecure_metrics: bool) -> None:
    """Refuse addresses that other machines reach without protection. Raises ConfigError."""
    from router.client.channel import is_loopback
    from router.server.listen import split_address

    split_address(settings.listen, "listen")
    secured = settings.tls_cert and (settings.tls_client_ca or settings.replica_secret)
    if not insecure and not is_loopback(settings.listen) and not secured:
        raise ConfigError(
            f"{settings.listen} can be reached from other machines, who could send prompts and adapters: "
            "give --tls-cert, --tls-key and --tls-client-ca, or a secret (LORA_ROUTER_REPLICA_SECRET) in "
            "place of the CA; listen on 127.0.0.1; or say --insecure-listen if the network is yours"
        )
    serve.check_metrics_reach(settings, insecure or insecure_metrics)


def run(settings: Settings, *, child: bool, fake: Mapping[str, Any]) -> int:
    """Serve until a signal, or as a child until standard input ends and no edge is left; returns the exit
    code. `fake`: options of the fake engine."""
    from router.server.logs import logging_to

    announce: TextIO | None = None
    if child:  # libraries may print; the first line of standard output is for the edge
        announce = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
    try:
        with logging_to(settings.log_level):
            made, base = make_engine(settings, fake)
            read = folder_reader(settings, made, base)
            return asyncio.run(ReplicaProcess(settings, made, read, announce).run())
    except ConfigError as error:
        if announce is None:
            raise
        _announce(announce, error=error.message)
        return 2


def make_engine(settings: Settings, fake: Mapping[str, Any]) -> tuple[Engine, Path | None]:
    """The engine of the settings, not started, and the folder of its base; None without one.

    Raises ConfigError.
    """
    if settings.engine == "fake":
        from router.engine.fake import FakeEngine

        return FakeEngine(max_running=settings.max_running, max_queue=settings.max_queue, **fake), None
    from router.cli.engines import engine_of
    from router.cli.plugins import host_of

    plugins = host_of(settings)
    plugins.refresh()
    return engine_of(settings, plugins)


def folder_reader(settings: Settings, engine: Engine, base: Path | None) -> Callable[[Path], AdapterArtifact]:
    """Reads an adapter's folder by the rules of the registry, for an engine that has started.

    Without a `base`, names and shapes of its matrices are not compared.
    """
    from router.registry.format.artifact import FolderRules, read_artifact

    def read(folder: Path) -> AdapterArtifact:
        rules = FolderRules(None if base is None else engine.info, settings.max_rank)
        return read_artifact(folder, rules)[0]

    return read


class ReplicaProcess:
    """An engine, its gRPC server, health and metrics, from start to drain."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        read: Callable[[Path], AdapterArtifact],
        announce: TextIO | None = None,
    ) -> None:
        """`read`: see `EngineHost`. `announce` gets a line of JSON: the address, or what went wrong."""
        from router.replicas.host import SERVICE, EngineHost
        from router.server.admission import PhaseGate
        from router.server.health import ServerHealth
        from router.server.listen import metrics_listener
        from router.server.metrics import ServerMetrics

        self._settings, self._engine, self._announce = settings, engine, announce
        self._host = EngineHost(engine, read, settings.host_memory_mb << 20)
        self._lifecycle = PhaseGate()
        self._health = ServerHealth(
            self._lifecycle, engine.status, settings.stall_seconds, names=("", SERVICE)
        )
        self._metrics = ServerMetrics()
        self._probes = metrics_listener(settings, self._metrics.shed.labels("http").inc)
        self._stop, self._at_once = asyncio.Event(), asyncio.Event()
        self.address = ""

    async def run(self) -> int:
        """Returns the exit code. Raises ConfigError where the base does not load or an address is taken."""
        from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

        from router.classifiers.isolation import await_in_thread
        from router.replicas.host import engine_server
        from router.server.admission import ServerPhase
        from router.server.health import Unguarded, probes
        from router.server.listen import PROBE_SECONDS, bind
        from router.server.tls import Tls

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked)
        secret = self._settings.replica_secret
        server = engine_server(secret.get_secret_value() if secret else "")
        self._host.register(server)
        add_HealthServicer_to_server(self._health, server)
        self.address = bind(server, self._settings.listen, Tls.of(self._settings))
        if self._settings.metrics_listen:
            self._probes.bind()
            address = self._probes.address
            application = probes(
                Unguarded(), self._settings, address, self._metrics, self._health, self._look
            )
            await self._probes.start(application)
        await server.start()
        log.info("listening", extra={"fields": {"address": self.address, "metrics": self._probes.address}})
        tasks = [loop.create_task(self._watch_parent())] if self._announce is not None else []
        starting = loop.create_task(await_in_thread(self._host.start, "engine start"))
        stopping = loop.create_task(self._stop.wait())
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            self._lifecycle.phase = ServerPhase.SERVING
            self._host.loaded.set()
            tasks += [loop.create_task(self._health.follow()), loop.create_task(self._watch_engine())]
            if self._announce is not None:
                _announce(self._announce, address=self.address)
            await asyncio.wait(
                (stopping, loop.create_task(self._host.draining.wait())), return_when=asyncio.FIRST_COMPLETED
            )
        await self._drain()
        for task in tasks:
            task.cancel()
        faulthandler.cancel_dump_traceback_later()
        await server.stop(0)
        await self._probes.stop(PROBE_SECONDS)
        try:
            async with asyncio.timeout(ENGINE_SECONDS):
                await await_in_thread(self._host.close, "engine close")
        except TimeoutError:
            log.error("the engine did not stop", extra={"fields": {"seconds": ENGINE_SECONDS}})
            os._exit(1)
        log.info("stopped")
        return 0

    def _asked(self) -> None:
        """A signal: drain; the second one ends at once."""
        if self._stop.is_set():
            self._at_once.set()
        self._stop.set()

    async def _drain(self) -> None:
        """Edges see it at once, and send their work elsewhere."""
        self._health.drain()
        self._lifecycle.drain()
        self._host.drain()
        end = time.monotonic() + self._settings.drain_seconds
        while not self._host.idle and time.monotonic() < end:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._at_once.wait(), LOOK_SECONDS / 5)
                return

    async def _watch_parent(self) -> None:
        """A child ends after what started it, whatever ended that: its standard input ends. While edges are
        attached it goes on, for what ended may have been Ray alone."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def read() -> None:
            if not os.read(0, 1024):
                loop.remove_reader(0)
                ended.set()

        loop.add_reader(0, read)
        await ended.wait()
        while self._host.edges:  # noqa: ASYNC110 - nothing else waits for the last edge to leave
            await asyncio.sleep(LOOK_SECONDS)
        log.info("what started this replica has ended, and no edge is attached")
        self._at_once.set()
        self._stop.set()

    async def _watch_engine(self) -> None:
        """End the process where the engine has work and makes no step.

        The timer is one of the interpreter's own, so that it also ends a process whose event loop hangs, or
        whose threads wait for a lock for ever; it prints where they all are.
        """
        patience, last = PATIENCE * self._settings.stall_seconds, -1.0
        while True:
            status = self._engine.status()
            if status.failed:
                log.error("the engine failed", extra={"fields": {"problem": status.failed}})
                os._exit(1)
            if not status.busy or status.last_progress != last:
                last = status.last_progress
                faulthandler.dump_traceback_later(patience, exit=True)
            await asyncio.sleep(LOOK_SECONDS)

    def _look(self) -> None:
        self._metrics.look(self._engine.status(), (), 0)


def _announce(to: TextIO, **what: str) -> None:
    """A line for the edge, which may have gone."""
    try:
        to.write(json.dumps(what) + "\n")
        to.flush()
    except BrokenPipeError:
        log.info("the edge has ended")
