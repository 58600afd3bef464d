"""Turns to be read: fair among connections and addresses, and taken back from those that send nothing."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from router.errors import Overloaded
from router.server import turns as module
from router.server.turns import Turn, Turns
from tests.server.helpers import until

FIRST, SECOND = "ipv4:10.0.0.1:1", "ipv4:10.0.0.1:2"
FAR = "ipv4:10.0.0.9:1"


class Calls:
    """Calls that take a turn and keep it until they are told to end."""

    def __init__(self, turns: Turns) -> None:
        self.turns, self.held = turns, list[Turn]()
        self._told: list[asyncio.Event] = []

    async def call(self, peer: str) -> str:
        try:
            async with self.turns.turn(peer) as turn:
                told = asyncio.Event()
                self.held.append(turn)
                self._told.append(told)
                await told.wait()
                turn.end()
        except Overloaded as error:
            return error.metadata["bound"]
        return "read"

    def begin(self, peer: str, number: int = 1) -> list[asyncio.Task[str]]:
        return [asyncio.create_task(self.call(peer)) for _ in range(number)]

    def end(self) -> None:
        """Whoever has a turn now."""
        for told in self._told:
            told.set()


async def ended(calls: Calls, *tasks: asyncio.Task[str]) -> list[str]:
    """What came of them, once whoever has a turn ends it."""
    for _ in range(2000):
        calls.end()
        await asyncio.sleep(0.001)
        if all(task.done() for task in tasks):
            break
    return [task.result() for task in tasks]


async def test_a_connection_has_a_part_of_the_turns_and_others_find_one() -> None:
    calls = Calls(Turns(8, 10))
    tasks = calls.begin(FIRST, 20)
    await until(lambda: calls.turns.reading == 2)
    tasks += calls.begin(SECOND)
    await until(lambda: calls.turns.reading == 3)
    assert [turn.peer for turn in calls.held] == [FIRST, FIRST, SECOND]
    assert await ended(calls, *tasks) == ["read"] * 21
    assert calls.turns.reading == 0


async def test_the_last_turns_are_for_connections_that_have_none() -> None:
    calls = Calls(Turns(8, 10))
    tasks = [task for host in range(6) for task in calls.begin(f"ipv4:10.0.0.{host}:1", 3)]
    await until(lambda: calls.turns.reading == 8)
    assert sorted(Counter(turn.peer for turn in calls.held).values()) == [1, 1, 2, 2, 2]
    assert await ended(calls, *tasks) == ["read"] * 18


async def test_an_address_with_many_connections_leaves_turns_to_others() -> None:
    calls = Calls(Turns(8, 10))
    tasks = [task for port in range(20) for task in calls.begin(f"ipv4:10.0.0.1:{port}")]
    await until(lambda: calls.turns.reading == 6)
    tasks += calls.begin(FAR)
    await until(lambda: calls.turns.reading == 7)
    assert await ended(calls, *tasks) == ["read"] * 21


async def test_a_turn_without_a_body_is_taken_back_where_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.05)
    calls = Calls(Turns(4, 30))
    lazy = [*calls.begin(FIRST), *calls.begin("ipv4:10.0.0.2:1"), *calls.begin(SECOND)]
    lazy += calls.begin("ipv4:10.0.0.3:1")
    await until(lambda: calls.turns.reading == 4)
    await asyncio.sleep(0.1)
    assert not any(task.done() for task in lazy), "nobody waits for them"
    waiting = calls.begin(FAR)
    await until(lambda: calls.held[-1].peer == FAR)
    assert await lazy[0] == "no_body", "the oldest of the address that has most"
    assert await ended(calls, *lazy[1:], *waiting) == ["read"] * 4


async def test_callers_that_share_a_connection_wait_for_each_other_for_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.05)
    calls = Calls(Turns(4, 30))
    lazy, other = calls.begin(FIRST, 2)
    assert await lazy == "no_body"
    assert await ended(calls, other) == ["read"]


async def test_who_waits_too_long_is_refused() -> None:
    calls = Calls(Turns(4, 0.05))
    first, second = calls.begin(FIRST, 2)
    assert await second == "turns"
    assert await ended(calls, first) == ["read"]


async def test_of_too_many_that_wait_the_largest_crowd_loses_its_last() -> None:
    calls = Calls(Turns(4, 10, most_waiting=5))
    tasks = calls.begin(FIRST, 6)
    await until(lambda: calls.turns.reading == 1)
    await asyncio.sleep(0)
    far = calls.begin(FAR, 2)  # one gets a turn, the other waits as the sixth
    assert await tasks[-1] == "turns"
    assert await ended(calls, *tasks[:-1], *far) == ["read"] * 7


async def test_who_leaves_takes_nothing() -> None:
    calls = Calls(Turns(4, 10))
    first, second, third = calls.begin(FIRST, 3)
    await until(lambda: calls.turns.reading == 1)
    second.cancel()
    calls.end()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    third.cancel()  # just as its turn comes
    assert await first == "read"
    await asyncio.wait((second, third))
    assert calls.turns.reading == 0
    assert await ended(calls, *calls.begin(FIRST, 3)) == ["read"] * 3


async def test_another_timeout_inside_a_turn_is_its_own() -> None:
    with pytest.raises(TimeoutError):
        async with Turns(4, 10).turn(FIRST), asyncio.timeout(0.01):
            await asyncio.sleep(1)
