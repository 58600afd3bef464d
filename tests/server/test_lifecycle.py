from __future__ import annotations

import asyncio

import pytest

from router.errors import Draining, NotLoaded, Overloaded
from router.server.lifecycle import Lifecycle, Phase


def test_gate_by_phase() -> None:
    lifecycle = Lifecycle(1)
    with pytest.raises(NotLoaded):
        lifecycle.gate()
    lifecycle.phase = Phase.SERVING
    lifecycle.gate()
    lifecycle.drain()
    with pytest.raises(Draining):
        lifecycle.gate()


def test_places_are_given_back() -> None:
    lifecycle = Lifecycle(1)
    with lifecycle.admitted(), pytest.raises(Overloaded, match="1 requests"), lifecycle.admitted():
        pytest.fail("admitted one too many")
    with pytest.raises(KeyError), lifecycle.admitted():
        raise KeyError
    assert lifecycle.in_flight == 0


async def test_a_drain_ends_watches() -> None:
    lifecycle = Lifecycle(1)

    async def watch() -> None:
        async with lifecycle.watching():
            await asyncio.Event().wait()

    task = asyncio.create_task(watch())
    await asyncio.sleep(0)
    lifecycle.drain()
    with pytest.raises(Draining):
        await task


async def test_another_timeout_inside_a_watch_is_its_own() -> None:
    with pytest.raises(TimeoutError):
        async with Lifecycle(1).watching():
            raise TimeoutError
