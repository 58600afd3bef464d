"""The mode `tenants`: arms judged by how tenants could have been divided otherwise.

A tenant's value is the mean over its answers, and each tenant counts once: weighted by size, one large tenant
would decide alone. The arms of tenants are a random division in fixed numbers, so the difference of the arms'
means is compared with those of all other divisions (`stats.permutation.relabelled`). That holds for ten
tenants of any size.

The test is made once, when the window of every tenant is over that came within a window of the start. Those
that come later are left out, so that nothing changes the verdict afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from router.experiments.model import MetricSpec, Spec
from router.experiments.modes import ExperimentMode
from router.experiments.report.answers import AnswerReader, UnitAnswers
from router.experiments.report.model import ArmReport, MetricReport, Ruling
from router.experiments.report.source import PhaseEvidence, duration
from router.experiments.stats.compare import holm
from router.experiments.stats.permutation import Shift, relabelled
from router.experiments.store.store import ExperimentStore
from router.experiments.tenants import LEAST
from router.experiments.verdict import VerdictDecision, ruling_of_shown

METHOD = "permutation"


class ByTenant(ExperimentMode):
    """Judges the experiments by tenant of a server."""

    def __init__(self, store: ExperimentStore) -> None:
        self._reader = AnswerReader(store)

    def judge(self, source: PhaseEvidence) -> tuple[ArmReport, ...]:
        """Every arm but control, from what tenants have so far."""
        settled = source.now - source.spec.closing
        name, number = source.experiment.name, source.phase.number
        return judged(source, self._reader.read(name, number, source.spec.metrics, settled))


def judged(source: PhaseEvidence, found: Iterable[UnitAnswers]) -> tuple[ArmReport, ...]:
    """Every arm but control."""
    spec, arms = source.spec, source.design.treatments
    tenants = [one for one in found if one.first <= source.phase.started + spec.window]
    begun = max((one.first for one in tenants), default=source.phase.started)
    over = max(begun, source.phase.started) + spec.closing
    measured = {arm: _measured(spec, tenants, arm, spec.primary, spec.alpha) for arm in arms}
    lines = {arm: _shift(spec, tenants, arm, spec.primary, spec.margin) for arm in arms}
    adjusted = holm({arm: line.p for arm, line in lines.items()})
    return tuple(_arm(source, tenants, arm, measured[arm], lines[arm], adjusted[arm], over) for arm in arms)


def _arm(
    source: PhaseEvidence,
    tenants: Sequence[UnitAnswers],
    arm: str,
    primary: MetricReport | None,
    line: Shift,
    p: float,
    over: float,
) -> ArmReport:
    spec, left = source.spec, over - source.now
    rails = [_guarded(spec, tenants, arm, rail, left <= 0) for rail in spec.guardrails]
    corrected = spec.alpha / max(1, len(spec.secondary) * len(source.design.treatments))
    beside = (_measured(spec, tenants, arm, metric, corrected) for metric in spec.secondary)
    return ArmReport(
        arm,
        _ruling(spec, primary, line, p, rails, left),
        primary,
        p,
        tuple(rail for rail in rails if rail is not None),
        secondary=tuple(one for one in beside if one is not None),
    )


def _ruling(
    spec: Spec,
    primary: MetricReport | None,
    line: Shift,
    p: float,
    rails: Sequence[MetricReport | None],
    left: float,
) -> Ruling:
    """The first rule that applies, in the order of `verdict`."""
    many = sum(primary.units) if primary else 0
    if primary is None or many < LEAST:
        text = f"{many} tenants have {spec.primary.name}, and below {LEAST} there is no verdict"
        return Ruling(VerdictDecision.UNDECIDED, "too-few-units", text)
    if left > 0:
        text = f"the verdict comes in {duration(left)}; so far {_numbers(primary)}"
        return Ruling(VerdictDecision.UNDECIDED, "planned-size", text)
    for rail in rails:
        if rail is not None and rail.state == "beyond":
            return Ruling(VerdictDecision.HARM, "guardrail", f"guardrail {_numbers(rail)}")
    words = f"{_numbers(primary)}, p = {p:.2g} with Holm over arms, level {spec.alpha:g}"
    if p > spec.alpha:
        return Ruling(VerdictDecision.UNDECIDED, "primary-open", f"{words}; the planned time is over")
    open_rails = [rail for rail in rails if rail is None or rail.state != "within"]
    unsure = ["" if rail is None else _numbers(rail) for rail in open_rails]
    return ruling_of_shown(words, line.effect, unsure, spec.margin)


def _numbers(found: MetricReport) -> str:
    (control, treatment), (first, second) = found.values, found.units
    return (
        f"{found.metric}: {treatment:.4g} in {second} tenants against {control:.4g} in {first},"
        f" difference {found.effect:+.4g} in [{found.low:.4g}, {found.high:.4g}]"
    )


def _values(tenants: Iterable[UnitAnswers], arm: str, metric: str) -> list[float]:
    found = (one.metrics[metric].value for one in tenants if one.arm == arm)
    return [value for value in found if value is not None]


def _shift(
    spec: Spec,
    tenants: Sequence[UnitAnswers],
    arm: str,
    metric: MetricSpec,
    offset: float,
    share: float = 0.0,
) -> Shift:
    """By how much the arm is better, plus `offset`; with `share` by how much more than such a part of
    control's value."""
    sign = 1.0 if metric.higher_is_better else -1.0
    control = [sign * (1 - sign * share) * value for value in _values(tenants, spec.control, metric.name)]
    treatment = [sign * value + offset for value in _values(tenants, arm, metric.name)]
    return relabelled(control, treatment, spec.alpha)


def _measured(
    spec: Spec, tenants: Sequence[UnitAnswers], arm: str, metric: MetricSpec, alpha: float
) -> MetricReport | None:
    """The arm against control; None until both have a tenant with a value."""
    control, treatment = (_values(tenants, one, metric.name) for one in (spec.control, arm))
    if not control or not treatment:
        return None
    found = relabelled(control, treatment, alpha)
    return MetricReport(
        metric.name,
        (len(control), len(treatment)),
        (math.fsum(control) / len(control), math.fsum(treatment) / len(treatment)),
        found.effect,
        found.low,
        found.high,
        found.p,
        METHOD,
        metric.higher_is_better,
        anytime=False,
        alpha=alpha,
    )


def _guarded(
    spec: Spec, tenants: Sequence[UnitAnswers], arm: str, rail: MetricSpec, over: bool
) -> MetricReport | None:
    """A guardrail: open until the planned time is over."""
    found = _measured(spec, tenants, arm, rail, spec.alpha)
    if found is None:
        return None
    offset, share = (0.0, rail.margin) if rail.relative else (rail.margin, 0.0)
    line = _shift(spec, tenants, arm, rail, offset, share)
    state, p = "open", min(line.above, line.below)
    if over and sum(found.units) >= LEAST:
        if line.below <= spec.alpha:
            state, p = "beyond", line.below
        elif line.above <= spec.alpha:
            state, p = "within", line.above
    return replace(found, state=state, p=p, margin=rail.margin, margin_relative=rail.relative)
