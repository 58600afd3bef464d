"""A server process on the fake engine; prints its address once it serves, or listens with `--start`.

`--set NAME=VALUE` changes a setting.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Any

from router.config import Settings
from router.engine.fake import FakeEngine
from router.errors import ConfigError
from router.plugins import Hooks, PluginHost
from router.ports import ServedExperiments
from router.server.app import ServerApp
from router.server.logs import logging_to
from tests.fakes import FakeRegistry, FakeRouter, adapter


async def serve(options: argparse.Namespace) -> None:
    engine = FakeEngine(step_seconds=options.step, start_seconds=options.start)
    registry = FakeRegistry(engine, [adapter("medical"), adapter("legal", "2.0.0")])
    changed: dict[str, Any] = dict(one.split("=", 1) for one in options.set)
    settings = Settings(
        listen=options.listen,
        metrics_listen=options.metrics,
        http_listen=options.http,
        experiments="",
        drain_seconds=options.drain,
        lame_duck_seconds=0.25,
        **changed,
    )
    live = await experiments(options.experiments)
    hooks = Hooks(PluginHost([], built_in=True))
    app = ServerApp(settings, engine, registry, FakeRouter(registry), hooks=hooks)
    app.experiments = live
    running = asyncio.ensure_future(app.run())
    up = app.listening if options.start else app.ready  # who wants a long start wants to meet it
    await asyncio.wait((running, asyncio.ensure_future(up.wait())), return_when="FIRST_COMPLETED")
    if not running.done():
        print(app.address, flush=True)
    await running
    if live is not None:
        await live.close()


async def experiments(url: str) -> ServedExperiments | None:
    """Those kept there, running."""
    if not url:
        return None
    from router.experiments.live.runtime import Experiments  # SQLAlchemy, only where it is wanted
    from router.experiments.service.served import ServedExperiments
    from router.experiments.store.sql_store import SqlStore

    live = ServedExperiments(Experiments(SqlStore(url)))
    await live.start()
    return live


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--metrics", default="")
    parser.add_argument("--http", default="")
    parser.add_argument("--experiments", default="")
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
