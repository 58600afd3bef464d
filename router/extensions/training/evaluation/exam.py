"""An adapter's exam: what is to be evaluated, its questions, and what each arm makes of them.

Adapters are found and their data is checked before anything heavy is loaded. The base is loaded plain, for
losses and the likeliest of all labels, and in the serving engine, for answers.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch

from router.errors import ConfigError
from router.extensions.training.base import LoadedBase, load_base
from router.extensions.training.data import AnswerModel, Example, Splits, TrainingRow, collate, load_splits
from router.extensions.training.evaluation.metrics import METRICS, check_rows, score_answers
from router.extensions.training.evaluation.scoring import (
    ArmScorer,
    MeanScorer,
    Resampled,
    Task,
    resample,
    row_scores,
)
from router.extensions.training.evaluation.subject import (
    Answerer,
    AnsweringEngine,
    ComparedArm,
    EngineAnswer,
    EvaluationSubject,
    Questions,
    encode_questions,
    load_subject,
    progress_bar,
    read_manifest,
    worked_examples,
)
from router.extensions.training.recipe import Recipe, load_recipe
from router.registry.format.manifest import Manifest
from router.registry.format.untrusted import nearest
from router.types import Constraint, LabelProbabilities, LabelSettings, SamplingParams


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """One adapter with all that its evaluation needs but the base."""

    folder: Path
    manifest: Manifest
    recipe_file: Path
    recipe: Recipe
    splits: Splits


def make_plan(folder: Path, recipes: Path) -> EvaluationPlan:
    """Raises ConfigError (no adapter, no recipe, bad data), AdapterRejected (bad manifest)."""
    manifest = read_manifest(folder)
    recipe_file = find_recipe(recipes, manifest.name, folder.resolve().name)
    recipe = load_recipe(recipe_file)
    if recipe.adapter.name != manifest.name:
        raise ConfigError(f"{recipe_file} is the recipe of {recipe.adapter.name}, not of {manifest.name}")
    splits = load_splits(recipe.data)
    check_rows(recipe.evaluation.metric, splits.test)
    return EvaluationPlan(folder, manifest, recipe_file, recipe, splits)


def find_recipe(recipes: Path, name: str, folder: str = "") -> Path:
    """`recipes`/NAME.toml, else NAME/recipe.toml there or here, as `adapters new` writes it.

    A second version's, in a folder NAME-SOMETHING, is `recipes`/NAME-SOMETHING.toml.
    Raises ConfigError that lists the places where none was found.
    """
    places = [recipes / f"{name}.toml", recipes / name / "recipe.toml", Path(name) / "recipe.toml"]
    if folder.startswith(f"{name}-"):
        places.insert(0, recipes / f"{folder}.toml")
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(map(str, places))
    raise ConfigError(
        f"no recipe of {name}: looked for {looked}; name its folder with --recipes, or measure it on rows of "
        "your own with --data FILE --metric METRIC"
    )


def find_folder(name: str, adapters: Path) -> Path:
    """A folder, or the adapter of that name. Raises ConfigError with the nearest known name."""
    for place in (Path(name), adapters / name):
        if (place / "adapter.toml").is_file():
            return place
    if Path(name).is_dir():
        raise ConfigError(
            f"{name} holds no adapter with a recipe: adapter.toml is not there; an adapter folder as PEFT "
            "saved it is measured on rows of your own with --data FILE --metric METRIC"
        )
    known = _names(adapters)
    hint = nearest(name, known) or f"; there are: {', '.join(known) or 'none'}"
    raise ConfigError(f"no adapter {name!r} in {adapters}{hint}")


def every_folder(adapters: Path, recipes: Path, say: Callable[[str], None]) -> list[Path]:
    """Adapters that have a recipe, by name; says which have none. Raises ConfigError if none has."""
    found, without = [], []
    for name in _names(adapters):
        manifest = read_manifest(adapters / name)
        try:
            find_recipe(recipes, manifest.name, name)
        except ConfigError:
            without.append(name)
        else:
            found.append(adapters / name)
    if not found:
        raise ConfigError(f"no adapter in {adapters} has a recipe in {recipes}: train one first")
    if without:
        say(f"without a recipe, not evaluated: {', '.join(without)}")
    return found


def _names(adapters: Path) -> Sequence[str]:
    return sorted(file.parent.name for file in adapters.glob("*/adapter.toml"))


LABEL_BATCH = 48  # labels judged together: the logits of their tokens are held at once
MOST_RANKED = 60  # rows whose labels are ranked
MOST_PAIRS = 2400  # of row and label: every label of every row goes through the model
Say = Callable[[str], None]
Drawn = TypeVar("Drawn")


@dataclass(frozen=True, slots=True)
class ReadyBase:
    """A base twice: plain, for losses and ranking, and in the serving engine, for answers."""

    plain: LoadedBase
    engine: AnsweringEngine


class ReadyBases:
    """Bases, each loaded once for all adapters on it. Keeps the last one; another one takes its place."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._model = ""
        self._ready: ReadyBase | None = None

    def ready(self, model: str) -> ReadyBase:
        """The base that a recipe names. Raises ConfigError if it cannot be had."""
        if self._ready is None or self._model != model:
            self._close()
            base = load_base(model, self._device)
            self._ready, self._model = ReadyBase(base, AnsweringEngine(base)), model
        return self._ready

    def _close(self) -> None:
        if self._ready is not None:
            self._ready.engine.close()
            self._ready = None

    def __enter__(self) -> ReadyBases:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()


