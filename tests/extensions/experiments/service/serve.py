"""A server process on the fake engine with experiments in a database; prints its address when it serves."""

from __future__ import annotations

import argparse
import asyncio

from router.config import Settings
from router.engine.fake import FakeEngine
from router.extensions.experiments.runtime import LiveExperiments
from router.extensions.experiments.store.store import ExperimentStore
from router.plugins import Hooks, PluginHost
from router.server.app import ServerApp
from router.server.logs import logging_to
from tests.fakes import FakeRegistry, FakeRouter, adapter


async def serve(url: str) -> None:
    """Until a signal."""
    engine = FakeEngine()
    registry = FakeRegistry(engine, [adapter("medical"), adapter("medical", "1.1.0")])
    settings = Settings(listen="127.0.0.1:0", metrics_listen="", drain_seconds=5.0, database=url)
    live = LiveExperiments(ExperimentStore(url))

    async def startup() -> None:
        await asyncio.to_thread(engine.start)
        await live.start()

    router = FakeRouter(registry)
    hooks = Hooks(PluginHost([], built_in=True))
    app = ServerApp(settings, engine, registry, router, startup, hooks=hooks)
    app.pipeline.experiments = live
    app_ready = asyncio.ensure_future(app.ready.wait())
    running = asyncio.ensure_future(app.run())
    await asyncio.wait((running, app_ready), return_when="FIRST_COMPLETED")
    if not running.done():
        print(app.address, flush=True)
    try:
        await running
    finally:
        await live.close()


def main() -> None:
    """Parse and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="of the database")
    with logging_to("warning"):
        asyncio.run(serve(parser.parse_args().url))


if __name__ == "__main__":
    main()
