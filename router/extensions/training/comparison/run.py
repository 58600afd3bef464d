"""Both versions answer each prompt at the same time, so they share batches, and the answers are scored."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median

import numpy as np

from router.client import Answer, AsyncClient, ClientError
from router.errors import ConfigError
from router.extensions.training.comparison.judge import ModelJudge, PairJudgement
from router.extensions.training.data import TrainingRow, prompt_key
from router.extensions.training.evaluation.metrics import METRICS, check_rows, score_answers
from router.extensions.training.evaluation.scoring import Task, row_scores
from router.extensions.training.new.rows import PROMPT, SYSTEM, Columns, choose_columns, joined, read_table
from router.paired import Difference, difference

AT_ONCE = 8  # prompts; each is two requests
FEWEST = 20  # rows: fewer cannot show a difference that is worth acting on
ENDS_ALL = {"UNAUTHENTICATED", "PERMISSION_DENIED", "NOT_FOUND", "UNAVAILABLE", "UNIMPLEMENTED"}
LABELS = 50  # distinct right answers, at most, that are a list of labels


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A row of the file. `group` is its conversation, or the row itself."""

    prompt: str
    response: str
    group: str
    place: str


@dataclass(frozen=True, slots=True)
class Side:
    """What one version answered; a refused request has an `error` and scores zero. Times in seconds."""

    text: str = ""
    prompt_tokens: int = 0
    tokens: int = 0
    first_token: float = 0.0
    total: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class ComparedPrompt:
    """Both answers to one prompt, with scores from 0 to 1."""

    row: PromptRow
    old: Side
    new: Side
    old_score: float = 0.0
    new_score: float = 0.0
    contradicts: bool = False

    @property
    def change(self) -> float:
        """Score of the new answer minus that of the old one."""
        return self.new_score - self.old_score


@dataclass(frozen=True, slots=True)
class Load:
    """What the answers of one version cost: means of tokens, medians of seconds, refused requests."""

    prompt_tokens: float
    tokens: float
    first_token: float
    total: float
    errors: int


@dataclass(frozen=True, slots=True)
class VersionComparison:
    """The result. Scores are shares of the best possible one; with a judge, 0.5 is a tie."""

    old: str
    new: str
    metric: str
    old_score: float
    new_score: float
    difference: Difference
    old_load: Load
    new_load: Load
    pairs: tuple[ComparedPrompt, ...]
    left_out: int  # rows that both versions refuse
    ties: int
    contradictions: int = 0
    named_first: float = 0.0  # share of judgements that named the answer that stood first
    by_chance: Difference | None = None  # right answers of the rows minus those of other rows; by a metric

    def regressions(self, most: int = 10) -> list[ComparedPrompt]:
        """Prompts that became worse, the worst first."""
        worse = sorted((pair for pair in self.pairs if pair.change < 0), key=lambda pair: pair.change)
        return worse[:most]


def read_prompts(path: Path, columns: Columns, *, judged: bool) -> list[PromptRow]:
    """The rows of a CSV, TSV, JSON-lines or JSON file, each prompt once.

    `columns` names some, or none. A system text and a context stand in the prompt. With a judge (`judged`) a
    row needs no answer. Raises ConfigError naming the file and what is missing.
    """
    table = read_table(path, (columns.prompt, columns.response))
    names = table.columns
    prompt = columns.prompt or PROMPT
    alone = prompt in names and (columns.prompt or set(names) == {PROMPT, *filter(None, [columns.group])})
    if not (judged and not columns.response and alone):
        columns = choose_columns(names, columns.prompt, columns.response, columns.group)
        prompt = columns.prompt
    rows: dict[str, PromptRow] = {}
    for record in table.records:
        value = record.values.get
        text = joined(value(SYSTEM, ""), value(prompt, ""), value(columns.context, ""))
        answer = value(columns.response, "").strip()
        if value(prompt, "").strip() and (answer or judged):
            key = prompt_key(text)
            rows.setdefault(
                key, PromptRow(text, answer, value(columns.group, "").strip() or key, record.place)
            )
    if len(rows) < FEWEST:
        raise ConfigError(f"{path.name} has {len(rows)} usable rows; a comparison needs {FEWEST} at least")
    return list(rows.values())


Answered = tuple[PromptRow, Side, Side, PairJudgement | None]


async def compare(
    client: AsyncClient,
    old: str,
    new: str,
    rows: Sequence[PromptRow],
    *,
    metric: str = "",
    judge: ModelJudge | None = None,
    max_tokens: int = 256,
    done: Callable[[int], None] = lambda count: None,
) -> VersionComparison:
    """Ask both versions every prompt, greedily, and judge. `done` is called with the number of rows ended.

    Exactly one of `metric` and `judge` is set. Raises ClientError where no request can succeed, and
    ConfigError for rows that the metric cannot judge or where nothing is left to compare.
    """
    if metric:
        check_rows(metric, [_training_row(row) for row in rows])
    places, count = asyncio.Semaphore(AT_ONCE), 0

    async def one(row: PromptRow, swap: bool) -> tuple[Side, Side, PairJudgement | None]:
        nonlocal count
        async with places:
            names = (new, old) if swap else (old, new)  # neither version is always first in the queue
            sides = await asyncio.gather(*(_answered(client, row.prompt, name, max_tokens) for name in names))
            first, second = reversed(sides) if swap else sides
            judged = await _judged(judge, row, first, second) if judge else None
        count += 1
        done(count)
        return first, second, judged

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(row, bool(place % 2))) for place, row in enumerate(rows)]
    answered = [(row, *task.result()) for row, task in zip(rows, tasks, strict=True)]
    return judged_pairs(old, new, answered, metric=metric, max_tokens=max_tokens)


