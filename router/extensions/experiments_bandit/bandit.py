"""The mode `bandit`: Thompson sampling sets the weights of each epoch, and labels of events judge the arms.

Within an epoch the weights are the same for everybody.

Each epoch's weights are the chances of the arms to be the best. Sampling from posteriors: Thompson 1933; in
batches, with weights instead of single draws: Scott 2010. A proportion has a uniform Beta prior. A mean has
a normal-inverse-gamma prior worth one unit at the pooled mean with the pooled variance, so that draws of a
young arm are Student's t with heavy tails; a ratio is treated like the mean of its linearised values (delta
method). A floor keeps every arm learning.

Weights are kept in the audit trail before they are used, so a server that starts again in the middle of an
epoch, and another server on the same database, divide units as before. The phase's first epoch has the
weights of the plan.

While weights follow outcomes, plain estimates are biased (Nie et al. 2018, arXiv:1708.01977), and rates that
move while weights do make them worse: exposures keep their propensities, and reports rest on events by label
within epochs (below), which is all that stops an arm.

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

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from router.errors import ExperimentNotFound, StoreDown
from router.experiments.model import (
    RULE,
    WITHIN,
    AuditEntry,
    Experiment,
    ExperimentPhase,
    Kind,
    Lifecycle,
    Mode,
    NoInterval,
)
from router.experiments.modes import ExperimentMode
from router.experiments.report.build import measured_of
from router.experiments.report.model import ArmReport, MetricReport, Ruling
from router.experiments.report.source import (
    REWEIGHT,
    PhaseEvidence,
    mature_buckets,
    metric_of,
    reweightings,
    total_moments,
)
from router.experiments.runtime import LiveExperiments
from router.experiments.stats.checks import Guardrail
from router.experiments.stats.compare import compare, holm, p_of
from router.experiments.stats.moments import Array, ComparedMetric, Moments, invalid, value_and_gradient
from router.experiments.store.store import ExperimentStore
from router.experiments.verdict import VerdictDecision

log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0
AHEAD_SECONDS = 5.0  # weights are made so long before their epoch, so that all of it has them
DRAWS = 20_000
PRIOR_UNITS = 1.0
PRIOR_SHAPE = 1.0  # half the degrees of freedom of a draw without data
Draws = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Epoch:
    """Weights of the arms from `start` (unix seconds) to the start of the next epoch. The first is 0."""

    experiment: str
    phase: int
    number: int
    start: float
    weights: Mapping[str, float]


def epoch_number(phase: ExperimentPhase, now: float) -> int:
    """The epoch that weights are due for: the present one, at its very end the next."""
    ahead = min(AHEAD_SECONDS, phase.spec.epoch / 10)
    return max(0, int((now + ahead - phase.started) // phase.spec.epoch))


def epoch_of(store: ExperimentStore, experiment: Experiment, now: float) -> Epoch | None:
    """The epoch that a running bandit is in or about to enter; None where that is its first. Blocks.

    The first who asks in an epoch has its weights made. Raises StoreDown, ExperimentNotFound.
    """
    phase = experiment.phase
    if experiment.state is not Lifecycle.RUNNING or phase is None or phase.spec.mode is not Mode.BANDIT:
        return None
    if not (number := epoch_number(phase, now)):
        return None
    if (known := kept_weights(store.trail(experiment.name), phase, number)) is None:
        store.audit(_entry(store, experiment, phase, number, now))
        known = kept_weights(store.trail(experiment.name), phase, number)
    if known is None:
        raise StoreDown("an epoch's weights were written and cannot be read")
    return Epoch(experiment.name, phase.number, number, phase.started + number * phase.spec.epoch, known)


def _entry(
    store: ExperimentStore, experiment: Experiment, phase: ExperimentPhase, number: int, now: float
) -> AuditEntry:
    spec, metric = phase.spec, metric_of(phase.spec.primary)
    arms = primary_sums(store, experiment.name, phase, now)
    found = thompson_weights(metric, arms, spec.floor, epoch_seed(experiment.name, phase.number, number))
    units = {arm: int(moments.n) for arm, moments in arms.items()}
    listed = ", ".join(f"{arm} {weight:.3f}" for arm, weight in found.items())
    detail = reweighting_detail(phase, number, found, units)
    return AuditEntry(experiment.name, now, RULE, REWEIGHT, f"epoch {number}: {listed}", detail)


def primary_sums(store: ExperimentStore, name: str, phase: ExperimentPhase, now: float) -> dict[str, Moments]:
    """Each arm's sums of the primary metric, of mature units: outcomes may come later in one arm."""
    spec, metric = phase.spec, metric_of(phase.spec.primary)
    buckets = mature_buckets(store.data(name, phase.number).buckets, now, spec.closing)
    return {arm.name: total_moments(buckets, arm.name, metric) for arm in spec.arms}