@dataclass(frozen=True, slots=True)
class Exam:
    """Everything a measurement needs."""

    plan: EvaluationPlan
    subject: EvaluationSubject
    task: Task
    questions: Mapping[ComparedArm, Questions]
    answerers: Mapping[ComparedArm, Answerer]
    say: Say

    def report(self, what: str, started: float) -> None:
        """One line about a part that is done; `started` in time.monotonic() seconds."""
        self.say(f"{self.plan.manifest.name}: {what} ({time.monotonic() - started:.0f} s)")


@contextmanager
def examined(plan: EvaluationPlan, ready: ReadyBase, rows: int | None, say: Say) -> Iterator[Exam]:
    """The adapter on the plain base and in the engine; neither has it any more at the end.

    `rows` limits the test rows. Raises AdapterRejected for an adapter of another base, or one that the
    registry would refuse.
    """
    subject = load_subject(plan.folder, plan.manifest, ready.plain)
    try:
        digest = ready.engine.load(plan.folder)
        yield _set_exam(plan, subject, ready.engine, digest, draw_rows(plan.splits.test, rows), say)
        ready.engine.unload(digest)
    finally:
        subject.close()


def draw_rows(rows: Sequence[Drawn], count: int | None) -> list[Drawn]:
    """All rows, or `count` of them drawn by a fixed seed."""
    if count is None or count >= len(rows):
        return list(rows)
    return random.Random(0).sample(list(rows), count)


def _set_exam(
    plan: EvaluationPlan,
    subject: EvaluationSubject,
    engine: AnsweringEngine,
    digest: str,
    rows: Sequence[TrainingRow],
    say: Say,
) -> Exam:
    judging, generation = plan.recipe.evaluation, plan.recipe.generation
    task = Task(judging.metric, rows, _labels(plan), generation.max_tokens, judging.parts)
    shots = worked_examples(plan.splits.train, judging.shots)
    shape = plan.manifest.generation.constraint
    base = Answerer(engine, SamplingParams(generation.max_tokens, stop=generation.stop, constraint=shape))
    answerers = {
        arm: replace(base, adapter=digest, labels=_asked_labels(shape))
        if arm is ComparedArm.ADAPTER
        else base
        for arm in ComparedArm
    }
    questions = {arm: encode_questions(arm, rows, subject.rendering, shots) for arm in ComparedArm}
    return Exam(plan, subject, task, questions, answerers, say)


def _asked_labels(shape: Constraint | None) -> LabelSettings | None:
    """Probabilities that are not calibrated, of choices that have some."""
    return LabelSettings() if shape is not None and shape.kind == "choices" else None


def _labels(plan: EvaluationPlan) -> list[str]:
    """All answers of the training rows, commonest first, where answers come out of a list."""
    if not plan.recipe.label_task:
        return []
    return [label for label, _ in Counter(row.response for row in plan.splits.train).most_common()]


@dataclass(frozen=True, slots=True)
class MeasuredArm:
    """One arm's results; `ranked` only where there are labels. Lengths are means, in tokens.

    `rows` has the score of each row, from 0 to 1.
    """

    answers: tuple[str, ...]
    score: Resampled
    blind: Resampled
    ranked: Resampled | None
    loss: Resampled
    prompt_tokens: float
    answer_tokens: float
    parts: Mapping[str, Resampled] = field(default_factory=dict)
    rows: Sequence[float] = ()
    labels: Sequence[LabelProbabilities] = ()  # of each row


