"""Sampling in vLLM's words, answers in ours, and who is served next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

from router.engine.base import Delta, Finished, Job
from router.engine.constrained.quote import quote_grammar
from router.errors import EngineFailed
from router.extensions.vllm.answers import VllmAnswer, sampling_of
from router.extensions.vllm.dispatcher import WaitingQueue
from router.extensions.vllm.link import StepOutput
from router.types import Constraint, FinishReason, SamplingParams


class Letters:
    """A tokenizer of letters, without a backend."""

    added_tokens_decoder: Mapping[int, Any] = MappingProxyType({})
    all_special_ids: Sequence[int] = ()
    all_special_tokens: Sequence[str] = ()
    backend_tokenizer = None

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return "".join(map(chr, ids))


LETTERS = Letters()
END = 1


def answer(**params: Any) -> VllmAnswer:
    stream: Any = SimpleNamespace()
    job = Job("r", [1, 2, 3], SamplingParams(**({"max_tokens": 50} | params)), tenant="t")
    return VllmAnswer(job, stream, LETTERS, frozenset({END}))


def text_of(events: Sequence[Any]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def letters(text: str, end: str = "") -> StepOutput:
    return StepOutput(tuple(map(ord, text)), end=end)


def test_sampling_has_the_same_names_and_ranges() -> None:
    params = SamplingParams(
        10,
        min_tokens=20,
        temperature=0.7,
        top_p=0.9,
        top_k=5,
        min_p=0.1,
        repetition_penalty=1.1,
        frequency_penalty=0.2,
        presence_penalty=0.3,
        seed=7,
        stop=("stop",),
        logprobs=3,
        logit_bias=((4, 1.5),),
    )
    assert sampling_of(params, [END]) == {
        "max_tokens": 10, "min_tokens": 10, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1,
        "repetition_penalty": 1.1, "frequency_penalty": 0.2, "presence_penalty": 0.3, "seed": 7,
        "logprobs": 3, "stop_token_ids": [END], "detokenize": False,
        "logit_bias": {4: 1.5},
    }  # fmt: skip


@pytest.mark.parametrize(("ours", "theirs"), [(0.0, 0.0), (0.001, 0.01), (1.5, 1.5)])
def test_a_temperature_that_vllm_takes_for_a_mistake_is_the_least_it_takes(
    ours: float, theirs: float
) -> None:
    assert sampling_of(SamplingParams(temperature=ours), [])["temperature"] == theirs


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        (Constraint("choices", choices=("a", "b")), {"choice": ["a", "b"]}),
        (Constraint("regex", "a+"), {"regex": "a+"}),
        (Constraint("json_schema", "{}"), {"json": "{}"}),
        (Constraint("grammar", 'start: "a"'), {"grammar": 'start: "a"'}),
        (Constraint("quote", "a b"), {"grammar": quote_grammar("a b")}),
    ],
)
def test_a_shape_goes_on_and_beats_the_least_length(constraint: Constraint, said: Any) -> None:
    found = sampling_of(SamplingParams(min_tokens=5, constraint=constraint), [])
    assert (found["structured_outputs"], found["min_tokens"]) == (said, 0)


def test_stop_strings_are_found_across_steps_and_not_shown() -> None:
    one = answer(stop=("cd",))
    events = [event for piece in ("ab", "c", "de") for event in one.take(letters(piece))]
    assert text_of(events) == "ab"
    assert (events[-1].reason, events[-1].stop) == (FinishReason.STOP, "cd")
    assert one.over


def test_an_end_token_is_no_text_and_counts() -> None:
    events = list(answer().take(StepOutput((97, END), end="stop")))
    assert text_of(events) == "a"
    assert (events[-1].reason, events[-1].usage.completion_tokens) == (FinishReason.STOP, 2)


def test_the_length_ends_an_answer_even_if_vllm_says_it_later() -> None:
    events = list(answer(max_tokens=2).take(letters("abc")))
    assert (text_of(events), events[-1].reason) == ("ab", FinishReason.LENGTH)


def test_likelihoods_are_told_as_many_as_were_asked_for() -> None:
    logprobs = {97: -3.0, 98: -0.1, 99: -1.0}
    delta, *_ = list(answer(logprobs=2).take(StepOutput((97,), (logprobs,))))
    assert isinstance(delta, Delta)
    told = delta.logprobs[0]
    assert (told.token, told.logprob, [entry[1] for entry in told.top]) == ("a", -3.0, [98, 99])


@pytest.mark.parametrize(
    ("end", "reason"),
    [("stop", FinishReason.STOP), ("length", FinishReason.LENGTH), ("abort", FinishReason.CANCELLED)],
)
def test_vllms_own_reasons(end: str, reason: FinishReason) -> None:
    *_, last = answer().take(letters("a", end))
    assert isinstance(last, Finished)
    assert last.reason is reason


@pytest.mark.parametrize("piece", [letters("a", "error"), StepOutput((97,), spoilt=True)])
def test_what_went_wrong_is_no_answer(piece: StepOutput) -> None:
    *_, last = answer().take(piece)
    assert isinstance(last, EngineFailed)


def test_a_tenant_finds_only_its_own_in_the_cache_and_the_background_goes_last() -> None:
    ask = answer().ask("1-r")
    assert (ask.salt, ask.priority, ask.tokens) == ("t", 0, [1, 2, 3])
    behind = VllmAnswer(Job("r", [1], SamplingParams(), background=True), ask, LETTERS, frozenset())  # type: ignore[arg-type]
    assert behind.ask("2-r").priority > 1000


def waiting(line: WaitingQueue, *jobs: tuple[str, int, float]) -> None:
    for tenant, priority, share in jobs:
        job = Job(tenant, [1] * 10, SamplingParams(), priority=priority, tenant=tenant, share=share)
        line.add(VllmAnswer(job, None, LETTERS, frozenset()))  # type: ignore[arg-type]


def served(line: WaitingQueue) -> str:
    names = []
    while (one := line.next()) is not None:
        line.charge(one, 5)
        names.append(one.job.tenant)
    return "".join(names)


def test_of_one_tenant_the_first_is_first_and_priority_before_that() -> None:
    line = WaitingQueue()
    waiting(line, ("a", 0, 1), ("b", 5, 1), ("c", 0, 1))
    assert served(line) == "bac"


def test_tenants_take_turns_by_what_they_were_served() -> None:
    line = WaitingQueue()
    waiting(line, *[("a", 0, 1)] * 4, ("b", 0, 1), ("b", 0, 1))
    assert served(line) == "ababaa"


def test_a_share_counts() -> None:
    line = WaitingQueue()
    waiting(line, *[("a", 0, 2)] * 4, *[("b", 0, 1)] * 4)
    assert served(line).count("a", 0, 6) == 4


def test_who_leaves_is_not_served() -> None:
    line = WaitingQueue()
    waiting(line, ("a", 0, 1))
    one = line.next()
    assert one is not None
    line.add(one)
    assert (line.remove(one), line.remove(one), len(line)) == (True, False, 0)
