"""What an A/A self-test finds: what was sent against what was logged, and what the statistics make of it.

Are hashes uniform, is every outcome counted once, are verdicts as rarely wrong as they say? Error rates are
of outcomes that are drawn anew, by kind of metric and what is known of it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import pairwise
from typing import TYPE_CHECKING, assert_never

import numpy as np
from numpy.typing import NDArray

from router.extensions.experiments.assignment import Assigned, AssignmentSalts, UnitAllocation, WeightedArm
from router.extensions.experiments.model import DENOMINATORS, Kind, MetricSpec
from router.extensions.experiments.report.source import design_of, metric_of
from router.extensions.experiments.stats.compare import ArmPair
from router.extensions.experiments.stats.moments import Array, ComparedMetric, Moments, places
from router.extensions.experiments.verdict import ExperimentDesign
from router.units import fraction

if TYPE_CHECKING:
    from router.extensions.experiments.model import ExperimentPhase
    from router.extensions.experiments.report.model import ArmNumbers, Report

RATE, MEAN, DEVIATION = 0.3, 1.0, 1.0
"""Where nothing is known of a metric."""
RARE = 0.001
"""How rarely a sound part may be called unsound."""
BINS, HASHED, AGAIN, LOOKS = 20, 20_000, 400, 10
HASHES = 400_000
"""As many assignments are made by the real hash; more would take minutes."""


@dataclass(slots=True)
class Traffic:
    """What was sent and what came back. `arms`: unit to its answers' arms; `values`: metric to its units."""

    arms: dict[str, list[str]] = field(default_factory=dict)
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    recorded: Counter[str] = field(default_factory=Counter)
    repeated: Counter[str] = field(default_factory=Counter)
    outside: int = 0
    errors: list[str] = field(default_factory=list)

    def units_of(self, arm: str) -> int:
        """Units whose first answer was the arm's."""
        return sum(found[0] == arm for found in self.arms.values() if found)

    def answers_of(self, arm: str) -> int:
        """Answers of an arm."""
        return sum(found.count(arm) for found in self.arms.values())

    def recorded_in(self, arm: str, metric: str) -> int:
        """Units of an arm that recorded an outcome of a metric."""
        sent = self.values.get(metric, {})
        return sum(unit in sent for unit, found in self.arms.items() if found[0] == arm)


@dataclass(frozen=True, slots=True)
class AAFinding:
    """One part of the pipeline: sound or not, with its numbers."""

    name: str
    sound: bool
    text: str


@dataclass(frozen=True, slots=True)
class Drawn:
    """A metric and how its values are drawn: 0 or 1 at the rate `mean`, else log-normal with mean and
    deviation."""

    spec: MetricSpec
    mean: float = MEAN
    deviation: float = DEVIATION

    @staticmethod
    def of(spec: MetricSpec, mean: float | None = None, deviation: float | None = None) -> Drawn:
        """With what is known of it; what cannot be drawn so has the usual values."""
        if spec.kind.rules.binary:
            known = mean is not None and 0 < mean < 1
            return Drawn(spec, mean if known and mean is not None else RATE, 0.0)
        if mean is None or deviation is None or not (0 < mean < np.inf and 0 < deviation < np.inf):
            return Drawn(spec)
        return Drawn(spec, mean, deviation)

    @property
    def metric(self) -> ComparedMetric:
        """Of the statistics; units that never were have no past."""
        return metric_of(replace(self.spec, covariate=False))

    def values(self, units: int, seed: int) -> Array:
        """[columns, units]: value, and the denominator of a ratio."""
        dice = np.random.default_rng(seed)
        match self.spec.kind:
            case Kind.PROPORTION:
                return (dice.random((1, units)) < self.mean).astype(np.float64)
            case Kind.MEAN:
                return self._log_normal(dice, units)[None]
            case Kind.RATIO:
                value, own = self._log_normal(dice, units), self.spec.per not in DENOMINATORS
                below = dice.lognormal(0.0, 0.5, units) if own else 1.0 + dice.poisson(0.5, units)
                return np.stack([value * below, below])
            case other:
                assert_never(other)

    def _log_normal(self, dice: np.random.Generator, units: int) -> Array:
        spread = np.log1p((self.deviation / self.mean) ** 2)
        return dice.lognormal(np.log(self.mean) - spread / 2, np.sqrt(spread), units)

    def counted(self, values: Array) -> Array:
        """The same as they count: within the cap."""
        return np.clip(values, *self.metric.range)


