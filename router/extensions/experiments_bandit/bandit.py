"""The mode `bandit`: it sets weights epoch by epoch, and judges by the labels of events.

Weights follow outcomes while rates drift. So plain means are biased (Nie and others 2018, arXiv:1708.01977),
and intervals of fixed rates are wrong. What is left: given that a unit had an event, which arm was it of?
It is one of the treatment's with the odds of the shares times the ratio of the rates, whatever the rates
are just then. Within an epoch weights do not move, so each arm's part of the units says what the odds
should be. Every factor of the evidence has a mean of 1 or less under the null (a test martingale; for
multinomial counts of known shares Lindon and Malek 2022, arXiv:2011.03567), so it may be looked at after
every epoch.

That needs a metric of 0 or 1 and, of a guardrail, a margin that is a share of control's rate. Nothing else
stops an arm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from router.experiments.model import NoInterval
from router.experiments.modes import ExperimentMode
from router.experiments.report.build import measured_of
from router.experiments.report.model import ArmReport, MetricReport, Ruling
from router.experiments.report.source import PhaseEvidence, total_moments
from router.experiments.runtime import LiveExperiments
from router.experiments.stats.checks import Guardrail
from router.experiments.stats.compare import compare, holm, p_of
from router.experiments.stats.moments import Array, ComparedMetric, invalid
from router.experiments.verdict import VerdictDecision
from router.extensions.experiments_bandit.epochs import Epochs

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
            return Ruling(VerdictDecision.HARM, "guardrail", f"{text} {rail.margin:.1%} of control")
    if primary is None:
        return Ruling(VerdictDecision.UNDECIDED, "too-few-units", "an arm has fewer than two units")
    if worse is not None and p <= alpha:
        text = f"{primary.metric}: {_numbers(primary)}, p = {p:.2g} for worse, with Holm over arms"
        return Ruling(VerdictDecision.HARM, "primary-worse", text)
    text = f"{primary.metric}: {_numbers(primary)}; a bandit moves traffic by itself and ends in no promotion"
    return Ruling(VerdictDecision.UNDECIDED, "bandit", f"{text}: run a split to confirm")


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
    if not metric.kind.rules.binary or metric.covariate:
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


EVENT_RATIOS = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
"""By how many times a rate may be larger: the mixture's grid."""
EventsByArm = tuple[float, float, float]
"""Events of control and of the treatment, and the treatment's share of both under equal rates: the share by
which units were divided, or, of an epoch that is over, the treatment's part of its units; then events are
drawn without replacement, which spreads less (Hoeffding 1963, theorem 4)."""


def more_events(epochs: Iterable[EventsByArm], margin: float = 1.0) -> float:
    """Log evidence that the treatment's rate is above `margin` times control's in some epoch.

    Under the null it is at most that in every epoch.
    """
    found = np.array(list(epochs), np.float64).reshape(-1, 3)
    control, treatment, share = found.T
    if ((share <= 0) | (share >= 1)).any():
        raise invalid("share", "must be above 0 and below 1 in every epoch")
    odds = margin * share / (1 - share)
    return _log_mean_exp([_log_label_factor(control, treatment, odds, ratio) for ratio in EVENT_RATIOS])


def fewer_events(epochs: Iterable[EventsByArm], margin: float = 1.0) -> float:
    """Log evidence that the treatment's rate is below `margin` times control's in some epoch."""
    return more_events(((t, c, 1 - share) for c, t, share in epochs), 1 / margin)


def _log_label_factor(control: Array, treatment: Array, odds: Array, ratio: float) -> float:
    """Likelihood of the labels with odds `ratio` times as large, against those of the null."""
    gain = treatment * math.log(ratio) - (treatment + control) * np.log((1 + ratio * odds) / (1 + odds))
    return float(gain.sum())


def _log_mean_exp(logs: Sequence[float]) -> float:
    most = max(logs)
    return most + math.log(math.fsum(math.exp(x - most) for x in logs) / len(logs))


class Bandit(ExperimentMode):
    """Sets weights epoch by epoch, and judges by labels of events."""

    def __init__(self, live: LiveExperiments) -> None:
        self._epochs = Epochs(live)

    def start(self) -> None:
        """Follow the clock."""
        self._epochs.start()

    async def close(self) -> None:
        """Stop following it."""
        await self._epochs.close()

    def judge(self, source: PhaseEvidence) -> tuple[ArmReport, ...]:
        """Harm, or nothing yet, of every arm but control."""
        return judged(source)
