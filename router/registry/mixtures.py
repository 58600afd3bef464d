"""Mixtures of versions in memory: kept for a while, and bounded."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from router.engine.base import AdapterArtifact, digest_of_mixture
from router.errors import Draining, FailedPrecondition, Overloaded
from router.ports import Lease
from router.registry.format.artifact import Inspection
from router.registry.index import Index
from router.registry.record import Live, VersionRecord
from router.registry.residency import Residency, Resident
from router.types import AdapterRef, MixturePart

RETRY_SECONDS = 1.0
Hold: TypeAlias = Callable[[AdapterRef], AbstractAsyncContextManager[tuple[VersionRecord, Live]]]


@dataclass(frozen=True, slots=True, eq=False)
class Mixed:
    """A mixture in memory, and the Owner of its digest."""

    resident: Resident
    parts: frozenset[str]  # digests
    table: Mixtures

    @property
    def keeps(self) -> bool:
        """Whether anybody uses it or is about to."""
        return self.table.is_used(self.resident.digest)

    def evicted(self) -> None:
        """Its digest is leaving."""
        self.table.forget(self)


class Mixtures:
    """At most `most` at once, of `max_rank` together each; a tenant uses at most half of them at once.

    To the engine a mixture is an adapter of its own, so its rows share batches with all others. Its digest is
    made of its parts' digests and weights: another version of a part is another mixture. It is no version: no
    name leads to it, nothing lists or preloads it, it is the first to make room, and it goes with its parts.

    Used on the event loop only.
    """

    def __init__(self, index: Index, hold: Hold, residency: Residency, most: int, max_rank: int) -> None:
        """`hold` leases a version."""
        self._index, self._hold, self._residency = index, hold, residency
        self._most, self._max_rank = most, max_rank
        self._table: dict[str, Mixed] = {}
        self._making: dict[str, asyncio.Task[None]] = {}
        self._users: defaultdict[str, Counter[str]] = defaultdict(Counter)  # by tenant, of each digest
        self._one = asyncio.Lock()  # one is made at a time: it costs a core
        self._closed = False
        residency.gone = self._gone

    def __len__(self) -> int:
        return len(self._table)

    def check(self, parts: Sequence[MixturePart]) -> None:
        """Raises FailedPrecondition where these cannot be mixed, as far as their folders say."""
        records = (self._index.find_usable(part.ref.name, part.ref.version) for part in parts)
        self._check((r.ref, r.serving) for r in records if r.serving is not None)

    @asynccontextmanager
    async def lease(self, parts: Sequence[MixturePart], tenant: str = "") -> AsyncIterator[Lease]:
        """Hold a mixture and its parts. See AdapterRegistry."""
        self.check(parts)
        async with AsyncExitStack() as held:
            lives = [(await held.enter_async_context(self._hold(part.ref)))[1] for part in parts]
            self._check((p.ref, live.inspection) for p, live in zip(parts, lives, strict=True))
            resident = await self._held(held, parts, lives, tenant)
            first = lives[0].inspection.manifest
            yield Lease(parts[0].ref, resident.digest, first.prompt, first.generation)

    async def close(self) -> None:
        """Make no more, and let go those that nobody uses."""
        self._closed = True
        tasks = tuple(self._making.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for mixed in self._unused():
            self._drop(mixed)

    def is_used(self, digest: str) -> bool:
        """Whether a request uses that mixture or waits for it."""
        return any(users[digest] for users in self._users.values())

    def forget(self, mixed: Mixed) -> None:
        """It is leaving memory."""
        self._table.pop(mixed.resident.digest, None)

    def _check(self, parts: Iterable[tuple[AdapterRef, Inspection]]) -> None:
        ranks: list[int] = []
        for ref, seen in parts:
            ranks.append(seen.rank)
            if seen.invocation_tokens:
                raise FailedPrecondition(
                    f"adapter {ref} is an activated LoRA, which acts from its invocation tokens on: "
                    "it cannot be part of a mixture"
                )
        if sum(ranks) > self._max_rank:
            listed = " + ".join(map(str, ranks))
            raise FailedPrecondition(
                f"the mixture has rank {listed} = {sum(ranks)}, and {self._max_rank} are served (max_rank): "
                "name fewer adapters, or some of a lower rank"
            )

    async def _held(
        self, held: AsyncExitStack, parts: Sequence[MixturePart], lives: Sequence[Live], tenant: str
    ) -> Resident:
        """The mixture's place in memory, for as long as `held` is open; made if it is not there."""
        weighed = tuple((live.resident.digest, p.weight) for live, p in zip(lives, parts, strict=True))
        digest = digest_of_mixture(weighed)
        held.enter_context(self._using(tenant, digest))
        while (mixed := self._table.get(digest)) is None:
            size = sum(live.resident.size for live in lives)
            await self._made(AdapterArtifact("mixture", "", digest, {}, parts=weighed), size)
        self._residency.acquire(mixed.resident)
        held.callback(self._residency.release, mixed.resident)
        return mixed.resident

    async def _made(self, mixture: AdapterArtifact, size: int) -> None:
        """Wait until it was made. Raises why it was not, the same to all who wait."""
        if self._closed:
            raise Draining("the server is stopping")
        task = self._begin(mixture, size)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if self._closed and task.cancelled():
                raise Draining("the server is stopping") from None
            raise

    @contextmanager
    def _using(self, tenant: str, digest: str) -> Iterator[None]:
        users, most = self._users[tenant], max(1, self._most // 2)
        if tenant and digest not in users and len(users) >= most:
            raise Overloaded(
                f"{most} mixtures of this tenant are in use, which is its part: try again",
                retry_after=RETRY_SECONDS,
                bound="mixtures",
            )
        users[digest] += 1
        try:
            yield
        finally:
            users[digest] -= 1
            if not users[digest]:
                del users[digest]
            if not users:
                del self._users[tenant]

    def _begin(self, mixture: AdapterArtifact, size: int) -> asyncio.Task[None]:
        """The making of it that is under way, or a new one."""
        if mixture.digest in self._making:
            return self._making[mixture.digest]
        if len(self._table) + len(self._making) >= self._most:
            self._make_place()
        task = asyncio.get_running_loop().create_task(self._make(mixture, size), name="mixture")
        self._making[mixture.digest] = task
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # perhaps nobody waits
        return task

    def _make_place(self) -> None:
        unused = self._unused()
        if not unused:
            raise Overloaded(
                f"{self._most} mixtures are in use, and no more are served at once: try again",
                retry_after=RETRY_SECONDS,
                bound="mixtures",
            )
        self._drop(min(unused, key=lambda mixed: mixed.resident.last_used))

    async def _make(self, mixture: AdapterArtifact, size: int) -> None:
        try:
            resident = await self._into_memory(mixture, size)
        finally:
            del self._making[mixture.digest]
        mixed = Mixed(resident, frozenset(digest for digest, _ in mixture.parts), self)
        self._table[mixture.digest] = mixed
        self._residency.attach(resident, mixed)
        self._residency.release(resident)
        if not self.is_used(mixture.digest):  # all gave up, so nobody has kept its parts here
            self._drop(mixed)

    async def _into_memory(self, mixture: AdapterArtifact, size: int) -> Resident:
        room = await self._residency.reserve(size)
        try:
            async with self._one:
                return await self._residency.admit(mixture, room)
        finally:
            self._residency.give_back(room)

    def _unused(self) -> list[Mixed]:
        return [mixed for digest, mixed in self._table.items() if not self.is_used(digest)]

    def _drop(self, mixed: Mixed) -> None:
        self.forget(mixed)
        self._residency.detach(mixed.resident, mixed)

    def _gone(self, digest: str) -> None:
        """A digest has left memory: what is made of it goes, too. Nobody uses it, or its parts were held."""
        for mixed in [mixed for mixed in self._table.values() if digest in mixed.parts]:
            self._drop(mixed)
