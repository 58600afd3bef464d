"""Probes of a new adapter: validation prompts with the answers that it gives, by plain transformers.

They are made as a server runs them: the adapter is held to its own constraint, the base is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from router.engine.base import Engine, Job
from router.engine.constrained.compiler import CompiledGrammar, Grammars
from router.engine.constrained.source import spec_of
from router.engine.constrained.templates import ConstraintTemplates
from router.errors import ConfigError, FailedPrecondition, InvalidRequest
from router.extensions.training.data import AnswerModel, Example, Rendering, TrainingRow, collate
from router.extensions.training.labels import label_tree
from router.registry.format.manifest import PROBE_CHARS, Match, Probe
from router.types import Constraint, LogitBias, SamplingParams

if TYPE_CHECKING:
    from router.config import Settings
    from router.engine.constrained.state import GrammarState

LONGEST_PROBE = 24  # tokens of an answer
ROWS_AT_ONCE = 32  # answered or judged together
SHORTLIST = 4  # candidates tried for each probe wanted
# Of each token's probability over the second likeliest: near ties fall differently on other kernels.
LEAD = 0.1


def choose_probes(
    model: Any, rendering: Rendering, rows: Sequence[TrainingRow], count: int, rule: AnswerRule
) -> list[Probe]:
    """`count` validation rows the adapter is surest of, with distinct answers that the base does not give.

    Sure ones, so that a probe does not turn on the last bit of a sum on another machine.
    """
    encoded = [(row, rendering.example(row)) for row in rows if len(row.prompt) <= PROBE_CHARS]
    short = [(row, example) for row, example in encoded if len(example.answer) <= LONGEST_PROBE]
    sureness = _nats_per_token(model, [example for _, example in short])
    ranked = sorted(range(len(short)), key=sureness.__getitem__)
    distinct = list({short[place][0].response: place for place in reversed(ranked)}.values())[::-1]
    shortlist = [short[place][0] for place in distinct[: SHORTLIST * count]]
    chosen: dict[str, Probe] = {}  # by the answer
    trained = rule.answers(model, rendering, [row.prompt for row in shortlist])
    with model.disable_adapter():
        plain = AnswerRule().answers(model, rendering, [row.prompt for row in shortlist])
    for row, answer, base in zip(shortlist, trained, plain, strict=True):
        text, whole = rendering.text(answer.tokens), len(answer.tokens) <= LONGEST_PROBE
        differs = text != rendering.text(base.tokens)
        if differs and whole and rule.keeps(text) and answer.lead >= LEAD:
            chosen.setdefault(text, Probe(row.prompt, text, Match.EXACT, LONGEST_PROBE + 1))
    return list(chosen.values())[:count]


def _nats_per_token(model: Any, examples: Sequence[Example]) -> list[float]:
    answers = AnswerModel(model)
    sureness = [torch.zeros(0)]
    for start in range(0, len(examples), ROWS_AT_ONCE):
        nats, tokens, _ = answers.judge(collate(examples[start : start + ROWS_AT_ONCE]).to(model.device))
        sureness.append((nats / tokens).cpu())
    answers.close()
    return torch.cat(sureness).tolist()


# -- what every answer of an adapter is held to


class AnswerRule:
    """The `[generation]` of an adapter, applied as a server does; without arguments, answers are free."""

    def __init__(
        self,
        constraint: Constraint | None = None,
        stop: Sequence[str] = (),
        templates: ConstraintTemplates | None = None,
    ) -> None:
        self._constraint, self._stop = constraint, stop
        self._templates = templates or ConstraintTemplates()

    def keeps(self, answer: str) -> bool:
        """Whether a server would give it in full: no stop text ends it earlier."""
        return bool(answer) and not any(stop in answer for stop in self._stop)

    def check(self, model: Any, rendering: Rendering) -> None:
        """Raises ConfigError for a constraint that a server would refuse on this base."""
        try:
            self._templates.check(self._constraint)
            if self._constraint is not None and self._constraint.kind != "from_prompt":
                self._started(model, rendering, [""])
        except (InvalidRequest, FailedPrecondition) as error:
            raise ConfigError(f"[generation] {error.message}") from error

    def answers(self, model: Any, rendering: Rendering, prompts: Sequence[str]) -> list[GreedyAnswer]:
        """Greedy answers of at most LONGEST_PROBE + 1 tokens, in the order of the prompts."""
        encoded = [rendering.prompt(prompt) for prompt in prompts]
        states = self._started(model, rendering, prompts)
        biases = {}
        if self._constraint is not None and self._constraint.prior:
            biases = dict(label_tree(rendering, self._constraint.choices).biases(self._constraint.prior))
        return greedy_answers(model, encoded, rendering.ends, LONGEST_PROBE + 1, states, biases)

    def _started(self, model: Any, rendering: Rendering, prompts: Sequence[str]) -> list[GrammarState | None]:
        """The beginning of each answer in its grammar; None where it is free."""
        if self._constraint is None:
            return [None for _ in prompts]
        width = model.get_output_embeddings().weight.shape[0]
        grammars = Grammars(lambda: spec_of(rendering.tokenizer, width, rendering.ends))
        job = Job("probe", (), SamplingParams(constraint=self._constraint), own_constraint=True)

        async def compiled() -> list[Job]:
            compiler = cast("Engine", grammars)  # its `compile` is all that is called
            return [await self._templates.prepared(compiler, job, prompt) for prompt in prompts]

        try:
            jobs = asyncio.run(compiled())
        finally:
            grammars.close()
        made = [cast("CompiledGrammar | None", job.grammar) for job in jobs]
        return [None if grammar is None else grammar.start(forcing=False) for grammar in made]


def templates_here(settings: Settings) -> ConstraintTemplates:
    """The templates that a server with these settings has, those of plugins included."""
    from router.cli.plugins import plugins_with

    return ConstraintTemplates(
        cache(lambda: plugins_with("register_constraint_templates", settings).constraint_templates())
    )


# -- greedy decoding, slow and simple: the judge of everything faster


@dataclass(frozen=True, slots=True)
class GreedyAnswer:
    """Tokens without the end token; `lead` is the closest that a second choice came to any token that was
    taken, the end included, in probability. 0 where no answer keeps to the grammar."""

    tokens: tuple[int, ...]
    lead: float


def greedy_tokens(
    model: Any, prompts: Sequence[Sequence[int]], ends: Sequence[int], max_tokens: int
) -> list[list[int]]:
    """New tokens for each prompt, without the end token."""
    return [list(answer.tokens) for answer in greedy_answers(model, prompts, ends, max_tokens)]


def greedy_answers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    ends: Sequence[int],
    max_tokens: int,
    states: Sequence[GrammarState | None] | None = None,
    biases: dict[tuple[int, ...], LogitBias] | None = None,
) -> list[GreedyAnswer]:
    """An answer to each prompt, which keeps to the grammar of its place in `states`. Prompts of like length
    go together. `biases` of tokens are by the tokens of the answer before them."""
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    answers = [GreedyAnswer((), 0.0) for _ in prompts]
    for start in range(0, len(order), ROWS_AT_ONCE):
        rows = order[start : start + ROWS_AT_ONCE]
        held = _Held([states[row] if states else None for row in rows], ends, biases or {})
        made = _one_batch(model, [prompts[row] for row in rows], ends, max_tokens, held)
        for row, tokens, lead in zip(rows, made, held.leads, strict=True):
            answers[row] = GreedyAnswer(tuple(tokens), lead)
    return answers


@torch.no_grad()
def _one_batch(
    model: Any, prompts: Sequence[Sequence[int]], ends: Sequence[int], limit: int, held: LogitsProcessor
) -> list[list[int]]:
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), ends[0])
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    made = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        do_sample=False,
        max_new_tokens=limit,
        eos_token_id=list(ends),
        pad_token_id=ends[0],
        temperature=None,
        top_p=None,
        top_k=None,
        logits_processor=LogitsProcessorList([held]),
    )
    return [_until(tokens, ends) for tokens in made[:, width:].tolist()]


def _until(tokens: list[int], ends: Iterable[int]) -> list[int]:
    return next((tokens[:place] for place, token in enumerate(tokens) if token in ends), tokens)


class _Held(LogitsProcessor):  # type: ignore[misc]  # transformers has no types
    """Leaves each row the tokens that its grammar permits, and notes how clear each choice was."""

    def __init__(
        self,
        states: Sequence[GrammarState | None],
        ends: Sequence[int],
        biases: dict[tuple[int, ...], LogitBias],
    ) -> None:
        self._states, self._ends, self._biases = states, set(ends), biases
        self._answers: list[tuple[int, ...]] | None = None  # None until the first call
        self._over = [False for _ in states]
        self.leads = [1.0 for _ in states]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores [rows, vocabulary] of the next tokens behind `input_ids` [rows, tokens]."""
        before, self._answers = self._answers, self._answers or [() for _ in self._states]
        if before is not None:
            for row, token in enumerate(input_ids[:, -1].tolist()):
                self._take(row, token)
        for row, state in enumerate(self._states):
            if not self._over[row]:
                self._hold(row, state, scores)
        return scores

    def _take(self, row: int, token: int) -> None:
        self._over[row] = self._over[row] or token in self._ends
        state = self._states[row]
        if not self._over[row] and self._answers is not None:
            self._answers[row] += (token,)
            if state is not None:
                state.accept(token)

    def _hold(self, row: int, state: GrammarState | None, scores: torch.Tensor) -> None:
        if state is not None:
            for token, bias in self._biases.get(self._answers[row] if self._answers else (), ()):
                scores[row, token] += bias
            state.make_mask(keep_going=False)
            if state.error is not None:
                self._over[row], self.leads[row] = True, 0.0
                return
            bits = np.unpackbits(state.allowed.view(np.uint8), bitorder="little")[: scores.shape[1]]
            permitted = torch.from_numpy(bits.astype(bool)).to(scores.device)
            scores[row] = scores[row].masked_fill(~permitted, -torch.inf)
        first, second = scores[row].float().softmax(-1).topk(2).values.tolist()
        self.leads[row] = min(self.leads[row], first - second)
