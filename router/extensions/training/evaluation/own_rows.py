"""Any adapter folders on rows that somebody brings along: without a recipe or a manifest.

`evaluate_own_rows` measures an adapter against its base, `compare_folders` one adapter against another.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from router.errors import ConfigError
from router.extensions.training.data import Rendering, TrainingRow
from router.extensions.training.evaluation.exam import (
    CandidateFolder,
    MeasuredArm,
    ReadyBase,
    Say,
    draw_rows,
    find_candidate,
    judged_arm,
    ready_base,
)
from router.extensions.training.evaluation.metrics import METRICS
from router.extensions.training.evaluation.report import (
    AskedData,
    card_head,
    first_samples,
    in_one_sentence,
    report_card,
    unclear_gains,
    with_weights,
    write_report,
)
from router.extensions.training.evaluation.scoring import Task, row_scores
from router.extensions.training.evaluation.subject import Answerer, ComparedArm
from router.extensions.training.recipe import TEXT_METRICS
from router.extensions.training.rows import Columns, PromptPair, read_pairs
from router.paired import Difference, difference
from router.registry.folders import weights_sha256
from router.registry.format.manifest import Manifest
from router.registry.format.untrusted import nearest
from router.types import SamplingParams

FEWEST = 20  # rows: the bootstrap's interval of fewer is too narrow to prove anything
SPARE = 4  # tokens that an answer may be longer than the longest right one
LABELS = 50  # distinct right answers, at most, that are looked for as names of a list
ARMS = (ComparedArm.BASE, ComparedArm.ADAPTER)


@dataclass(frozen=True, slots=True)
class OwnRows:
    """Somebody's file, how its answers are judged, and on which base. `rows`: at most so many of them."""

    data: Path
    metric: str
    base: str
    columns: Columns = Columns("", "")
    rows: int | None = None

    def read(self, say: Say) -> list[PromptPair]:
        """The usable rows of the file. Raises ConfigError that says what is missing."""
        if self.metric not in TEXT_METRICS:
            hint, known = nearest(self.metric, TEXT_METRICS), ", ".join(TEXT_METRICS)
            raise ConfigError(f"--metric {self.metric!r} is not known here{hint}; known: {known}")
        pairs, _, _ = read_pairs(self.data, self.columns, say)
        self.require_enough(min(len(pairs), self.rows or len(pairs)))
        METRICS[self.metric].check(_task_rows(pairs))
        return list(pairs)

    def require_enough(self, count: int) -> None:
        """Raises ConfigError for fewer rows than FEWEST."""
        if count < FEWEST:
            raise ConfigError(
                f"{self.data.name}: {count} usable rows are too few for a gain to be shown: {FEWEST} are "
                "needed at least, and a small gain takes hundreds"
            )


def _task_rows(pairs: Sequence[PromptPair]) -> list[TrainingRow]:
    return [TrainingRow(pair.prompt, pair.response, "") for pair in pairs]


# -- answers and their scores


@dataclass(frozen=True, slots=True)
class Side:
    """Who answers, under the prompt and constraint of `manifest`: the adapter in `folder`, or the base."""

    title: str
    manifest: Manifest
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class AnsweredRows:
    """The rows that the context holds for all sides, and the answers of each side."""

    pairs: Sequence[PromptPair]
    task: Task
    sides: Sequence[MeasuredArm]


def ask_sides(
    sides: Sequence[Side],
    pairs: Sequence[PromptPair],
    ready: ReadyBase,
    metric: str,
) -> AnsweredRows:
    """All sides answer the same rows, greedily, with one limit."""
    renderings = [Rendering.of(ready.plain.tokenizer, side.manifest.prompt) for side in sides]
    limit = max(len(renderings[0].answer(pair.response)) for pair in pairs) + SPARE
    room = ready.engine.info.context_length - limit
    prompts = [[rendering.prompt(pair.prompt) for rendering in renderings] for pair in pairs]
    fitting = [place for place, each in enumerate(prompts) if max(map(len, each)) <= room]
    kept = [pairs[place] for place in fitting]
    task = Task(metric, _task_rows(kept), _labels(kept, metric), limit)
    found = [
        _answers(side, task, [prompts[place][number] for place in fitting], ready)
        for number, side in enumerate(sides)
        if kept
    ]
    return AnsweredRows(kept, task, found)


def _answers(side: Side, task: Task, prompts: Sequence[Sequence[int]], ready: ReadyBase) -> MeasuredArm:
    engine, generation = ready.engine, side.manifest.generation
    params = SamplingParams(task.max_tokens, stop=generation.stop or (), constraint=generation.constraint)
    digest = engine.load(side.folder) if side.folder is not None else None
    try:
        texts = [row.prompt for row in task.rows]
        return judged_arm(task, prompts, Answerer(engine, params, digest).answers(prompts, side.title, texts))
    finally:
        if digest is not None:
            engine.unload(digest)


