"""A server process on the fake engine; prints its address once it serves, or listens with `--start`.

`--set NAME=VALUE` changes a setting. With `--replicas HOST:PORT,...` it is an edge over those.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sys
from dataclasses import replace
from typing import Any

from router import ports
from router.engine.fake import FakeEngine
from router.errors import ConfigError
from router.plugins import Hooks, PluginHost
from router.replicas.engine import FleetEngine
from router.replicas.link import Security
from router.replicas.membership import FoundMembership
from router.server.app import ServerApp
from router.server.logs import logging_to
from tests.engine.test_contract import fake_adapter
from tests.fakes import FakeRegistry, FakeRouter, adapter
from tests.settings import settings_of


async def serve(options: argparse.Namespace) -> None:
    engine = edge(options) if options.replicas else FakeEngine(**fake(options))
    known = [adapter("medical"), adapter("legal", "2.0.0")]
    artifacts = {}
    if options.replicas:  # which read the adapters' folders
        made = [fake_adapter(info.ref.name) for info in known]
        known = [replace(info, digest=one.digest) for info, one in zip(known, made, strict=True)]
        artifacts = {one.digest: one for one in made}
    registry = FakeRegistry(engine, known)
    registry.artifacts = artifacts
    changed: dict[str, Any] = {"experiments.enabled": False} | dict(one.split("=", 1) for one in options.set)
    settings = settings_of(
        listen=options.listen,
        metrics_listen=options.metrics,
        http_listen=options.http,
        drain_seconds=options.drain,
        lame_duck_seconds=0.25,
        **changed,
    )
    live = await experiments(options.experiments)
    hooks = Hooks(PluginHost([], tables=settings.tables, built_in=True))
    app = ServerApp(settings, engine, registry, FakeRouter(registry), hooks=hooks)
    app.pipeline.experiments = live
    running = asyncio.ensure_future(app.run())
    up = app.listening if options.start else app.ready  # who wants a long start wants to meet it
    await asyncio.wait((running, asyncio.ensure_future(up.wait())), return_when="FIRST_COMPLETED")
    gc.collect()
    gc.freeze()  # as `lora-router serve` does: else a collection takes 100 ms
    if not running.done():
        print(app.address, flush=True)
    await running
    if live is not None:
        await live.close()


def fake(options: argparse.Namespace) -> dict[str, float]:
    """Options of the engine."""
    return {"step_seconds": options.step, "start_seconds": options.start}


def edge(options: argparse.Namespace) -> FleetEngine:
    """An engine over replicas that somebody else has started."""
    security = Security(os.environ.get("LORA_ROUTER_REPLICA_SECRET", ""))
    found = FoundMembership(options.replicas.split(","), security)
    return FleetEngine(found, FakeEngine, max_running=8, max_queue=64)


async def experiments(url: str) -> ports.Experiments | None:
    """Those kept there, running."""
    if not url:
        return None
    from router.extensions.experiments.runtime import LiveExperiments
    from router.extensions.experiments.store.store import ExperimentStore

    live = LiveExperiments(ExperimentStore(url))
    await live.start()
    return live


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--metrics", default="")
    parser.add_argument("--http", default="")
    parser.add_argument("--experiments", default="")
    parser.add_argument("--replicas", default="")
    parser.add_argument("--set", action="append", default=[])
    for name, default in (("--step", 0.0), ("--start", 0.0), ("--drain", 5.0)):
        parser.add_argument(name, type=float, default=default)
    try:
        with logging_to("info"):
            asyncio.run(serve(parser.parse_args()))
    except ConfigError as error:
        print(error.message, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
