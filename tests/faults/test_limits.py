"""Limits of the system: descriptors, notifications, a clock that jumps, a process that is paused."""

from __future__ import annotations

import asyncio
import glob
import os
import resource
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from tests.faults.clients import answer, begin_experiment
from tests.faults.machine import FAKETIME, need_root, need_tools
from tests.faults.served import Served, ask, folders, long_answer, served, until
from tests.registry.tiny import write_adapter

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
HOUR = 3600


def listed(server: Served, name: str) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return name in await server.states()

    return look


async def test_no_file_descriptors_are_left(tmp_path: Path) -> None:
    """Who is connected is served, nothing that was known is forgotten, and it recovers by itself."""
    root = folders(tmp_path / "server")
    (root / "adapters").chmod(0o755)
    async with served(root, FAULT_STEP="0.01") as server:
        await server.inference.Generate(ask())  # connected
        states = await server.states()
        used = len(os.listdir(f"/proc/{server.process.pid}/fd"))
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (used + 20, used + 20))
        host, _, port = server.address.rpartition(":")
        silent = [socket.create_connection((host, int(port)), timeout=5) for _ in range(60)]
        try:
            write_adapter(root / "adapters" / "new")  # looked at, in vain
            for _ in range(15):
                assert (await server.inference.Generate(ask(), timeout=20)).text
                await asyncio.sleep(0.1)
            assert states.items() <= (await server.states()).items()
        finally:
            for one in silent:
                one.close()
        await until(listed(server, "adapters/new/versions/0"))
        async with grpc.aio.insecure_channel(
            server.address, (("grpc.use_local_subchannel_pool", 1),)
        ) as other:
            await asyncio.wait_for(other.channel_ready(), 30)
        assert (await server.page("/readyz"))[0] == 200


async def test_no_notifications_are_left(tmp_path: Path) -> None:
    """Folders are compared instead, and the log says so."""
    need_root()
    need_tools("unshare")
    root = folders(tmp_path / "server")
    script = 'echo 0 > /proc/sys/user/max_inotify_instances && exec "$@"'
    async with served(root, before=["unshare", "-Ur", "sh", "-c", script, "sh"], wait=False) as server:
        await asyncio.sleep(0.5)
        if server.exit_code is not None:
            pytest.skip(f"no limit on notifications can be set here (CONFIG_USER_NS): {server.log}")
        await server.ready()
        write_adapter(root / "adapters" / "new")
        await until(listed(server, "adapters/new/versions/0"))
        assert "no change notifications for adapter folders" in server.log


async def test_the_clock_jumps(tmp_path: Path) -> None:
    """An hour forth and two back, during an answer: no deadline passes, no unit changes its arm."""
    found = glob.glob(os.environ.get("LIBFAKETIME", FAKETIME))
    if not found:
        pytest.skip("libfaketime is not installed: apt-get install faketime")
    root, clock = folders(tmp_path / "server"), tmp_path / "clock"
    environment = {"LD_PRELOAD": found[0], "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1"}
    environment |= {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAULT_STEP": "0.01"}

    def jump(seconds: int) -> None:
        other = clock.with_suffix(".new")
        other.write_text(f"{seconds:+d}")
        other.replace(clock)

    jump(0)
    async with served(root, **environment) as server:
        await begin_experiment(server)
        before = [await answer(server, unit) for unit in range(12)]
        running = aiter(server.inference.StreamGenerate(long_answer(250), timeout=60))
        await anext(running)
        for seconds in (HOUR, -HOUR, 0):
            jump(seconds)
            await asyncio.sleep(0.6)
            assert [(await answer(server, unit))[1] for unit in range(12)] == [arm for _, arm in before]
            assert (await server.page("/readyz"))[0] == 200
        assert [event async for event in running][-1].finished.usage.completion_tokens == 250
        assert f'"time": "{time.strftime("%Y-%m-%dT%H", time.gmtime(time.time() + HOUR))}' in server.log


@pytest.mark.parametrize("seconds", [2.0, pytest.param(30.0, marks=pytest.mark.long)])
async def test_the_process_is_paused(tmp_path: Path, seconds: float) -> None:
    """Deadlines that passed are over, the rest goes on where it was."""
    root = folders(tmp_path / "server")
    async with served(root, "--set", "stall_seconds=1", FAULT_STEP="0.01") as server:
        late = asyncio.ensure_future(
            anext(aiter(server.inference.StreamGenerate(long_answer(900), timeout=1)))
        )
        running = aiter(server.inference.StreamGenerate(long_answer(200)))
        await anext(running)
        await late
        server.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        server.process.send_signal(signal.SIGCONT)
        assert [event async for event in running][-1].finished.usage.completion_tokens == 200
        assert (await server.inference.Generate(ask(), timeout=20)).text

        async def idle() -> bool:
            return await server.metric("lora_router_requests_running") == 0

        await server.ready()  # it may have said that no step was made
        await until(idle)
