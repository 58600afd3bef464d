"""What calls about experiments take and return, beside `router.experiments.model` and its reports."""

from __future__ import annotations

from dataclasses import dataclass

from router.experiments import model
from router.experiments.kind import Kind
from router.experiments.model import Accepted, Aggregate, MetricSpec, Unanswered
from router.types import AdapterRef


@dataclass(frozen=True, slots=True)
class Experiment(model.Experiment):
    """An experiment; `warnings` are what deserves a second look."""

    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Promotion:
    """The experiment after a promotion or its undoing, the default version now, and the one before."""

    experiment: Experiment
    default: AdapterRef | None
    previous: AdapterRef | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """One value of one metric, of a response or of a unit in an experiment.

    `time` in unix seconds, None: when the server gets it. The same `key` is counted once; without one the
    client makes one for each call, so that its own retries are safe, but not yours.
    """

    metric: str
    value: float
    response_id: str = ""
    experiment: str = ""
    unit: str = ""
    time: float | None = None
    key: str = ""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of an outcome of a batch; status None: refused, and `error` says why."""

    status: Accepted | None
    error: str = ""


def metric(
    name: str,
    kind: Kind | str = Kind.PROPORTION,
    *,
    higher_is_better: bool = True,
    aggregate: Aggregate | str | None = None,
    per: str = "responses",
    missing: Unanswered | str = Unanswered.EXCLUDED,
    covariate: bool = False,
    margin: float = 0.0,
    relative: bool = False,
) -> MetricSpec:
    """A metric. Unless said otherwise a unit's outcomes are added, for a proportion the largest counts."""
    kind = Kind(kind)
    usual = Aggregate.MAX if kind is Kind.PROPORTION else Aggregate.SUM
    return MetricSpec(
        name,
        kind,
        higher_is_better,
        Aggregate(aggregate) if aggregate else usual,
        per,
        Unanswered(missing),
        covariate,
        margin,
        relative,
    )
