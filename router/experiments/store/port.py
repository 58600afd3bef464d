"""What the rest asks of the store. Every call blocks: call it from a thread, never from the event loop.

All raise StoreDown where the database cannot be reached; what was acknowledged before is kept.

A stated rule: an outcome counts for a unit if its time is not after the unit's first exposure plus `window`,
and if it came (`Outcome.received`, by the server's clock; 0: at once) not after that plus `grace`. Else it is
LATE: kept, not counted, nor as the unit's past. So nothing changes the value of a unit that may be judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from router.experiments.model import (
    Accepted,
    AuditEntry,
    Disagreement,
    Experiment,
    Exposure,
    Outcome,
    Pair,
)

if TYPE_CHECKING:  # numpy, which those who only call do not need
    from router.experiments.stats import Moments


@dataclass(frozen=True, slots=True)
class Bucket:
    """Sums of the units that were first exposed in a stretch of time.

    `start` is unix seconds. `exposed` is the number of units; `answered` how many have the metric.
    `lengths` has the columns (value of the primary metric, mean completion_tokens of the unit's answers)
    of the units that have both, where the primary metric is no ratio; None where that is not kept.
    `segments` has the primary metric's sums by label and value of the plan's segments.
    """

    arm: str
    start: float
    seconds: float
    exposed: int
    degraded: int
    answered: Mapping[str, int]  # metric -> units with an outcome
    moments: Mapping[str, Moments]  # metric -> columns as its Metric has them
    lengths: Moments | None = None
    segments: Mapping[tuple[str, str], Moments] = field(default_factory=dict)


class PairCounts(NamedTuple):
    """A shadow arm's judged pairs. `units` have one that is no tie; `share_sum` adds up each one's share of
    wins among those. A pair without a unit is a unit of its own."""

    wins: int = 0
    losses: int = 0
    ties: int = 0
    units: int = 0
    share_sum: float = 0.0


@dataclass(frozen=True, slots=True)
class PhaseData:
    """Everything a report needs of a phase: read in milliseconds, whatever the number of units."""

    buckets: tuple[Bucket, ...]  # by start, then arm
    crossed: int  # units shown more than one arm
    digests: Mapping[str, tuple[str, ...]]  # arm -> distinct adapter/base/router digests, in order
    responses: Mapping[str, int]  # arm -> answers to its units
    peak: float  # largest log evidence of the sample-ratio test so far
    built_in: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Arm -> built-in metric -> its mean over the arm's responses; empty where that is not kept."""


class Store(Protocol):
    """Experiments, exposures, outcomes and the audit trail."""

    def salt(self, purpose: str) -> str:
        """The server's own salt for `holdout` or `namespace:NAME`: made once, kept for ever."""
        ...

    def create(self, experiment: Experiment) -> Experiment:
        """Keep it, with an etag. Raises AlreadyExists."""
        ...

    def get(self, name: str) -> Experiment:
        """Raises ExperimentNotFound."""
        ...

    def list(self) -> tuple[Experiment, ...]:
        """All, by name."""
        ...

    def replace(self, experiment: Experiment, audit: AuditEntry) -> Experiment:
        """Put it in place of the one with the same etag, and keep the audit entry with it.

        Where a phase has other metrics than before, their sums are made from what was recorded, as if they
        had been there from the start. Raises ExperimentNotFound, StaleEtag.
        """
        ...

    def delete(self, name: str, etag: str = "") -> None:
        """Forget it and all that was logged of it. Raises ExperimentNotFound, StaleEtag."""
        ...

    def expose(self, exposures: Sequence[Exposure]) -> None:
        """Keep them; the same response again changes nothing. Durable when it returns.

        Arm, window and segments of a unit are those of the exposure of it that was kept first. Of a label
        whose values the plan does not name the first `MAX_SEGMENT_VALUES` in a phase are told apart. Outcomes
        that came before their exposure are counted now. Exposures of a phase that is not there (any more)
        are dropped with a warning.
        """
        ...

    def record(self, outcomes: Sequence[Outcome]) -> tuple[Accepted, ...]:
        """Count them, in order; durable when it returns.

        A key that was there already is DUPLICATE if it was counted, and else what it was before (LATE,
        UNKNOWN). An outcome of a response counts in every phase the response was exposed in; one of a unit
        in the last phase whose exposure of that unit is not after it. UNKNOWN ones are kept for a while:
        they count when their exposure comes, and as covariates. Where as many are kept as may be they are
        NOT_KEPT.
        """
        ...

    def pairs(self, pairs: Sequence[Pair]) -> None:
        """Keep judged pairs of shadow arms."""
        ...

    def disagree(self, found: Sequence[Disagreement]) -> None:
        """Keep what both routers said."""
        ...

    def data(self, name: str, phase: int) -> PhaseData:
        """The sums of one phase."""
        ...

    def triggered(self, name: str, phase: int) -> PhaseData:
        """The same over the units for which the two routers differed at least once."""
        ...

    def paired(self, name: str, phase: int) -> Mapping[str, PairCounts]:
        """By shadow arm."""
        ...

    def set_peak(self, name: str, phase: int, peak: float) -> None:
        """Remember the largest evidence of the sample-ratio test: an alarm stays."""
        ...

    def audit(self, entry: AuditEntry) -> None:
        """Keep an act."""
        ...

    def trail(self, name: str) -> tuple[AuditEntry, ...]:
        """All acts on an experiment, oldest first."""
        ...

    def close(self) -> None:
        """Let connections go."""
        ...
