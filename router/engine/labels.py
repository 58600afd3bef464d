"""The probability of each choice of an answer, by a few short readings beside the answer.

The choices are a tree of tokens. Where it branches, the adapter's logits of the tokens that may come next say
how likely each branch is; the probability of a choice is the product over its branches. So it is the
probability that the choice is drawn under the constraint at temperature 1. Tokens that must come have
probability 1 and cost nothing. Likely branches are followed to their choices, from the root on; the choices
behind one that is less likely than LEAST share its probability equally.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass, replace
from math import log
from typing import TYPE_CHECKING, Any

import numpy as np

from router.engine.base import Buffered, Delta, Finished, Job, PoolingRequest
from router.engine.fairness import TenantCache
from router.errors import FieldViolation, InvalidRequest
from router.types import FinishReason, LabelProbabilities, LabelSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Read = Callable[[PoolingRequest], Coroutine[Any, Any, NDArray[np.float32]]]

LEAST = 0.001  # of a branch that is followed
MOST = 64  # branchings that are read for one answer
AT_ONCE = 8  # readings of one answer
KEPT = 32  # trees of choices


@dataclass(frozen=True, slots=True)
class Branching:
    """A place in the tree where several tokens may come next: behind the first `depth` tokens of any of the
    choices in `span`.

    `children` has the ids that lead to each child: one token, or all that end an answer. `leads` says where
    they lead: to a choice, or, as ~number, to another branching.
    """

    depth: int
    span: range
    children: tuple[tuple[int, ...], ...]
    leads: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LabelTree:
    """Choices as a tree of tokens, the root first; a single choice has no branching.

    `order` has the place of each choice among those that were given: in the tree they stand by their tokens,
    so that those behind a branching are side by side.
    """

    choices: tuple[tuple[int, ...], ...]
    order: tuple[int, ...]
    branchings: tuple[Branching, ...]

    @classmethod
    def of(cls, given: Sequence[Sequence[int]], ends: Sequence[int]) -> LabelTree:
        """The tree of choices, as tokens; `ends` are the tokens that end an answer."""
        order = sorted(range(len(given)), key=lambda place: tuple(given[place]))
        choices = tuple(tuple(given[place]) for place in order)
        made: list[Branching] = []
        waiting = [(range(len(choices)), 0)] if choices and choices[0] != choices[-1] else []
        while waiting:
            span, depth = waiting.pop(0)
            while len(groups := _groups(choices, span, depth)) == 1:
                depth += 1
            children, leads = [], []
            for token, inside in groups:
                children.append(tuple(ends) if token is None else (token,))
                if choices[inside[0]] == choices[inside[-1]]:
                    leads.append(inside[0])
                else:
                    waiting.append((inside, depth + 1))
                    leads.append(~(len(made) + len(waiting)))
            made.append(Branching(depth, span, tuple(children), tuple(leads)))
        return cls(choices, tuple(order), tuple(made))

    def way(self, one: Branching) -> tuple[int, ...]:
        """The tokens up to a branching."""
        return self.choices[one.span.start][: one.depth]

    def explored(self) -> Generator[list[Branching], Sequence[Floats], Floats]:
        """Log-probabilities float64 [choices], as they were given: yields the branchings to be read next, and
        is sent the logits of the ids of their children, a row for each."""
        found = np.full(len(self.choices), -np.inf)
        if not self.branchings:
            found[:1] = 0.0
        wave, left = [(0.0, one) for one in self.branchings[:1]], MOST
        while wave:
            wave.sort(key=lambda known: -known[0])
            _share(found, wave[left:])
            wave = wave[:left]
            if not wave:
                break
            left -= len(wave)
            logits = yield [one for _, one in wave]
            further: list[tuple[float, Branching]] = []
            for (mass, one), row in zip(wave, logits, strict=True):
                for child, lead in zip(_by_child(one, row) + mass, one.leads, strict=True):
                    if lead >= 0:
                        found[lead] = child
                    else:
                        further.append((float(child), self.branchings[~lead]))
            _share(found, [known for known in further if known[0] < log(LEAST)])
            wave = [known for known in further if known[0] >= log(LEAST)]
        given = np.empty_like(found)
        given[list(self.order)] = found
        return given


def _groups(choices: Sequence[tuple[int, ...]], span: range, depth: int) -> list[tuple[int | None, range]]:
    """Choices of a span by their token at that depth; None for those that end there, which come first."""
    found: list[tuple[int | None, range]] = []
    for place in span:
        token = choices[place][depth] if depth < len(choices[place]) else None
        if found and found[-1][0] == token:
            found[-1] = (token, range(found[-1][1].start, place + 1))
        else:
            found.append((token, range(place, place + 1)))
    return found


def _share(found: Floats, branches: Sequence[tuple[float, Branching]]) -> None:
    """Give the choices behind branches equal parts of their probability."""
    for mass, one in branches:
        found[one.span.start : one.span.stop] = mass - log(len(one.span))


def _by_child(one: Branching, logits: Floats) -> Floats:
    """Log-probabilities of the children, of the logits of their ids."""
    ends = np.cumsum([len(child) for child in one.children])[:-1]
    each = np.array([np.logaddexp.reduce(part) for part in np.split(logits.astype(np.float64), ends)])
    return np.asarray(each - np.logaddexp.reduce(each))


def choices_of(job: Job) -> tuple[str, ...]:
    """The choices of a job whose labels are wanted. Raises InvalidRequest where it has none."""
    constraint = job.params.constraint
    if constraint is None or constraint.kind != "choices":
        raise InvalidRequest([FieldViolation("want_labels", "needs choices")])
    return constraint.choices


class LabelTrees:
    """Trees of choices, and probabilities by them; those of a tenant are kept for it alone."""

    def __init__(self, encode: Callable[[str], list[int]], ends: Sequence[int]) -> None:
        """`encode` makes tokens of a choice, in a worker thread; `ends` end an answer."""
        self._encode, self._ends = encode, ends
        self._kept: TenantCache[tuple[str, ...], LabelTree] = TenantCache(KEPT)

    async def probabilities(self, job: Job, read: Read) -> LabelProbabilities:
        """Of a job's choices, by readings of an engine. Raises what those raise."""
        tree = await self._tree(job)
        exploring = tree.explored()
        places = asyncio.Semaphore(AT_ONCE)

        async def one(branching: Branching) -> Floats:
            async with places:
                return (await read(reading(job, tree, branching))).astype(np.float64)

        logits: list[Floats] | None = None
        try:
            while True:
                wave = next(exploring) if logits is None else exploring.send(logits)
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(one(branching)) for branching in wave]
                logits = [task.result() for task in tasks]
        except StopIteration as end:
            return probabilities(choices_of(job), end.value, job.labels or LabelSettings())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _tree(self, job: Job) -> LabelTree:
        tenant, choices = "" if job.own_constraint else job.tenant, choices_of(job)
        tree = self._kept.get(tenant, choices)
        if tree is None:
            tree = await asyncio.to_thread(self._made, choices)
            self._kept.put(tenant, choices, tree)
        return tree

    def _made(self, choices: Sequence[str]) -> LabelTree:
        return LabelTree.of([self._encode(choice) for choice in choices], self._ends)


def reading(job: Job, tree: LabelTree, branching: Branching) -> PoolingRequest:
    """The logits at a branching behind the prompt of a job."""
    return PoolingRequest(
        (*job.tokens[-1:], *tree.way(branching)),
        job.tokens[:-1],
        deadline=job.deadline,
        candidates=tuple(token for child in branching.children for token in child),
        adapter=job.adapter,
        tenant=job.tenant,
        shared=job.shared,
    )


def probabilities(
    choices: Sequence[str], log_probabilities: Floats, scale: LabelSettings
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
