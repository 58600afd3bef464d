"""One request inside the engine."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from router.engine.base import Job
from router.types import FinishReason, Usage

if TYPE_CHECKING:
    from router.engine.blocks import Allocation
    from router.engine.handoff import Stream
    from router.engine.sampling import SamplingState
    from router.engine.text.detokenize import Detokenizer


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens, blocks and progress of one job. Touched by the engine thread only."""

    job: Job
    stream: Stream
    sampling: SamplingState
    detokenizer: Detokenizer
    tokens: list[int]  # prompt and answer
    prompt_length: int
    eos: frozenset[int]
    arrived: float = field(default_factory=time.monotonic)
    admitted: float = 0.0
    first_token: float = 0.0
    computed: int = 0  # tokens whose keys and values are in the cache
    cached: int = 0  # of these, taken from the prefix cache
    unsent: int = 0  # tokens whose text is still held back
    root: bytes = b""
    allocation: Allocation | None = None

    @property
    def adapter(self) -> str | None:
        """Digest of the adapter, None for the base."""
        return self.job.adapter

    @property
    def generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.prompt_length

    @property
    def remaining(self) -> int:
        """Tokens still to be computed before the next one can be sampled."""
        return len(self.tokens) - self.computed

    @property
    def total(self) -> int:
        """Most tokens the sequence can grow to."""
        return self.prompt_length + self.job.params.max_tokens

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
