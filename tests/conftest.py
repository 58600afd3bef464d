"""Fixtures shared by several packages: a server on a free port with everything behind it faked."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:  # a test of something else does not pay for grpc
    import httpx2

    from router.server.app import ServerApp

# Servers of tests, those in processes of their own among them, leave the default HTTP address alone.
os.environ.setdefault("LORA_ROUTER_HTTP_LISTEN", "")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded: its threads must not spin
if "PYTEST_XDIST_WORKER" in os.environ:  # one worker a core: more threads would only wait for each other
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")

WHOLLY_SLOW = re.compile(r"^pytestmark = (pytest\.mark\.slow|\[\n?\s*pytest\.mark\.slow)\b", re.MULTILINE)

# Modules are never garbage: while they are imported nothing is looked for, and tests do not walk them again.
gc.disable()

# The same examples at every run, however busy the machine is; `make fuzz` looks for new ones.
hypothesis.settings.register_profile("project", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("project")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """As many as cores; slow tests wait for more than half of their time, so two share a core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    return max(2, cores if "not slow" in config.option.markexpr else 2 * cores)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """In a run without slow tests, files with nothing else are not even imported: many need transformers."""
    if "not slow" not in config.option.markexpr or collection_path.suffix != ".py":
        return None
    return WHOLLY_SLOW.search(collection_path.read_text(encoding="utf-8")) is not None or None


def pytest_collection_finish() -> None:
    """Keep what was imported out of each collection of garbage, and collect more rarely."""
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    gc.enable()
    # A refused call is made twice instead of four times: a second passes before each attempt.
    if channel := sys.modules.get("router.client.channel"):
        channel._RETRY.update(maxAttempts=2, initialBackoff="0.01s")
    # Records of experiments are written without waiting for others.
    if recorder := sys.modules.get("router.extensions.experiments.recorder"):
        recorder.__dict__["GATHER"] = 0.01
    # A server of HTTP looks ten times a second whether it shall stop, and does so at the end of most tests.
    if served := sys.modules.get("uvicorn.server"):
        looks = SimpleNamespace(**vars(asyncio))
        looks.sleep = lambda seconds: asyncio.sleep(seconds / 20)
        served.__dict__["asyncio"] = looks


Start = Callable[..., Awaitable["ServerApp"]]
Connect = Callable[..., SimpleNamespace]


@pytest.fixture
async def start_server(tmp_path: Path) -> AsyncIterator[Start]:
    """Start servers: `await start_server(engine=…, registry=…, router=…, **settings)`; stopped at the end.
    Their state is this test's own.

    A setting NAME.KEY is a plugin's.
    """
    from router.engine.fake import FakeEngine
    from router.plugins import Hooks, PluginHost
    from router.server.app import ServerApp
    from tests.fakes import FakeRegistry, FakeRouter, adapter
    from tests.settings import settings_of

    defaults = {
        "listen": "127.0.0.1:0",
        "metrics_listen": "",
        "experiments.enabled": False,
        "drain_seconds": 1.0,
        "lame_duck_seconds": 0.0,
    }
    async with AsyncExitStack() as stack:

        async def start(
            engine: Any = None,
            registry: Any = None,
            router: Any = None,
            startup: Any = None,
            wait: bool = True,
            experiments: Any = None,
            feedback: Any = None,
            routing: Any = None,
            hooks: Any = None,
            encoder: Any = None,
            before: Any = None,
            **settings: Any,
        ) -> ServerApp:
            engine = engine or FakeEngine()
            registry = registry or FakeRegistry(engine, [adapter("medical"), adapter("legal", "2.0.0")])
            router = router or FakeRouter(registry)
            if isinstance(feedback, str):  # the setting; else a recorder
                settings["feedback.keep"], feedback = feedback, None
            said = settings_of(**{**defaults, **settings})
            if routing is not None:
                router.state = routing
            if hooks is None:  # the built-in plugins, as every server has them
                hooks = Hooks(PluginHost([], tables=said.tables, built_in=True))
            app = ServerApp(said, engine, registry, router, startup, hooks=hooks, encoder=encoder)
            app.pipeline.experiments, router.on_vote = experiments, app.metrics.vote
            app.state_dir = tmp_path / ".state"
            if feedback is not None:
                app.provide(feedback)
            app.state_dir.mkdir(exist_ok=True)
            if before is not None:
                before(app)
            stack.push_async_callback(app.stop)
            await app.start()
            if wait:
                await app.ready.wait()
            return app

        yield start


@pytest.fixture
def start_web(start_server: Start) -> Start:
    """`start_server` with an HTTP address."""

    async def start(**settings: Any) -> ServerApp:
        return await start_server(http_listen="127.0.0.1:0", **settings)

    return start


@pytest.fixture
async def http() -> AsyncIterator[Callable[..., httpx2.AsyncClient]]:
    """Plain HTTP to a server."""
    import httpx2

    async with AsyncExitStack() as stack:

        def connect(server: ServerApp, **options: Any) -> httpx2.AsyncClient:
            client = httpx2.AsyncClient(base_url=f"http://{server.http_address}", timeout=20, **options)
            stack.push_async_callback(client.aclose)
            return client

        yield connect


@pytest.fixture
def fakes() -> SimpleNamespace:
    """What stands behind `server`: `engine`, `registry` with the adapters medical and legal, `router`."""
    from router.engine.fake import FakeEngine
    from tests.fakes import FakeRegistry, FakeRouter, adapter

    engine = FakeEngine(step_seconds=0.001, context_length=4096)
    registry = FakeRegistry(engine, [adapter("medical"), adapter("legal", "2.0.0")])
    return SimpleNamespace(engine=engine, registry=registry, router=FakeRouter(registry))


@pytest.fixture
async def server(start_server: Start, fakes: SimpleNamespace) -> ServerApp:
    """A ready server on the fakes."""
    return await start_server(**vars(fakes))


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """`connect(app)`: a channel of its own with a stub of each service."""
    import grpc

    from router.v1 import (
        adapters_pb2_grpc,
        experiments_pb2_grpc,
        feedback_pb2_grpc,
        fleet_pb2_grpc,
        inference_pb2_grpc,
    )

    channels: list[grpc.aio.Channel] = []

    def open_channel(app: ServerApp, *options: tuple[str, Any]) -> SimpleNamespace:
        local = ("grpc.use_local_subchannel_pool", 1)
        channel = grpc.aio.insecure_channel(app.address, options=(local, *options))
        channels.append(channel)
        return SimpleNamespace(
            channel=channel,
            inference=inference_pb2_grpc.InferenceServiceStub(channel),
            adapters=adapters_pb2_grpc.AdapterServiceStub(channel),
            feedback=feedback_pb2_grpc.FeedbackServiceStub(channel),
            fleet=fleet_pb2_grpc.FleetServiceStub(channel),
            experiments=experiments_pb2_grpc.ExperimentServiceStub(channel),
        )

    yield open_channel
    for channel in channels:
        await channel.close()


@pytest.fixture
async def stubs(server: ServerApp, connect: Connect) -> SimpleNamespace:
    """Stubs to `server`."""
    return connect(server)
