"""The engine over a script that plays vLLM: the contract of engines, death, hang, what the base overhears."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from router.engine.base import AdapterArtifact, Engine, PoolingRequest
from router.errors import ConfigError, Unavailable
from router.extensions.vllm.engine import VllmEngine
from router.types import FinishReason
from tests.engine.contract import CONTEXT, QUEUE, ROWS, EngineContract, answer, job, read, until
from tests.extensions.vllm.script import Script, artifact, engine

pytestmark = pytest.mark.slow  # for the tokenizer's library


class TestScriptedVllm(EngineContract):
    def make(self) -> Engine:
        return engine(Script(context=CONTEXT), max_running=ROWS, max_queue=QUEUE)

    def artifact(self, engine: Engine, name: str, invocation: tuple[int, ...] = ()) -> AdapterArtifact:
        return artifact(name, invocation_tokens=invocation)


@pytest.fixture
def script() -> Script:
    return Script(context=CONTEXT)


@pytest.fixture
async def made(script: Script) -> AsyncIterator[VllmEngine]:
    started = engine(script, max_running=2, stall_seconds=0.1)
    await asyncio.to_thread(started.start)
    yield started
    await asyncio.to_thread(started.close)
    assert script.closed


async def test_no_more_is_handed_on_than_there_are_rows(made: VllmEngine, script: Script) -> None:
    ends = await asyncio.gather(*(answer(made, job(made, max_tokens=4)) for _ in range(6)))
    assert {end.reason for _, end in ends} == {FinishReason.LENGTH}
    assert script.most_at_once == 2
    assert len({ask.id for ask in script.asked}) == len(script.asked)


async def test_death_ends_what_runs_and_waits_and_nobody_else_answers(
    made: VllmEngine, script: Script
) -> None:
    adapter = artifact()
    await made.load(adapter)
    asked = job(made, adapter=adapter.digest, max_tokens=200)
    running = [made.submit(asked) for _ in range(4)]
    await until(lambda: made.status().running == 2)
    script.died = True
    for generation in running:
        with pytest.raises(Unavailable):
            await read(generation)
    await until(lambda: made.status().failed)
    with pytest.raises(Unavailable, match="have ended"):
        made.submit(asked)
    with pytest.raises(Unavailable):
        await made.load(artifact("other"))
    assert await made.unload(adapter.digest) == 0


async def test_death_of_an_idle_engine_shows(made: VllmEngine, script: Script) -> None:
    script.died = True
    await until(lambda: made.status().failed)


@pytest.mark.parametrize("what", ["answer", "load", "reading"])
async def test_a_hang_shows_and_ends_who_waits(made: VllmEngine, script: Script, what: str) -> None:
    script.go.clear()
    before = time.monotonic()
    works: dict[str, Any] = {
        "answer": lambda: answer(made, job(made)),
        "load": lambda: made.load(artifact()),
        "reading": lambda: made.read(PoolingRequest([5, 6], [4])),
    }
    with pytest.raises(Unavailable, match="no step for"):
        await works[what]()
    assert 0.25 < time.monotonic() - before < 3
    assert made.status().failed


async def test_numbers_that_are_none_end_the_engine(made: VllmEngine, script: Script) -> None:
    script.spoilt = True
    with pytest.raises(Exception, match="failed on this request"):
        await answer(made, job(made, max_tokens=2))
    await until(lambda: made.status().failed)


async def test_the_background_makes_room_for_a_request(made: VllmEngine, script: Script) -> None:
    asked = job(made, max_tokens=200)
    behind = made.submit(replace(asked, background=True))
    await until(lambda: made.status().background == 1)
    refused = made.submit(replace(asked, background=True))
    assert (await read(refused))[1].reason is FinishReason.CANCELLED
    front = [made.submit(asked) for _ in range(2)]
    assert (await read(behind))[1].reason is FinishReason.CANCELLED
    assert made.status().background_dropped == 2
    for generation in front:
        generation.cancel()


async def test_readings_go_behind_requests_and_keep_to_their_scope(made: VllmEngine, script: Script) -> None:
    values = await made.read(PoolingRequest([5, 6], [4], scope=3))
    assert values.tolist() == [-0.5, -0.5]
    assert (script.asked[-1].priority > 0, script.asked[-1].salt) == (True, "reading 3")


async def test_a_base_that_overhears_its_neighbours_is_not_served() -> None:
    script = Script()
    script.overheard = True
    failing = engine(script)
    with pytest.raises(ConfigError, match="issue 48421"):
        await asyncio.to_thread(failing.start)


async def test_on_a_gpu_no_slot_is_guarded() -> None:
    script = Script(device="cuda")
    started = engine(script)
    await asyncio.to_thread(started.start)
    await asyncio.to_thread(started.close)
    assert script.calls == []
