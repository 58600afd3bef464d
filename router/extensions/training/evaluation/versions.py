"""Two versions of an adapter, compared on rows with right answers: without a recipe or a manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from router.errors import ConfigError
from router.extensions.training.data import Rendering, TrainingRow
from router.extensions.training.evaluation.exam import (
    CandidateFolder,
    MeasuredArm,
    ReadyBase,
    Say,
    judged_arm,
)
from router.extensions.training.evaluation.metrics import METRICS
from router.extensions.training.evaluation.scoring import Task
from router.extensions.training.evaluation.subject import Answerer
from router.extensions.training.recipe import TEXT_METRICS
from router.extensions.training.rows import Columns, PromptPair, labels_of, read_pairs
from router.paired import Difference, difference
from router.registry.format.untrusted import nearest
from router.types import SamplingParams

FEWEST = 20  # rows: the interval of fewer is too wide to show anything
SPARE = 4  # tokens that an answer may be longer than the longest right one


def read_rows(data: Path, metric: str, columns: Columns, say: Say) -> list[PromptPair]:
    """The usable rows of a file. Raises ConfigError that says what is missing."""
    if metric not in TEXT_METRICS:
        hint, known = nearest(metric, TEXT_METRICS), ", ".join(TEXT_METRICS)
        raise ConfigError(f"--metric {metric!r} is not known here{hint}; known: {known}")
    pairs, _, _ = read_pairs(data, columns, say)
    if len(pairs) < FEWEST:
        raise ConfigError(
            f"{data.name}: {len(pairs)} usable rows are too few for a difference to be shown: {FEWEST} are "
            "needed at least, and a small difference takes hundreds"
        )
    return list(pairs)


@dataclass(frozen=True, slots=True)
class ComparedRow:
    """Both answers to one prompt, and the score of the new one minus that of the old one (-1 to 1)."""

    prompt: str
    old: str
    new: str
    change: float


@dataclass(frozen=True, slots=True)
class VersionComparison:
    """The result. Scores are shares of the best possible one; `old_tokens`, `new_tokens`: mean lengths of
    answers; `left_out`: rows whose prompt is longer than the context.
    """

    old: str
    new: str
    metric: str
    old_score: float
    new_score: float
    difference: Difference
    old_tokens: float
    new_tokens: float
    left_out: int
    rows: Sequence[ComparedRow]

    def regressions(self, most: int) -> list[ComparedRow]:
        """Prompts that became worse, the worst first."""
        return sorted((row for row in self.rows if row.change < 0), key=lambda row: row.change)[:most]


def compare_folders(
    old: CandidateFolder,
    new: CandidateFolder,
    pairs: Sequence[PromptPair],
    ready: ReadyBase,
    metric: str,
) -> VersionComparison:
    """Both adapters answer all rows greedily, with one limit, each under its own prompt and constraint.

    Raises AdapterRejected for another base, ConfigError where the context holds no row.
    """
    sides = (old, new)
    renderings = [Rendering.of(ready.plain.tokenizer, side.manifest.prompt) for side in sides]
    limit = max(len(renderings[0].answer(pair.response)) for pair in pairs) + SPARE
    room = ready.engine.info.context_length - limit
    encoded = ((pair, [rendering.prompt(pair.prompt) for rendering in renderings]) for pair in pairs)
    fitting = [(pair, prompts) for pair, prompts in encoded if max(map(len, prompts)) <= room]
    if not fitting:
        raise ConfigError("every prompt is longer than the context of the base")
    kept = [pair for pair, _ in fitting]
    rows = [TrainingRow(pair.prompt, pair.response, "") for pair in kept]
    task = Task(metric, rows, labels_of(kept) if metric == "exact_match" else (), limit)
    before, after = (
        _answers(side, task, [prompts[number] for _, prompts in fitting], ready)
        for number, side in enumerate(sides)
    )
    changes = [ours - theirs for ours, theirs in zip(after.rows, before.rows, strict=True)]
    texts = zip(kept, before.answers, after.answers, changes, strict=True)
    return VersionComparison(
        old.given,
        new.given,
        METRICS[metric].title,
        fmean(before.rows),
        fmean(after.rows),
        difference(after.rows, before.rows, [pair.group for pair in kept]),
        before.answer_tokens,
        after.answer_tokens,
        len(pairs) - len(kept),
        [ComparedRow(pair.prompt, theirs, ours, change) for pair, theirs, ours, change in texts],
    )


def _answers(
    side: CandidateFolder, task: Task, prompts: Sequence[Sequence[int]], ready: ReadyBase
) -> MeasuredArm:
    generation = side.manifest.generation
    params = SamplingParams(task.max_tokens, stop=generation.stop or (), constraint=generation.constraint)
    digest = ready.engine.load(side.folder)
    try:
        answerer = Answerer(ready.engine, params, digest)
        texts = [row.prompt for row in task.rows]
        return judged_arm(task, prompts, answerer.answers(prompts, texts))
    finally:
        ready.engine.unload(digest)
