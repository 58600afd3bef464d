"""An adapter before its questions: on the plain base, in the engine, with the rows it is asked."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from router.evaluation.answering import Answering
from router.evaluation.arms import Arm, Asking, ask, worked_examples
from router.evaluation.metrics import Task
from router.evaluation.plan import Plan
from router.evaluation.speaker import Speaker
from router.evaluation.stage import Stage
from router.evaluation.subject import Subject, load_subject
from router.training.data import Row
from router.types import SamplingParams

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