def reweighting_detail(
    phase: ExperimentPhase, epoch: int, weights: Mapping[str, float], units: Mapping[str, int]
) -> dict[str, object]:
    """The detail of an entry; `units` are those that the weights rest on."""
    return {"phase": phase.number, "epoch": epoch, "weights": dict(weights), "units": dict(units)}


def kept_weights(trail: Iterable[AuditEntry], phase: ExperimentPhase, epoch: int) -> dict[str, float] | None:
    """Weights that were made for an epoch; the first to write them won."""
    return next((found for number, found in reweightings(trail, phase) if number == epoch), None)


class Epochs:
    """Gives every running bandit its weights in time. Lives on the event loop."""

    def __init__(self, live: LiveExperiments) -> None:
        self._live = live
        self._used: dict[tuple[str, int], int] = {}  # experiment and phase: epoch
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Follow the clock."""
        self._task = asyncio.create_task(self._run(), name="bandit epochs")

    async def close(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        while True:
            await self.look(time.time())
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self, now: float) -> None:
        """Use new weights where an epoch has begun. A store that is down leaves those in use."""
        for one in self._live.assigner.snapshot.all():
            if one.spec.mode is not Mode.BANDIT:
                continue
            try:
                await self._look_at(one.name, now)
            except (StoreDown, ExperimentNotFound) as error:
                log.debug("bandit %s keeps its weights: %s", one.name, error.message)
            except Exception:
                log.exception("bandit %s keeps its weights", one.name)

    async def _look_at(self, name: str, now: float) -> None:
        known = next((one for one in self._live.known if one.name == name), None)
        if known is None or (phase := known.phase) is None:
            return
        number = epoch_number(phase, now)
        if self._used.get((name, phase.number), 0) == number:
            return
        epoch = await asyncio.to_thread(self._read, known, now)
        if epoch is not None:
            self._live.assigner.reweight(name, epoch.phase, epoch.start, epoch.weights)
            self._used[name, epoch.phase] = epoch.number

    def _read(self, experiment: Experiment, now: float) -> Epoch | None:
        with self._live.availability.calling("read"):
            return epoch_of(self._live.store, experiment, now)


def thompson_weights(
    metric: ComparedMetric, arms: Mapping[str, Moments], floor: float, seed: str
) -> dict[str, float]:
    """Share of each arm, at least `floor`; they sum to 1. The same for the same sums and seed.

    `arms` are sums over units whose columns are the metric's. Raises InvalidRequest for a floor that does not
    leave every arm more than nothing.
    """
    if not 0 < floor * len(arms) <= 1 + 1e-9:
        raise invalid("floor", f"must be above 0 and at most 1/{len(arms)} for {len(arms)} arms, got {floor}")
    chances = best_chances(metric, arms, seed)
    free = max(0.0, 1 - floor * len(arms))
    found = {arm: floor + free * chance for arm, chance in chances.items()}
    total = math.fsum(found.values())
    return {arm: weight / total for arm, weight in found.items()}


def best_chances(metric: ComparedMetric, arms: Mapping[str, Moments], seed: str) -> dict[str, float]:
    """Chance of each arm to be the best, given its sums; ties share."""
    rng = np.random.default_rng(list(hashlib.sha256(seed.encode()).digest()))
    drawn = np.stack(_draws(metric, arms, rng)) * metric.sign
    best = drawn == drawn.max(axis=0)
    shares = (best / best.sum(axis=0)).mean(axis=1)
    return dict(zip(arms, map(float, shares), strict=True))


def epoch_seed(experiment: str, phase: int, epoch: int) -> str:
    """What the draws of an epoch depend on, with the sums."""
    return f"{experiment}\x1f{phase}\x1f{epoch}"


def _draws(metric: ComparedMetric, arms: Mapping[str, Moments], rng: np.random.Generator) -> list[Draws]:
    match metric.kind:
        case Kind.PROPORTION:
            ones = ((float(m.sums[0]), float(m.n - m.sums[0])) for m in arms.values())
            return [rng.beta(1 + one, 1 + max(0.0, zero), DRAWS) for one, zero in ones]
        case Kind.MEAN | Kind.RATIO:
            return _draws_of_means(metric.kind, arms, rng)
        case other:
            assert_never(other)


def _draws_of_means(kind: Kind, arms: Mapping[str, Moments], rng: np.random.Generator) -> list[Draws]:
    known = {arm: _values(kind, moments) for arm, moments in arms.items()}
    present = [v for v in known.values() if v is not None]
    units = sum(n for n, _, _ in present)
    if not units:
        return [np.zeros(DRAWS) for _ in arms]  # nothing is known of any
    centre = sum(n * mean for n, mean, _ in present) / units
    spread = sum(squares + n * (mean - centre) ** 2 for n, mean, squares in present) / units
    return [_normal(known[arm] or (0.0, centre, 0.0), centre, spread, rng) for arm in arms]


def _values(kind: Kind, moments: Moments) -> tuple[float, float, float] | None:
    """Units, mean, and sum of squares around it, of the units' (linearised) values; None without any."""
    n = float(moments.n)
    if n < 1 or (kind.rules.has_denominator and not moments.sums[1]):
        return None
    value, gradient = value_and_gradient(kind, moments)
    squares = float(moments.form(gradient, gradient)) * (n - 1) if n > 1 else 0.0
    return n, float(value), max(0.0, squares)


