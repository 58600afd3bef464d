"""kill -9 of a whole server in every state: what was acknowledged is there, and it serves as before."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest

from tests.faults.clients import Clients
from tests.faults.served import Served, folders, served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
STATES = ("draining", "loading an adapter", "serving", "loading the base")
UP_AGAIN_SECONDS = 10.0


async def die(server: Served, seconds: float) -> None:
    await asyncio.sleep(seconds)
    server.process.kill()
    await server.process.wait()


async def die_loading(root: Path, rng: random.Random, flags: tuple[str, ...], slow: str) -> None:
    async with served(root, *flags, wait=False, **{slow: "30"}) as server:
        await server.until_page("/readyz", 503)
        await die(server, rng.uniform(0.0, 0.7))


@pytest.mark.parametrize("kills", [2, pytest.param(200, marks=pytest.mark.long)])
async def test_whatever_it_does_when_it_is_killed(tmp_path: Path, kills: int) -> None:
    rng, root = random.Random(13), folders(tmp_path / "server")
    url, audit = f"sqlite:///{root}/experiments.db", root / "audit.jsonl"
    flags = (f"--set=audit={audit}", "--set", f"database={url}")
    async with served(root, *flags) as server:
        clients, states = await Clients.of(server, url, audit), await server.states()
        assert await server.end() == 0  # exposures are written up to half a second after the answer
    for number in range(kills):
        state = STATES[number % len(STATES)]
        if state.startswith("loading"):
            await die_loading(root, rng, flags, "FAULT_START" if state.endswith("base") else "FAULT_LOAD")
            continue
        async with served(root, *flags, FAULT_STEP="0.01") as server:
            await clients.check(server)
            assert states.keys() == (await server.states()).keys()
            async with clients.at_work(server):
                await asyncio.sleep(rng.uniform(0.0, 0.3))
                if state == "draining":
                    server.process.terminate()
                await die(server, rng.uniform(0.0, 1.6))
        clients.check_files()
    begun = time.monotonic()
    async with served(root, *flags) as server:
        took = time.monotonic() - begun
        await clients.check(server)
        await clients.finish(server)
        found = await server.states()
    assert found[clients.chooser.acknowledged] == found["adapters/legal/versions/0"] == "READY"
    if kills > 2:  # alone on the machine
        assert took < UP_AGAIN_SECONDS
