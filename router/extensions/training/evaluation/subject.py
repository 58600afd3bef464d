"""The adapter under evaluation on its base: asked in three ways (`ComparedArm`), judged as either.

Answers are greedy and come from the engine that serves: all requests of an arm are in one continuous batch.
"""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from router.config import Settings
from router.engine.base import BaseInfo, Finished, Job
from router.engine.constrained.templates import ConstraintTemplates
from router.engine.loader import LoadedModel
from router.engine.torch_engine import TorchEngine
from router.errors import AdapterRejected
from router.extensions.training.base import LoadedBase
from router.extensions.training.data import AnswerModel, Example, Rendering, TrainingRow, collate
from router.extensions.training.evaluation.scoring import Selection
from router.registry.folders import weights_sha256
from router.registry.format.artifact import FolderRules, inspect_folder, read_artifact
from router.registry.format.manifest import Manifest
from router.types import FinishReason, LabelProbabilities, LabelSettings, SamplingParams, Usage

Tokens = Sequence[int]
Questions = Sequence[Example]  # of one arm, with their right answers


@dataclass(frozen=True, slots=True)
class EngineAnswer:
    """Text without outer white space, and what it took; its end token is counted.

    `sureness`: the least probability of a token, where log-probabilities were asked for. `whole`: it ended by
    itself.
    """

    text: str
    usage: Usage
    labels: LabelProbabilities | None = None
    sureness: float = 1.0
    whole: bool = True


class AnsweringEngine:
    """A base in the serving engine, with the settings a server would have here."""

    def __init__(self, base: LoadedBase, quantize: str = "") -> None:
        """Starts the engine; `base` stays usable and shares the tensors that the engine does not pack.

        `quantize`: as the setting; empty: as that says here.
        """
        overrides: dict[str, Any] = {"quantize": quantize} if quantize else {}
        self._settings = Settings(device=str(base.device), **overrides)
        self._engine = TorchEngine(
            self._settings, LoadedModel(sharing_copy(base.model), base.tokenizer, base.name)
        )
        self._engine.start()
        self._templates = templates_here(self._settings)
        self._runner = asyncio.Runner()

    @property
    def info(self) -> BaseInfo:
        """The base as the engine runs it."""
        return self._engine.info

    def close(self) -> None:
        """Stop the engine."""
        self._runner.close()
        self._engine.close()

    def load(self, folder: Path) -> str:
        """Bring an adapter into the engine; returns its digest. Raises AdapterRejected with all findings."""
        artifact, _ = read_artifact(
            folder.absolute(), FolderRules(self.info, max_rank=self._settings.max_rank)
        )
        self._runner.run(self._engine.load(artifact))
        return artifact.digest

    def unload(self, digest: str) -> None:
        """Drop an adapter."""
        self._runner.run(self._engine.unload(digest))

    def answers(
        self,
        prompts: Sequence[Tokens],
        params: SamplingParams,
        adapter: str | None = None,
        labels: LabelSettings | None = None,
        texts: Sequence[str] | None = None,
    ) -> list[EngineAnswer]:
        """Answers in order, in one batch, with `labels` as a job has them. `texts` are the questions, of
        which a template makes constraints: where it makes none, the answer is free.

        Raises PromptTooLong, EngineFailed, and InvalidRequest for a template that is not there.
        """
        self._templates.check(params.constraint)
        asked = list(zip(prompts, texts or [""] * len(prompts), strict=True))
        return self._runner.run(self._together(asked, params, adapter, labels))

    async def _together(
        self,
        asked: Sequence[tuple[Tokens, str]],
        params: SamplingParams,
        adapter: str | None,
        labels: LabelSettings | None,
    ) -> list[EngineAnswer]:
        places = asyncio.Semaphore(self._settings.max_running + min(32, self._settings.max_queue))

        async def answer(prompt: Tokens, text: str) -> EngineAnswer:
            async with places:
                return await self._one(prompt, text, params, adapter, labels)

        # The first one alone: what all prompts begin with is then in the prefix cache for the others.
        first = [await answer(*one) for one in asked[:1]]
        return first + await asyncio.gather(*(answer(*one) for one in asked[1:]))

    async def _one(
        self,
        prompt: Tokens,
        text: str,
        params: SamplingParams,
        adapter: str | None,
        labels: LabelSettings | None,
    ) -> EngineAnswer:
        texts: list[str] = []
        least = 0.0
        job = Job("evaluation", prompt, params, adapter, own_constraint=True, labels=labels)
        job = await self._templates.prepared(self._engine, job, text)
        async for event in self._engine.submit(job):
            if isinstance(event, Finished):
                text, whole = "".join(texts).strip(), event.reason is FinishReason.STOP and not event.stop
                return EngineAnswer(text, event.usage, event.labels, math.exp(least), whole and bool(text))
            texts.append(event.text)
            least = min(least, *(token.logprob for token in event.logprobs), 0.0)
        raise RuntimeError("a generation ended without Finished")


