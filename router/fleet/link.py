"""The way from an edge to one replica, as the edge knows it, and the shortest: in the same process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Protocol

from router.engine.base import Engine
from router.fleet.host import SILENCE, EngineHost
from router.fleet.messages import Batch, Hello, Post


class LinkLost(Exception):
    """The replica cannot be reached, or has ended. The text says why."""


class Link(Protocol):
    """One replica. What may block is called from worker threads, the rest on the edge's event loop."""

    @property
    def name(self) -> str:
        """For people: in logs and in errors."""
        ...

    def start(self) -> Hello:
        """Make the replica, or find the one that is still there, with its base loaded; blocks.

        Raises LinkLost, or ConfigError where trying again changes nothing.
        """
        ...

    def post(self, post: Post) -> None:
        """Send; returns at once. Whether it came is seen by the stream alone."""
        ...

    def batches(self, edge: str) -> AsyncGenerator[Batch, None]:
        """The stream of this edge. Raises LinkLost when it ends, whatever ended it."""
        ...

    def kill(self) -> None:
        """End the replica at once, though it hangs; blocks. The next `start` makes another."""
        ...

    def close(self) -> None:
        """End the replica, for good; blocks."""
        ...


class Links:
    """The links of one edge, made as they are asked for, and how its crew ends their replicas."""

    def __init__(self, make: Callable[[str], Link]) -> None:
        self._make = make
        self._made: dict[str, Link] = {}

    def __call__(self, name: str) -> Link:
        """The link of that name."""
        return self._made.setdefault(name, self._make(name))

    def end(self, name: str) -> None:
        """End its replica, for good; blocks. May be said again: a start may have been under way."""
        if (link := self._made.get(name)) is not None:
            link.close()


class LocalLink:
    """A replica in this very process and event loop, for tests; messages are passed as they are.

    Tests break it: `kill`, `cut` (nothing passes, nobody is told) and `mend`.
    """

    def __init__(self, name: str, make: Callable[[], Engine], silence: float = SILENCE) -> None:
        self.name, self._make, self._silence = name, make, silence
        self.host: EngineHost | None = None
        self.starts = 0
        self._dead = asyncio.Event()
        self._passes = asyncio.Event()
        self._passes.set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> Hello:
        """A new engine, unless there is one."""
        if self.host is None:
            self.starts += 1
            self._dead = asyncio.Event()
            host = EngineHost(self._make(), silence=self._silence)
            hello = self._hello = host.start()
            self.host = host
            return hello
        return self._hello

    def post(self, post: Post) -> None:
        """Carried out at once."""
        if self.host is not None and self._passes.is_set():
            self.host.post(post)

    async def batches(self, edge: str) -> AsyncGenerator[Batch, None]:
        """The host's, until it is killed."""
        host, dead, self._loop = self.host, self._dead, asyncio.get_running_loop()
        if host is None:
            raise LinkLost("it is not there")
        stream = host.batches(edge)
        ended = asyncio.ensure_future(dead.wait())
        following: asyncio.Future[Batch] = asyncio.ensure_future(anext(stream))
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
        """As if its process were gone: whoever waits is told, the engine ends."""
        host, self.host = self.host, None
        if host is not None:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._dead.set)
            host.close()

    def close(self) -> None:
        """Nothing else to let go."""
        self.kill()

    def cut(self) -> None:
        """Nothing passes any more."""
        self._passes.clear()

    def mend(self) -> None:
        """All passes again."""
        self._passes.set()
