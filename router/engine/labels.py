"""The probability of each choice of an answer, by a few short readings beside the answer.

The choices are a tree of tokens. Where it branches, the adapter's logits of the tokens that may come next say
how likely each branch is; the probability of a choice is the product over its branches. So it is the
probability that the choice is drawn under the constraint at temperature 1. Tokens that must come have
probability 1 and cost nothing: of 19 choices with 180 tokens, 5 tokens are read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from router.engine.base import Buffered, Delta, Finished, Job, PoolingRequest
from router.errors import FieldViolation, InvalidRequest
from router.types import MAX_LABELLED, FinishReason, LabelProbabilities, LabelSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Read = Callable[[PoolingRequest], Coroutine[Any, Any, NDArray[np.float32]]]

AT_ONCE = 8  # readings of one answer
KEPT = 64  # trees of choices


@dataclass(frozen=True, slots=True)
class Branching:
    """A place in the tree where several tokens may come next: behind `before` tokens of path `path`.

    `children` has the ids that lead to each child: one token, or all that end an answer.
    """

    path: int
    before: int
    children: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class LabelTree:
    """Choices as a tree of tokens.

    `paths` are read behind the prompt; none is the beginning of another. `steps` has, for each choice, the
    branchings on its way and which child it takes there.
    """

    paths: tuple[tuple[int, ...], ...]
    branchings: tuple[Branching, ...]
    steps: tuple[tuple[tuple[int, int], ...], ...]

    @classmethod
    def of(cls, choices: Sequence[Sequence[int]], ends: Sequence[int]) -> LabelTree:
        """The tree of choices, as tokens; `ends` are the tokens that end an answer."""
        whole: list[tuple[int | None, ...]] = [(*choice, None) for choice in choices]  # None: the end
        children: dict[tuple[int | None, ...], dict[int | None, None]] = {}
        for tokens in whole:
            for place, token in enumerate(tokens):
                children.setdefault(tokens[:place], {})[token] = None
        nodes = {node: list(found) for node, found in children.items() if len(found) > 1}
        paths: list[tuple[int, ...]] = []
        for node in sorted(nodes, key=len, reverse=True):
            way = tuple(token for token in node if token is not None)
            if not any(path[: len(way)] == way for path in paths):
                paths.append(way)
        numbers = {node: number for number, node in enumerate(nodes)}
        branchings = tuple(
            Branching(
                next(i for i, path in enumerate(paths) if path[: len(node)] == node),
                len(node),
                tuple(tuple(ends) if token is None else (token,) for token in found),
            )
            for node, found in nodes.items()
        )
        steps = tuple(
            tuple(
                (numbers[tokens[:place]], nodes[tokens[:place]].index(token))
                for place, token in enumerate(tokens)
                if tokens[:place] in nodes
            )
            for tokens in whole
        )
        return cls(tuple(paths), branchings, steps)

    def readings(self, job: Job) -> list[PoolingRequest]:
        """What is to be read behind the prompt of a job: one reading a path."""
        *context, last = job.tokens
        return [
            PoolingRequest(
                (last, *path),
                context,
                deadline=job.deadline,
                candidates=tuple(
                    (one.before, token)
                    for one in self.branchings
                    if one.path == number
                    for child in one.children
                    for token in child
                ),
                adapter=job.adapter,
                tenant=job.tenant,
                shared=job.shared,
            )
            for number, path in enumerate(self.paths)
        ]

    def log_probabilities(self, values: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
        """Of each choice, float64 [choices], of the logits that the `readings` gave. Their sum is 1."""
        places = [0] * len(self.paths)
        found: list[NDArray[np.float64]] = []
        for one in self.branchings:
            logits = []
            for child in one.children:
                start = places[one.path]
                places[one.path] = start + len(child)
                part = values[one.path][start : start + len(child)].astype(np.float64)
                logits.append(np.logaddexp.reduce(part))
            found.append(np.array(logits) - np.logaddexp.reduce(logits))
        return np.array([sum(found[number][child] for number, child in steps) for steps in self.steps])


def choices_of(job: Job) -> tuple[str, ...]:
    """The choices of a job whose labels are wanted. Raises InvalidRequest where it has none, or too many."""
    constraint = job.params.constraint
    if constraint is None or constraint.kind != "choices":
        raise InvalidRequest([FieldViolation("want_labels", "needs choices")])
    if len(constraint.choices) > MAX_LABELLED:
        text = f"is possible for at most {MAX_LABELLED} choices, these are {len(constraint.choices)}"
        raise InvalidRequest([FieldViolation("want_labels", text)])
    return constraint.choices


async def read_labels(read: Read, job: Job, tree: LabelTree) -> LabelProbabilities:
    """The probabilities of a job's choices, by `read` of an engine. Raises what that raises."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(reading: PoolingRequest) -> NDArray[np.float32]:
        async with places:
            return await read(reading)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(reading)) for reading in tree.readings(job)]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    found = tree.log_probabilities([task.result() for task in tasks])
    return probabilities(choices_of(job), found, job.labels or LabelSettings())