def findings(
    traffic: Traffic, report: Report, drawn: Sequence[Drawn], units: int, seed: str
) -> list[AAFinding]:
    """All parts, in the order of the pipeline. Error rates are of so many units, by metric."""
    phase = next(p for p in report.experiment.phases if p.number == report.phase)
    salts = AssignmentSalts(phase.enrolment_salt, phase.variant_salt)
    return [
        _request_finding(traffic),
        _assignment_finding(traffic, phase),
        uniformity(phase.variant_salt),
        arm_shares(salts, {arm.name: arm.weight for arm in phase.spec.arms}),
        _logging_finding(traffic, report),
        _outcome_finding(traffic, report),
        *_check_findings(report),
        *_error_rate_findings(report, drawn, units, seed),
        _verdict_finding(report),
    ]


def uniformity(salt: str, units: int = HASHED) -> AAFinding:
    """Whether units spread evenly over the fractions that decide their arms: chi-square over equal bins."""
    found = np.array([fraction(salt, f"unit-{i}") for i in range(units)])
    counts = np.bincount((found * BINS).astype(np.int64), minlength=BINS)
    expected = units / BINS
    square = float(((counts - expected) ** 2 / expected).sum())
    p = _chi_square_tail(square, BINS - 1)
    text = f"{units:,} hashed units in {BINS} equal parts: chi-square {square:.1f}, p = {p:.2g}"
    return AAFinding("uniformity", p > RARE, text)


