from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from router.config import Settings
from router.errors import ConfigError
from router.server.app import ServerApp
from router.server.lifecycle import in_daemon_thread
from router.server.metrics import measure_loads
from router.types import AdapterEvent, AdapterEventKind, AdapterState
from tests.fakes import adapter

SETTINGS = Settings(listen="127.0.0.1:0", metrics_listen="", drain_seconds=1.0, lame_duck_seconds=0.05)


def app_of(fakes: SimpleNamespace, **options: object) -> ServerApp:
    return ServerApp(SETTINGS, fakes.engine, fakes.registry, fakes.router, **options)


async def test_run_says_when_it_is_ready_and_ends_when_asked(fakes: SimpleNamespace) -> None:
    ready: list[bool] = []
    app = app_of(fakes, on_ready=lambda: ready.append(app.ready.is_set()))
    running = asyncio.create_task(app.run())
    await app.ready.wait()
    app.request_stop()
    await running
    assert ready == [True]


@pytest.mark.parametrize("error", [ConfigError("no such model"), ValueError("a bug")])
async def test_a_failed_startup_ends_the_server_with_its_error(
    fakes: SimpleNamespace, error: Exception
) -> None:
    async def startup() -> None:
        raise error

    with pytest.raises(type(error)):
        await app_of(fakes, startup=startup).run()


async def test_a_failed_background_task_ends_the_server(fakes: SimpleNamespace) -> None:
    app = app_of(fakes)
    running = asyncio.create_task(app.run())
    await app.ready.wait()
    app.health._status = None
    with pytest.raises(TypeError):
        await asyncio.wait_for(running, 3)


def test_by_default_a_shutdown_fits_the_grace_of_kubernetes() -> None:
    assert Settings().shutdown_seconds < 30


async def test_daemon_threads_hand_over_results_and_errors() -> None:
    await in_daemon_thread(lambda: None)
    with pytest.raises(KeyError):
        await in_daemon_thread(set().pop)


async def test_load_times_are_read_off_events() -> None:
    seen = []
    info = adapter("medical")

    async def events():
        for time, state in [(1.0, "loading"), (1.5, "ready"), (2.0, "ready"), (3.0, "loading")]:
            yield AdapterEvent(AdapterEventKind.CHANGED, replace(info, state=AdapterState(state)), time)

    await measure_loads(events(), lambda ref, seconds: seen.append((ref, seconds)))
    assert seen == [(info.ref, 0.5)]


def test_importing_the_server_leaves_torch_out() -> None:
    """Row 33."""
    code = (
        "import sys, router.server.app; sys.exit(bool({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
