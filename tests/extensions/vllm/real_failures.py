"""vLLM killed and stopped while it answers, in an environment that has it: see test_real.py."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from router.config import Settings
from router.engine.base import Delta
from router.errors import Unavailable
from router.extensions.vllm import keeper
from router.extensions.vllm.engine import GIVE_UP, VllmEngine
from router.extensions.vllm.link import connect
from tests.engine.contract import job, until

STALL = 4.0


@pytest.mark.parametrize("what", ["core", "worker", "stopped"])
async def test_who_waits_is_told_and_nobody_is_left(what: str) -> None:
    engine = VllmEngine(
        Settings(engine="vllm", slots=1, max_rank=8, max_running=2, stall_seconds=STALL), connect
    )
    await asyncio.to_thread(engine.start)
    core = next(pid for pid in keeper.children_of(os.getpid()) if "EngineCore" in name_of(pid))
    workers = keeper.children_of(core)
    running = [engine.submit(job(engine, max_tokens=2000, min_tokens=2000)) for _ in range(3)]
    async for event in running[0]:
        if isinstance(event, Delta):
            break
    began = time.monotonic()
    os.kill(core if what == "core" else workers[0], signal.SIGSTOP if what == "stopped" else signal.SIGKILL)
    for generation in running[1:]:
        with pytest.raises(Unavailable):
            async for _ in generation:
                pass
    assert time.monotonic() - began < (GIVE_UP + 2) * STALL
    assert engine.status().failed
    with pytest.raises(Unavailable):
        engine.submit(job(engine))
    await until(lambda: not any(keeper.begun(pid) for pid in (core, *workers)), 15)
    await asyncio.to_thread(engine.close)


def name_of(pid: int) -> str:
    """A process's command line."""
    try:
        with open(f"/proc/{pid}/cmdline", encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""
