"""The adapter under evaluation on its base: it is judged as either, asked in three ways (`ComparedArm`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.errors import AdapterRejected, ConfigError
from router.extensions.training.base import LoadedBase
from router.extensions.training.batch import AnswerModel, Example, Rendering, collate
from router.extensions.training.data import TrainingRow
from router.extensions.training.evaluation.scoring import Selection
from router.registry.folders import weights_sha256
from router.registry.format.manifest import Manifest, parse_manifest
from router.registry.format.untrusted import Severity

WEIGHTS = "adapter_model.safetensors"
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

    def answering_as(self, arm: ComparedArm) -> AbstractContextManager[Any]:
        """Inside the block the model is the adapter or the bare base."""
        plain: Callable[[], AbstractContextManager[Any]] = self.model.disable_adapter
        return nullcontext() if arm is ComparedArm.ADAPTER else plain()

    @contextmanager
    def judged_as(self, arm: ComparedArm) -> Iterator[AnswerModel]:
        """Inside the block, what judges answers under teacher forcing, as the adapter or as the bare base."""
        with self.answering_as(arm):
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
    """Put the adapter on `base`. Raises AdapterRejected if it was trained on another one."""
    from peft import PeftModel

    check_base(manifest, base)
    model = PeftModel.from_pretrained(base.model, folder, autocast_adapter_dtype=False).eval()
    rendering = Rendering.of(base.tokenizer, manifest.prompt)
    return EvaluationSubject(folder, manifest, weights_sha256(folder), base, model, rendering)


def check_base(manifest: Manifest, base: LoadedBase) -> None:
    """Raises AdapterRejected if the adapter was trained on another base."""
    if manifest.base.digest not in ("", base.digest):
        trained = f"{manifest.base.model} (digest {manifest.base.digest[:12]}…)"
        raise AdapterRejected(
            f"{manifest.name} was trained on {trained}, whose digest differs from that of {base.name} "
            f"({base.digest[:12]}…): name the right base in its recipe, or train it again"
        )


def read_manifest(folder: Path) -> Manifest:
    """The folder's manifest. Raises ConfigError if there is none, AdapterRejected if it is wrong."""
    file = folder / "adapter.toml"
    if not file.is_file() or not (folder / WEIGHTS).is_file():
        raise ConfigError(f"{folder} holds no adapter with a manifest: needs adapter.toml and {WEIGHTS}")
    manifest, findings = parse_manifest(file.read_bytes(), folder.name)
    if refused := [finding for finding in findings if finding.severity is Severity.REFUSE]:
        raise AdapterRejected(f"{file}: " + "; ".join(str(finding) for finding in refused))
    return manifest


@dataclass(frozen=True, slots=True)
class Questions:
    """Questions of one arm, encoded with their gold answers."""

    arm: ComparedArm
    examples: tuple[Example, ...]

    @property
    def prompt_tokens(self) -> float:
        """Mean length of a prompt."""
        return sum(len(example.prompt) for example in self.examples) / len(self.examples)


def encode_questions(
    arm: ComparedArm, rows: Sequence[TrainingRow], rendering: Rendering, shots: Sequence[TrainingRow]
) -> Questions:
    """Encode `rows` for an arm; only the arm with examples sees `shots`."""
    before = shots if arm is ComparedArm.SHOTS else ()
    return Questions(arm, tuple(rendering.example(row, before) for row in rows))


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
