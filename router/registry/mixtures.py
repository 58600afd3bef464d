"""Mixtures of versions in memory: kept for a while, and bounded."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from typing import TypeAlias

from router.engine.base import AdapterArtifact, digest_of_mixture
from router.errors import Draining, FailedPrecondition, Overloaded
from router.ports import Lease
from router.registry.format.artifact import Inspection
from router.registry.residency import Residency, Resident, ResidentPhase
from router.registry.table import Table
from router.registry.version import AdapterVersion, Live
from router.types import AdapterRef, MixturePart

RETRY_SECONDS = 1.0
Hold: TypeAlias = Callable[[AdapterRef], AbstractAsyncContextManager[tuple[AdapterVersion, Live]]]


class Mixtures:
    """At most `most` at once, of `max_rank` together each; a tenant uses at most half of them at once.

    To the engine a mixture is an adapter of its own, so its rows share batches with all others. Its digest is
    made of its parts' digests and weights: another version of a part is another mixture. It is no version: no
    name leads to it, and nothing lists or preloads it. See Resident for how it stays in memory.

    Used on the event loop only.
    """

    def __init__(self, table: Table, hold: Hold, residency: Residency, most: int, max_rank: int) -> None:
        """`hold` leases a version."""
        self._table, self._hold, self._residency = table, hold, residency
        self._most, self._max_rank = most, max_rank
        self._making: dict[str, asyncio.Task[None]] = {}
        self._users: defaultdict[str, Counter[str]] = defaultdict(Counter)  # by tenant, of each digest
        self._one = asyncio.Lock()  # one is made at a time: it costs a core
        self._closed = False

    def __len__(self) -> int:
        return len(self._made())

    def check(self, parts: Sequence[MixturePart]) -> None:
        """Raises FailedPrecondition where these cannot be mixed, as far as their folders say."""
        records = (self._table.find_usable(part.ref.name, part.ref.version) for part in parts)
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
        for mixture in self._made():
            if mixture.evictable:
                self._residency.drop(mixture)

    def _made(self) -> list[Resident]:
        return [r for r in self._residency if r.parts and r.phase is ResidentPhase.READY]

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
        while (resident := self._residency.ready(digest)) is None:
            size = sum(live.resident.size for live in lives)
            await self._wait_for(AdapterArtifact("mixture", "", digest, {}, parts=weighed), size)
        self._residency.acquire(resident)
        held.callback(self._residency.release, resident)
        return resident

    async def _wait_for(self, mixture: AdapterArtifact, size: int) -> None:
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
        if len(self) + len(self._making) >= self._most:
            self._make_place()
        task = asyncio.get_running_loop().create_task(self._make(mixture, size), name="mixture")
        self._making[mixture.digest] = task
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # perhaps nobody waits
        return task

    def _make_place(self) -> None:
        unused = [mixture for mixture in self._made() if mixture.evictable]
        if not unused:
            raise Overloaded(
                f"{self._most} mixtures are in use, and no more are served at once: try again",
                retry_after=RETRY_SECONDS,
                bound="mixtures",
            )
        self._residency.drop(min(unused, key=lambda mixture: mixture.last_used))

    async def _make(self, mixture: AdapterArtifact, size: int) -> None:
        try:
            async with self._one:
                await self._residency.reserve(size)
                resident = await self._residency.admit(mixture, size)
        finally:
            del self._making[mixture.digest]
        self._residency.release(resident)
        used = any(users[mixture.digest] for users in self._users.values())
        if not used and resident.evictable:  # all gave up, so nobody has kept its parts here
            self._residency.drop(resident)
