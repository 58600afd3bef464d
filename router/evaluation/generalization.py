"""Generalization: what an adapter does to everything that is not its own task."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import hypot
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.engine.base import Prompt
from router.errors import ConfigError
from router.evaluation.metrics import Estimate, Selection, resample
from router.evaluation.subject import Arm, Subject
from router.training.batch import AnswerModel, Example, Rendering, collate
from router.training.data import Splits, read_rows
from router.training.recipe import Recipe, load_recipe
from router.types import PromptTemplate

# Teacher-forced losses row by row, so that two models can be compared on the same rows.


@dataclass(frozen=True, slots=True)
class Losses:
    """A `Scorer` in nats per gold token. Each array holds one number for each row [R]."""

    nats: NDArray[np.float64]
    tokens: NDArray[np.float64]
    exact: NDArray[np.float64]  # 1 where greedy decoding gives the gold answer

    def score(self, rows: Selection) -> float:
        """Loss per token of the rows taken as one text."""
        return float(self.nats[rows].sum() / self.tokens[rows].sum())


def row_losses(model: AnswerModel, examples: Sequence[Example], batch: int = 16) -> Losses:
    """Losses of `examples`, in their order; rows of like length go through the model together."""
    order = sorted(range(len(examples)), key=lambda row: len(examples[row]))
    judged = np.zeros((3, len(examples)))
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        values = model.judge(collate([examples[row] for row in rows]).to(model.model.device))
        judged[:, rows] = [value.double().cpu().numpy() for value in values]
    return Losses(*judged)


# General text: paragraphs that belong to no task, read token by token.


GENERAL = Path("data") / "general.jsonl.gz"  # beside the recipes


def paragraphs(file: Path) -> list[str]:
    """The `text` of every row of a gzipped JSON-lines file. Raises ConfigError naming file and line."""
    try:
        lines = gzip.decompress(file.read_bytes()).decode().splitlines()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    found = [_text(line, f"{file.name}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ConfigError(f"{file} holds no paragraph")
    return found


def whole_text(rendering: Rendering, text: str) -> Example:
    """All tokens of a text but the first, to be predicted from those before them; no chat template."""
    tokens = rendering.encoder.encode(Prompt(raw=text))
    if len(tokens) < 2:
        raise ConfigError(f"too short to be judged: {text!r}; a paragraph needs two tokens or more")
    return Example(tuple(tokens[:1]), tuple(tokens[1:]))


def _text(line: str, place: str) -> str:
    try:
        value: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{place} is not JSON: {error.msg}") from error
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"{place} has no text in 'text'")
    return text


# Overfitting: how the adapter does on rows it has seen and on rows it has not.


SPLITS = ("train", "valid", "test")


def measure_overfitting(subject: Subject, splits: Splits, rows: int) -> dict[str, dict[str, float]]:
    """The adapter, teacher-forced, on at most `rows` rows of each split (drawn by a fixed seed).

    Returns {"train": {"loss", "low", "high", "exact", "rows"}, "valid": ..., "test": ...}: nats per
    gold-answer token with a bootstrap interval, and how often greedy decoding gives the gold answer.
    """
    model = AnswerModel(subject.model)
    found: dict[str, dict[str, float]] = {}
    for name in SPLITS:
        every = list(getattr(splits, name))
        drawn = random.Random(0).sample(every, min(rows, len(every)))
        losses = row_losses(model, subject.rendering.examples(drawn))
        loss = resample(losses, len(drawn)).estimate()
        numbers = {
            "loss": loss.value,
            "low": loss.low,
            "high": loss.high,
            "exact": float(losses.exact.mean()),
        }
        found[name] = {key: round(number, 6) for key, number in numbers.items()} | {"rows": len(drawn)}
    model.close()
    return found


def gap(splits: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Loss on test rows minus loss on training rows, {"value", "low", "high"}.

    The rows are not paired, so the two intervals are joined by the MOVER rule (Zou and Donner 2008,
    https://doi.org/10.1002/sim.3095).
    """
    train, test = splits["train"], splits["test"]
    value = test["loss"] - train["loss"]
    below = hypot(test["loss"] - test["low"], train["high"] - train["loss"])
    above = hypot(test["high"] - test["loss"], train["loss"] - train["low"])
    joined = asdict(Estimate(value, value - below, value + above))
    return {name: round(number, 6) for name, number in joined.items()}


def overfitting(splits: Mapping[str, Mapping[str, float]]) -> str:
    """One sentence: does it overfit? `splits` is what `measure` returns."""
    found = gap(splits)
    numbers = f"{found['value']:+.3f} nats per gold token [{found['low']:+.3f}, {found['high']:+.3f}]"
    exact = f"greedy exact {splits['train']['exact']:.3f} on train, {splits['test']['exact']:.3f} on test"
    if found["low"] > 0:
        return f"It overfits: the loss on test rows is above that on training rows by {numbers} ({exact})."
    if found["high"] < 0:
        return f"It does not overfit: test rows are easier for it than training rows, {numbers} ({exact})."
    return f"No overfitting that so few rows can show: test - train is {numbers}, zero included ({exact})."


