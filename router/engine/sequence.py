"""One request inside the engine."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from router.engine.base import Finished, Job
from router.types import FinishReason, Usage

if TYPE_CHECKING:
    from router.engine.blocks import Allocation
    from router.engine.handoff import Receiver
    from router.engine.sampling import SamplingState
    from router.engine.text.detokenize import Detokenizer


@dataclass(slots=True, eq=False, kw_only=True)
class Row:
    """Tokens, blocks and progress of one job, as the scheduler sees it. Touched by the engine thread only."""

    samples: ClassVar[bool] = True  # a token follows its last one

    stream: Receiver
    tokens: list[int] = field(init=False)
    total: int = field(init=False)  # most tokens it can grow to
    adapter: str | None = field(init=False, default=None)  # digest, None for the base
    deadline: float | None = field(init=False, default=None)  # time.monotonic() seconds
    priority: int = field(init=False, default=0)
    background: bool = field(init=False, default=False)  # gives way to every request
    arrived: float = field(default_factory=time.monotonic)
    admitted: float = 0.0
    computed: int = 0  # tokens whose keys and values are in the cache
    cached: int = 0  # of these, taken from the prefix cache
    root: bytes = b""
    allocation: Allocation | None = None

    @property
    def prefix(self) -> list[int]:
        """The tokens whose keys and values others may use."""
        return self.tokens

    @property
    def remaining(self) -> int:
        """Tokens still to be computed before the next one can be sampled."""
        return len(self.tokens) - self.computed

    def finished(self, reason: FinishReason) -> Finished:
        """Its last event."""
        return Finished(reason)


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence(Row):
    """A prompt and the answer that grows behind it."""

    job: Job
    sampling: SamplingState
    detokenizer: Detokenizer
    eos: frozenset[int]
    first_token: float = 0.0
    unsent: int = 0  # tokens whose text is still held back

    def __post_init__(self) -> None:
        job = self.job
        self.tokens = list(job.tokens)
        self.total = len(job.tokens) + job.params.max_tokens
        self.adapter, self.deadline = job.adapter, job.deadline
        self.priority, self.background = job.priority, job.background

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return len(self.job.tokens)

    @property
    def generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.prompt_length

    def length_reached(self) -> bool:
        """True once max_tokens were generated."""
        return self.generated >= self.job.params.max_tokens

    def usage(self) -> Usage:
        """Counts and times as of now, in seconds since arrival."""
        now = time.monotonic()
        started = self.admitted or now
        return Usage(
            prompt_tokens=self.prompt_length,
            cached_tokens=self.cached,
            completion_tokens=self.generated,
            queue_time=started - self.arrived,
            time_to_first_token=(self.first_token or now) - self.arrived,
            total_time=now - self.arrived,
        )

    def ended_by(self, token: int) -> FinishReason | None:
        """Why the answer ends with `token`, if it does (stop strings are the detokenizer's)."""
        if token in self.eos and self.generated > self.job.params.min_tokens:
            return FinishReason.STOP
        return FinishReason.LENGTH if self.length_reached() else None

    def finished(self, reason: FinishReason) -> Finished:
        """The end, with counts and times."""
        return Finished(reason, self.usage(), self.detokenizer.stopped or "")
