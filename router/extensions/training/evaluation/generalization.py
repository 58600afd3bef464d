"""What an adapter does to rows it has not seen (overfitting), to other tasks and to general text."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from math import hypot
from pathlib import Path
from typing import Any

from router.engine.base import Prompt
from router.errors import ConfigError
from router.extensions.training.data import (
    Example,
    Rendering,
    Splits,
    TrainingRow,
    read_rows,
    text_of,
)
from router.extensions.training.evaluation.scoring import ScoreEstimate, resample
from router.extensions.training.evaluation.subject import ComparedArm, EvaluationSubject
from router.extensions.training.recipe import Recipe, load_recipe
from router.extensions.training.rows import read_json_lines
from router.types import PromptTemplate

GENERAL = Path("data") / "general.jsonl.gz"  # beside the recipes
GENERAL_TEXT = "general text"  # its name in a report
ASKED_FOR_TEXT = "Write a paragraph."  # of an activated LoRA, to which general text is an answer
SPLITS = ("train", "valid", "test")
ROWS = 32  # of each other task
MARGIN = 0.5  # nats a token that the adapter may lose


def measure_generalization(
    subject: EvaluationSubject, recipe: Recipe, recipes: Path, rows: int = ROWS
) -> dict[str, Any]:
    """Teacher-forced loss of the adapter against the base on other tasks and on general text.

    Other tasks are the test splits of all other recipes `recipes`/*.toml (at most `rows` rows each, drawn
    by a fixed seed), under the base's own prompt: no system text or template of this adapter. General text
    is every paragraph of `recipes`/data/general.jsonl.gz, if it is there; it stands as an answer where the
    adapter is an activated LoRA, which acts on nothing else. Losses are in nats per token;
    `difference` is adapter - base with its paired bootstrap interval over rows.

    Returns {"rows", "margin", "sets": [{"what", "rows", "base", "adapter", "difference": {"value", "low",
    "high"}, "worse"}]}: a set is worse if its difference is beyond `MARGIN` and its interval excludes zero.
    Raises ConfigError for a recipe or data file that cannot be read.
    """
    rendering = Rendering.of(subject.base.tokenizer, PromptTemplate())
    config = next(iter(subject.model.peft_config.values()))
    late = bool(getattr(config, "alora_invocation_tokens", None))
    sets = [_compare(subject, *named) for named in _material(rendering, recipe, recipes, rows, late)]
    return {"rows": rows, "margin": MARGIN, "sets": sets}


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


def _material(
    rendering: Rendering, own: Recipe, recipes: Path, rows: int, late: bool
) -> Iterator[tuple[str, Sequence[Example]]]:
    seen = {own.data.test.resolve()}
    for file in sorted(recipes.glob("*.toml")):
        other = load_recipe(file)
        # A variant of the same task is not another task, and two of another's are one.
        if other.adapter.name != own.adapter.name and (test := other.data.test.resolve()) not in seen:
            seen.add(test)
            found = list(read_rows(other.data.test))
            drawn = random.Random(0).sample(found, min(rows, len(found)))
            yield f"{other.adapter.name} test rows", rendering.examples(drawn)
    if (general := recipes / GENERAL).is_file():
        texts = paragraphs(general)
        if late:
            yield GENERAL_TEXT, rendering.examples([TrainingRow(ASKED_FOR_TEXT, text, "") for text in texts])
        else:
            yield GENERAL_TEXT, [whole_text(rendering, text) for text in texts]


def _compare(subject: EvaluationSubject, what: str, examples: Sequence[Example]) -> dict[str, Any]:
    base, adapter = (subject.losses(arm, examples) for arm in (ComparedArm.BASE, ComparedArm.ADAPTER))
    count = len(examples)
    theirs, ours = resample(base, count), resample(adapter, count)
    gap = ours.minus(theirs)
    return {
        "what": what,
        "rows": count,
        "base": round(theirs.value, 6),
        "adapter": round(ours.value, 6),
        "difference": gap.rounded(),
        "worse": gap.value > MARGIN and gap.low > 0,
    }


# -- general text: paragraphs that belong to no task, read token by token


def paragraphs(file: Path) -> list[str]:
    """The `text` of every row of a gzipped JSON-lines file. Raises ConfigError naming file and line."""
    found = [text_of(value, "text", place) for place, value in read_json_lines(file)]
    if not found:
        raise ConfigError(f"{file} holds no paragraph")
    return found


def whole_text(rendering: Rendering, text: str) -> Example:
    """All tokens of a text but the first, to be predicted from those before them; no chat template."""
    tokens = rendering.encoder.encode(Prompt(raw=text))
    if len(tokens) < 2:
        raise ConfigError(f"too short to be judged: {text!r}; a paragraph needs two tokens or more")
    return Example(tuple(tokens[:1]), tuple(tokens[1:]))


# -- overfitting: rows it has seen, and rows it has not


def measure_overfitting(subject: EvaluationSubject, splits: Splits, rows: int) -> dict[str, dict[str, float]]:
    """The adapter, teacher-forced, on at most `rows` rows of each split (drawn by a fixed seed).

    Returns {"train": {"loss", "low", "high", "exact", "rows"}, "valid": ..., "test": ...}: nats per
    gold-answer token with a bootstrap interval, and how often greedy decoding gives the gold answer.
    """
    found: dict[str, dict[str, float]] = {}
    for name in SPLITS:
        every = list(getattr(splits, name))
        drawn = random.Random(0).sample(every, min(rows, len(every)))
        losses = subject.losses(ComparedArm.ADAPTER, subject.rendering.examples(drawn))
        loss = resample(losses, len(drawn)).estimate()
        numbers = {
            "loss": loss.value,
            "low": loss.low,
            "high": loss.high,
            "exact": float(losses.exact.mean()),
        }
        found[name] = {key: round(number, 6) for key, number in numbers.items()} | {"rows": len(drawn)}
    return found


def overfitting_gap(splits: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Loss on test rows minus loss on training rows, {"value", "low", "high"}.

    The rows are not paired, so the two intervals are joined by the MOVER rule (Zou and Donner 2008,
    https://doi.org/10.1002/sim.3095).
    """
    train, test = splits["train"], splits["test"]
    value = test["loss"] - train["loss"]
    below = hypot(test["loss"] - test["low"], train["high"] - train["loss"])
    above = hypot(test["high"] - test["loss"], train["loss"] - train["low"])
    return ScoreEstimate(value, value - below, value + above).rounded()
