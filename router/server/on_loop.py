"""The registry for threads: each call runs on the event loop, the only place where it may be called."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import TimeoutError as NotInTime
from typing import ParamSpec, TypeVar

from router.errors import Unavailable
from router.ports import AdapterRegistry, Force
from router.types import AdapterInfo, AdapterRef

P = ParamSpec("P")
T = TypeVar("T")
SECONDS = 10.0


class RegistryOnLoop:
    """What experiments ask of the registry. Call it from a thread, never on the loop itself.

    Raises Unavailable where the loop does not come to it in ten seconds.
    """

    def __init__(self, registry: AdapterRegistry, loop: asyncio.AbstractEventLoop) -> None:
        self._registry, self._loop = registry, loop

    def resolve(self, name: str, version: str = "", /) -> AdapterInfo:
        """As `Catalog.resolve`."""
        return self._call(self._registry.resolve, name, version)

    def get(self, name: str, version: str = "", /) -> AdapterInfo:
        """As `AdapterRegistry.get`."""
        return self._call(self._registry.get, name, version)

    def set_default(
        self, ref: AdapterRef, etag: str = "", force: Force | None = None, /
    ) -> tuple[AdapterInfo, AdapterRef | None]:
        """As `AdapterRegistry.set_default`."""
        return self._call(self._registry.set_default, ref, etag, force)

    def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        async def call() -> T:
            return function(*args, **kwargs)

        future = asyncio.run_coroutine_threadsafe(call(), self._loop)
        try:
            return future.result(SECONDS)
        except NotInTime:
            future.cancel()
            raise Unavailable(f"the server did not come to it in {SECONDS:g} s") from None
