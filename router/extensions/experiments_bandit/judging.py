"""A bandit judged by what holds while its weights follow outcomes and rates drift: labels of events by epoch.

Plain means are biased then (Nie and others 2018, arXiv:1708.01977), and intervals of fixed rates wrong. What
is left: given that a unit had an event, which arm was it of (`labels`)? Within an epoch weights do
not move, so each arm's part of the units says what it should be. That needs a metric of 0 or 1 and, of a
guardrail, a margin that is a share of control's rate. Nothing else stops an arm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from router.experiments.model import Kind, NoInterval
from router.experiments.report.build import measured_of
from router.experiments.report.model import ArmReport, MetricReport, Ruling
from router.experiments.report.source import PhaseEvidence, total_moments
from router.experiments.stats.checks import Guardrail
from router.experiments.stats.compare import compare, holm, p_of
from router.experiments.stats.moments import ComparedMetric
from router.experiments.verdict import Conclusion
from router.extensions.experiments_bandit.labels import EventsByArm, fewer_events, more_events

METHOD = "labels"
DRIFT = "no interval holds while a bandit's weights follow outcomes and rates may drift"
UNSUITED = "drift and moving weights leave no test of it"


def judged(source: PhaseEvidence) -> tuple[ArmReport, ...]:
    """Every arm but control: harm, or nothing yet."""
    design = source.design
    worse = {arm: _worse(source, arm, design.primary) for arm in design.treatments}
    adjusted = holm({arm: 1.0 if p is None else p for arm, p in worse.items()})
    return tuple(_arm(source, arm, worse[arm], adjusted[arm]) for arm in design.treatments)


def _arm(source: PhaseEvidence, arm: str, worse: float | None, p: float) -> ArmReport:
    rails = tuple(_guarded(source, arm, rail) for rail in source.design.guardrails)
    shown = [rail for rail in rails if rail is not None]
    primary = _measured(source, arm, source.design.primary, worse)
    return ArmReport(arm, _ruling(source, primary, worse, p, shown), primary, p, tuple(shown))


def _ruling(
    source: PhaseEvidence,
    primary: MetricReport | None,
    worse: float | None,
    p: float,
    rails: Sequence[MetricReport],
) -> Ruling:
    alpha = source.spec.alpha
    for rail in rails:
        if rail.state == "beyond":
            text = f"guardrail {rail.metric}: {_numbers(rail)}, p = {rail.p:.2g} for worse by more than"
            return Ruling(Conclusion.HARM, "guardrail", f"{text} {rail.margin:.1%} of control")
    if primary is None:
        return Ruling(Conclusion.UNDECIDED, "too-few-units", "an arm has fewer than two units")
    if worse is not None and p <= alpha:
        text = f"{primary.metric}: {_numbers(primary)}, p = {p:.2g} for worse, with Holm over arms"
        return Ruling(Conclusion.HARM, "primary-worse", text)
    text = f"{primary.metric}: {_numbers(primary)}; a bandit moves traffic by itself and ends in no promotion"
    return Ruling(Conclusion.UNDECIDED, "bandit", f"{text}: run a split to confirm")


def _numbers(found: MetricReport) -> str:
    control, treatment = found.values
    return f"{treatment:.4g} against {control:.4g} on {sum(found.units):,} units"


def _measured(
    source: PhaseEvidence, arm: str, metric: ComparedMetric, p: float | None
) -> MetricReport | None:
    """Means as they are, without an interval; what `p` says may be looked at often."""
    both = [total_moments(source.data.buckets, a, metric) for a in (source.design.control, arm)]
    if min(moments.n for moments in both) < 2:
        return None
    plan = source.design.plan_for(arm)
    found = measured_of(compare(metric, both[0], both[1], plan), metric, plan)
    return replace(
        found,
        low=-math.inf,
        high=math.inf,
        p=1.0 if p is None else p,
        method=METHOD,
        relative=None,
        relative_low=None,
        relative_high=None,
        anytime=p is not None,
        waiting=NoInterval("bandit", DRIFT if p is not None else UNSUITED),
    )


def _guarded(source: PhaseEvidence, arm: str, rail: Guardrail) -> MetricReport | None:
    p = _worse(source, arm, rail.metric, rail) if rail.relative else None
    found = _measured(source, arm, rail.metric, p)
    if found is None:
        return None
    state = "beyond" if p is not None and p <= source.spec.alpha else "open"
    return replace(found, state=state, margin=rail.margin, margin_relative=rail.relative)


def _worse(
    source: PhaseEvidence, arm: str, metric: ComparedMetric, rail: Guardrail | None = None
) -> float | None:
    """p-value that the arm is worse in some epoch, by more than the margin if there is one; None where no
    test of it holds."""
    if metric.kind is not Kind.PROPORTION or metric.covariate:
        return None
    margin = rail.line.scale if rail is not None else 1.0
    ones, zeros = _epochs(source, arm, metric)
    if metric.higher_is_better:
        found = [fewer_events(ones, margin)]
        if margin == 1:
            found.append(more_events(zeros))
    else:
        found = [more_events(ones, margin)]
        if margin == 1:
            found.append(fewer_events(zeros))
    return min(1.0, len(found) * p_of(max(found)))


def _epochs(
    source: PhaseEvidence, arm: str, metric: ComparedMetric
) -> tuple[list[EventsByArm], list[EventsByArm]]:
    """Ones and zeros of control and the arm, and the arm's part of the units, of each epoch that is over."""
    counts: dict[float, dict[str, tuple[float, float]]] = {}
    for bucket in source.data.buckets:
        moments = bucket.moments.get(metric.name)
        if moments is not None and bucket.start + bucket.seconds <= source.now:
            one = float(moments.sums[0])
            counts.setdefault(bucket.start, {})[bucket.arm] = one, float(moments.n) - one
    ones: list[EventsByArm] = []
    zeros: list[EventsByArm] = []
    for of in counts.values():
        (c1, c0), (t1, t0) = (of.get(a, (0.0, 0.0)) for a in (source.design.control, arm))
        if c1 + c0 and t1 + t0:
            share = (t1 + t0) / (c1 + c0 + t1 + t0)
            ones.append((c1, t1, share))
            zeros.append((c0, t0, share))
    return ones, zeros
