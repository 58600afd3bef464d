"""By the time that an answer takes nobody finds out what another tenant asked."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from router.engine.base import Job
from router.engine.torch_engine import TorchEngine
from router.types import SamplingParams
from tests.engine import tiny

ASKED = 1000


@pytest.fixture
def engine() -> Iterator[TorchEngine]:
    """A prompt of 240 tokens is computed in 15 steps, or found and computed in one."""
    made = tiny.engine("llama", max_step_tokens=16, cache_tokens=4096)
    yield made
    made.close()


async def seconds(engine: TorchEngine, tokens: list[int], tenant: str) -> float:
    """To the end of an answer of one token."""
    started = time.perf_counter()
    async for _ in engine.submit(Job("r", tokens, SamplingParams(max_tokens=1), tenant=tenant)):
        pass
    return time.perf_counter() - started


def auc(known: list[float], new: list[float]) -> float:
    """How likely a known prompt is answered sooner than a new one; 0.5: nothing is to be seen."""
    pairs = [(one < other) + 0.5 * (one == other) for one in known for other in new]
    return sum(pairs) / len(pairs)


async def told(engine: TorchEngine, spy: str, victim: str, trials: int) -> float:
    """What times tell the spy of which of its guesses the victim has just asked."""
    draw = random.Random(0)
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(trials):
        guess, other = ([draw.randrange(256) for _ in range(240)] for _ in range(2))
        right = draw.random() < 0.5
        await seconds(engine, guess if right else other, victim)
        times[right].append(await seconds(engine, guess, spy))
    return auc(times[True], times[False])


@pytest.mark.long
@pytest.mark.alone
@pytest.mark.timeout(600)
async def test_times_tell_nothing_of_another_tenants_prompts(engine: TorchEngine) -> None:
    assert await told(engine, "a", "a", 100) > 0.9, "they would, if there were anything to tell"
    assert await told(engine, "spy", "victim", ASKED) <= 0.55


async def test_hits_tell_nothing_of_another_tenants_prompts(engine: TorchEngine) -> None:
    """What the times come from, exactly."""
    draw = random.Random(1)
    for _ in range(10):
        guess = [draw.randrange(256) for _ in range(240)]
        await seconds(engine, guess, "victim")
        before, steps = engine.status().prefix_hit_tokens, engine.status().steps
        await seconds(engine, guess, "spy")
        assert engine.status().prefix_hit_tokens == before
        assert engine.status().steps - steps >= 15
        await seconds(engine, guess, "victim")
        assert engine.status().prefix_hit_tokens == before + 224
