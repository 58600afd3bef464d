"""Drafts change no answer, not even a log-probability, whatever is drafted and whatever runs beside."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from router.engine.base import Finished, Job, with_grammar
from router.engine.rows import AnswerRow, BatchRow, Chunk
from router.engine.scheduler import Scheduler
from router.engine.speculation import Speculation
from router.engine.torch_engine import TorchEngine
from router.types import Constraint, SamplingParams, TokenLogprob
from tests.engine import tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first run compiles


class Script(Speculation):
    """Drafts that are right or wrong by chance: the row's own next tokens are known from an earlier run."""

    def __init__(self, scheduler: Scheduler, seed: int = 0, right: float = 0.8) -> None:
        self.answers: dict[str, list[int]] = {}
        self.drafted = self.accepted = 0
        self._scheduler, self._right, self._rng = scheduler, right, random.Random(seed)
        self._stopped: set[BatchRow] = set()

    def add(self, chunks: list[Chunk]) -> list[Chunk]:
        return [self._with_drafts(chunk) for chunk in chunks]

    def _with_drafts(self, chunk: Chunk) -> Chunk:
        row, rng = chunk.row, self._rng
        if not isinstance(row, AnswerRow) or not chunk.samples or row in self._stopped:
            return chunk
        known = self.answers.get(row.job.request_id, [])[row.generated :]
        wanted = min(rng.randrange(9), row.total - len(row.tokens) - 1)
        drafts = [
            known[i] if i < len(known) and rng.random() < self._right else rng.randrange(250)
            for i in range(self._scheduler.room(row, wanted))
        ]
        self.drafted += len(drafts)
        return replace(chunk, count=chunk.count + len(drafts), drafts=drafts)

    def verified(self, row: AnswerRow, tokens: Sequence[int]) -> None:
        pass

    def stop(self, row: AnswerRow) -> None:
        self._stopped.add(row)

    def ended(self, row: BatchRow) -> None:
        if isinstance(row, AnswerRow):
            self.answers.setdefault(row.job.request_id, row.tokens[row.prompt_length :])
            self.accepted += row.accepted

    def took(self, chunks: Sequence[Chunk], seconds: float) -> None:
        pass


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


def scripted(made: TorchEngine, script: Script | None = None) -> Script:
    assert made._loop is not None
    found = script or Script(made._loop._scheduler)
    made._loop._speculation = found
    return found


@pytest.fixture(params=["float32", "bfloat16"])
def made(request: pytest.FixtureRequest) -> Iterator[TorchEngine]:
    """Its cache holds a third of the answers, so that rows are preempted."""
    engine = tiny.engine("llama", dtype=request.param, native=True, cache_tokens=384)
    yield engine
    engine.close()


async def test_no_answer_changes_alone_or_together(made: TorchEngine, tmp_path: Any) -> None:
    tiny.save_adapter("llama", tmp_path / "a")
    artifact = tiny.artifact(tmp_path / "a", made)
    await made.load(artifact)
    script = scripted(made, Script(made._loop._scheduler, right=0.0))  # type: ignore[union-attr]
    script.add = lambda chunks: chunks  # type: ignore[method-assign]
    work = await jobs(made, artifact.digest)
    plain = [(await answer(made, job))[0] for job in work]
    assert made._loop is not None
    for seed, right in ((1, 1.0), (2, 0.8), (3, 0.3)):
        again = scripted(made, Script(made._loop._scheduler, seed, right))
        again.answers = script.answers
        alone = [await answer(made, job) for job in work]
        assert [seen for seen, _ in alone] == plain
        assert sum(accepted for _, accepted in alone) == again.accepted > 20
        before = made.status().preemptions
        together = await asyncio.gather(*(answer(made, job) for job in work))
        assert [seen for seen, _ in together] == plain
        assert made.status().preemptions > before
        assert again.accepted < again.drafted