def _labels(pairs: Sequence[PromptPair], metric: str) -> list[str]:
    """The right answers, commonest first, if they are few enough to be names of a list."""
    counts = Counter(pair.response for pair in pairs)
    few = metric == "exact_match" and len(counts) <= min(LABELS, len(pairs) // 4)
    return [label for label, _ in counts.most_common()] if few else []


# -- an adapter against its base


def evaluate_own_rows(
    names: Sequence[str], request: OwnRows, adapters: Path, device: str, say: Say
) -> list[dict[str, Any]]:
    """Measure each adapter against the base; writes report.json and REPORT.md into its folder.

    Raises ConfigError (metric, file, columns, too few rows, no such adapter), AdapterRejected (a folder that
    the registry would refuse). All that is checked before the base is loaded, once for all.
    """
    pairs = request.read(say)
    found = [find_candidate(name, adapters) for name in dict.fromkeys(names)]
    with ready_base(request.base, device) as ready:
        return [_evaluate(candidate, ready, pairs, request, say) for candidate in found]


def _evaluate(
    candidate: CandidateFolder, ready: ReadyBase, pairs: Sequence[PromptPair], request: OwnRows, say: Say
) -> dict[str, Any]:
    started, folder, manifest = time.monotonic(), candidate.folder, candidate.manifest
    drawn = draw_rows(pairs, request.rows)
    sides = [Side("base", manifest), Side("adapter", manifest, folder)]
    found = ask_sides(sides, drawn, ready, request.metric)
    if dropped := len(drawn) - len(found.pairs):
        say(f"left out: {dropped} longer than the base's context")
        request.require_enough(len(found.pairs))
    arms = dict(zip(ARMS, found.sides, strict=True))
    engine = ready.engine.info
    asked = AskedData(request.data, len(pairs), len(found.pairs))
    limited = f" --rows {request.rows}" if request.rows else ""
    facts = card_head(manifest, weights_sha256(folder), ready.plain, asked, request.metric, engine) | {
        "command": f"{with_weights(engine.weights)}lora-router adapters evaluate {candidate.given} "
        f"--data {request.data} --metric {request.metric}{limited}"
    }
    samples = first_samples(found.task.rows, {arm: side.answers for arm, side in arms.items()})
    report = report_card(facts, arms, {"regressions": []}, samples)  # nothing but these rows was asked
    write_report(folder, report)
    said = " ".join([f"{in_one_sentence(report)}.", *unclear_gains(report)])
    say(f"{manifest.name}: {said} ({time.monotonic() - started:.0f} s)")
    say(f"wrote {folder / 'report.json'} and REPORT.md")
    return report


# -- an adapter against another one


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

    `by_chance` is the new answers' scores minus their scores by the right answer of another row: where right
    answers say nothing about their prompts, both are alike.
    """

    old: str
    new: str
    metric: str
    old_score: float
    new_score: float
    difference: Difference
    by_chance: Difference
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
    """Both adapters answer all rows, each under its own prompt and constraint.

    Raises AdapterRejected for another base, ConfigError where the context holds no row.
    """
    sides = [Side(one.given, one.manifest, one.folder) for one in (old, new)]
    found = ask_sides(sides, pairs, ready, metric)
    if not found.pairs:
        raise ConfigError("every prompt is longer than the context of the base")
    before, after = found.sides
    groups = [pair.group for pair in found.pairs]
    changes = [ours - theirs for ours, theirs in zip(after.rows, before.rows, strict=True)]
    texts = zip(found.pairs, before.answers, after.answers, changes, strict=True)
    return VersionComparison(
        old.given,
        new.given,
        METRICS[metric].title,
        fmean(before.rows),
        fmean(after.rows),
        difference(after.rows, before.rows, groups),
        difference(after.rows, _scores_by_others(found.task, after.answers), groups),
        before.answer_tokens,
        after.answer_tokens,
        len(pairs) - len(found.pairs),
        [ComparedRow(pair.prompt, theirs, ours, change) for pair, theirs, ours, change in texts],
    )


def _scores_by_others(task: Task, answers: Sequence[str]) -> list[float]:
    """Each answer judged by the right answer of another row, drawn by a fixed seed."""
    order = np.random.default_rng(0).permutation(len(answers))
    other = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))  # of no row its own
    rows = [replace(row, response=task.rows[other[place]].response) for place, row in enumerate(task.rows)]
    scorer = METRICS[task.metric].scores(replace(task, rows=rows), answers).score
    return row_scores(scorer, len(answers), METRICS[task.metric].whole)
