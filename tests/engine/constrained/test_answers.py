"""Constrained answers of an engine: forced tokens, ends, limits, streams, and rows beside them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from router.engine.base import Delta, Finished, Job, with_grammar
from router.engine.constrained.work import PAIRS, TOKEN_PAIRS
from router.engine.torch_engine import TorchEngine
from router.errors import FailedPrecondition, InvalidRequest
from router.types import Constraint, FinishReason, SamplingParams
from tests.engine import tiny
from tests.engine.constrained.schemas import SCHEMAS

pytestmark = pytest.mark.slow

PETS = Constraint("choices", choices=("cat", "caterpillar", "dog"))
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
}
PERSON = Constraint("json_schema", json.dumps(SCHEMA))
AMBIGUOUS = Constraint("grammar", 'start: s\ns: s s | s s s | "a" | "b"')


@pytest.fixture(scope="module")
def made() -> Iterator[TorchEngine]:
    engine = tiny.engine("llama-long", slots=2, max_running=8, cache_tokens=8192)
    yield engine
    engine.close()


async def job(made: TorchEngine, constraint: Constraint | None, *tokens: int, **params: Any) -> Job:
    said = {"max_tokens": 60} | params
    plain = Job("r", list(tokens) or [1, 2, 3], SamplingParams(constraint=constraint, **said))
    return await with_grammar(made, plain)


async def events_of(made: TorchEngine, job: Job) -> tuple[list[Delta], Finished]:
    events = [event async for event in made.submit(job)]
    assert isinstance(events[-1], Finished)
    return [event for event in events if isinstance(event, Delta)], events[-1]


async def answer(
    made: TorchEngine, constraint: Constraint | None, *tokens: int, **params: Any
) -> tuple[str, Finished]:
    deltas, end = await events_of(made, await job(made, constraint, *tokens, **params))
    assert sum(delta.tokens for delta in deltas) <= end.usage.completion_tokens
    return "".join(delta.text for delta in deltas), end


async def steps(made: TorchEngine) -> int:
    """Made so far, once the last is told."""
    for _ in range(2000):
        if not made.status().busy:
            return made.status().steps
        await asyncio.sleep(0.002)
    raise AssertionError("it is never done")


async def test_it_is_one_of_the_choices_and_ends_when_nothing_can_follow(made: TorchEngine) -> None:
    before = await steps(made)
    text, end = await answer(made, Constraint("choices", choices=("dragon", "cat")))
    assert text in ("dragon", "cat")
    assert (end.reason, end.usage.completion_tokens) == (FinishReason.STOP, len(text))
    assert await steps(made) - before == 1, "one letter is chosen, the others follow from it"


async def test_an_answer_that_is_forced_takes_no_step(made: TorchEngine) -> None:
    before = await steps(made)
    deltas, end = await events_of(made, await job(made, Constraint("choices", choices=("only this",))))
    assert [(delta.text, delta.tokens) for delta in deltas] == [("only this", 9)]
    assert (end.reason, end.usage.completion_tokens) == (FinishReason.STOP, 9)
    assert await steps(made) == before


async def test_forced_tokens_are_the_ones_that_sampling_would_have_to_take(made: TorchEngine) -> None:
    for first in range(1, 9):
        forced, _ = await answer(made, PERSON, first)
        sampled, end = await answer(made, PERSON, first, logprobs=2)
        assert forced == sampled
        Draft202012Validator(SCHEMA).validate(json.loads(forced))
        assert end.reason is FinishReason.STOP


async def test_with_logprobs_each_token_has_its_own(made: TorchEngine) -> None:
    constraint = Constraint("choices", choices=("dragon", "cat"))
    deltas, end = await events_of(made, await job(made, constraint, logprobs=1))
    told = [entry for delta in deltas for entry in delta.logprobs]
    assert len(told) == end.usage.completion_tokens
    assert all(entry.logprob <= entry.top[0][2] <= 0 for entry in told), "of the raw distribution"


@pytest.mark.parametrize("most", range(1, 12))
async def test_max_tokens_cuts_it_where_it_would_be_cut(made: TorchEngine, most: int) -> None:
    whole, _ = await answer(made, Constraint("choices", choices=("dragonfly", "cat")))
    text, end = await answer(made, Constraint("choices", choices=("dragonfly", "cat")), max_tokens=most)
    assert text == whole[:most]
    assert end.usage.completion_tokens == min(most, len(whole))
    assert end.reason is (FinishReason.STOP if most >= len(whole) else FinishReason.LENGTH)


async def test_min_tokens_gives_way(made: TorchEngine) -> None:
    text, end = await answer(made, PETS, min_tokens=40)
    assert text in ("caterpillar", "dog"), "longer where it can be"
    assert end.reason is FinishReason.STOP
    text, end = await answer(made, Constraint("regex", "a{2}b*"), min_tokens=7, max_tokens=20)
    assert end.usage.completion_tokens >= 7


async def test_a_stop_string_ends_it_inside_of_what_is_forced(made: TorchEngine) -> None:
    text, end = await answer(made, Constraint("choices", choices=("one two three",)), stop=("wo",))
    assert (text, end.reason, end.stop) == ("one t", FinishReason.STOP, "wo")
    assert end.usage.completion_tokens == 7


async def test_characters_of_several_tokens_are_whole(made: TorchEngine) -> None:
    deltas, _ = await events_of(made, await job(made, Constraint("regex", "(ü|🙂){6}")))
    assert all(set(delta.text) <= {"ü", "🙂"} for delta in deltas)
    assert len("".join(delta.text for delta in deltas)) == 6


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=SCHEMAS, seed=st.integers(0, 1000), temperature=st.sampled_from([0.0, 1.0]))
def test_every_whole_answer_is_valid(
    made: TorchEngine, schema: dict[str, Any], seed: int, temperature: float
) -> None:
    constraint = Constraint("json_schema", json.dumps(schema))
    asked = answer(made, constraint, seed % 250 + 1, seed=seed, temperature=temperature, max_tokens=300)
    text, end = asyncio.run(asked)
    if end.reason is FinishReason.STOP:
        Draft202012Validator(schema).validate(json.loads(text))


@pytest.mark.parametrize(
    "more",
    [
        {"temperature": 1.5, "top_k": 2, "seed": 4},
        {"temperature": 1.0, "top_p": 0.1, "min_p": 0.9, "seed": 1},
        {"repetition_penalty": 1.9, "frequency_penalty": 2.0, "presence_penalty": -2.0},
    ],
)
async def test_whatever_the_sampling(made: TorchEngine, more: dict[str, Any]) -> None:
    text, end = await answer(made, PERSON, **more)
    Draft202012Validator(SCHEMA).validate(json.loads(text))
    assert end.reason is FinishReason.STOP


async def test_rows_beside_each_other_do_not_change_each_other(made: TorchEngine) -> None:
    asked = [(PERSON, 4), (None, 4), (PETS, 9), (None, 9), (Constraint("regex", "[0-9]{3}"), 2)]
    alone = [await answer(made, constraint, first) for constraint, first in asked]
    together = await asyncio.gather(*(answer(made, constraint, first) for constraint, first in asked))
    assert [(text, end.reason) for text, end in together] == [(text, end.reason) for text, end in alone]


async def test_one_that_breaks_fails_alone_and_says_why(made: TorchEngine) -> None:
    broken, beside = await job(made, PERSON), await job(made, None, max_tokens=8, min_tokens=8)
    assert broken.grammar is not None
    start_of = broken.grammar.start  # type: ignore[attr-defined]

    def breaks(**options: Any) -> Any:
        follower = start_of(**options)
        follower.make_mask = lambda keep_going: follower.give_up("broke in a test")
        return follower

    broken.grammar.start = breaks  # type: ignore[attr-defined]
    failing, fine = asyncio.create_task(events_of(made, broken)), asyncio.create_task(events_of(made, beside))
    with pytest.raises(InvalidRequest, match="broke in a test") as caught:
        await failing
    assert caught.value.violations[0].field == "sampling.json_schema"
    assert (await fine)[1].reason is FinishReason.LENGTH
    assert not made.status().failed


async def test_one_whose_masks_are_much_work_sits_steps_out_beside_others(made: TorchEngine) -> None:
    """As many as its masks count tokens: so a row never has more of a step than what a token counts."""
    ambiguous = await job(made, AMBIGUOUS, max_tokens=200, min_tokens=200, temperature=1.0, seed=1)
    alone = await broken_off(made, ambiguous)
    other = await job(made, None, max_tokens=600, min_tokens=600)
    before = await steps(made)
    beside = asyncio.create_task(events_of(made, other))
    assert await broken_off(made, ambiguous) == alone, "the same answer"
    took = made.status().steps - before
    assert not beside.done(), "the other answer is there until this one ends"
    await beside
    assert took >= PAIRS // TOKEN_PAIRS + len(alone)


async def broken_off(made: TorchEngine, job: Job) -> str:
    """The text of an answer that becomes too complex."""
    texts: list[str] = []

    async def follow() -> None:
        async for event in made.submit(job):
            texts.append(event.text if isinstance(event, Delta) else "")

    with pytest.raises(InvalidRequest, match="make it less ambiguous"):
        await follow()
    return "".join(texts)


async def test_cancelling_frees_it(made: TorchEngine) -> None:
    stream = made.submit(await job(made, Constraint("regex", "[a-z]*"), max_tokens=900))
    async for _ in stream:
        stream.cancel()
    await steps(made)
    assert made.status().running == 0


async def test_a_job_brings_what_its_constraint_was_compiled_to(made: TorchEngine) -> None:
    ready = await job(made, PETS)
    for params, grammar in ((ready.params, None), (SamplingParams(), ready.grammar)):
        with pytest.raises(FailedPrecondition, match="not been compiled"):
            made.submit(Job("r", [1], params, grammar=grammar))


async def test_one_that_is_preempted_goes_on_as_it_would_have() -> None:
    """Where it is in its grammar depends on its tokens alone, and these it keeps."""
    small = tiny.engine("llama-long", max_running=8, cache_tokens=256, prefix_cache=False)
    constraint = Constraint("regex", "([a-z]{3}-){20}end")
    try:
        alone = [(await answer(small, constraint, i, max_tokens=200))[0] for i in range(1, 6)]
        assert small.status().preemptions == 0
        asked = [answer(small, constraint, i, max_tokens=200) for i in range(1, 6)]
        together = await asyncio.gather(*asked)
        assert [text for text, _ in together] == alone
        assert all(end.reason is FinishReason.STOP for _, end in together)
        assert small.status().preemptions > 0
    finally:
        small.close()
