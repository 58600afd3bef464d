"""Drafts change no answer, not even a log-probability, whatever is drafted and whatever runs beside."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from router.engine.base import Finished, Job, with_grammar
from router.engine.drafts import Speculation
from router.engine.rows import AnswerRow, BatchRow, Chunk
from router.engine.scheduler import Scheduler
from router.engine.torch_engine import TorchEngine
from router.types import Constraint, SamplingParams, TokenLogprob
from tests.engine import tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first run compiles


class Script(Speculation):
    """Drafts that are right or wrong by chance: a row's next tokens are known from an earlier run."""

    def __init__(self, scheduler: Scheduler, seed: int, right: float, answers: dict[str, list[int]]) -> None:
        self.answers = answers  # tokens by request
        self.drafted = self.accepted = 0
        self.stopped: set[BatchRow] = set()
        self._scheduler, self._right, self._rng = scheduler, right, random.Random(seed)

    def add(self, chunks: list[Chunk]) -> list[Chunk]:
        return [self._with_drafts(chunk) for chunk in chunks]

    def _with_drafts(self, chunk: Chunk) -> Chunk:
        row = chunk.row
        if not isinstance(row, AnswerRow) or not chunk.samples or row in self.stopped:
            return chunk
        drafts = self.drafts_for(row)
        self.drafted += len(drafts)
        return replace(chunk, count=chunk.count + len(drafts), drafts=drafts)

    def drafts_for(self, row: AnswerRow) -> list[int]:
        rng, known = self._rng, self.answers.get(row.job.request_id, [])[row.generated :]
        wanted = min(rng.randrange(9), row.total - len(row.tokens) - 1)
        return [
            known[i] if i < len(known) and rng.random() < self._right else rng.randrange(250)
            for i in range(self._scheduler.room(row, wanted))
        ]

    def verified(self, row: AnswerRow, drafts: int, right: int) -> None:
        pass

    def stop(self, row: AnswerRow) -> None:
        self.stopped.add(row)

    def ended(self, row: BatchRow) -> None:
        if isinstance(row, AnswerRow):
            self.answers.setdefault(row.job.request_id, row.tokens[row.prompt_length :])
            self.accepted += row.accepted


PERSON = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 9}, "role": {"enum": ["nurse", "judge"]}},
        "required": ["name", "role"],
        "additionalProperties": False,
    }
)
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"temperature": 0.9, "seed": 7},
    "nucleus": {"temperature": 0.8, "seed": 3, "top_p": 0.9, "top_k": 40},
    "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.2},
    "log-probabilities": {"logprobs": 3, "temperature": 0.7, "seed": 3},
    "biases": {"logit_bias": ((65, 4.0), (66, -9.0)), "temperature": 0.5, "seed": 1},
    "at least": {"min_tokens": 40},
    "choices": {"constraint": Constraint("choices", choices=("cat", "caterpillar", "dog", "dogma"))},
    "JSON": {"constraint": Constraint("json_schema", PERSON), "temperature": 0.8, "seed": 5},
    "JSON, nucleus": {
        "constraint": Constraint("json_schema", PERSON),
        "temperature": 0.9,
        "top_p": 0.8,
        "seed": 9,
    },
    "JSON, each token": {"constraint": Constraint("json_schema", PERSON), "logprobs": 1},
}
Answer = tuple[str, tuple[TokenLogprob, ...], str, str, int]


async def answer(made: TorchEngine, job: Job) -> tuple[Answer, int]:
    """All that a caller sees of an answer, and how many of its tokens were drafts."""
    text, entries, tokens = "", (), 0
    async for event in made.submit(job):
        if isinstance(event, Finished):
            usage = event.usage
            assert tokens <= usage.completion_tokens
            assert 0 <= usage.accepted_draft_tokens <= usage.completion_tokens
            seen = (text, entries, event.reason.value, event.stop, usage.completion_tokens)
            return seen, usage.accepted_draft_tokens
        text, entries, tokens = text + event.text, entries + event.logprobs, tokens + event.tokens
    raise AssertionError("no Finished")


async def jobs(made: TorchEngine, adapter: str | None) -> list[Job]:
    """One of each kind, none with the tokens of another; half of them with the adapter."""
    found = []
    for i, (kind, params) in enumerate(KINDS.items()):
        wanted = SamplingParams(**({"max_tokens": 70} | params))
        plain = Job(kind, [i + 1, *range(20, 40 + i)], wanted, adapter if i % 2 else None)
        found.append(await with_grammar(made, plain))
    return found


