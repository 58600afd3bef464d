"""The adapters in a replica's memory: read when a command needs one; the least recently used makes room."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from router.engine.base import AdapterArtifact, Engine
from router.errors import FieldViolation, InvalidRequest, ResourceExhausted, Unavailable
from router.replicas.messages import mixture_of
from router.v1 import engine_pb2 as pb

READS = 2  # adapters that are read at once


class AdapterMemory:
    """Loads adapters into an engine and unloads them; nobody else does. Used on one event loop."""

    def __init__(self, engine: Engine, read: Callable[[Path], AdapterArtifact], most_bytes: int) -> None:
        """`read` reads the adapter in a folder, in a worker thread; it raises AdapterRejected."""
        self._engine, self._read, self._most = engine, read, most_bytes
        self._sizes: OrderedDict[str, int] = OrderedDict()  # the least recently used first
        self._users: Counter[str] = Counter()  # commands by digest
        self._loading: dict[str, asyncio.Task[int]] = {}
        self._reads = asyncio.Semaphore(READS)
        self._moving = asyncio.Lock()  # a load and an unload of one adapter never meet in the engine

    @asynccontextmanager
    async def held(self, load: pb.EngineCommand.Load) -> AsyncIterator[int]:
        """Have an adapter in memory during the block; gives its bytes.

        Raises as Engine.load, and Unavailable where its folder is not here or has another adapter.
        """
        digest = load.digest
        self._users[digest] += 1
        try:
            if digest in self._sizes:
                self._sizes.move_to_end(digest)
                yield self._sizes[digest]
            else:
                yield await asyncio.shield(self._task(load))  # others may wait for it, too
        finally:
            self._users[digest] -= 1
            if not self._users[digest]:
                del self._users[digest]

    def _task(self, load: pb.EngineCommand.Load) -> asyncio.Task[int]:
        task = self._loading.get(load.digest)
        if task is None:
            task = self._loading[load.digest] = asyncio.get_running_loop().create_task(self._load(load))

            def ended(task: asyncio.Task[int]) -> None:
                del self._loading[load.digest]
                if not task.cancelled():
                    task.exception()  # who waits for it raises it; perhaps nobody does any more

            task.add_done_callback(ended)
        return task

    async def _load(self, load: pb.EngineCommand.Load) -> int:
        if not load.parts:
            artifact = await self._from_folder(load)
            size = sum(site.a.data.nbytes + site.b.data.nbytes for site in artifact.sites.values())
            return await self._put(artifact, size)
        mixture = mixture_of(load)
        async with AsyncExitStack() as stack:
            size = 0
            for part in load.parts:
                one = pb.EngineCommand.Load(digest=part.digest, folder=part.folder)
                size += await stack.enter_async_context(self.held(one))
            return await self._put(mixture, size)

    async def _from_folder(self, load: pb.EngineCommand.Load) -> AdapterArtifact:
        folder = Path(load.folder)
        if not folder.is_absolute() or "\0" in load.folder:
            raise InvalidRequest([FieldViolation("folder", "must be an absolute path")])
        async with self._reads:
            artifact = await asyncio.to_thread(self._read_where_it_is, folder)
        if artifact.digest != load.digest:
            raise Unavailable(f"the adapter in {folder} is another one at this replica than at the edge")
        return artifact

    def _read_where_it_is(self, folder: Path) -> AdapterArtifact:
        if not folder.is_dir():
            raise Unavailable(f"{folder} is not there: a replica needs each adapter's folder under its path")
        return self._read(folder)

    async def _put(self, artifact: AdapterArtifact, size: int) -> int:
        async with self._moving:
            while sum(self._sizes.values()) + size > self._most:
                unused = next((digest for digest in self._sizes if not self._users[digest]), None)
                if unused is None or size > self._most:
                    raise ResourceExhausted(f"no memory is left for {artifact.name!r} (host_memory_mb)")
                del self._sizes[unused]
                await self._engine.unload(unused)
            size = await self._engine.load(artifact)
            self._sizes[artifact.digest] = size
            return size