def probabilities(
    choices: Sequence[str], log_probabilities: NDArray[np.float64], scale: LabelSettings
) -> LabelProbabilities:
    """Each choice with its probability, the likeliest first; scaled by the temperature, where there is one
    (Guo et al. 2017, arXiv 1706.04599)."""
    scaled = log_probabilities / (scale.temperature or 1.0)
    shares = np.exp(scaled - np.logaddexp.reduce(scaled))
    order = sorted(range(len(choices)), key=lambda place: -shares[place])
    return LabelProbabilities(
        tuple((choices[place], float(shares[place])) for place in order), scale.temperature is not None
    )


class Labelled:
    """A generation whose last event has the probabilities of its choices.

    They are read from its first event on, when the prompt is in the prefix cache, beside its own steps.
    """

    def __init__(
        self, generation: Buffered, read: Callable[[], Coroutine[Any, Any, LabelProbabilities]]
    ) -> None:
        self._source, self._read = generation, read
        self._reading: asyncio.Task[LabelProbabilities] | None = None
        self._events: list[Delta | Finished] = []

    async def wait(self, least: int) -> None:
        """Return when `least` events are there, or the last one with its probabilities. Raises what the
        generation and the reading raise."""
        while not self._ended and len(self._events) < least:
            await self._source.wait(1 if self._reading is None else least - len(self._events))
            self._events += self._source.ready()
            if self._reading is None:
                self._reading = asyncio.create_task(self._read())
                self._reading.add_done_callback(_noted)
        last = self._events[-1] if self._events else None
        if isinstance(last, Finished) and last.labels is None and self._reading is not None:
            if last.reason in (FinishReason.STOP, FinishReason.LENGTH):
                self._events[-1] = replace(last, labels=await self._reading)
            else:
                self._reading.cancel()

    @property
    def _ended(self) -> bool:
        return bool(self._events) and isinstance(self._events[-1], Finished)

    async def __aiter__(self) -> AsyncIterator[Delta | Finished]:
        """Deltas, then one Finished; leaving early cancels."""
        try:
            ended = False
            while not ended:
                await self.wait(1)
                for event in self.ready():
                    yield event
                    ended = isinstance(event, Finished)
        finally:
            self.cancel()

    def ready(self) -> Sequence[Delta | Finished]:
        """Take the events that are there."""
        found, self._events = self._events, []
        return found

    def cancel(self) -> None:
        """Ask the engine to drop it."""
        self._source.cancel()
        if self._reading is not None:
            self._reading.cancel()


def _noted(reading: asyncio.Task[LabelProbabilities]) -> None:
    """Its error belongs to the generation, which may have ended by one of its own."""
    if not reading.cancelled():
        reading.exception()
