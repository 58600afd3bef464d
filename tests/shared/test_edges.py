"""Two whole servers over one PostgreSQL: what is changed at one holds at the other within two seconds."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from prometheus_client import generate_latest

from router.cli.compose import Composition
from router.client import AsyncClient, ClientError
from router.engine.fake import FakeEngine
from tests.cli.tiny import MODULES, write_adapter
from tests.extensions.experiments.store.postgres import Server
from tests.settings import settings_of
from tests.shared.conftest import fresh

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

SECONDS = 2.0
OLD, NEW = "medical@1.2.0", "medical@1.3.0"
MANIFEST = '[adapter]\nname = "medical"\nversion = "{}"\ndomain = "medicine"\n'


@dataclass
class Edge:
    """A whole server, and a client of it that may do everything."""

    composition: Composition
    client: AsyncClient
    clients: Path
    stop: Callable[[], Awaitable[None]]


class Edges:
    """All over one adapters folder and one database, each with a state folder of its own."""

    def __init__(self, root: Path, database: Server, name: str) -> None:
        self.root, self.database, self.url = root, database, fresh(database, name)
        for version, b in (("1.2.0", 0.25), ("1.3.0", 0.5)):
            write_adapter(root / "adapters" / version, b, manifest=MANIFEST.format(version))
        self._stack = AsyncExitStack()

    async def begin(self, name: str, **said: object) -> Edge:
        """Start one; returns when it serves."""
        os.environ["XDG_STATE_HOME"] = str(self.root / name)
        (self.root / name).mkdir(exist_ok=True)
        clients = self.root / name / "clients.toml"
        engine = FakeEngine()
        engine._info = dataclasses.replace(engine._info, sites=MODULES, vocab_size=32)
        settings = settings_of(
            **{
                "listen": "127.0.0.1:0",
                "metrics_listen": "",
                "adapters_dir": (self.root / "adapters",),
                "load_plugins": "",
                "drain_seconds": 2,
                "lame_duck_seconds": 0.05,
                "gate": "off",
                "database": self.url,
                "sharing.enabled": True,
                "clients": clients,
                **said,
            }
        )
        composition, ready = Composition(settings, engine), asyncio.Event()
        task = asyncio.create_task(composition.run(lambda app: ready.set()))
        await asyncio.wait({task, asyncio.ensure_future(ready.wait())}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        client = AsyncClient(composition.app.address, timeout=10, token=TOKEN)

        async def stop() -> None:
            await client.close()
            composition.app.request_stop()
            await task

        self._stack.push_async_callback(stop)
        return Edge(composition, client, clients, stop)

    async def close(self) -> None:
        await self._stack.aclose()


TOKEN = "lrk_ann_" + "a" * 43


def clients_file(**quotas: int) -> str:
    from router.access.clients import hash_of

    lines = ["[[client]]", 'id = "ann"', f'token_sha256 = ["{hash_of(TOKEN)}"]']
    lines += ['roles = ["infer", "observe", "admin"]', 'adapters = ["*"]', 'experiments = ["*"]']
    return "\n".join([*lines, *(f"{key} = {value}" for key, value in quotas.items())]) + "\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edges(tmp_path_factory: pytest.TempPathFactory, postgres: Server) -> AsyncIterator[Edges]:
    before = os.environ.get("XDG_STATE_HOME")
    root = tmp_path_factory.mktemp("edges")
    made = Edges(root, postgres, "edges")
    for name in ("a", "b"):
        (root / name).mkdir()
        (root / name / "clients.toml").write_text(clients_file())
    yield made
    await made.close()
    os.environ.pop("XDG_STATE_HOME", None)
    if before is not None:
        os.environ["XDG_STATE_HOME"] = before


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two(edges: Edges) -> tuple[Edge, Edge]:
    return await edges.begin("a"), await edges.begin("b")


async def within(true: Callable[[], Awaitable[bool]], seconds: float = SECONDS) -> float:
    """Seconds until it was true: no more than `seconds`."""
    began = time.monotonic()
    while not await true():
        assert time.monotonic() - began < seconds, f"not within {seconds} s"
        await asyncio.sleep(0.02)
    return time.monotonic() - began


async def changed(change: Callable[[], Awaitable[object]]) -> None:
    """Make a change, again where another edge just wrote what became of older versions."""

    async def done() -> bool:
        try:
            await change()
        except ClientError as error:
            if error.reason != "CHANGED_ELSEWHERE":
                raise
            return False
        return True

    await within(done)


async def default(edge: Edge) -> str:
    return str((await edge.client.adapters.get("medical")).ref)


async def test_a_default_version(two: tuple[Edge, Edge]) -> None:
    a, b = two
    assert (await default(a), await default(b)) == (NEW, NEW)
    await a.client.adapters.set_default(OLD)

    async def other() -> bool:
        return await default(b) == OLD

    await within(other)
    answer = await b.client.generate("hello", adapter="medical", max_tokens=3)
    assert str(answer.decision.adapter) == OLD
    await changed(lambda: b.client.adapters.reset_default("medical"))

    async def back() -> bool:
        return await default(a) == NEW

    await within(back)


async def test_a_quota_and_who_has_used_it(two: tuple[Edge, Edge]) -> None:
    a, b = two
    for edge in two:
        edge.clients.write_text(clients_file(requests_per_minute=400))

    async def known() -> bool:
        return all(edge.composition.app.access._clients.all[0].requests_per_minute == 400 for edge in two)

    await within(known)
    refused: set[str] = set()

    async def spent() -> bool:
        for edge in (a, b):
            for _ in range(5):
                try:
                    await edge.client.generate("hello", max_tokens=2)
                except ClientError as error:
                    refused.add(error.reason)
        await asyncio.sleep(0.05)  # a fast machine would spend all before the edges tell each other
        return bool(refused)

    began = time.monotonic()
    answered = 0
    while not await spent():
        answered += 10
        assert time.monotonic() - began < 30
    assert refused == {"QUOTA"}
    assert answered < 600  # each edge alone would give 400 at once, so 800 together
    for edge in two:
        edge.clients.write_text(clients_file())

    async def free() -> bool:
        return not any(edge.composition.app.access._clients.all[0].requests_per_minute for edge in two)

    await within(free)


async def test_one_that_joins_takes_all_of_it(edges: Edges, two: tuple[Edge, Edge]) -> None:
    a, _ = two
    await changed(lambda: a.client.adapters.set_default(OLD))
    c = await edges.begin("c", clients=a.clients)
    assert await default(c) == OLD

    async def counted() -> bool:
        state = a.composition.registry._default_versions.shared
        return state is not None and state.edges == 3

    await within(counted)
    page = generate_latest(a.composition.app.metrics.registry).decode()
    assert "\nlora_router_edges 3.0\n" in page
    assert "\nlora_router_shared_state_up 1.0\n" in page
    assert not c.composition.app.health.degraded
    await c.stop()


async def test_without_the_database_all_goes_on_and_nothing_changes(
    edges: Edges, two: tuple[Edge, Edge]
) -> None:
    a, b = two
    holds = await default(a)

    async def known() -> bool:
        return await default(b) == holds

    await within(known)
    await asyncio.to_thread(edges.database.stop)

    async def told() -> bool:
        return all(
            any("what edges share cannot" in flaw for flaw in one.composition.app.health.degraded)
            for one in two
        )

    await within(told, 10)
    with pytest.raises(ClientError) as caught:
        await a.client.adapters.set_default(NEW if holds == OLD else OLD)
    assert (caught.value.code, caught.value.reason) == ("UNAVAILABLE", "SHARED_STATE_DOWN")
    assert (await default(a), await default(b)) == (holds, holds)
    assert (await b.client.generate("hello", max_tokens=2)).text
    d = await edges.begin("b2", clients=b.clients)
    await asyncio.to_thread(edges.database.start)

    async def again() -> bool:
        return not any(one.composition.app.health.degraded for one in (a, b, d))

    await within(again, 15)
    other = NEW if holds == OLD else OLD
    await changed(lambda: b.client.adapters.set_default(other))

    async def agreed() -> bool:
        return {await default(one) for one in (a, b, d)} == {other}

    await within(agreed)
    await d.stop()