def _normal(
    values: tuple[float, float, float], centre: float, spread: float, rng: np.random.Generator
) -> Draws:
    """Draws of an arm's mean: Student's t of the conjugate posterior (Gelman et al., BDA3, section 3.3)."""
    n, mean, squares = values
    strength, shape = PRIOR_UNITS + n, PRIOR_SHAPE + n / 2
    located = (PRIOR_UNITS * centre + n * mean) / strength
    scale = PRIOR_SHAPE * spread + (squares + PRIOR_UNITS * n * (mean - centre) ** 2 / strength) / 2
    drawn: Draws = located + math.sqrt(scale / (shape * strength)) * rng.standard_t(2 * shape, DRAWS)
    return drawn


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
    design = source.design
    rails, early = (
        tuple(found for rail in of if (found := _guarded(source, arm, rail)) is not None)
        for of in (design.guardrails, design.early)
    )
    primary = _measured(source, arm, design.primary, worse)
    ruling = _ruling(source, primary, worse, p, (*rails, *early))
    return ArmReport(arm, ruling, primary, p, rails, early=early)


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
    age = source.ages[metric.name]
    both = [total_moments(source.older(age), a, metric) for a in (source.design.control, arm)]
    if min(moments.n for moments in both) < 2:
        return None
    plan = source.design.plan_for(arm)
    found = measured_of(compare(metric, both[0], both[1], plan), metric, plan)
    return replace(
        found,
        metric=metric.name.partition(WITHIN)[0],
        age=age,
        early=WITHIN in metric.name,
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
    if p is not None:
        p = min(1.0, p / rail.part)
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
    """Ones and zeros of control and the arm, and the arm's part of the units, of each epoch whose units'
    values are final."""
    counts: dict[float, dict[str, tuple[float, float]]] = {}
    for bucket in source.older(source.ages[metric.name]):
        moments = bucket.moments.get(metric.name)
        if moments is not None:
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
