"""The base for classifiers: blocking calls from their threads, turned into requests on the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import TYPE_CHECKING

import numpy as np

from router.engine.base import Engine, PoolingRequest, Prompt
from router.errors import DeadlineExceeded, Unavailable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = list[NDArray[np.float32]]


LONGEST = 512  # tokens of one text; half the base's context if that is less
END = 32 * LONGEST  # characters that are read at either end of a longer text
BACKGROUND_SECONDS = 600.0
AT_ONCE = {False: 16, True: 4}  # requests of one call, by background


class EngineBaseModel:
    """`router.classifiers.contract.BaseModel` over an engine. Made on the engine's event loop."""

    def __init__(self, engine: Engine, timeout: float) -> None:
        """`timeout` in seconds for calls that are not in the background."""
        self._engine, self._timeout = engine, timeout
        self._loop = asyncio.get_running_loop()

    @property
    def abilities(self) -> Collection[str]:
        """What the engine can do that some cannot."""
        return self._engine.info.abilities

    def hidden(
        self,
        texts: Sequence[str],
        *,
        context: str = "",
        depth: float = 0.5,
        ends: int = 0,
        background: bool = False,
    ) -> NDArray[np.float32]:
        """[texts, hidden size], three times that with `ends`: mean hidden states of each behind `context`."""
        deadline = self._deadline(background)
        before = self._cut(self._engine.encode(Prompt(raw=_ends(context))))
        requests = [
            PoolingRequest(
                self._tokens(text, follows=bool(before)), before, depth, ends, deadline, background
            )
            for text in texts
        ]
        if not requests:
            return np.zeros((0, 0), np.float32)
        return np.stack(self._wait(lambda: _read(self._engine, requests), deadline))

    def _deadline(self, background: bool) -> float:
        return time.monotonic() + (BACKGROUND_SECONDS if background else self._timeout)

    def _tokens(self, text: str, follows: bool) -> list[int]:
        ids = self._cut(self._engine.encode(Prompt(raw=_ends(text), follows=follows)))
        if not ids:
            raise ValueError("an empty text cannot be read: decline such requests")
        return ids

    def _cut(self, ids: list[int]) -> list[int]:
        """The first and the last of them: an instruction stands before or after what it is about."""
        most = min(LONGEST, self._engine.info.context_length // 2)
        tail = most // 3
        return ids if len(ids) <= most else ids[: most - tail] + ids[-tail:]

    def _wait(self, read: Callable[[], Coroutine[None, None, Arrays]], deadline: float) -> Arrays:
        """What `read` gets on the event loop. Raises TimeoutError after `deadline`."""
        if self._loop.is_closed():
            raise Unavailable("the server has stopped")
        if _running() is self._loop:
            raise RuntimeError("this blocks the event loop: ask the base in fit or classify_batch")
        future = asyncio.run_coroutine_threadsafe(read(), self._loop)
        try:
            return future.result(max(0.0, deadline - time.monotonic()))
        except DeadlineExceeded as error:
            raise TimeoutError("the base did not answer in time") from error
        finally:
            future.cancel()


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def _read(engine: Engine, requests: Sequence[PoolingRequest]) -> Arrays:
    """Some at once; the first failure ends the others and is raised."""
    places = asyncio.Semaphore(AT_ONCE[any(r.background for r in requests)])

    async def one(request: PoolingRequest) -> NDArray[np.float32]:
        async with places:
            return await engine.read(request)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(request)) for request in requests]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


def _ends(text: str) -> str:
    """Clean, and no more of it than can matter, since only the first and the last tokens are read."""
    return _clean(text if len(text) <= 2 * END else text[:END] + text[-END:])


def _clean(text: str) -> str:
    """Without lone surrogates, which are no characters."""
    return text.encode(errors="replace").decode()
