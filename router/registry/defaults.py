"""Default versions that operators set and take back, at one server or at all that share their choices."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any, TypeAlias, TypeVar

from router.errors import AdapterRejected, ChangedElsewhere, NotSaved, SharedDown, StaleEtag
from router.ports import Force, SharedDocuments
from router.registry.choices import DefaultChoices
from router.registry.gate import Gate
from router.registry.state import PendingWork
from router.registry.table import Table
from router.registry.version import AdapterVersion
from router.reread import problem_of
from router.types import AdapterInfo, AdapterRef, AdapterState, Override

log = logging.getLogger(__name__)

T = TypeVar("T")
DEFAULTS = "default/"  # and a name: what edges share of it
NewDefault: TypeAlias = tuple[AdapterInfo, AdapterRef | None]  # and the one before


class DefaultVersions:
    """One change at a time, so that an etag is good for one; a change goes to its end when its caller leaves.

    Raises NotSaved where the disk does not take it: then the default is as before. What is `shared` holds at
    all edges or at none. `read_weights` hashes those of a version, where they are not known yet.
    """

    def __init__(
        self,
        table: Table,
        choices: DefaultChoices,
        gate: Gate,
        pending: PendingWork,
        read_weights: Callable[[AdapterVersion], Awaitable[None]],
    ) -> None:
        self._table, self._choices, self._gate, self._pending = table, choices, gate, pending
        self._read_weights = read_weights
        self.shared: SharedDocuments | None = None  # set before it starts
        self._lock, self._tasks = asyncio.Lock(), set[asyncio.Task[Any]]()

    async def start(self) -> None:
        """Take over what was chosen before, and what other edges chose."""
        await asyncio.to_thread(self._choices.read)
        if self.shared is not None:
            self.shared.join(self._own, self._agree)
            await self.catch_up()

    def _own(self) -> dict[str, Any]:
        return {f"{DEFAULTS}{name}": entry for name, entry in self._choices.entries().items()}

    def _agree(self, keys: Collection[str]) -> None:
        self._pending.agree(key.removeprefix(DEFAULTS) for key in keys)

    @property
    def flaws(self) -> list[str]:
        """Defaults that were chosen for all edges and cannot be served at this one."""
        if self.shared is None:
            return []
        names = (key.removeprefix(DEFAULTS) for key in self.shared.known())
        return [flaw for name in names if (flaw := self._flaw(name, self._choices.get(name).version))]

    def _flaw(self, name: str, version: str) -> str:
        if not version or not self._table.versions(name):
            return ""
        record = self._table.at(AdapterRef(name, version))
        if record is None:
            return f"{name}@{version}, the default of all edges, is in no adapters folder of this one"
        problem = record.error if record.state is AdapterState.QUARANTINED else ""
        return f"{record.ref}, the default of all edges, is refused at this one: {problem}" if problem else ""

    async def catch_up(self) -> None:
        """Take over what other edges chose, and write down what nobody waits for; not during a change."""
        if not self._lock.locked() and (self._pending.chosen or self._choices.unsaved):
            await self._to_the_end(self._catch_up())

    async def _catch_up(self) -> None:
        async with self._lock:
            while self._pending.chosen:
                name = next(iter(self._pending.chosen))
                del self._pending.chosen[name]
                if self.shared is not None:
                    self._take_over(self.shared, name)
            if self._choices.unsaved:
                self._choices.unsaved = False
                try:
                    await asyncio.to_thread(self._choices.write)
                except OSError as error:
                    log.warning("holds until restart, what is known of former defaults: %s", error)
            moved, self._choices.moved = self._choices.moved, set()
            for name in moved:
                await self._share_rest(name)

    def _take_over(self, shared: SharedDocuments, name: str) -> None:
        """As it is now: while this waited, it may have become another."""
        before = self._choices.get(name).version
        try:
            self._choices.agree(name, shared.get(f"{DEFAULTS}{name}"))
        except ValueError as error:
            log.warning("the choice of another edge for %s cannot be used: %s", name, problem_of(error))
            return
        if (now := self._choices.get(name).version) != before:
            log.info("default of %s is %s, as chosen at another edge", name, now or "what the rule says")
        self._table.settle(name)

    async def _share_rest(self, name: str) -> None:
        """Every edge finds it out by itself; one that comes later does not."""
        key, entry = f"{DEFAULTS}{name}", self._choices.get(name).model_dump(mode="json")
        if self.shared is None or self.shared.get(key) == entry:
            return
        try:
            await self.shared.put(key, entry)
        except (ChangedElsewhere, SharedDown) as error:
            log.debug("what became of %s is not shared: %s", name, error.message)

    async def set(self, ref: AdapterRef, etag: str, force: Force | None) -> NewDefault:
        """Make it the default; gives it and the one before."""
        return await self._to_the_end(self._set(ref, etag, force))

    async def reset(self, name: str) -> NewDefault:
        """Let the rule decide again; gives what it decided and the default before."""
        return await self._to_the_end(self._reset(name))

    async def _to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Finish what is under way."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.catch_up()

    async def _set(self, ref: AdapterRef, etag: str, force: Force | None) -> NewDefault:
        async with self._lock:
            version = self._table.find(ref.name, ref.version)
            if etag and etag != self._table.etag(version.ref):
                raise StaleEtag(f"adapter {version.ref} changed since its etag was read; read it again")
            if version.state is AdapterState.QUARANTINED:
                raise AdapterRejected(f"adapter {version.ref} is quarantined: {version.error}")
            if not version.verdict.passed and not version.weights_sha256:
                await self._read_weights(version)
            previous = self._table.default_of(ref.name)
            serving = self._table.at(AdapterRef(ref.name, previous))
            override = self._gate.overruling(version, force, serving)
            await self._make(ref.name, version.ref.version, override)
            return self._table.info(version), AdapterRef(ref.name, previous) if previous else None

    async def _reset(self, name: str) -> NewDefault:
        async with self._lock:
            self._table.find(name)
            previous = self._table.default_of(name)
            if self._choices.get(name).version:
                await self._make(name, "", None)
            return self._table.info(self._table.find(name)), AdapterRef(name, previous) if previous else None

    async def _make(self, name: str, version: str, override: Override | None) -> None:
        choice = self._choices.with_default(name, version, override)
        if self.shared is not None:
            await self.shared.put(f"{DEFAULTS}{name}", choice.model_dump(mode="json"))
        try:
            await asyncio.to_thread(self._choices.save, name, choice)
        except NotSaved as error:
            if self.shared is None:
                raise
            log.warning("it holds at all edges, but this one's file lacks it: %s", error.message)
        self._choices.take(name, choice)
        self._table.settle(name)
