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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from router.errors import ConfigError
from router.extensions.training.base import LoadedBase, load_base
from router.extensions.training.data import Splits, TrainingRow, load_splits
from router.extensions.training.evaluation.metrics import METRICS
from router.extensions.training.evaluation.scoring import (
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
    read_manifest,
    worked_examples,
)
from router.extensions.training.recipe import Recipe, load_recipe
from router.names import looks_like_version
from router.registry.folders import places
from router.registry.format.manifest import Manifest
from router.registry.format.untrusted import nearest
from router.sources.adding import AdaptersFolder
from router.types import Constraint, LabelProbabilities, LabelSettings, SamplingParams


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """One adapter with all that its evaluation needs but the base."""

    folder: Path
    manifest: Manifest
    recipe_file: Path
    recipe: Recipe
    splits: Splits


def make_plan(candidate: CandidateFolder, recipes: Path) -> EvaluationPlan:
    """Raises ConfigError (no recipe, bad data)."""
    folder, manifest = candidate.folder, candidate.manifest
    recipe_file = find_recipe(recipes, manifest.name, folder.name)
    recipe = load_recipe(recipe_file)
    if recipe.adapter.name != manifest.name:
        raise ConfigError(f"{recipe_file} is the recipe of {recipe.adapter.name}, not of {manifest.name}")
    splits = load_splits(recipe.data)
    METRICS[recipe.evaluation.metric].check(splits.test)
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
        f"no recipe of {name}: looked for {looked}; `lora-router adapters new {name} --data FILE` makes one "
        "of rows of your own"
    )


@dataclass(frozen=True, slots=True)
class CandidateFolder:
    """An adapter folder that was looked into."""

    given: str  # on the command line
    folder: Path
    manifest: Manifest


def find_candidate(given: str, adapters: Path) -> CandidateFolder:
    """A folder, or the adapter of that name (NAME, NAME/VERSION or NAME@VERSION); PEFT's own folder without
    adapter.toml will do.

    Raises ConfigError (none there, or several versions), AdapterRejected with all that is wrong with it.
    """
    named = adapters / given.replace("@", "/")
    top = next((place for place in (Path(given), named, _beside(given, adapters)) if place.is_dir()), None)
    if top is None:
        known = sorted(entry.name for entry in adapters.iterdir()) if adapters.is_dir() else []
        raise ConfigError(f"no adapter folder {given!r}, here or in {adapters}{nearest(given, known)}")
    versions = places(top.resolve())
    if len(versions) > 1:
        listed = ", ".join(str(top / place.version) for place in versions)
        raise ConfigError(f"{top} holds several versions, name one of them: {listed}")
    folder = versions[0].folder
    return CandidateFolder(given, folder, _named(read_manifest(folder), folder))


def _beside(given: str, adapters: Path) -> Path:
    """The folder that has NAME@VERSION in its manifest, such as NAME or NAME-VERSION."""
    found = AdaptersFolder(adapters).versions() if "@" in given and adapters.is_dir() else ()
    return next((folder for ref, folder in found if str(ref) == given), Path(given))


def _named(manifest: Manifest, folder: Path) -> Manifest:
    """NAME/VERSION says both where there is no manifest."""
    if (folder / "adapter.toml").exists() or not looks_like_version(folder.name):
        return manifest
    return replace(manifest, name=folder.parent.name, version=folder.name)


Say = Callable[[str], None]
Drawn = TypeVar("Drawn")


@dataclass(frozen=True, slots=True)
class ReadyBase:
    """A base twice: plain, for losses and ranking, and in the serving engine, for answers."""

    plain: LoadedBase
    engine: AnsweringEngine


@contextmanager
def ready_base(model: str, device: str) -> Iterator[ReadyBase]:
    """A base by its name. Raises ConfigError if it cannot be had."""
    base = load_base(model, device)
    engine = AnsweringEngine(base)
    try:
        yield ReadyBase(base, engine)
    finally:
        engine.close()


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
    digest = ready.engine.load(plan.folder)
    subject = load_subject(plan.folder, plan.manifest, ready.plain)
    try:
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
    """One arm's results; `loss` only where it was measured. Lengths are means, in tokens.

    `rows` has the score of each row, from 0 to 1.
    """

    answers: tuple[str, ...]
    score: Resampled
    blind: Resampled
    prompt_tokens: float
    answer_tokens: float
    parts: Mapping[str, Resampled]
    rows: Sequence[float]
    labels: Sequence[LabelProbabilities] = ()  # of each row
    loss: Resampled | None = None


def judged_arm(task: Task, prompts: Sequence[Sequence[int]], given: Sequence[EngineAnswer]) -> MeasuredArm:
    """What the answers to the rows of a task score."""
    answers, count = tuple(answer.text for answer in given), len(given)
    scores = METRICS[task.metric].scores(task, answers)
    return MeasuredArm(
        answers=answers,
        score=resample(scores.score, count),
        blind=resample(scores.blind, count),
        prompt_tokens=sum(map(len, prompts)) / count,
        answer_tokens=sum(answer.usage.completion_tokens for answer in given) / count,
        parts={name: resample(part, count) for name, part in scores.parts.items()},
        rows=row_scores(scores.score, count, METRICS[task.metric].whole),
        labels=[answer.labels for answer in given if answer.labels is not None],
    )


def measure_arm(exam: Exam, arm: ComparedArm) -> MeasuredArm:
    """Greedy answers and their scores, and the loss on the gold answers."""
    questions = exam.questions[arm]
    prompts = [example.prompt for example in questions]
    given = exam.answerers[arm].answers(prompts, [example.text for example in questions])
    losses = exam.subject.losses(arm, questions)
    return replace(judged_arm(exam.task, prompts, given), loss=resample(losses, len(prompts)))


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
    count = min(TIMED_ROWS, *(len(of_arm) for of_arm in questions.values()))
    taken: dict[ComparedArm, list[EngineAnswer]] = {arm: [] for arm in questions}
    for arm, of_arm in questions.items():
        last = of_arm[-1]
        answerers[arm].answers([last.prompt], [last.text])
    for place in range(count):
        for arm, of_arm in questions.items():
            example = of_arm[place]
            taken[arm] += answerers[arm].answers([example.prompt], [example.text])
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