def scripted(made: TorchEngine, seed: int, right: float, answers: dict[str, list[int]]) -> Script:
    assert made._loop is not None
    script = made._loop._speculation = Script(made._loop._scheduler, seed, right, answers)
    return script


@pytest.fixture(params=["float32", "bfloat16"])
def made(request: pytest.FixtureRequest) -> Iterator[TorchEngine]:
    """Its cache holds a third of the answers, so that rows are preempted."""
    engine = tiny.engine("llama", dtype=request.param, native=True, cache_tokens=384)
    yield engine
    engine.close()


@pytest.fixture
def one() -> Iterator[TorchEngine]:
    engine = tiny.engine("llama-long", native=True)
    yield engine
    engine.close()


async def plainly(made: TorchEngine, work: list[Job]) -> tuple[list[Answer], Script]:
    """Answers without drafts, and a script that knows their tokens."""
    script = scripted(made, 0, 0.0, {})
    script.add = list  # type: ignore[method-assign]
    return [(await answer(made, job))[0] for job in work], script


async def test_no_answer_changes_alone_or_together(made: TorchEngine, tmp_path: Path) -> None:
    """The cache has what drafts wrote: the second time prompts are found in it."""
    tiny.save_adapter("llama", tmp_path / "a")
    artifact = tiny.artifact(tmp_path / "a", made)
    await made.load(artifact)
    work = await jobs(made, artifact.digest)
    plain, script = await plainly(made, work)
    for seed, right in ((1, 1.0), (2, 0.8), (3, 0.3)):
        again = scripted(made, seed, right, script.answers)
        alone = [await answer(made, job) for job in work]
        assert [seen for seen, _ in alone] == plain
        assert sum(accepted for _, accepted in alone) == again.accepted > 20
        before = made.status().preemptions
        together = await asyncio.gather(*(answer(made, job) for job in work))
        assert [seen for seen, _ in together] == plain
        assert made.status().preemptions > before
        assert again.accepted < again.drafted


async def test_a_stop_string_ends_an_answer_amid_drafts(one: TorchEngine) -> None:
    whole = Job("whole", list(range(20, 45)), SamplingParams(max_tokens=60, min_tokens=60))
    ((text, *_),), _ = await plainly(one, [whole])
    for at in range(3, 40, 7):
        params = replace(whole.params, min_tokens=0, stop=(text[at : at + 3],))
        job = replace(whole, request_id=str(at), params=params)
        plain, script = await plainly(one, [job])
        script = scripted(one, at, 1.0, script.answers)
        found, accepted = await answer(one, job)
        assert [found] == plain
        assert accepted == script.accepted > 0


async def test_a_draft_that_is_not_finite_harms_no_answer(one: TorchEngine) -> None:
    """Whatever the row computes beside it in that step is not finite either: it is computed again."""
    work = (await jobs(one, None))[:5]
    plain, script = await plainly(one, work)
    bad = min(set(range(70, 250)) - {token for answer in script.answers.values() for token in answer})
    loop: Any = one._loop
    loop._runner._backbone._model.embed[bad] = torch.nan
    for place in range(3):
        again = scripted(one, place, 1.0, script.answers)
        drafted = again.drafts_for

        def spoilt(row: AnswerRow, place: int = place, drafted: Any = drafted) -> list[int]:
            drafts: list[int] = drafted(row)
            return [*drafts[:place], bad, *drafts[place + 1 :]] if len(drafts) > place else drafts

        again.drafts_for = spoilt  # type: ignore[method-assign]
        assert [(await answer(one, job))[0] for job in work] == plain
        assert again.stopped


async def test_it_speculates_by_itself_and_tells_how_many_drafts_were_accepted(one: TorchEngine) -> None:
    """The model says one token again and again."""
    loop: Any = one._loop
    said = SamplingParams(max_tokens=60, min_tokens=60, logit_bias=((65, 100.0),))
    before = one.status().steps
    _, accepted = await answer(one, Job("r", list(range(20, 60)), said))
    assert accepted > 30
    assert one.status().steps - before == 60 - accepted
    assert isinstance(loop._speculation, Speculation)
    assert not loop._speculation._drafters


@pytest.mark.parametrize(
    "settings", [{"speculation": False, "native": True}, {"native": False}], ids=["off", "torch operations"]
)
def test_where_it_is_off_or_sums_depend_on_the_batch_there_are_no_drafts(settings: dict[str, Any]) -> None:
    made = tiny.engine("llama", **settings)
    try:
        assert made._loop is not None
        assert made._loop._speculation is None
    finally:
        made.close()
