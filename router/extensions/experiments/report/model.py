"""What a report says, in plain values: no statistics, no store, so that clients read it without numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from router.extensions.experiments.model import AuditEntry, Experiment, NoInterval


@dataclass(frozen=True, slots=True)
class Ruling:
    """What may be done, the rule that says so, and what it rests on, in words with numbers.

    `decision` is "promote", "stop for harm", "undecided" or "invalid" (`verdict.VerdictDecision`).
    """

    decision: str
    rule: str
    text: str


@dataclass(frozen=True, slots=True)
class MetricReport:
    """An arm against control on one metric. `low` and `high` are infinite where nothing is known yet.

    `units` and `values` are (control, arm). `method` is asymptotic, exact or burn-in (no interval yet).
    Of a guardrail, `state` is within, beyond or open, and `margin` is in the metric's own unit, or a
    share of control's value where `margin_relative`. Interval and p may be looked at as often
    as one likes. `alpha` is what the interval is of; smaller than the plan's where it is one of many. Values
    count as at most `cap`, where there is one. Units are at least `age` seconds old: then their values are
    final (0: not known). `early`: of what was recorded in their first `age` seconds, for harm only.
    """

    metric: str
    units: tuple[int, int]
    values: tuple[float, float]
    effect: float
    low: float
    high: float
    p: float
    method: str
    higher_is_better: bool = True
    relative: float | None = None
    relative_low: float | None = None
    relative_high: float | None = None
    state: str = ""
    margin: float = 0.0
    margin_relative: bool = False
    waiting: NoInterval | None = None
    cap: float | None = None
    alpha: float = 0.05
    age: float = 0.0
    early: bool = False

    @property
    def gain(self) -> float:
        """The effect, positive where it is better."""
        return self.effect if self.higher_is_better else -self.effect


@dataclass(frozen=True, slots=True)
class SegmentReport:
    """The primary metric by the values of one label, `effects` by value with intervals corrected for all.

    `p`: that effects differ between values at all, corrected for all labels; `differ` if that is shown.
    """

    label: str
    effects: Mapping[str, MetricReport]
    p: float
    differ: bool


@dataclass(frozen=True, slots=True)
class ArmReport:
    """One arm against control.

    `primary` is None until both arms have two units. `early` are built-in guardrails of what was recorded
    soon after the first exposure: they stop an arm for harm, and `guardrails` let it be promoted. `secondary`
    and `segments` decide nothing.
    """

    arm: str
    verdict: Ruling
    primary: MetricReport | None
    adjusted_p: float = 1.0
    guardrails: tuple[MetricReport, ...] = ()
    secondary: tuple[MetricReport, ...] = ()
    segments: tuple[SegmentReport, ...] = ()
    early: tuple[MetricReport, ...] = ()

    @property
    def rails(self) -> tuple[MetricReport, ...]:
        """Guardrails in both readings, the early one first."""
        return (*self.early, *self.guardrails)


@dataclass(frozen=True, slots=True)
class MissingReport:
    """Mature units without an outcome of the primary metric, where they are left out, and what that may do.

    `control` and `treatment` are shares without one. The effect lies within Lee's bounds if who answers
    differs between the arms as little as it may; None: there are no such bounds. `settled`: who answers
    cannot undo the effect, so the arm may be promoted.
    """

    arm: str
    control: float
    treatment: float
    settled: bool
    lee_low: float | None = None
    lee_high: float | None = None


@dataclass(frozen=True, slots=True)
class PipelineCheck:
    """A check of the pipeline. `failed`: verdicts are invalid."""

    name: str
    failed: bool
    text: str


@dataclass(frozen=True, slots=True)
class ArmNumbers:
    """Counts of an arm, control included. `responses` counts requests that had no answer, too."""

    arm: str
    units: int
    matured: int
    degraded: int
    responses: int
    expected: float
    weight: float
    answered: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """A judgement with all that it rests on. `phase` 0: not started. `arm`: the one the verdict is about.
    `units_per_day`: new ones, None where nothing is waited for or nothing is known of a day yet."""

    experiment: Experiment
    phase: int
    verdict: Ruling
    arm: str | None
    arms: tuple[ArmReport, ...]
    checks: tuple[PipelineCheck, ...]
    numbers: tuple[ArmNumbers, ...]
    audit: tuple[AuditEntry, ...]
    notes: tuple[str, ...]
    time: float
    units_per_day: float | None = None
    missing: tuple[MissingReport, ...] = ()

    @property
    def judged(self) -> Experiment:
        """The experiment with the plan of this phase, which a later edit may have changed."""
        phase = next((p for p in self.experiment.phases if p.number == self.phase), None)
        return replace(self.experiment, spec=phase.spec) if phase else self.experiment
