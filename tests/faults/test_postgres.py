"""PostgreSQL is killed, or stands still, while outcomes come in: none lost or counted twice."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from benchmarks.outcome_intake import Sender, counted
from tests.extensions.experiments.store.postgres import Server as Database
from tests.extensions.experiments.store.postgres import binaries
from tests.faults.clients import answer, begin_experiment
from tests.faults.served import Served, ask, folders, served, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
LOST = "lora_router_experiment_lost_total{"
QUEUE, UP = "lora_router_experiment_queue", "lora_router_experiment_store_up"
MOST_QUEUED, MOST_GROWTH_MB = 50_000, 150


@pytest.fixture
def database() -> Iterator[Database]:
    where = binaries()
    if where is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    found = Database(where)
    yield found
    found.close()


@dataclass
class Work:
    """A client that sends outcomes and one that asks, for as long as they may."""

    server: Served
    sender: Sender
    asked: int = 0
    refused: int = 0

    async def send(self) -> None:
        """What is not acknowledged is sent again under the same keys."""
        while True:
            if not await self.sender.send(self.server.address, 3600.0, 500):
                self.refused += 1
            await asyncio.sleep(0.1)

    async def ask(self) -> None:
        while True:
            assert (await self.server.inference.Generate(ask(routing={"unit": "u"}), timeout=20)).text
            self.asked += 1
            await asyncio.sleep(0.01)

    async def goes_on(self) -> None:
        """Until something is acknowledged and something answered from now on."""
        before, asked = self.sender.acknowledged, self.asked

        async def more() -> bool:
            return self.sender.acknowledged > before and self.asked > asked

        await until(more, 60)


async def lost(server: Served) -> float:
    """Records that were given up, of every kind."""
    lines = (await server.page("/metrics"))[1].splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(LOST))


@asynccontextmanager
async def working(root: Path, url: str) -> AsyncIterator[Work]:
    """A server on that database and its clients; in the end every outcome is there, once."""
    async with served(folders(root), "--set", f"database={url}") as server:
        await begin_experiment(server)
        answers = [await answer(server, unit) for unit in range(20)]

        async def written() -> bool:
            return await server.metric(QUEUE) == 0

        await until(written)
        work = Work(server, Sender([response for response, _ in answers], batch=20))
        tasks = [asyncio.ensure_future(task) for task in (work.send(), work.ask())]
        grown = psutil.Process(server.process.pid).memory_info().rss
        try:
            await work.goes_on()
            yield work
            assert await server.metric(QUEUE) <= MOST_QUEUED
            assert await lost(server) == 0
            assert psutil.Process(server.process.pid).memory_info().rss - grown < MOST_GROWTH_MB << 20
            assert not any(task.done() for task in tasks), [task for task in tasks if task.done()]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        async def all_acknowledged() -> bool:
            return await work.sender.send(server.address, 0.0, 0.0)

        await until(all_acknowledged)
    assert counted(url) == work.sender.made
    assert set(work.sender.statuses) <= {"counted", "duplicate"}


@pytest.mark.parametrize("kills", [1, pytest.param(50, marks=pytest.mark.long)])
async def test_it_is_killed_under_intake(tmp_path: Path, database: Database, kills: int) -> None:
    rng = random.Random(5)
    async with working(tmp_path / "server", database.url()) as work:
        for _ in range(kills):
            await asyncio.sleep(rng.uniform(0.0, 0.3))
            await asyncio.to_thread(database.signal, signal.SIGKILL)
            await asyncio.sleep(rng.uniform(0.0, 1.0))
            asked = work.asked
            await asyncio.to_thread(database.start)
            await work.goes_on()
            assert work.asked > asked
    assert work.refused >= kills


@pytest.mark.long
async def test_it_stands_still(tmp_path: Path, database: Database) -> None:
    """Outcomes are refused rather than kept in memory; answers go on without experiments."""
    async with working(tmp_path / "server", database.url()) as work:
        database.signal(signal.SIGSTOP)
        try:

            async def known() -> bool:
                return await work.server.metric(UP) == 0

            await until(known, 30)
            asked = work.asked

            async def refused() -> bool:
                return work.refused > 0

            await until(refused, 60)  # a connection that says nothing is left after 15 s
            assert work.asked > asked + 100
            assert (await work.server.page("/readyz"))[0] == 200
        finally:
            database.signal(signal.SIGCONT)
        await work.goes_on()
