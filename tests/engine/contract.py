"""What every engine keeps, whatever is behind it: subclass, and give an engine and an adapter for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from router.engine.base import (
    Ability,
    AdapterArtifact,
    Delta,
    Engine,
    Finished,
    Generation,
    Job,
    PoolingRequest,
    Prompt,
    digest_of_mixture,
    with_grammar,
)
from router.errors import (
    AdapterRejected,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    NotActivated,
    NotLoaded,
    Overloaded,
    PromptTooLong,
    Unavailable,
)
from router.types import Constraint, FinishReason, LabelSettings, PromptTemplate, SamplingParams, Turn

ROWS, QUEUE, CONTEXT = 4, 4, 256


def job(engine: Engine, text: str = "one two three", adapter: str | None = None, **params: Any) -> Job:
    values = {"max_tokens": 50} | params
    return Job("r", engine.encode(Prompt(raw=text)), SamplingParams(**values), adapter)


async def read(generation: Generation) -> tuple[str, Finished]:
    events = [event async for event in generation]
    *deltas, last = events
    assert isinstance(last, Finished)
    assert all(isinstance(event, Delta) for event in deltas)
    return "".join(event.text for event in deltas if isinstance(event, Delta)), last


async def answer(engine: Engine, job: Job) -> tuple[str, Finished]:
    return await read(engine.submit(await with_grammar(engine, job)))


async def until(condition: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        await asyncio.sleep(0.005)


class EngineContract:
    """`make` gives an engine of ROWS rows, QUEUE places and a CONTEXT of tokens, not started."""

    def make(self) -> Engine:
        raise AssertionError("a subclass says which")

    def artifact(self, engine: Engine, name: str, invocation: tuple[int, ...] = ()) -> AdapterArtifact:
        raise AssertionError("a subclass says which")

    @pytest.fixture
    async def engine(self) -> AsyncIterator[Engine]:
        engine = self.make()
        await asyncio.to_thread(engine.start)
        yield engine
        await asyncio.to_thread(engine.close)

    def test_before_the_start_nothing_is_there(self) -> None:
        engine = self.make()
        with pytest.raises(NotLoaded):
            _ = engine.info
        with pytest.raises(NotLoaded):
            engine.submit(Job("r", [1], SamplingParams()))
        assert not engine.status().busy

    async def test_an_answer_is_deltas_and_one_finished(self, engine: Engine) -> None:
        (text, end), again = [await answer(engine, job(engine, max_tokens=3, min_tokens=3)) for _ in "12"]
        assert end.reason is FinishReason.LENGTH
        assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (13, 3)
        assert 0 < end.usage.time_to_first_token <= end.usage.total_time
        assert again[0] == text

    async def test_stop_strings_are_not_shown(self, engine: Engine) -> None:
        whole, _ = await answer(engine, job(engine))
        stop = whole[4:6]
        text, end = await answer(engine, job(engine, stop=(stop,)))
        assert (text, end.reason, end.stop) == (whole[: whole.index(stop)], FinishReason.STOP, stop)

    async def test_alternatives_are_told_when_asked_for(self, engine: Engine) -> None:
        events = [event async for event in engine.submit(job(engine, max_tokens=2, logprobs=2))]
        assert {len(t.top) for e in events if isinstance(e, Delta) for t in e.logprobs} == {2}

    async def test_prompts_have_a_beginning_that_they_share(self, engine: Engine) -> None:
        template = PromptTemplate("Be brief.", "Q: {prompt}")
        one, other = (Prompt((Turn("user", text),), template=template) for text in ("why?", "how?"))
        tokens = engine.encode(one)
        shared = engine.shared(one, tokens)
        assert 0 < shared < len(tokens)
        assert engine.encode(other)[:shared] == tokens[:shared]
        with pytest.raises(PromptTooLong):
            engine.encode(Prompt(raw="x" * 100), 20)

    async def test_adapters_come_and_go(self, engine: Engine) -> None:
        adapter = self.artifact(engine, "medical")
        size = await engine.load(adapter)
        assert await engine.load(adapter) == size
        asked = job(engine, adapter=adapter.digest, min_tokens=4, max_tokens=4)
        text, _ = await answer(engine, asked)
        assert text != (await answer(engine, replace(asked, adapter=None)))[0]
        await until(lambda: adapter.digest in engine.status().host_adapters)
        assert await engine.unload(adapter.digest) == size
        assert await engine.unload(adapter.digest) == 0
        with pytest.raises(FailedPrecondition):
            engine.submit(asked)

    async def test_mixtures_are_made_of_loaded_parts(self, engine: Engine) -> None:
        one, two = self.artifact(engine, "one"), self.artifact(engine, "two")
        parts = ((one.digest, 0.5), (two.digest, 0.5))
        mixture = AdapterArtifact("mixture", "", digest_of_mixture(parts), {}, parts=parts)
        await engine.load(one)
        with pytest.raises(FailedPrecondition):
            await engine.load(mixture)
        await engine.load(two)
        await engine.load(mixture)
        text, _ = await answer(engine, job(engine, adapter=mixture.digest, min_tokens=4, max_tokens=4))
        assert text

    async def test_an_adapter_that_would_not_act_is_refused(self, engine: Engine) -> None:
        adapter = self.artifact(engine, "medical", tuple(engine.encode(Prompt(raw="now:"))))
        if Ability.ACTIVATED not in engine.info.abilities:
            with pytest.raises(AdapterRejected):
                await engine.load(adapter)
            return
        await engine.load(adapter)
        with pytest.raises(NotActivated):
            engine.submit(job(engine, "one two", adapter.digest))
        assert (await answer(engine, job(engine, "one now: two", adapter.digest)))[0]

    async def test_too_long_is_refused(self, engine: Engine) -> None:
        with pytest.raises(PromptTooLong) as error:
            engine.submit(job(engine, "x" * 250))
        assert error.value.metadata["limit"] == str(CONTEXT)

    async def test_a_full_queue_is_refused_at_once_and_recovers(self, engine: Engine) -> None:
        asked = job(engine, min_tokens=200, max_tokens=200)
        running = [engine.submit(asked) for _ in range(ROWS + QUEUE)]
        with pytest.raises(Overloaded):
            engine.submit(asked)
        for generation in running:
            generation.cancel()
        ends = [(await read(generation))[1] for generation in running]
        assert {end.reason for end in ends} == {FinishReason.CANCELLED}
        await until(lambda: not engine.status().busy)
        assert (await answer(engine, job(engine, max_tokens=2)))[0]

    async def test_who_leaves_frees_the_row(self, engine: Engine) -> None:
        async for _ in engine.submit(job(engine, min_tokens=200, max_tokens=200)):
            break
        await until(lambda: not engine.status().busy)

    async def test_a_deadline_ends_a_job(self, engine: Engine) -> None:
        late = replace(job(engine, min_tokens=240, max_tokens=240), deadline=time.monotonic() + 0.02)
        assert (await answer(engine, late))[1].reason is FinishReason.DEADLINE

    async def test_a_background_job_is_answered_where_there_is_room(self, engine: Engine) -> None:
        _, end = await answer(engine, replace(job(engine, max_tokens=2, min_tokens=2), background=True))
        assert end.reason is FinishReason.LENGTH

    async def test_answers_have_the_shape_that_was_asked_for(self, engine: Engine) -> None:
        constraint = Constraint("choices", choices=("larger", "smaller"))
        assert (await answer(engine, job(engine, constraint=constraint)))[0] in constraint.choices
        with pytest.raises(FailedPrecondition):
            engine.submit(job(engine, constraint=constraint))
        with pytest.raises(InvalidRequest):
            await engine.compile(Constraint("regex", "(unclosed"))

    async def test_choices_have_probabilities_where_there_are_any(self, engine: Engine) -> None:
        constraint = Constraint("choices", choices=("larger", "smaller"))
        asked = replace(job(engine, constraint=constraint), labels=LabelSettings(temperature=1.5))
        if Ability.LABELS not in engine.info.abilities:
            with pytest.raises(FailedPrecondition, match=r"probabilities|constrained"):
                await answer(engine, asked)
            return
        text, end = await answer(engine, asked)
        assert end.labels is not None
        assert end.labels.calibrated
        (likeliest, most), (other, least) = end.labels.values
        assert {likeliest, other} == set(constraint.choices)
        assert text == likeliest
        assert most >= least > 0
        assert most + least == pytest.approx(1)

    @pytest.mark.parametrize("share", [0.0, -1.0, float("nan"), float("inf")])
    async def test_a_share_that_is_none_is_refused_and_others_go_on(
        self, engine: Engine, share: float
    ) -> None:
        running = engine.submit(replace(job(engine, min_tokens=20, max_tokens=20), tenant="good"))
        with pytest.raises(InvalidRequest, match="share"):
            await answer(engine, replace(job(engine), tenant="bad", share=share))
        assert (await read(running))[1].usage.completion_tokens == 20
        assert (await answer(engine, job(engine, max_tokens=2)))[0]
        assert engine.status().failed == ""

    async def test_hidden_states_are_numbers_where_there_are_any(self, engine: Engine) -> None:
        tokens = engine.encode(Prompt(raw="a sore throat"))
        if Ability.HIDDEN_STATES not in engine.info.abilities:
            with pytest.raises(FailedPrecondition, match="hidden states"):
                await engine.read(PoolingRequest(tokens, depth=0.5))
            return
        hidden = await engine.read(PoolingRequest(tokens, depth=0.5))
        ends = await engine.read(PoolingRequest(tokens, depth=0.5, ends=2))
        assert hidden.dtype == np.float32
        assert len(ends) == 3 * len(hidden)
        with pytest.raises(InvalidRequest):
            await engine.read(PoolingRequest([], depth=0.5))
        with pytest.raises(DeadlineExceeded):
            await engine.read(PoolingRequest(tokens, depth=1.0, deadline=time.monotonic() - 1))

    async def test_the_status_tells_of_work(self, engine: Engine) -> None:
        before = engine.status()
        generation = engine.submit(job(engine, min_tokens=200, max_tokens=200))
        await until(lambda: engine.status().running == 1)
        assert engine.status().busy
        await until(lambda: engine.status().steps > before.steps)
        generation.cancel()
        await until(lambda: not engine.status().busy)
        assert engine.status().failed == ""

    async def test_the_end_ends_what_runs(self, engine: Engine) -> None:
        running = engine.submit(job(engine, min_tokens=200, max_tokens=200))
        await asyncio.to_thread(engine.close)
        assert (await read(running))[1].reason is FinishReason.CANCELLED
        with suppress(Unavailable):  # who comes late is refused, or ended at once
            assert (await read(engine.submit(job(engine))))[1].reason is FinishReason.CANCELLED
        assert await engine.unload("unknown") == 0