def _chi_square_tail(square: float, freedom: int) -> float:
    """Wilson and Hilferty 1931: the cube root is nearly normal."""
    spread = 2 / (9 * freedom)
    z = ((square / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    return math.erfc(z / math.sqrt(2)) / 2


def arm_shares(salts: AssignmentSalts, weights: Mapping[str, float], units: int = HASHED) -> AAFinding:
    """Whether arms get what their weights say, of units that are hashed by these salts: chi-square."""
    allocation = UnitAllocation(salts, tuple(WeightedArm(name, weight) for name, weight in weights.items()))
    got = Counter(_arm_of(allocation, f"unit-{i}") for i in range(units))
    square = sum((got[name] - units * weight) ** 2 / (units * weight) for name, weight in weights.items())
    p = _chi_square_tail(square, len(weights) - 1)
    listed = ", ".join(f"{name} {got[name] / units:.2%} of {weight:.2%}" for name, weight in weights.items())
    return AAFinding("shares", p > RARE, f"of {units:,} hashed units {listed}: p = {p:.2g}")


def _arm_of(allocation: UnitAllocation, unit: str) -> str:
    found = allocation.assign(unit)
    return found.arm if isinstance(found, Assigned) else ""


def error_rate(
    drawn: Drawn,
    design: ExperimentDesign,
    units: int,
    seed: str,
    again: int = AGAIN,
    name: str = "error-rate",
) -> AAFinding:
    """Units like those of the plan, assigned again and again by its weights: how often is any arm shown to
    differ from control at any of ten looks, where none does? Several arms share the level (Holm)."""
    number = int.from_bytes(sha256(seed.encode()).digest()[:8], "big")
    columns = drawn.counted(drawn.values(units, number))
    table, arms = unit_powers(columns), _assigned(list(design.weights.values()), units, seed, number, again)
    sums = np.zeros((len(design.weights), table.shape[1], again))
    shown = np.zeros(again, bool)
    ends = [units * look // LOOKS for look in range(LOOKS + 1)]
    for begin, end in pairwise(ends):
        for i in range(len(sums)):
            sums[i] += table[begin:end].T @ (arms[:, begin:end] == i).T
        shown |= _any_shown(drawn.metric, design, sums)
    alpha, wrong = design.plan.alpha, int(shown.sum())
    most = _too_many(again, alpha)
    several = f", {len(design.treatments)} arms against {design.control}" if len(sums) > 2 else ""
    text = (
        f"{wrong} of {again} assignments of {units:,} units anew show a difference ({wrong / again:.1%}) in"
        f" {LOOKS} looks each{several}; {alpha:.0%} is allowed, {most} are too many"
    )
    return AAFinding(name, wrong < most, text)


def _assigned(weights: Sequence[float], units: int, seed: str, number: int, again: int) -> NDArray[np.int64]:
    """[assignments, units], the number of the arm: by the real hash where that is a matter of seconds."""
    if units * again > HASHES:
        return np.random.default_rng([number, 1]).choice(len(weights), (again, units), p=weights)
    arms = tuple(WeightedArm(str(i), weight) for i, weight in enumerate(weights))
    rows = []
    for i in range(again):
        allocation = UnitAllocation(AssignmentSalts(f"enrolment-{seed}-{i}", f"variant-{seed}-{i}"), arms)
        rows.append([int(_arm_of(allocation, f"unit-{j}")) for j in range(units)])
    return np.array(rows, np.int64).reshape(again, units)


def _any_shown(metric: ComparedMetric, design: ExperimentDesign, sums: Array) -> NDArray[np.bool_]:
    """[assignments]: the smallest p of all arms, times their number, is within the level. `sums` [arms, sums,
    assignments] of `powers`; an arm under two units shows nothing."""
    names, level = list(design.weights), -math.log(design.plan.alpha / len(design.treatments))
    control = sums[names.index(design.control)]
    shown = np.zeros(sums.shape[2], bool)
    for arm in design.treatments:
        treated = sums[names.index(arm)]
        there = np.minimum(control[0], treated[0]) >= 2
        if there.any():
            first, second = (moments_of_powers(of[:, there], metric.columns) for of in (control, treated))
            shown[there] |= ArmPair(metric, first, second, design.plan_for(arm)).evidence() >= level
    return shown


def _too_many(trials: int, chance: float) -> int:
    """The least number of wrong ones that a sound test has with a chance below `RARE`."""
    left = 1.0
    for count in range(trials + 1):
        if left < RARE:
            return count
        left -= math.comb(trials, count) * chance**count * (1 - chance) ** (trials - count)
    return trials + 1


def _request_finding(traffic: Traffic) -> AAFinding:
    answered = sum(map(len, traffic.arms.values()))
    sound = not traffic.errors and not traffic.outside and answered > 0
    text = (
        f"{answered:,} answers in the experiment, {traffic.outside:,} outside, {len(traffic.errors):,} errors"
    )
    if traffic.errors:
        text += f"; the first: {traffic.errors[0]}"
    elif traffic.outside:
        text += "; the route did not get these prompts: give one that it answers with --prompt"
    return AAFinding("requests", sound, text)


def _assignment_finding(traffic: Traffic, phase: ExperimentPhase) -> AAFinding:
    """Every answer's arm is the one that anybody computes from the salts."""
    salts = AssignmentSalts(phase.enrolment_salt, phase.variant_salt)
    allocation = UnitAllocation(salts, tuple(WeightedArm(arm.name, arm.weight) for arm in phase.spec.arms))
    wrong = 0
    for unit, arms in traffic.arms.items():
        found = allocation.assign(unit)
        wrong += not isinstance(found, Assigned) or set(arms) != {found.arm}
    twice = sum(len(arms) > 1 for arms in traffic.arms.values())
    text = (
        f"{len(traffic.arms) - wrong:,} of {len(traffic.arms):,} units have the arm that the published hash"
        f" gives them; {twice:,} asked twice"
    )
    return AAFinding("assignment", not wrong and bool(traffic.arms), text)


def _logging_finding(traffic: Traffic, report: Report) -> AAFinding:
    """Each exposure arrived, and once: units and answers by arm."""

    def of(numbers: ArmNumbers) -> tuple[tuple[int, int], tuple[int, int]]:
        return (
            (numbers.units, traffic.units_of(numbers.arm)),
            (numbers.responses, traffic.answers_of(numbers.arm)),
        )

    pairs = [pair for numbers in report.numbers for pair in of(numbers)]
    listed = ", ".join(
        f"{n.arm} {n.units:,} units of {traffic.units_of(n.arm):,}, {n.responses:,} answers of"
        f" {traffic.answers_of(n.arm):,}"
        for n in report.numbers
    )
    return AAFinding("logging", all(got == sent for got, sent in pairs), f"logged of sent: {listed}")


def _outcome_finding(traffic: Traffic, report: Report) -> AAFinding:
    """Each outcome counted once, though some were sent twice; what only divides a ratio is in no count."""
    names = {name for numbers in report.numbers for name in numbers.answered}
    sent = [m.name for m in report.experiment.spec.metrics if m.name in traffic.values and m.name in names]
    pairs = [
        (n.answered.get(name, 0), traffic.recorded_in(n.arm, name)) for n in report.numbers for name in sent
    ]
    repeated = sum(traffic.repeated.values())
    once = traffic.repeated.get("duplicate", 0) == repeated
    counted, wanted = (sum(pair[i] for pair in pairs) for i in (0, 1))
    text = f"{counted:,} counted of {wanted:,} sent; {repeated:,} sent twice, "
    text += "each counted once" if once else f"told as {dict(traffic.repeated)}"
    complete = bool(pairs) or not traffic.values  # the server's own are all that there are
    return AAFinding("outcomes", once and complete and all(got == of for got, of in pairs), text)


def _check_findings(report: Report) -> Iterator[AAFinding]:
    for check in report.checks:
        if check.name != "maturity":
            yield AAFinding(check.name, not check.failed, check.text)


def _error_rate_findings(
    report: Report, drawn: Sequence[Drawn], units: int, seed: str
) -> Iterator[AAFinding]:
    spec = report.experiment.spec
    design = design_of(spec)
    design = replace(design, plan=replace(design.plan, units=max(200, units)))
    for one in drawn:
        name = "error-rate" if one.spec.name == spec.primary.name else f"error-rate {one.spec.name}"
        yield error_rate(one, design, units, seed, name=name)


def _verdict_finding(report: Report) -> AAFinding:
    """Equal arms should be undecided. Now and then they are not, as often as the level says."""
    verdict, alpha = report.verdict, report.experiment.spec.alpha
    p = min((arm.adjusted_p for arm in report.arms), default=1.0)
    text = f"{verdict.decision} ({verdict.rule}), p = {p:.2g} for a difference"
    if verdict.decision != "undecided":
        text += f"; arms are equal, and {alpha:.0%} of sound tests say so all the same: run it again"
    return AAFinding("verdict", verdict.decision == "undecided" or p > RARE, text)


def unit_powers(columns: Array) -> Array:
    """[units, sums]: for each unit 1, its columns, their products, and products of three."""
    one = np.ones((1, columns.shape[1]))
    of = [
        np.prod(columns[list(at)], axis=0)[None] for power in (1, 2, 3) for at in places(len(columns), power)
    ]
    return np.concatenate([one, *of]).T


def moments_of_powers(sums: Array, columns: int) -> Moments:
    """[sums, experiments] of `powers` as the sums of many experiments at once."""
    ends = np.cumsum([1, *(len(places(columns, power)) for power in (1, 2, 3))])
    first, products, cubes = (tuple(sums[a:b]) for a, b in pairwise(ends))
    return Moments(sums[0], first, products, cubes)
