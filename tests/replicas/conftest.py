"""Fleets of fake engines in this process, with clocks that tests can wait for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from router.engine.base import AdapterArtifact, Job, Prompt
from router.engine.fake import FakeEngine
from router.replicas import host, members, replica
from router.replicas.engine import FleetEngine
from router.replicas.membership import FixedMembership, Membership
from router.types import SamplingParams
from tests.engine.test_contract import fake_adapter
from tests.replicas.local import LocalLink
from tests.replicas.processes import SECRET, Cable, Children, Standing


class Named(Membership):
    """Replicas that a test names, as a DNS name does."""

    def __init__(self, names: Iterable[str], link: Callable[[str], LocalLink]) -> None:
        self.now, self._link = tuple(names), link

    def link(self, name: str) -> LocalLink:
        return self._link(name)

    async def names(self) -> tuple[str, ...]:
        return self.now


class Fleet:
    """A FleetEngine with its links, and the engine that each has now."""

    def __init__(
        self, engine: FleetEngine, links: list[LocalLink], made: dict[str, FakeEngine], membership: Named
    ) -> None:
        self.engine, self.links, self.made, self.membership = engine, links, made, membership

    def link(self, name: str) -> LocalLink:
        return next(link for link in self.links if link.name == name)

    async def load(self, *names: str) -> list[AdapterArtifact]:
        """Adapters of these names, loaded one after the other."""
        adapters = [fake_adapter(name) for name in names]
        for adapter in adapters:
            await self.engine.load(adapter)
        return adapters

    def homes(self, adapter: AdapterArtifact) -> list[str]:
        """The replicas that have it."""
        return [n for n, engine in self.made.items() if adapter.digest in engine.status().host_adapters]


Make = Callable[..., Awaitable[Fleet]]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (host, replica):
        monkeypatch.setattr(module, "BEAT", 0.02)
    monkeypatch.setattr(members, "LOOK_SECONDS", 0.02)


@pytest.fixture
async def fleet() -> AsyncIterator[Make]:
    """`await fleet(2, step_seconds=…, stall_seconds=…)`; `each={"1": {...}}` for options of one.

    With `changing` replicas come and go as `Fleet.membership` names them.
    """
    async with AsyncExitStack() as stack:

        async def make(
            number: int = 2,
            stall_seconds: float = 30.0,
            silence: float = 3.0,
            each: dict[str, dict[str, Any]] | None = None,
            host_bytes: int = 1 << 20,
            start: bool = True,
            changing: bool = False,
            **options: Any,
        ) -> Fleet:
            made: dict[str, FakeEngine] = {}
            values = {"step_seconds": 0.001, "max_running": 4, "max_queue": 64} | options

            def maker(name: str) -> Callable[[], FakeEngine]:
                def new() -> FakeEngine:
                    made[name] = FakeEngine(**values | (each or {}).get(name, {}))
                    return made[name]

                return new

            links: list[LocalLink] = []

            def link(name: str) -> LocalLink:
                links.append(LocalLink(name, maker(name), silence, host_bytes))
                return links[-1]

            named = Named(map(str, range(number)), link)
            fixed = None if changing else FixedMembership([link(str(i)) for i in range(number)])
            engine = FleetEngine(
                fixed or named,
                FakeEngine,
                max_running=values["max_running"],
                max_queue=values["max_queue"],
                stall_seconds=stall_seconds,
            )
            if start:
                engine.start()
            stack.callback(engine.close)
            return Fleet(engine, links, made, named)

        yield make


def job(text: str = "one two three", adapter: str | None = None, **params: Any) -> Job:
    tokens = FakeEngine().encode(Prompt(raw=text))
    return Job("r", tokens, SamplingParams(**{"max_tokens": 50} | params), adapter)


@pytest.fixture
async def started() -> AsyncIterator[Callable[..., Awaitable[Children]]]:
    """`await started(number, stall_seconds, cabled=True, **options)`; see `Children`."""
    async with AsyncExitStack() as stack:

        async def start(
            number: int = 2, stall_seconds: float = 10.0, cabled: bool = False, **options: Any
        ) -> Children:
            cables = [Cable() for _ in range(number if cabled else 0)]
            for cable in cables:
                await cable.lay()
                stack.callback(cable.close)
            made = Children(number, stall_seconds, cables=cables, **options)
            await asyncio.to_thread(made.engine.start)
            stack.push_async_callback(asyncio.to_thread, made.engine.close)
            return made

        yield start


@pytest.fixture
async def standing_processes(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Standing]:
    """Processes of both releases, ended with the test."""
    monkeypatch.setenv("LORA_ROUTER_REPLICA_SECRET", SECRET)
    async with AsyncExitStack() as stack:
        yield Standing(stack)


def text_of(adapter: AdapterArtifact) -> str:
    """Its answer to `job()`."""
    return f"[{adapter.digest[:8]}] one two three"
