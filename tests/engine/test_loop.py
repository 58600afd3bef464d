"""A step that hangs, on the real loop: its status shows it, whatever came before, and takes it back.

That health follows such a status is in `tests/server/test_health.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from router.engine.base import Job
from router.engine.rows import BatchRow
from router.engine.torch_engine import TorchEngine
from router.errors import EngineFailed
from router.types import FinishReason, SamplingParams
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


@pytest.mark.parametrize("where", ["add", "admitted", "ended"])
async def test_an_error_outside_a_step_fails_one_row(
    where: str, engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the queue raises for it, and again while it is taken out."""
    fair = engine._loop._scheduler._fair

    def raising(name: str) -> None:
        original = getattr(fair, name)

        def called(row: BatchRow, *rest: object, **more: object) -> None:
            original(row, *rest, **more)
            if row.tenant == "bad":
                raise ZeroDivisionError("a bug")

        monkeypatch.setattr(fair, name, called)

    for name in {where, "ended"}:
        raising(name)
    long, *others = [engine.submit(replace(job(40), tenant=tenant)) for tenant in ("a", "a", "b")]
    bad = engine.submit(replace(job(3), tenant="bad"))
    with pytest.raises(EngineFailed):
        await read(bad)
    for good in (long, *others, engine.submit(job(3))):
        assert (await read(good))[1].reason is FinishReason.LENGTH
    await until(lambda: not engine.status().busy)
    status = engine.status()
    assert (status.running, status.waiting, status.failed) == (0, 0, "")
    assert status.cache_blocks_free == status.cache_blocks


async def test_one_whose_end_raises_lets_others_be_cancelled(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands of the same turn are all carried out."""
    loop = engine._loop
    finished = loop._scheduler.finish

    def finish(row: BatchRow) -> None:
        finished(row)
        if row.tenant == "bad":
            raise ZeroDivisionError("a bug")

    monkeypatch.setattr(loop._scheduler, "finish", finish)
    bad, good = [engine.submit(replace(job(200), tenant=tenant)) for tenant in ("bad", "good")]
    await until(lambda: engine.status().running == 2)
    for generation in (bad, good):
        generation.cancel()
    with pytest.raises(EngineFailed):
        await read(bad)
    assert (await read(good))[1].reason is FinishReason.CANCELLED
    await until(lambda: not engine.status().busy)