ROWS, MARGIN = 32, 0.5
GENERAL_TEXT = "general text"
# The base says the same beside every adapter, and one process may judge many of them.
_OF_BASES: dict[tuple[str, str, tuple[Example, ...]], Losses] = {}


def measure_generalization(
    subject: Subject, recipe: Recipe, recipes: Path, rows: int = ROWS, margin: float = MARGIN
) -> dict[str, Any]:
    """Teacher-forced loss of the adapter against the base on other tasks and on general text.

    Other tasks are the test splits of all other recipes `recipes`/*.toml (at most `rows` rows each, drawn
    by a fixed seed), under the base's own prompt: no system text or template of this adapter. General text
    is every paragraph of `recipes`/data/general.jsonl.gz, if it is there. Losses are in nats per token;
    `difference` is adapter - base with its paired bootstrap interval over rows.

    Returns {"rows", "margin", "sets": [{"what", "rows", "base", "adapter", "difference": {"value", "low",
    "high"}, "worse"}]}: a set is worse if its difference is beyond `margin` and its interval excludes zero.
    Raises ConfigError for a recipe or data file that cannot be read.
    """
    rendering = Rendering.of(subject.base.tokenizer, PromptTemplate())
    sets = [_compare(subject, *named, margin) for named in _material(rendering, recipe, recipes, rows)]
    return {"rows": rows, "margin": margin, "sets": sets}


def regressions(section: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For the report's top level, which the gate reads: {"what", "value", "low", "high", "margin", "worse"}.

    General text alone: a specialist is not asked for other tasks, so what it does to them is shown and not
    judged; one that lost its English is broken wherever it is asked.
    """
    return [
        {
            "what": f"loss on {found['what']}",
            **found["difference"],
            "margin": section["margin"],
            "worse": found["worse"],
        }
        for found in section["sets"]
        if found["what"] == GENERAL_TEXT
    ]


def markdown(section: Mapping[str, Any]) -> list[str]:
    """The section as lines of a page."""
    if not section["sets"]:
        return ["Generalization: not measured, there are no other recipes and no general text."]
    lines = [
        "What the adapter does to other tasks and to general text, in nats per gold token under the base's",
        f"own prompt (less is better; worse: more than {section['margin']:g} above the base, and the",
        "interval excludes zero):",
        "",
        "| text | rows | base | adapter | adapter - base | |",
        "|---|---|---|---|---|---|",
    ]
    for found in section["sets"]:
        gap = found["difference"]
        shown = f"{gap['value']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]"
        cells = (found["what"], str(found["rows"]), f"{found['base']:.3f}", f"{found['adapter']:.3f}", shown)
        lines.append(f"| {' | '.join(cells)} | {'**worse**' if found['worse'] else ''} |")
    return lines


def _material(
    rendering: Rendering, own: Recipe, recipes: Path, rows: int
) -> Iterator[tuple[str, Sequence[Example]]]:
    for file in sorted(recipes.glob("*.toml")):
        other = load_recipe(file)
        # A variant of the same task is not another task.
        if other.adapter.name != own.adapter.name and not other.data.test.samefile(own.data.test):
            found = list(read_rows(other.data.test))
            drawn = random.Random(0).sample(found, min(rows, len(found)))
            yield f"{other.adapter.name} test rows", rendering.examples(drawn)
    if (general := recipes / GENERAL).is_file():
        yield GENERAL_TEXT, [whole_text(rendering, text) for text in paragraphs(general)]


def _compare(subject: Subject, what: str, examples: Sequence[Example], margin: float) -> dict[str, Any]:
    base, adapter = (_losses(subject, arm, examples) for arm in (Arm.BASE, Arm.ADAPTER))
    count = len(examples)
    theirs, ours = resample(base, count), resample(adapter, count)
    gap = ours.minus(theirs)
    return {
        "what": what,
        "rows": count,
        "base": round(theirs.value, 6),
        "adapter": round(ours.value, 6),
        "difference": {name: round(number, 6) for name, number in asdict(gap).items()},
        "worse": _worse(gap, margin),
    }


def _worse(gap: Estimate, margin: float) -> bool:
    return gap.value > margin and gap.low > 0


def _losses(subject: Subject, arm: Arm, examples: Sequence[Example]) -> Losses:
    key = (subject.base.digest, str(subject.base.device), tuple(examples))
    if arm is Arm.BASE and key in _OF_BASES:
        return _OF_BASES[key]
    losses = _judged(subject, arm, examples)
    if arm is Arm.BASE:
        _OF_BASES[key] = losses
    return losses


def _judged(subject: Subject, arm: Arm, examples: Sequence[Example]) -> Losses:
    with subject.answering_as(arm):
        model = AnswerModel(subject.model)
        try:
            return row_losses(model, examples)
        finally:
            model.close()
