"""Replicas in the process of a test, without a network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from router.engine.base import Engine
from router.replicas.host import SILENCE, EngineHost
from router.replicas.link import Link, LinkLost, Security
from router.v1 import engine_pb2 as pb
from tests.engine.test_contract import read_folder


class LocalLink(Link):
    """A replica in this very process and event loop, for tests; messages are passed as they are.

    Tests break it: `kill`, `cut` (nothing passes, nobody is informed) and `mend`.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], Engine],
        silence: float = SILENCE,
        host_bytes: int = 1 << 20,
    ) -> None:
        super().__init__(name, "", Security())
        self._make, self._silence, self._host_bytes = make, silence, host_bytes
        self.host: EngineHost | None = None
        self.starts = 0
        self._dead = asyncio.Event()
        self._passes = asyncio.Event()
        self._passes.set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._session: Any = None

    def start(self) -> pb.HelloResponse:
        """A new engine, unless there is one."""
        if self.host is None:
            self.starts += 1
            self._dead = asyncio.Event()
            host = EngineHost(self._make(), read_folder, self._host_bytes, silence=self._silence)
            host.start()
            self.host = host
        return self.host.hello

    def send(self, *commands: pb.EngineCommand) -> None:
        """Carried out at once."""
        if self.host is not None and self._session is not None and self._passes.is_set():
            self.host.receive(self._session, pb.AttachRequest(commands=commands))

    async def batches(self, edge: str) -> AsyncGenerator[pb.AttachResponse, None]:
        """The host's, until it is killed."""
        host, dead, self._loop = self.host, self._dead, asyncio.get_running_loop()
        if host is None:
            raise LinkLost("it is not there")
        self._session = host.open(edge)
        stream = host.batches(self._session)
        ended = asyncio.ensure_future(dead.wait())
        following: asyncio.Future[pb.AttachResponse] = asyncio.ensure_future(anext(stream))
        try:
            while True:
                await asyncio.wait((following, ended), return_when=asyncio.FIRST_COMPLETED)
                if dead.is_set():  # also where its engine still says that it ended what ran
                    raise LinkLost("it was killed")
                try:
                    batch = following.result()
                except Exception as error:
                    raise LinkLost(str(error)) from None
                await self._passes.wait()
                yield batch
                following = asyncio.ensure_future(anext(stream))
        finally:
            ended.cancel()
            following.cancel()
            await asyncio.wait((following,))
            await stream.aclose()

    def kill(self) -> None:
        """As if its process were gone: anyone who waits is informed, the engine ends."""
        host, self.host = self.host, None
        if host is not None:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._dead.set)
            host.close()

    def close(self) -> None:
        """Nothing else to release."""
        self.kill()

    def cut(self) -> None:
        """Nothing passes any more."""
        self._passes.clear()

    def mend(self) -> None:
        """All passes again."""
        self._passes.set()
