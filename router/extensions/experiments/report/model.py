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
class Pairs:
    """How many answers of a shadow arm there are, and how many equal the served one. Nobody saw them."""

    answers: int
    same: int


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
class VerdictForecast:
    """How long it may still take at the speed of now: a projection, which is not corrected for looking often.

    `units` of all arms have a verdict at 80 % power if the effect is as it looks now, in `days` from now;
    `smallest_effect` is what the planned units show.
    """

    units_per_day: float
    units: int | None
    days: float | None
    smallest_effect: float | None


@dataclass(frozen=True, slots=True)
class PlannedProgress:
    """How far a planned experiment is.

    `units` are those of all arms that had their time, with a value of the primary metric or without. `chance`
    is that the planned size shows an arm to be better (or not worse) if it goes on as now, `chance_planned`
    with the effect that it finds with 80 % power; None where they are not known, or the end is `reached`.
    `give_up` is advice, not corrected for looking often.
    """

    units: int
    planned_units: int
    reached: bool
    chance: float | None
    chance_planned: float | None
    give_up: bool
    text: str


@dataclass(frozen=True, slots=True)
class ArmReport:
    """One arm against control. `blocked` is the verdict if the experiment were valid.

    `primary` is None until both arms have two units; `unadjusted` is primary without its covariate. `early`
    are built-in guardrails of what was recorded soon after the first exposure: they stop an arm for harm, and
    `guardrails` let it be promoted. `secondary` and `segments` decide nothing.
    """

    arm: str
    verdict: Ruling
    primary: MetricReport | None
    adjusted_p: float = 1.0
    guardrails: tuple[MetricReport, ...] = ()
    blocked: Ruling | None = None
    pairs: Pairs | None = None
    unadjusted: MetricReport | None = None
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
    """Counts of an arm, control included. `built_in` are means over responses, as far as they are kept.

    `responses` counts requests that had no answer, too.
    """

    arm: str
    units: int
    matured: int
    degraded: int
    responses: int
    expected: float
    weight: float
    answered: Mapping[str, int] = field(default_factory=dict)
    built_in: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlotPoint:
    """The primary metric of an arm but control over mature units exposed until `time`."""

    time: float
    arm: str
    effect: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Report:
    """A judgement with all that it rests on. `phase` 0: not started. `arm`: the one the verdict is about."""

    experiment: Experiment
    phase: int
    verdict: Ruling
    arm: str | None
    arms: tuple[ArmReport, ...]
    checks: tuple[PipelineCheck, ...]
    numbers: tuple[ArmNumbers, ...]
    audit: tuple[AuditEntry, ...]
    points: tuple[PlotPoint, ...]
    notes: tuple[str, ...]
    time: float
    forecast: VerdictForecast | None = None
    planned: PlannedProgress | None = None
    missing: tuple[MissingReport, ...] = ()

    @property
    def judged(self) -> Experiment:
        """The experiment with the plan of this phase, which a later edit may have changed."""
        phase = next((p for p in self.experiment.phases if p.number == self.phase), None)
        return replace(self.experiment, spec=phase.spec) if phase else self.experiment