def templates_here(settings: Settings) -> ConstraintTemplates:
    """The templates that a server with these settings has, those of plugins included."""
    from router.cli.plugins import plugins_with

    return ConstraintTemplates(
        cache(lambda: plugins_with("register_constraint_templates", settings).constraint_templates())
    )


def sharing_copy(model: Any) -> Any:
    """The same modules over the same weights: the engine takes its model apart, the other one stays whole."""
    shared = {id(weight): nn.Parameter(weight.detach(), False) for weight in model.parameters()}
    return copy.deepcopy(model, dict[int, Any](shared))


@dataclass(frozen=True, slots=True)
class Answerer:
    """One side of a comparison: answers as the base (`adapter` None) or as a loaded adapter (its digest)."""

    engine: AnsweringEngine
    params: SamplingParams
    adapter: str | None = None
    labels: LabelSettings | None = None  # where probabilities of choices are wanted

    def answers(self, prompts: Sequence[Tokens], texts: Sequence[str] | None = None) -> list[EngineAnswer]:
        """All prompts in one batch. `texts`: as `AnsweringEngine` takes them."""
        return self.engine.answers(prompts, self.params, self.adapter, self.labels, texts)


LOSS_BATCH = 16  # rows judged together


class ComparedArm(StrEnum):
    """Who answers, and what it is shown first."""

    BASE = "base"  # the bare question, under the adapter's own prompt
    SHOTS = "base_with_examples"  # with worked examples before it
    ADAPTER = "adapter"  # the bare question


@dataclass(frozen=True, slots=True)
class EvaluationSubject:
    """An adapter on its base; `model` answers as either."""

    folder: Path
    manifest: Manifest
    weights_sha256: str
    base: LoadedBase
    model: Any
    rendering: Rendering

    @contextmanager
    def judged_as(self, arm: ComparedArm) -> Iterator[AnswerModel]:
        """Inside the block, what judges answers under teacher forcing, as the adapter or as the bare base."""
        with nullcontext() if arm is ComparedArm.ADAPTER else self.model.disable_adapter():
            model = AnswerModel(self.model)
            try:
                yield model
            finally:
                model.close()

    def losses(self, arm: ComparedArm, examples: Sequence[Example]) -> Losses:
        """Of `examples`, in their order, as the adapter or as the bare base."""
        with self.judged_as(arm) as model:
            return row_losses(model, examples)

    def close(self) -> None:
        """Take the adapter off the base again."""
        self.model.unload()


def load_subject(folder: Path, manifest: Manifest, base: LoadedBase) -> EvaluationSubject:
    """Put the adapter on `base`."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(base.model, folder, autocast_adapter_dtype=False).eval()
    rendering = Rendering.of(base.tokenizer, manifest.prompt)
    return EvaluationSubject(folder, manifest, weights_sha256(folder), base, model, rendering)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an adapter folder. Raises AdapterRejected with all that is wrong with the folder."""
    seen = inspect_folder(folder, FolderRules(None, max_rank=512))
    if not seen.ok:
        raise AdapterRejected(f"{folder} cannot be served: {seen.error}")
    return seen.manifest


def encode_questions(
    arm: ComparedArm, rows: Sequence[TrainingRow], rendering: Rendering, shots: Sequence[TrainingRow]
) -> Questions:
    """Encode `rows` for an arm with their right answers; only the arm with examples sees `shots`."""
    before = shots if arm is ComparedArm.SHOTS else ()
    return [rendering.example(row, before) for row in rows]


def worked_examples(train: Sequence[TrainingRow], count: int) -> list[TrainingRow]:
    """The first `count` training rows with distinct answers: fixed, and not picked by result."""
    distinct = {row.response: row for row in reversed(train)}
    return [row for row in train if distinct[row.response] is row][:count]


@dataclass(frozen=True, slots=True)
class Losses:
    """Row by row, so that two models can be compared on the same rows: each array holds a number a row [R].

    A `Scorer` in nats per gold token.
    """

    nats: NDArray[np.float64]
    tokens: NDArray[np.float64]
    exact: NDArray[np.float64]  # 1 where greedy decoding gives the gold answer

    def score(self, rows: Selection) -> float:
        """Loss per token of the rows taken as one text."""
        return float(self.nats[rows].sum() / self.tokens[rows].sum())


def row_losses(model: AnswerModel, examples: Sequence[Example]) -> Losses:
    """Teacher-forced, of `examples` in their order; rows of like length go through the model together."""
    order = sorted(range(len(examples)), key=lambda row: len(examples[row]))
    judged = np.zeros((3, len(examples)))
    for start in range(0, len(order), LOSS_BATCH):
        rows = order[start : start + LOSS_BATCH]
        values = model.judge(collate([examples[row] for row in rows]).to(model.model.device))
        judged[:, rows] = [value.double().cpu().numpy() for value in values]
    return Losses(*judged)
