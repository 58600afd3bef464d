"""The latest requests, in memory, as they end; nothing of their texts."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from heapq import nlargest
from itertools import count

from router.access.clients import Client
from router.extensions.console.decisions import MOST_SCORES
from router.feedback.recent import RecentAnswers
from router.server.call import Call
from router.types import Decision, Usage, Vote

MOST, MOST_BYTES = 1000, 4 << 20  # of answered and cancelled requests, and as much of refused and failed ones
ENTRY_BYTES, VOTE_BYTES = 2000, 1000  # of memory, at most; estimated
MOST_WORDS = 200  # characters of a vote's evidence
LATELY = 15  # minutes that counts are of
MOST_CODES = 32  # of one outcome in a minute
OTHER = "OTHER"


class Outcome(StrEnum):
    """How a request ended."""

    FAILED = "failed"
    """The server could not answer, or not in time."""
    REFUSED = "refused"
    """The request, its sender, or the load did not allow it."""
    CANCELLED = "cancelled"
    """By the client."""
    ANSWERED = "answered"


TONES = {Outcome.ANSWERED: "ok", Outcome.REFUSED: "warn", Outcome.FAILED: "bad", Outcome.CANCELLED: ""}
WRONG = (Outcome.FAILED, Outcome.REFUSED)
FAILURES = frozenset({"INTERNAL", "UNKNOWN", "DATA_LOSS", "UNAVAILABLE", "DEADLINE_EXCEEDED"})
NO_FAILURES = frozenset({"QUEUE_FULL", "DRAINING", "MODEL_LOADING"})  # reasons of UNAVAILABLE


def outcome_of(code: str, reason: str) -> Outcome:
    """Of a status and the reason of its error.

    >>> str(outcome_of("OK", "")), str(outcome_of("UNAVAILABLE", "QUEUE_FULL"))
    ('answered', 'refused')
    """
    if code in ("OK", "CANCELLED"):
        return Outcome.ANSWERED if code == "OK" else Outcome.CANCELLED
    return Outcome.FAILED if code in FAILURES and reason not in NO_FAILURES else Outcome.REFUSED


@dataclass(frozen=True, slots=True)
class PastRequest:
    """A request that has ended. `time` in unix seconds, `seconds` from its arrival to its end."""

    number: int  # in the order in which they ended
    time: float
    seconds: float
    method: str
    client: str  # or the address that it came from
    known: str  # the id of the client; empty for one that is not known
    tenant: str
    request_id: str
    response_id: str
    model: str  # that it asked for
    outcome: Outcome
    code: str  # OK, or the reason of its error
    decision: Decision | None
    usage: Usage | None
    finish: str

    @property
    def size(self) -> int:
        """Bytes of memory, at most."""
        return ENTRY_BYTES + VOTE_BYTES * (len(self.decision.votes) if self.decision is not None else 0)

    @property
    def adapter(self) -> tuple[str, str]:
        """Name and version of who answered; both empty where nothing was chosen."""
        return self.decision.answered_by if self.decision is not None else ("", "")


class RequestLog:
    """The latest requests, and counts of the last minutes. `ended` is an observer of the server's metrics.

    Answered requests push out no failed ones, and a flood of one tenant pushes out its own. Lives on the
    event loop.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._numbers = now, count(1)
        self._good, self._wrong = (RecentAnswers[PastRequest](MOST, MOST_BYTES) for _ in range(2))
        self._minutes: deque[tuple[int, Counter[tuple[Outcome, str]]]] = deque(maxlen=LATELY)

    def ended(self, call: Call, status: str, reason: str) -> None:
        """A request has ended with that status; `reason` is that of its error."""
        outcome, code, answer = outcome_of(status, reason), reason or status, call.answer
        one = PastRequest(
            number=next(self._numbers),
            time=time.time(),
            seconds=time.monotonic() - call.started,
            method=call.method if call.transport == "http" else call.verb,
            client=call.actor,
            known=call.client.id,
            tenant=call.client.tenant,
            request_id=call.request_id,
            response_id=call.response_id,
            model=answer.model,
            outcome=outcome,
            code=code,
            decision=shortened(call.answer.decision, call.answer.votes)
            if call.answer.decision is not None
            else None,
            usage=answer.usage,
            finish=answer.finish,
        )
        (self._wrong if outcome in WRONG else self._good).add(str(one.number), one.tenant, one)
        minute = int(self._now() // 60)
        if not self._minutes or self._minutes[-1][0] != minute:
            self._minutes.append((minute, Counter()))
        counts = self._minutes[-1][1]
        counts[outcome, code if (outcome, code) in counts or len(counts) < MOST_CODES else OTHER] += 1

    def lately(self) -> Counter[tuple[Outcome, str]]:
        """How many ended in the last 15 minutes, by outcome and code."""
        first = int(self._now() // 60) - LATELY + 1
        return sum((counts for minute, counts in self._minutes if minute >= first), Counter())

    def seen_by(self, client: Client) -> list[PastRequest]:
        """Failed and refused ones first, the newest of each first: all of them only for a client that may
        know of all adapters, for any other its own."""
        mine = (
            one for one in (*self._wrong, *self._good) if client.adapters.everything or one.known == client.id
        )
        return sorted(mine, key=lambda one: (one.outcome not in WRONG, -one.number))


def shortened(decision: Decision, votes: Iterable[Vote]) -> Decision:
    """With the highest scores of each vote alone: a vote may have one for each of many adapters."""
    short = (
        replace(
            vote,
            scores=dict(nlargest(MOST_SCORES, vote.scores.items(), key=lambda pair: pair[1])),
            evidence=vote.evidence[:MOST_WORDS],
        )
        for vote in votes
    )
    return replace(decision, votes=tuple(short))
