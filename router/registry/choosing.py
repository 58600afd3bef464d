"""Default versions as operators choose them: on the disk, and at all edges that share their choices."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Coroutine
from typing import Any, TypeAlias

from router.errors import AdapterRejected, ChangedElsewhere, NotSaved, SharedDown, StaleEtag
from router.ports import Force, SharedDocuments
from router.registry.gatekeeper import Gatekeeper
from router.registry.index import Index
from router.registry.options import breathe
from router.registry.state import Change, Choices
from router.reread import problem_of
from router.types import AdapterInfo, AdapterRef, AdapterState

log = logging.getLogger(__name__)

DEFAULTS = "default/"  # and a name: what edges share of it
NewDefault: TypeAlias = tuple[AdapterInfo, AdapterRef | None]  # and the one before


class Chooser:
    """One change at a time, so that an etag is good for one; a change goes to its end when its caller leaves.

    Raises NotSaved where the disk does not take it: then the default is as before. What is `shared` holds at
    all edges or at none.
    """

    def __init__(self, index: Index, choices: Choices, gatekeeper: Gatekeeper) -> None:
        self._index, self._choices, self._gatekeeper = index, choices, gatekeeper
        self.shared: SharedDocuments | None = None  # set before it starts
        self._lock, self._tasks = asyncio.Lock(), set[asyncio.Task[Any]]()
        choices.touched = self._touched

    async def start(self) -> None:
        """Take over what other edges chose."""
        if (shared := self.shared) is None:
            return

        def agree(keys: Collection[str]) -> None:
            self._task(self._agree(shared, keys))

        shared.join(DEFAULTS, self._own, agree)
        await asyncio.gather(*self._tasks)

    @property
    def flaws(self) -> list[str]:
        """Defaults that were chosen for all edges and cannot be served at this one."""
        if self.shared is None:
            return []
        names = (key.removeprefix(DEFAULTS) for key in self.shared.keys(DEFAULTS))
        return [flaw for name in names if (flaw := self._flaw(name, self._choices.get(name)))]

    def _flaw(self, name: str, version: str) -> str:
        if not version or not self._index.versions(name):
            return ""
        record = self._index.get(AdapterRef(name, version))
        if record is None:
            return f"{name}@{version}, the default of all edges, is in no adapters folder of this one"
        problem = record.error if record.state is AdapterState.QUARANTINED else ""
        return f"{record.ref}, the default of all edges, is refused at this one: {problem}" if problem else ""

    def _own(self) -> dict[str, Any]:
        return {f"{DEFAULTS}{name}": entry for name, entry in self._choices.entries().items()}

    async def _agree(self, shared: SharedDocuments, keys: Collection[str]) -> None:
        """As it is now: while this waited, it may have become another."""
        async with self._lock:
            began = time.monotonic()
            for key in keys:
                self._take_over(shared, key.removeprefix(DEFAULTS))
                began = await breathe(began)
            await self._write_rest()

    def _take_over(self, shared: SharedDocuments, name: str) -> None:
        before = self._choices.get(name)
        try:
            self._choices.agree(name, shared.get(f"{DEFAULTS}{name}"))
        except Exception as error:
            log.warning("the choice of another edge for %s cannot be used: %s", name, problem_of(error))
            return
        if (now := self._choices.get(name)) != before:
            log.info("default of %s is %s, as chosen at another edge", name, now or "what the rule says")
        self._index.settle_default(name)

    async def set(self, ref: AdapterRef, etag: str, force: Force | None) -> NewDefault:
        """Make it the default; gives it and the one before."""
        return await asyncio.shield(self._task(self._set(ref, etag, force)))

    async def reset(self, name: str) -> NewDefault:
        """Let the rule decide again; gives what it decided and the default before."""
        return await asyncio.shield(self._task(self._reset(name)))

    async def close(self) -> None:
        """Finish what is under way."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _set(self, ref: AdapterRef, etag: str, force: Force | None) -> NewDefault:
        async with self._lock:
            record = self._index.find(ref.name, ref.version)
            if etag and etag != self._index.etag(record):
                raise StaleEtag(f"adapter {record.ref} changed since its etag was read; read it again")
            if record.state is AdapterState.QUARANTINED:
                raise AdapterRejected(f"adapter {record.ref} is quarantined: {record.error}")
            previous = self._index.default_of(ref.name)
            serving = self._index.get(AdapterRef(ref.name, previous))
            override = self._gatekeeper.overruling(record, force, serving)
            await self._make(self._choices.planned(ref.name, record.ref.version, override))
            return self._index.info(record), AdapterRef(ref.name, previous) if previous else None

    async def _reset(self, name: str) -> NewDefault:
        async with self._lock:
            self._index.find(name)
            previous = self._index.default_of(name)
            if self._choices.get(name):
                await self._make(self._choices.planned(name))
            return self._index.info(self._index.find(name)), AdapterRef(name, previous) if previous else None

    async def _make(self, change: Change) -> None:
        if self.shared is not None:
            entry = self._choices.entry(change.name, change)
            await self.shared.put(f"{DEFAULTS}{change.name}", entry)
        try:
            await asyncio.to_thread(self._choices.save, change)
        except NotSaved as error:
            if self.shared is None:
                raise
            log.warning("it holds at all edges, but this one's file lacks it: %s", error.message)
        self._choices.take(change)
        self._index.settle_default(change.name)
        await self._write_rest()

    def _touched(self) -> None:
        if not self._lock.locked():  # else its holder writes it
            self._task(self._later())

    async def _later(self) -> None:
        async with self._lock:
            await self._write_rest()

    async def _write_rest(self) -> None:
        """What nobody waits for: the rule made it, and would make it again."""
        while self._choices.unsaved:
            document = self._choices.document()
            try:
                await asyncio.to_thread(self._choices.write, document)
            except OSError as error:
                log.warning("holds until restart, what is known of versions that were the default: %s", error)
        if self.shared is not None:
            for name in self._choices.moved():
                await self._share_rest(self.shared, name)

    async def _share_rest(self, shared: SharedDocuments, name: str) -> None:
        """Every edge finds it out by itself; one that comes later does not."""
        key, entry = f"{DEFAULTS}{name}", self._choices.entry(name)
        if shared.get(key) == entry:
            return
        try:
            await shared.put(key, entry)
        except (ChangedElsewhere, SharedDown) as error:
            log.debug("what became of %s is not shared: %s", name, error.message)

    def _task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
