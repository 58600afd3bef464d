"""An engine that has stopped answers whoever still asks: nobody waits for a thread that is gone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from router.engine.base import Job, Reading
from router.errors import Unavailable
from router.types import SamplingParams
from tests.engine import tiny

JOB = Job("late", [5, 6, 7], SamplingParams(max_tokens=4))


async def events_of(stream: Any) -> list[Any]:
    return [event async for event in stream]


async def test_late_jobs_and_readings_are_refused() -> None:
    engine = tiny.engine("llama")
    engine.close()
    with pytest.raises(Unavailable, match="the engine has stopped"):
        await asyncio.wait_for(events_of(engine.submit(JOB)), 5)
    with pytest.raises(Unavailable, match="the engine has stopped"):
        await asyncio.wait_for(engine.read(Reading([5, 6, 7], (), 0.5)), 5)
    assert not engine._live
    assert not engine._read


async def test_late_unload_returns(tmp_path: Path) -> None:
    engine = tiny.engine("llama")
    tiny.save_adapter("llama", tmp_path / "a")
    artifact = tiny.artifact(tmp_path / "a", engine)
    await engine.load(artifact)
    engine.close()
    assert await asyncio.wait_for(engine.unload(artifact.digest), 5) > 0
    assert await asyncio.wait_for(engine.unload(artifact.digest), 5) == 0


async def test_what_was_asked_beside_the_stop_is_answered() -> None:
    """Commands in the same turn as the stop, before and after it."""
    for _ in range(20):
        engine = tiny.engine("llama")
        asked = [asyncio.ensure_future(events_of(engine.submit(JOB))) for _ in range(3)]
        stopped = asyncio.ensure_future(asyncio.to_thread(engine.close))
        asked += [asyncio.ensure_future(events_of(engine.submit(JOB))) for _ in range(3)]
        dropped = asyncio.ensure_future(engine.unload("nobody"))
        ends = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 10)
        assert all(isinstance(end, Unavailable | list) for end in ends)
        assert await asyncio.wait_for(dropped, 5) == 0
        await stopped
        engine.close()
