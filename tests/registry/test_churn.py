"""Any order of leases, replacements, unloads, removals and cancellations keeps the books right."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from router.errors import RouterError
from router.ports import Lease
from router.registry.registry import Registry, RegistryOptions
from tests.registry.life import SIZE, StubEngine, drop, eventually, leases, ref

NAMES = st.sampled_from("abc")
VALUES = st.integers(1, 3)
WHICH = st.integers(0, 5)
Held = tuple[AbstractAsyncContextManager[Lease], Lease]


class Churn(RuleBasedStateMachine):
    """Folders are looked at when a rule says so; memory holds two of three adapters."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp())
        self.root = self.folder / "adapters"
        self.root.mkdir()
        self.held: list[Held] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.run(self._open())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    async def _open(self) -> None:
        options = RegistryOptions(
            host_memory_bytes=2 * SIZE,
            settle_seconds=0,
            grace_seconds=0,
            room_seconds=0.01,
            state_dir=self.folder,
        )
        self.engine = StubEngine()
        self.registry = Registry(self.engine, [self.root], options)
        self.engine.in_use = lambda digest: any(lease.digest == digest for _, lease in self.held)

    async def _look(self) -> None:
        await self.registry._look(every_file=True)
        self.registry._plan()
        await asyncio.sleep(0)

    async def _lease(self, name: str) -> None:
        context = self.registry.lease(ref(name))
        try:
            self.held.append((context, await context.__aenter__()))
        except RouterError:
            return

    async def _unload(self, name: str) -> None:
        try:
            await self.registry.unload(ref(name))
        except RouterError:
            return

    async def _begin(self, *work: Coroutine[Any, Any, Any]) -> None:
        self.tasks += [asyncio.create_task(w) for w in work]
        await asyncio.sleep(0)

    @rule(name=NAMES, value=VALUES)
    def put(self, name: str, value: int) -> None:
        """Add a folder or replace its files."""
        drop(self.root, name, value=value)
        self.run(self._look())

    @rule(name=NAMES)
    def damage(self, name: str) -> None:
        if (self.root / name).exists():
            (self.root / name / "adapter_model.safetensors").write_bytes(b"short")

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        shutil.rmtree(self.root / name, ignore_errors=True)

    @rule()
    def look(self) -> None:
        self.run(self._look())

    @rule(name=NAMES, times=st.integers(1, 3))
    def lease(self, name: str, times: int) -> None:
        self.run(self._begin(*(self._lease(name) for _ in range(times))))

    @rule(which=WHICH)
    def release(self, which: int) -> None:
        if self.held:
            context, _ = self.held.pop(which % len(self.held))
            self.run(context.__aexit__(None, None, None))

    @rule(name=NAMES)
    def unload(self, name: str) -> None:
        self.run(self._begin(self._unload(name)))

    @rule(which=WHICH)
    def cancel(self, which: int) -> None:
        if self.tasks:
            self.tasks[-1 - which % len(self.tasks)].cancel()
            self.run(asyncio.sleep(0))

    @rule(turns=st.integers(1, 20))
    def let_it_run(self, turns: int) -> None:
        self.run(asyncio.sleep(turns / 1000))

    @invariant()
    def what_is_leased_is_held(self) -> None:
        assert {lease.digest for _, lease in self.held} <= set(self.engine.held)

    @invariant()
    def the_books_agree(self) -> None:
        registry = self.registry
        counted = {r.digest: r.leases for r in registry._residency}
        for digest, count in counted.items():
            assert count >= sum(lease.digest == digest for _, lease in self.held)
        assert registry._residency.used >= sum(r.size for r in registry._residency)

    async def _close(self) -> None:
        while self.held:
            await self.held.pop()[0].__aexit__(None, None, None)
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        while self.held:  # leases that were given in the very step of the cancellation
            await self.held.pop()[0].__aexit__(None, None, None)
        shutil.rmtree(self.root)
        await self._look()
        residency = self.registry._residency
        await eventually(lambda: not self.engine.held and not len(residency) and residency.used == 0)
        assert (self.registry.list(), leases(self.registry)) == ((), 0)
        await self.registry.close()

    def teardown(self) -> None:
        self.run(self._close())
        self.runner.close()
        shutil.rmtree(self.folder)


Churn.TestCase.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestChurn = Churn.TestCase
