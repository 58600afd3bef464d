"""An adapter before its questions: on the plain base, in the engine, with the rows it is asked."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType

from router.evaluation.answering import Answering, Speaker
from router.evaluation.metrics import Task
from router.evaluation.plan import Plan
from router.evaluation.subject import Arm, Asking, Subject, ask, load_subject, worked_examples
from router.training.base import LoadedBase, load_base
from router.training.data import Row
from router.types import SamplingParams

# Bases, each loaded once for all adapters that are evaluated on it.


@dataclass(frozen=True, slots=True)
class Stage:
    """A base twice: plain, for losses and ranking, and in the serving engine, for answers."""

    base: LoadedBase
    answering: Answering


class Stages:
    """Keeps the last base; another one takes its place."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._model = ""
        self._stage: Stage | None = None

    def on(self, model: str) -> Stage:
        """The base that a recipe names. Raises ConfigError if it cannot be had."""
        if self._stage is None or self._model != model:
            self._close()
            base = load_base(model, self._device)
            self._stage, self._model = Stage(base, Answering(base)), model
        return self._stage

    def _close(self) -> None:
        if self._stage is not None:
            self._stage.answering.close()
            self._stage = None

    def __enter__(self) -> Stages:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()


Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Exam:
    """Everything a measurement needs."""

    plan: Plan
    subject: Subject
    task: Task
    askings: Mapping[Arm, Asking]
    speakers: Mapping[Arm, Speaker]
    say: Say

    def tell(self, what: str, started: float) -> None:
        """One line about a part that is done; `started` in time.monotonic() seconds."""
        self.say(f"{self.plan.manifest.name}: {what} ({time.monotonic() - started:.0f} s)")


@contextmanager
def examined(plan: Plan, stage: Stage, rows: int | None, say: Say) -> Iterator[Exam]:
    """The adapter on the plain base and in the engine; neither has it any more at the end.

    `rows` limits the test rows. Raises AdapterRejected for an adapter of another base, or one that the
    registry would refuse.
    """
    subject = load_subject(plan.folder, plan.manifest, stage.base)
    try:
        digest = stage.answering.load(plan.folder)
        yield _questions(plan, subject, stage.answering, digest, draw(plan.splits.test, rows), say)
        stage.answering.unload(digest)
    finally:
        subject.close()


def _questions(
    plan: Plan, subject: Subject, answering: Answering, digest: str, asked: Sequence[Row], say: Say
) -> Exam:
    judging, generation = plan.recipe.evaluation, plan.recipe.generation
    task = Task(judging.metric, asked, _labels(plan), generation.max_tokens, judging.parts)
    shots = worked_examples(plan.splits.train, judging.shots)
    base = Speaker(answering, SamplingParams(max_tokens=generation.max_tokens, stop=generation.stop))
    speakers = {arm: replace(base, adapter=digest if arm is Arm.ADAPTER else None) for arm in Arm}
    askings = {arm: ask(arm, asked, subject.rendering, shots) for arm in Arm}
    return Exam(plan, subject, task, askings, speakers, say)


def draw(rows: Sequence[Row], count: int | None) -> list[Row]:
    """All rows, or `count` of them drawn by a fixed seed."""
    if count is None or count >= len(rows):
        return list(rows)
    return random.Random(0).sample(list(rows), count)


def _labels(plan: Plan) -> list[str]:
    """All answers of the training rows, commonest first, where answers come out of a list."""
    if not plan.recipe.label_task:
        return []
    return [label for label, _ in Counter(row.response for row in plan.splits.train).most_common()]
