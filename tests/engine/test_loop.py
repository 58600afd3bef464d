"""A step that hangs, on the real loop: its status shows it, whatever came before, and takes it back.

That health follows such a status is in `tests/server/test_health.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from router.engine.base import Job
from router.engine.torch_engine import TorchEngine
from router.errors import EngineFailed
from router.types import SamplingParams
from tests.engine import tiny
from tests.engine.contract import read, until
from tests.engine.hanging import Hang, hanging


@pytest.fixture
def engine() -> Iterator[TorchEngine]:
    made = tiny.engine("llama")
    yield made
    made.close()


@pytest.fixture
async def hang(engine: TorchEngine) -> AsyncIterator[Hang]:
    made = hanging(engine)
    yield made
    made.let_go()


def job(tokens: int) -> Job:
    return Job("r", [1, 2, 3], SamplingParams(max_tokens=tokens, min_tokens=tokens))


async def still(engine: TorchEngine) -> None:
    """It is busy, and makes no progress."""
    before = engine.status().last_progress
    await asyncio.sleep(0.05)
    assert engine.status().busy
    assert engine.status().last_progress == before


@pytest.mark.parametrize("before", ["nothing", "an answer", "steps"])
async def test_the_status_shows_a_step_that_hangs(before: str, engine: TorchEngine, hang: Hang) -> None:
    if before == "an answer":
        await read(engine.submit(job(3)))
        await until(lambda: not engine.status().busy)
    running = aiter(engine.submit(job(150))) if before == "steps" else None
    if running is not None:
        await anext(running)
    hang.begin()
    began = time.monotonic()
    answer = asyncio.ensure_future(read(engine.submit(job(3))))
    await until(hang.hangs.is_set)
    if running is None:
        assert began <= engine.status().last_progress, "counted from the arrival of the work"
    await still(engine)
    hang.let_go()
    await answer
    assert engine.status().last_progress > began


async def test_the_status_shows_work_that_hangs_outside_a_step(
    engine: TorchEngine, hang: Hang, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a row that is being made."""

    def held(job: Job, stream: object, inactive: int, labels: object) -> None:
        hang.wait()
        raise ValueError("a bug")

    monkeypatch.setattr(engine, "_row", held)
    hang.begin()
    answer = asyncio.ensure_future(read(engine.submit(job(3))))
    await until(hang.hangs.is_set)
    await still(engine)
    hang.let_go()
    with pytest.raises(EngineFailed):
        await answer
    await until(lambda: not engine.status().busy)