def judged_pairs(
    old: str, new: str, answered: Sequence[Answered], *, metric: str, max_tokens: int
) -> VersionComparison:
    """The result of all answers; an empty `metric`: a judge has seen each pair.

    Raises ConfigError where both versions refuse every row.
    """
    kept = [found for found in answered if not (found[1].error and found[2].error)]
    if not kept:
        raise ConfigError(f"both versions refuse every row: {answered[0][1].error}")
    pairs = _scored_by_metric(metric, kept, max_tokens) if metric else _scored_by_judge(kept)
    judgements = [judged for *_, judged in kept if judged]
    title = METRICS[metric].title if metric else "the judge"
    return VersionComparison(
        old,
        new,
        title,
        fmean(pair.old_score for pair in pairs),
        fmean(pair.new_score for pair in pairs),
        difference(
            [pair.new_score for pair in pairs],
            [pair.old_score for pair in pairs],
            [pair.row.group for pair in pairs],
        ),
        _load([pair.old for pair in pairs]),
        _load([pair.new for pair in pairs]),
        tuple(pairs),
        left_out=len(answered) - len(kept),
        ties=sum(pair.change == 0 for pair in pairs),
        contradictions=sum(found.contradicts for found in judgements),
        named_first=fmean(found.named_first / 2 for found in judgements) if judgements else 0.0,
        by_chance=_by_chance(metric, pairs, max_tokens) if metric else None,
    )


async def _answered(client: AsyncClient, prompt: str, adapter: str, max_tokens: int) -> Side:
    """One answer; a refused one is a result. Raises ClientError where others would fail alike."""
    try:
        answer: Answer = await client.generate(
            prompt, adapter=adapter, temperature=0.0, max_tokens=max_tokens
        )
    except ClientError as error:
        if error.code in ENDS_ALL:
            raise
        return Side(error=str(error))
    usage = answer.usage
    return Side(
        answer.text, usage.prompt_tokens, usage.completion_tokens, usage.time_to_first_token, usage.total_time
    )


async def _judged(judge: ModelJudge, row: PromptRow, old: Side, new: Side) -> PairJudgement:
    if old.error or new.error:
        return PairJudgement(0.5 + 0.5 * (bool(old.error) - bool(new.error)))
    return await judge.judge(row.prompt, row.response, old.text, new.text)


def _scored_by_judge(kept: Sequence[Answered]) -> list[ComparedPrompt]:
    """The new answer's score, and what is left of 1 for the old one."""
    return [
        ComparedPrompt(row, old, new, 1 - judged.score, judged.score, judged.contradicts)
        for row, old, new, judged in kept
        if judged
    ]


def _scored_by_metric(metric: str, kept: Sequence[Answered], max_tokens: int) -> list[ComparedPrompt]:
    rows = [row for row, *_ in kept]
    olds = _scores(metric, rows, [old for _, old, _, _ in kept], max_tokens)
    news = _scores(metric, rows, [new for _, _, new, _ in kept], max_tokens)
    return [
        ComparedPrompt(row, old, new, old_score, new_score)
        for (row, old, new, _), old_score, new_score in zip(kept, olds, news, strict=True)
    ]


def _scores(metric: str, rows: Sequence[PromptRow], sides: Sequence[Side], max_tokens: int) -> list[float]:
    distinct = dict.fromkeys(row.response for row in rows)
    labels = tuple(distinct) if len(distinct) <= LABELS else ()
    task = Task(metric, [_training_row(row) for row in rows], labels, max_tokens)
    scorer = score_answers(task, [side.text for side in sides]).score
    each = row_scores(scorer, len(sides), METRICS[metric].whole)
    return [0.0 if side.error else score for side, score in zip(sides, each, strict=True)]


def _by_chance(metric: str, pairs: Sequence[ComparedPrompt], max_tokens: int) -> Difference:
    """The new answers' scores minus their scores by the right answer of another row, drawn by a fixed seed.

    Where right answers say nothing about their prompts, both are alike. This matters where rows are those
    that one version got wrong: against them any other answer is a gain.
    """
    order = np.random.default_rng(0).permutation(len(pairs))
    other = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))  # of no row its own
    rows = [replace(pair.row, response=pairs[other[n]].row.response) for n, pair in enumerate(pairs)]
    scores = _scores(metric, rows, [pair.new for pair in pairs], max_tokens)
    return difference([pair.new_score for pair in pairs], scores, [pair.row.group for pair in pairs])


def _training_row(row: PromptRow) -> TrainingRow:
    return TrainingRow(row.prompt, row.response, row.place)


def _load(sides: Sequence[Side]) -> Load:
    answered = [side for side in sides if not side.error]
    if not answered:
        return Load(0.0, 0.0, 0.0, 0.0, len(sides))
    return Load(
        fmean(side.prompt_tokens for side in answered),
        fmean(side.tokens for side in answered),
        median(side.first_token for side in answered),
        median(side.total for side in answered),
        len(sides) - len(answered),
    )
