"""Rows: jobs inside the engine, each an answer that grows token by token, or a reading."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, ClassVar

from router.engine.base import Finished, Job
from router.engine.blocks import Allocation, Chain
from router.engine.fairness import ANSWER_COST
from router.engine.ops import BLOCK
from router.types import FinishReason, Usage

if TYPE_CHECKING:
    from router.engine.constrained.follow import Follower
    from router.engine.handoff import Receiver
    from router.engine.sampling import SamplingState
    from router.engine.text.detokenize import Detokenizer

_numbers = count()


@dataclass(slots=True, eq=False, kw_only=True)
class Row:
    """Tokens, blocks and progress of one job, as the scheduler sees it. Touched by the engine thread only."""

    samples: ClassVar[bool] = True  # a token follows its last one

    stream: Receiver
    tokens: list[int] = field(init=False)
    total: int = field(init=False)  # most tokens it can grow to
    chain: Chain = field(init=False)  # from `Scheduler.add` on
    adapter: str | None = field(init=False, default=None)  # digest, None for the base
    deadline: float | None = field(init=False, default=None)  # time.monotonic() seconds
    priority: int = field(init=False, default=0)
    background: bool = field(init=False, default=False)  # gives way to every request
    owner: str = field(init=False)  # who alone finds its blocks again, but for those of `shared` tokens
    shared: int = field(init=False, default=0)
    inactive: int = 0  # tokens at its beginning that the base computes: before the adapter is activated
    tenant: str = field(init=False, default="")
    share: float = field(init=False, default=1.0)
    paid: int = 0  # of its cost, what its tenant was charged
    arrived: float = field(default_factory=time.monotonic)
    number: int = field(default_factory=_numbers.__next__)  # in the order of arrival
    queued: float = 0.0  # since when it waits: since it arrived or was last pushed aside
    admitted: float = 0.0  # for the first time
    computed: int = 0  # tokens whose keys and values are in the cache
    cached: int = 0  # of these, taken from the prefix cache when it was first admitted
    preempted: int = 0  # times
    allocation: Allocation | None = None

    @property
    def rank(self) -> tuple[int, int]:
        """Who comes first: the higher priority, then the earlier arrival. No two rows are equal."""
        return (-self.priority, self.number)

    @property
    def prefix(self) -> list[int]:
        """The tokens whose keys and values others may use."""
        return self.tokens

    @property
    def remaining(self) -> int:
        """Tokens still to be computed before the next one can be sampled."""
        return len(self.tokens) - self.computed

    @property
    def cost(self) -> int:
        """What its tenant was served by it so far, in tokens of a prompt."""
        return 0

    @property
    def room(self) -> int:
        """Tokens that it is given blocks for when it is admitted."""
        return self.total

    def restart(self) -> None:
        """Forget what was computed: its blocks are gone. Tokens stay."""
        self.computed = 0

    def finished(self, reason: FinishReason) -> Finished:
        """Its last event."""
        return Finished(reason)


@dataclass(slots=True, eq=False, kw_only=True)
class AnswerRow(Row):
    """A prompt and the answer that grows behind it."""

    job: Job
    sampling: SamplingState
    detokenizer: Detokenizer
    eos: frozenset[int]
    follower: Follower | None = None  # of the grammar that its constraint was compiled to
    prompt_length: int = field(init=False)
    first_token: float = 0.0
    unsent: int = 0  # tokens whose text is still held back

    def __post_init__(self) -> None:
        job = self.job
        self.tokens = list(job.tokens)
        self.total = len(job.tokens) + job.params.max_tokens
        self.adapter, self.deadline = job.adapter, job.deadline
        self.priority, self.background = job.priority, job.background
        self.owner, self.shared = f"tenant {job.tenant}", job.shared
        self.tenant, self.share = job.tenant, job.share
        self.prompt_length = len(job.tokens)

    @property
    def generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.prompt_length

    @property
    def cost(self) -> int:
        """Its prompt without what was cached, from its admission on, and its answer; nothing twice."""
        read = self.prompt_length - self.cached if self.admitted else 0
        return read + ANSWER_COST * self.generated

    @property
    def room(self) -> int:
        """Its tokens and the next one; more as it grows. One in the background pushes nobody aside: all."""
        return self.total if self.background else min(len(self.tokens) + 1, self.total)

    def length_reached(self) -> bool:
        """True once max_tokens were generated."""
        return len(self.tokens) >= self.total

    def usage(self) -> Usage:
        """Counts and times as of now, in seconds since arrival."""
        now = time.monotonic()
        started = self.admitted or now
        return Usage(
            prompt_tokens=self.prompt_length,
            cached_tokens=self.cached - self._untold,
            completion_tokens=self.generated,
            queue_time=started - self.arrived,
            time_to_first_token=(self.first_token or now) - self.arrived,
            total_time=now - self.arrived,
        )

    @property
    def _untold(self) -> int:
        """Cached tokens that may be so by what other tenants asked."""
        return min(self.cached, self.shared // BLOCK * BLOCK) if self.job.tenant else 0

    def ended_by(self, token: int) -> FinishReason | None:
        """Why the answer ends with `token`, if it does (stop strings are the detokenizer's)."""
        if token in self.eos:
            least = self.job.params.min_tokens if self.follower is None else 0  # a grammar wins
            if self.generated > least:
                return FinishReason.STOP
        return FinishReason.LENGTH if self.length_reached() else None

    def finished(self, reason: FinishReason) -> Finished:
        """The end, with counts and times."""
        return Finished(reason, self.usage(), self.detokenizer.stopped or "")


@dataclass(frozen=True, slots=True)
class Chunk:
    """`count` tokens of a row, from the one `after` tokens behind `row.computed` on.

    `samples`: the step computes the row's last token, so that a new one is sampled. `after`: tokens of the
    row that another chunk of the same step computes.
    """

    row: Row
    count: int
    samples: bool
    after: int = 0

    @property
    def adapter(self) -> str | None:
        """What acts on its tokens: the row's adapter, None for the base."""
        row = self.row
        return row.adapter if row.computed + self.after >= row.inactive else None
