"""The probability of each choice of an answer: by the logits of its own steps, and a few short readings.

The choices are a tree of tokens. Where it branches, the adapter's logits of the tokens that may come next say
how likely each branch is; the probability of a choice is the product over its branches. So it is the
probability that the choice is drawn under the constraint at temperature 1. Tokens that must come have
probability 1 and cost nothing. Likely branches are followed to their choices, from the root on; the choices
behind one that is less likely than LEAST share its probability equally. The branchings on the way of the
answer itself are noted as it is made. So an answer that the adapter is sure of needs no reading.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass, replace
from math import log
from typing import TYPE_CHECKING, Any

import numpy as np

from router.engine.base import Buffered, Delta, Finished, Job, PoolingRequest
from router.engine.tenant_cache import TenantCache
from router.errors import FieldViolation, InvalidRequest
from router.types import Constraint, FinishReason, LabelProbabilities, LabelSettings

if TYPE_CHECKING:
    import torch
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

    def find(self, way: Sequence[int]) -> Branching | None:
        """The branching behind these tokens, if there is one."""
        one = self.branchings[0] if self.branchings else None
        while one is not None and one.depth < len(way):
            if self.way(one) != tuple(way[: one.depth]):
                return None
            lead = next(
                (lead for ids, lead in zip(one.children, one.leads, strict=True) if way[one.depth] in ids), 0
            )
            one = self.branchings[~lead] if lead < 0 else None
        return one if one is not None and self.way(one) == tuple(way) else None

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


def choices_of(job: Job) -> Constraint:
    """The choices of a job whose labels are wanted. Raises InvalidRequest where it has none."""
    constraint = job.params.constraint
    if constraint is None or constraint.kind != "choices":
        raise InvalidRequest([FieldViolation("want_labels", "needs choices")])
    return constraint


class LabelNotes:
    """Logits at the branchings on the way of an answer, noted by the engine's thread."""

    def __init__(self, tree: LabelTree) -> None:
        self.tree = tree
        self.logits: dict[Branching, Floats] = {}

    def note(self, answer: Sequence[int], logits: torch.Tensor) -> None:
        """`logits` [vocabulary] are of the token behind `answer`."""
        one = self.tree.find(answer)
        if one is not None:
            ids = [token for child in one.children for token in child]
            self.logits[one] = logits[ids].double().cpu().numpy()


class LabelTrees:
    """Trees of choices, and probabilities by them; those of a tenant are kept for it alone."""

    def __init__(self, encode: Callable[[str], list[int]], ends: Sequence[int]) -> None:
        """`encode` makes tokens of a choice, in a worker thread; `ends` end an answer."""
        self._encode, self._ends = encode, ends
        self._kept: TenantCache[tuple[str, ...], LabelTree] = TenantCache(KEPT)

    def notes(self, job: Job) -> LabelNotes | None:
        """For a job whose labels are wanted; None where its tree is not there yet, and all has to be read.
        Raises InvalidRequest."""
        tree = self._kept.get(_tenant(job), choices_of(job).choices)
        return None if tree is None else LabelNotes(tree)

    async def probabilities(self, job: Job, read: Read, notes: LabelNotes | None) -> LabelProbabilities:
        """Of a job's choices, by what was noted and by readings of an engine. Raises what those raise."""
        tree = await self._tree(job) if notes is None else notes.tree
        noted = {} if notes is None else notes.logits
        exploring = tree.explored()
        places = asyncio.Semaphore(AT_ONCE)

        async def one(branching: Branching) -> Floats:
            if (known := noted.get(branching)) is not None:
                return known
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
        choices = choices_of(job).choices
        tree = self._kept.get(_tenant(job), choices)
        if tree is None:
            tree = await asyncio.to_thread(self._made, choices)
            self._kept.put(_tenant(job), choices, tree)
        return tree

    def _made(self, choices: Sequence[str]) -> LabelTree:
        return LabelTree.of([self._encode(choice) for choice in choices], self._ends)


def _tenant(job: Job) -> str:
    """Whose tree it is; whether another tenant asked for the same must not be measured."""
    return "" if job.own_constraint else job.tenant


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
    constraint: Constraint, log_probabilities: Floats, scale: LabelSettings
) -> LabelProbabilities:
    """Each choice with its probability, the likeliest first; scaled by the temperature, where there is one
    (Guo et al. 2017, arXiv 1706.04599)."""
    choices, scaled = constraint.choices, log_probabilities / (scale.temperature or 1.0)
    shares = np.exp(scaled - np.logaddexp.reduce(scaled))
    order = sorted(range(len(choices)), key=lambda place: -shares[place])
    return LabelProbabilities(
        tuple((choices[place], float(shares[place])) for place in order), scale.temperature is not None
    )


class Labelled:
    """A generation whose last event has the probabilities of its choices: they are read at its end."""

    def __init__(
        self, generation: Buffered, read: Callable[[], Coroutine[Any, Any, LabelProbabilities]]
    ) -> None:
        self._source, self._read = generation, read
        self._events: list[Delta | Finished] = []

    async def wait(self, least: int) -> None:
        """Return when `least` events are there, or the last one with its probabilities. Raises what the
        generation and the reading raise."""
        last = self._events[-1] if self._events else None
        while not isinstance(last, Finished) and len(self._events) < least:
            await self._source.wait(least - len(self._events))
            self._events += self._source.ready()
            last = self._events[-1]
        whole = isinstance(last, Finished) and last.reason in (FinishReason.STOP, FinishReason.LENGTH)
        if isinstance(last, Finished) and whole and last.labels is None:
            self._events[-1] = replace(last, labels=await self._read())

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
