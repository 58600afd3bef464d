from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from router.experiments.service.outcomes import acknowledged


class Sender:
    """Sends 0, 1, … and knows how many were read."""

    def __init__(self, number: int) -> None:
        self.number, self.read = number, 0

    async def __aiter__(self) -> AsyncIterator[int]:
        for i in range(self.number):
            self.read += 1
            yield i


async def take(answers: AsyncIterator[int], seen: list[int]) -> None:
    async for a in answers:
        seen.append(a)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_answers_come_in_order_whichever_is_done_first() -> None:
    async def answer(i: int) -> int:
        await asyncio.sleep(0.002 * (5 - i))
        return i

    assert [a async for a in acknowledged(Sender(5), answer, 3)] == [0, 1, 2, 3, 4]


async def test_a_lone_request_is_answered_while_the_stream_stays_open() -> None:
    closed = asyncio.Event()

    async def requests() -> AsyncIterator[int]:
        yield 7
        await closed.wait()

    async def answer(i: int) -> int:
        return i

    answers = aiter(acknowledged(requests(), answer, 2))
    assert await asyncio.wait_for(anext(answers), 1) == 7
    closed.set()
    assert [a async for a in answers] == []


async def test_no_more_are_read_than_may_wait() -> None:
    go, sender, running = asyncio.Event(), Sender(100), 0

    async def answer(i: int) -> int:
        nonlocal running
        running += 1
        await go.wait()
        return i

    answers = aiter(acknowledged(sender, answer, 3))
    first = asyncio.ensure_future(anext(answers))
    await settle()
    assert (sender.read, running) == (3, 3)
    go.set()
    assert await first == 0
    await settle()
    assert sender.read == 3  # the first is not given on until the next is asked for
    assert len([a async for a in answers]) == 99


async def test_what_a_request_raises_comes_in_its_turn_and_ends_it() -> None:
    ended: list[int] = []

    async def answer(i: int) -> int:
        if i == 1:
            raise ValueError("one")
        try:
            await asyncio.sleep(0 if i == 0 else 60)
        except asyncio.CancelledError:
            ended.append(i)
            raise
        return i

    seen: list[int] = []
    with pytest.raises(ValueError, match="one"):
        await take(acknowledged(Sender(4), answer, 4), seen)
    assert (seen, sorted(ended)) == ([0], [2, 3])


async def test_what_reading_raises_comes_after_the_answers() -> None:
    async def requests() -> AsyncIterator[int]:
        yield 0
        raise ConnectionError("gone")

    async def answer(i: int) -> int:
        await asyncio.sleep(0.01)
        return i

    seen: list[int] = []
    with pytest.raises(ConnectionError):
        await take(acknowledged(requests(), answer, 2), seen)
    assert seen == [0]


async def test_who_leaves_leaves_nothing_behind() -> None:
    async def answer(i: int) -> int:
        await asyncio.sleep(0 if i == 0 else 60)
        return i

    answers = acknowledged(Sender(9), answer, 4)
    assert await anext(aiter(answers)) == 0
    await answers.aclose()  # type: ignore[attr-defined]
    assert asyncio.all_tasks() == {asyncio.current_task()}
