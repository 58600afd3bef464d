"""A slow reader gets fewer, longer deltas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Sequence

from router.engine.base import Delta, Finished


def joined(deltas: Sequence[Delta]) -> Delta:
    """One delta that says what all of them say."""
    if len(deltas) == 1:
        return deltas[0]
    return Delta(
        "".join(delta.text for delta in deltas),
        sum(delta.tokens for delta in deltas),
        tuple(entry for delta in deltas for entry in delta.logprobs),
    )


async def coalesced(
    events: AsyncIterable[Delta | Finished], every: int = 1
) -> AsyncGenerator[Delta | Finished, None]:
    """The same events; deltas that came while the consumer was away are joined.

    After the first, `every` deltas at least are joined: fewer messages for the price of that many steps.
    Holds at most one answer's text (bounded by max_tokens). Close it to stop reading.
    """
    waiting: list[Delta | Finished] = []
    ready = asyncio.Event()

    async def read() -> None:
        enough = 1
        try:
            async for event in events:
                waiting.append(event)
                if len(waiting) >= enough or isinstance(event, Finished):
                    enough = every
                    ready.set()
        finally:
            ready.set()

    reader = asyncio.create_task(read())
    try:
        while not (reader.done() and not waiting):
            await ready.wait()
            ready.clear()
            batch, waiting[:] = tuple(waiting), ()
            if deltas := [event for event in batch if isinstance(event, Delta)]:
                yield joined(deltas)
            if batch and isinstance(batch[-1], Finished):
                yield batch[-1]
        reader.result()
    finally:
        reader.cancel()
        await asyncio.wait((reader,))