def measure_arm(exam: Exam, arm: ComparedArm) -> MeasuredArm:
    """Greedy answers and their scores, the loss on the gold answers, how often the gold label is best."""
    subject, task, questions = exam.subject, exam.task, exam.questions[arm]
    title, count, ranked = arm.value.replace("_", " "), len(task.rows), ranked_rows(task)
    given = exam.answerers[arm].answers(
        [example.prompt for example in questions.examples],
        title,
        [example.text for example in questions.examples],
    )
    answers = tuple(answer.text for answer in given)
    scores = score_answers(task, answers)
    losses = subject.losses(arm, questions.examples)
    likeliest = _rank_labels(subject, questions, task, ranked, f"{title}, labels") if ranked else None
    return MeasuredArm(
        answers=answers,
        score=resample(scores.score, count),
        blind=resample(scores.blind, count),
        ranked=resample(likeliest, len(ranked)) if likeliest else None,
        loss=resample(losses, count),
        prompt_tokens=questions.prompt_tokens,
        answer_tokens=sum(answer.usage.completion_tokens for answer in given) / count,
        parts={name: resample(part, count) for name, part in scores.parts.items()},
        rows=row_scores(scores.score, count, METRICS[task.metric].whole),
        labels=[answer.labels for answer in given if answer.labels is not None],
    )


def ranked_rows(task: Task) -> list[int]:
    """Places of the rows whose labels are ranked: all, or a draw by a fixed seed; none without labels."""
    count = min(len(task.rows), MOST_RANKED, MOST_PAIRS // len(task.labels)) if task.labels else 0
    return sorted(random.Random(0).sample(range(len(task.rows)), count))


def _rank_labels(
    subject: EvaluationSubject, questions: Questions, task: Task, rows: Sequence[int], title: str
) -> ArmScorer:
    """How often the likeliest label is the gold one, over `rows`: format plays no part."""
    labels = [subject.rendering.answer(label) for label in task.labels]
    right = []
    with subject.judged_as(questions.arm) as model, progress_bar(title, len(rows)) as done:
        for row in rows:
            found = likeliest_answer(model, questions.examples[row].prompt, labels)
            right.append(task.labels[found] == task.rows[row].response)
            done()
    return MeanScorer(right)


def likeliest_answer(model: AnswerModel, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> int:
    """Which of `answers` the model finds likeliest after `prompt`, by nats per token.

    Per token, so that long names are not at a loss (Holtzman et al. 2021 discuss the choices,
    https://aclanthology.org/2021.emnlp-main.564).
    """
    rows = [Example(tuple(prompt), tuple(answer)) for answer in answers]
    losses = []
    for start in range(0, len(rows), LABEL_BATCH):
        nats, tokens, _ = model.judge(collate(rows[start : start + LABEL_BATCH]).to(model.model.device))
        losses.append(nats / tokens)
    return int(torch.cat(losses).argmin())


TIMED_ROWS = 20


def measure_efficiency(
    questions: Mapping[ComparedArm, Questions],
    answerers: Mapping[ComparedArm, Answerer],
    points: Mapping[ComparedArm, float],
) -> dict[str, Any]:
    """Ask the first `TIMED_ROWS` questions one request after another, the arms in turn.

    `points` is what an answer of an arm earns on average on all rows, 0 to 1: the share of right answers,
    or the mean score. Each arm answers once before, so that weights and shared prompt are warm.

    Returns {"rows", "arms": {ARM: {"prompt_tokens", "cached_tokens", "answer_tokens", "seconds", "points",
    "seconds_per_point"}}}: means over answers; `cached_tokens` of the prompt were not computed again,
    `seconds_per_point` is `seconds` / `points`, None if nothing is right.
    """
    count = min(TIMED_ROWS, *(len(of_arm.examples) for of_arm in questions.values()))
    taken: dict[ComparedArm, list[EngineAnswer]] = {arm: [] for arm in questions}
    for arm, of_arm in questions.items():
        last = of_arm.examples[-1]
        answerers[arm].alone(last.prompt, last.text)
    for place in range(count):
        for arm, of_arm in questions.items():
            example = of_arm.examples[place]
            taken[arm].append(answerers[arm].alone(example.prompt, example.text))
    return {
        "rows": count,
        "arms": {arm.value: _costs(answers, points[arm]) for arm, answers in taken.items()},
    }


def _costs(answers: Sequence[EngineAnswer], points: float) -> dict[str, float | None]:
    def mean(name: str) -> float:
        return sum(float(getattr(answer.usage, name)) for answer in answers) / len(answers)

    seconds = mean("total_time")
    return {
        "prompt_tokens": round(mean("prompt_tokens"), 1),
        "cached_tokens": round(mean("cached_tokens"), 1),
        "answer_tokens": round(mean("completion_tokens"), 1),
        "seconds": round(seconds, 4),
        "points": round(points, 4),
        "seconds_per_point": round(seconds / points, 4) if points > 0 else None,
    }
