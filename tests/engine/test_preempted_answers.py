"""An answer that a full cache pushed aside is the same, token for token; its stream shows nothing of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from router.config import Settings
from router.engine.base import Delta, Finished, Job, Prompt
from router.engine.torch_engine import TorchEngine
from router.types import FinishReason, SamplingParams, TokenLogprob, Turn
from tests.engine import tiny
from tests.server.helpers import until

pytestmark = pytest.mark.slow
NEW = 90
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"temperature": 0.9, "seed": 7, "top_p": 0.95},
    "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.2},
    "logprobs": {"logprobs": 3, "temperature": 0.7, "seed": 3},
}
Answer = tuple[str, tuple[TokenLogprob, ...], Finished]


async def answer(made: TorchEngine, job: Job) -> Answer:
    text, entries, tokens = "", (), 0
    async for event in made.submit(job):
        if isinstance(event, Finished):
            assert tokens <= event.usage.completion_tokens
            return text, entries, event
        text, entries, tokens = text + event.text, entries + event.logprobs, tokens + event.tokens
    raise AssertionError("no Finished")


def jobs(made: TorchEngine, adapter: str | None, new: int, words: bool) -> list[Job]:
    """One of each kind, none with the tokens of another."""
    found = []
    for i, params in enumerate(KINDS.values()):
        said = Prompt((Turn("user", f"Tell me story number {i} of a lighthouse at sea."),))
        tokens = made.encode(said) if words else [i + 1, *range(20, 42)]
        asked = SamplingParams(max_tokens=new, min_tokens=new, **params)
        found.append(Job(str(i), tokens, asked, adapter if i % 2 else None))
    return found


async def alone_and_together(made: TorchEngine, work: list[Job]) -> tuple[list[Answer], list[Answer], int]:
    alone = [await answer(made, job) for job in work]
    before = made.status().preemptions
    together = list(await asyncio.gather(*(answer(made, job) for job in work)))
    return alone, together, made.status().preemptions - before


def check_equal(alone: list[Answer], together: list[Answer], close: float) -> None:
    for (text, entries, end), (found, theirs, last) in zip(alone, together, strict=True):
        assert found == text
        assert [e.token_id for e in theirs] == [e.token_id for e in entries]
        assert [e.logprob for e in theirs] == pytest.approx([e.logprob for e in entries], abs=close)
        assert (last.reason, last.usage.completion_tokens) == (end.reason, end.usage.completion_tokens)
        assert last.usage.prompt_tokens == end.usage.prompt_tokens
        assert 0 <= last.usage.queue_time <= last.usage.time_to_first_token <= last.usage.total_time


@pytest.fixture
def made(tmp_path: Path) -> Iterator[TorchEngine]:
    """A cache that holds two of four answers."""
    engine = tiny.engine("llama", cache_tokens=256, prefix_cache=False)
    yield engine
    engine.close()


@pytest.mark.parametrize("prefix_cache", [False, True])
@pytest.mark.parametrize("native", [False, True])
async def test_the_same_token_for_token(native: bool, prefix_cache: bool, tmp_path: Path) -> None:
    made = tiny.engine("llama", cache_tokens=256, native=native, prefix_cache=prefix_cache)
    try:
        tiny.save_adapter("llama", tmp_path / "a")
        artifact = tiny.artifact(tmp_path / "a", made)
        await made.load(artifact)
        work = jobs(made, artifact.digest, NEW, words=False)
        alone, together, preemptions = await alone_and_together(made, work)
        assert preemptions >= 2
        check_equal(alone, together, close=1e-4)
    finally:
        made.close()


async def test_another_tenants_short_one_goes_before_and_changes_no_answer(tmp_path: Path) -> None:
    """Two places, taken by long ones of one tenant, and more of them in the queue."""
    made = tiny.engine("llama", cache_tokens=2048, max_running=2, native=True, slots=1)
    try:
        tiny.save_adapter("llama", tmp_path / "a")
        artifact = tiny.artifact(tmp_path / "a", made)
        await made.load(artifact)
        work = [replace(job, tenant="flood") for job in jobs(made, None, 200, words=False)]
        params = SamplingParams(max_tokens=5, min_tokens=5)
        short = Job("short", [7] * 20, params, artifact.digest, tenant="light")
        alone = [await answer(made, job) for job in (*work, short)]
        assert made._loop is not None
        made._loop._scheduler._patience = 0.0
        ended: list[str] = []

        async def asked(job: Job) -> Answer:
            found = await answer(made, job)
            ended.append(job.request_id)
            return found

        flood = [asyncio.create_task(asked(job)) for job in work]
        await until(lambda: made.status().running == 2 and made.status().waiting == 2)
        together = [await asked(short), *await asyncio.gather(*flood)]
        assert ended[0] == "short"
        assert made.status().preemptions >= 1
        check_equal(alone, [*together[1:], together[0]], close=1e-4)
    finally:
        made.close()


async def test_a_stop_string_ends_it_where_it_did(made: TorchEngine) -> None:
    work = jobs(made, None, NEW, words=False)
    text, _, _ = await answer(made, work[-1])
    stop = text[-6:-2]
    params = SamplingParams(max_tokens=NEW, min_tokens=NEW - 20, stop=(stop,), temperature=0.7, seed=3)
    asked = Job("stop", work[-1].tokens, params)
    alone = await answer(made, asked)
    assert alone[2].stop == stop
    before = made.status().preemptions
    *_, found = await asyncio.gather(*(answer(made, job) for job in work[:-1]), answer(made, asked))
    assert made.status().preemptions > before
    assert (found[0], found[2].reason, found[2].stop) == (alone[0], FinishReason.STOP, stop)
    assert found[2].usage.completion_tokens == alone[2].usage.completion_tokens
    assert text.startswith(found[0])


async def test_one_that_waits_for_its_blocks_ends_at_its_deadline_or_when_it_is_cancelled(
    made: TorchEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "router.engine.scheduler")
    work = jobs(made, None, 200, words=False)[:2]
    first, second = (made.submit(job) for job in work)
    deltas = aiter(second)
    assert isinstance(await anext(deltas), Delta)
    await until(lambda: made.status().preemptions > 0)
    second.cancel()
    *_, end = [event async for event in deltas]
    assert isinstance(end, Finished)
    assert end.reason is FinishReason.CANCELLED
    assert "preempted" in caplog.text
    *_, whole = [event async for event in first]
    assert isinstance(whole, Finished)
    assert whole.usage.completion_tokens == 200


@pytest.mark.timeout(300)
async def test_the_same_on_the_real_base_with_the_types_it_is_served_in() -> None:
    """bfloat16 where the native operations take it, with answers pushed aside more than once."""
    made = TorchEngine(Settings(model="smollm2-135m-instruct", cache_tokens=256))
    made.start()
    try:
        work = jobs(made, None, 64, words=True)
        alone, together, preemptions = await alone_and_together(made, work)
        assert preemptions >= 1
        check_equal(alone, together, close=1e-6 if "native" in made.info.kernels else 0.1)
    finally:
        made.close()


async def test_a_short_request_is_answered_beside_long_ones_that_could_fill_the_cache() -> None:
    """Four of 500 + 500 tokens in a cache of 2,048: two as a whole would fill it."""
    made = tiny.engine("llama-long", cache_tokens=2048, max_step_tokens=128, prefix_cache=False)
    try:
        params = SamplingParams(max_tokens=500, min_tokens=500)
        long_ones = [made.submit(Job(str(i), [i + 1] * 500, params)) for i in range(4)]
        first = aiter(long_ones[0])
        await anext(first)
        before = made.status().steps
        short = Job("short", list(range(50)), SamplingParams(max_tokens=5, min_tokens=5))
        _, _, end = await answer(made, short)
        assert (end.reason, end.usage.completion_tokens) == (FinishReason.LENGTH, 5)
        assert made.status().steps - before < 15
        ends = [[event async for event in stream][-1] for stream in (first, *long_ones[1:])]
        assert [e.usage.completion_tokens for e in ends if isinstance(e, Finished)] == [500] * 4
    finally:
        made.close()
