"""A stream of requests, each answered in its turn, with a bounded number read and not answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")


async def acknowledged(
    requests: AsyncIterable[Request],
    answer: Callable[[Request], Awaitable[Answer]],
    most: int,
) -> AsyncIterator[Answer]:
    """The answers in the order of the requests; `answer` runs for up to `most` of them at once.

    While so many wait for their answers no further request is read, so that the transport holds the sender
    back. What a request raises is raised in its turn; later ones are then given up.
    """
    room = asyncio.Semaphore(most)
    begun: asyncio.Queue[asyncio.Future[Answer] | None] = asyncio.Queue()
    tasks: set[asyncio.Future[Answer]] = set()

    async def read() -> None:
        iterator = aiter(requests)
        while True:
            await room.acquire()
            try:
                request = await anext(iterator)
            except StopAsyncIteration:
                return
            task = asyncio.ensure_future(answer(request))
            tasks.add(task)
            begun.put_nowait(task)

    reader = asyncio.ensure_future(read())
    reader.add_done_callback(lambda _: begun.put_nowait(None))
    try:
        while (task := await begun.get()) is not None:
            yield await task
            tasks.discard(task)
            room.release()
        await reader  # what ended it, if the requests did not
    finally:
        left: list[asyncio.Future[Any]] = [reader, *tasks]
        for future in left:
            future.cancel()
        await asyncio.gather(*left, return_exceptions=True)
