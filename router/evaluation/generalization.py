"""Generalization: what an adapter does to everything that is not its own task."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from router.evaluation.arms import Arm
from router.evaluation.bootstrap import Estimate, resample
from router.evaluation.general_text import GENERAL, paragraphs, whole_text
from router.evaluation.losses import Losses, row_losses
from router.evaluation.subject import Subject
from router.training.answers import AnswerModel
from router.training.batch import Example
from router.training.data import read_rows
from router.training.recipe import Recipe, load_recipe
from router.training.rendering import Rendering
from router.types import PromptTemplate

ROWS, MARGIN = 32, 0.5
GENERAL_TEXT = "general text"
# The base says the same beside every adapter, and one process may judge many of them.
_OF_BASES: dict[tuple[str, str, tuple[Example, ...]], Losses] = {}


def measure(
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
