"""An edge of `benchmarks.edge_calls`: a server over replicas that run already, in a process of its own.

It prints its address, and ends with its standard input.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from benchmarks.fake_replicas import FakeLink, pin
from router.config import Settings
from router.engine.fake import FakeEngine
from router.plugins import PluginHost
from router.registry.registry import Registry
from router.replicas.engine import FleetEngine
from router.routing.router import Router
from router.server.app import ServerApp

ROWS, QUEUE = 64, 4096  # of each replica: nothing is refused


async def serve(addresses: list[str], folder: Path) -> None:
    """Until the end of standard input."""
    links = [FakeLink(str(i), address) for i, address in enumerate(addresses)]
    engine = FleetEngine(links, FakeEngine, max_running=ROWS, max_queue=QUEUE)
    registry = Registry(engine, [folder])
    router = Router(registry, PluginHost([], load_plugins=""))

    async def startup() -> None:
        await asyncio.to_thread(engine.start)
        await registry.start()
        await router.start()

    settings = Settings(listen="127.0.0.1:0", metrics_listen="", max_running=ROWS * len(links))
    app = ServerApp(settings, engine, registry, router, startup)
    await app.start()
    await app.ready.wait()
    print(app.address, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await app.stop()
    await router.close()
    await registry.close()


def main() -> None:
    """One edge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpus", type=int, nargs="*", default=[])
    parser.add_argument("--replicas", nargs="+", required=True)
    said = parser.parse_args()
    pin(said.cpus)
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(serve(said.replicas, Path(folder)))


if __name__ == "__main__":
    main()
