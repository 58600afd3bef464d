"""All classifiers as a panel that votes on a request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection

from router.routing.labels import Labels
from router.routing.lane import Lane
from router.routing.lanes import Lanes
from router.routing.policy import Rule
from router.routing.scores import Answer
from router.types import Request, Vote, VoteError

OnVote = Callable[[Vote], None]


class Panel:
    """Asks lanes and reads their answers as votes for adapters. `on_vote` sees every vote, for metrics."""

    def __init__(self, lanes: Lanes, on_vote: OnVote | None = None) -> None:
        self._lanes, self._on_vote = lanes, on_vote

    async def until_settled(
        self,
        request: Request,
        labels: Labels,
        candidates: Collection[str],
        rule: Rule,
        heard: dict[str, Vote] | None = None,
    ) -> list[Vote]:
        """Votes in order, up to the one that settles it; who does not count is not asked.

        `heard` are votes on this request that were asked for before, by classifier; new ones are added.
        """
        known = {} if heard is None else heard
        votes: list[Vote] = []
        for lane in self._lanes.in_order():
            if not rule.asks(lane.name):
                continue
            if lane.name not in known:
                known[lane.name] = await self._vote(lane, request, labels)
            votes.append(known[lane.name])
            if rule.settled(votes, candidates):
                break
        return votes

    async def everyone(
        self, request: Request, labels: Labels, heard: dict[str, Vote] | None = None
    ) -> list[Vote]:
        """All votes, asked at once, in the order in which they count; `heard` as above."""
        known, lanes = {} if heard is None else heard, self._lanes.in_order()
        new = [lane for lane in lanes if lane.name not in known]
        votes = await asyncio.gather(*(self._vote(lane, request, labels) for lane in new))
        known.update((vote.classifier, vote) for vote in votes)
        return [known[lane.name] for lane in lanes]

    async def _vote(self, lane: Lane, request: Request, labels: Labels) -> Vote:
        started = time.perf_counter()
        answer = await _in_time(lane.ask(request), request.deadline)
        vote = as_vote(lane.name, answer, labels, time.perf_counter() - started)
        if self._on_vote is not None:
            self._on_vote(vote)
        return vote


def as_vote(classifier: str, answer: Answer, labels: Labels, latency: float) -> Vote:
    """A classifier's answer as a vote for adapters; labels that nothing is called are invalid."""
    scores = labels.spread(answer.confidences)
    error, evidence = answer.error, answer.evidence
    if answer.confidences and not scores:
        label = next(iter(answer.confidences))
        error, evidence = VoteError.INVALID, f"no adapter, domain or task is called {label[:64]!r}"
    return Vote(classifier, scores, answer.declined, error, latency, evidence)


async def _in_time(answer: asyncio.Future[Answer], deadline: float | None) -> Answer:
    """The answer, or a timeout at the request's own deadline (monotonic seconds)."""
    if answer.done() or deadline is None:
        return await answer
    try:
        async with asyncio.timeout_at(deadline):
            return await answer
    except TimeoutError:
        return Answer(error=VoteError.TIMEOUT)
