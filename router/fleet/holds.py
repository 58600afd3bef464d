"""Who holds which adapter at a replica: it is loaded with the first edge and unloaded with the last."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from router.engine.base import AdapterArtifact, Engine

Fetch = Callable[[object], Awaitable[AdapterArtifact]]


class Holds:
    """The adapters of an engine, each with the edges that want it there."""

    def __init__(self, engine: Engine, fetch: Fetch) -> None:
        self._engine, self._fetch = engine, fetch
        self._edges: defaultdict[str, set[str]] = defaultdict(set)
        self._sizes: dict[str, int] = {}
        self._turns: dict[str, _Turn] = {}

    def of(self, digest: str) -> frozenset[str]:
        """The edges that hold it."""
        return frozenset(self._edges.get(digest, ()))

    async def take(self, edge: str, digest: str, weights: object) -> int:
        """Load it unless it is there; returns its bytes. Where Engine.load raises, nothing is held."""
        async with self._turn(digest):
            if digest not in self._sizes:
                self._sizes[digest] = await self._engine.load(await self._fetch(weights))
            self._edges[digest].add(edge)
            return self._sizes[digest]

    async def give(self, edge: str, digest: str) -> int:
        """Let go; the last edge's frees so many bytes."""
        async with self._turn(digest):
            holders = self._edges.get(digest, set())
            holders.discard(edge)
            if holders or digest not in self._sizes:
                return 0
            self._edges.pop(digest, None)
            del self._sizes[digest]
            return await self._engine.unload(digest)

    async def leave(self, edge: str) -> None:
        """An edge is gone, and so are its jobs."""
        for digest in [digest for digest, edges in self._edges.items() if edge in edges]:
            await self.give(edge, digest)

    @asynccontextmanager
    async def _turn(self, digest: str) -> AsyncIterator[None]:
        """One after the other for each digest, so that a load and an unload never meet in the engine."""
        turn = self._turns.setdefault(digest, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[digest]


@dataclass(eq=False, slots=True)
class _Turn:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0
