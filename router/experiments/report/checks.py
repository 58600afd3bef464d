"""Health of a phase, and each check in words, whether it failed or not.

The sample ratio is tested over time: its evidence after every bucket, and the shares at which it has its
alarm. And did what was tested change while it was tested?
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from router.experiments.model import Mode, Unanswered
from router.experiments.report.model import Check
from router.experiments.report.notes import short, window_of
from router.experiments.report.source import Source, answered_units, exposed_units, is_router_experiment
from router.experiments.stats import Missing, SampleRatio, maturity, missing_outcomes, sample_ratio
from router.experiments.stats.checks import ALPHA, arm_term, total_term
from router.experiments.stats.moments import Array
from router.experiments.store.port import Bucket
from router.experiments.verdict import CROSSED, Health

PARTS = ("adapter", "base", "router")
_STEPS = 40


def health_of(source: Source) -> Health:
    """The checks of a phase, from its sums."""
    spec, data, weights = source.spec, source.data, source.design.weights
    total = sum(b.exposed for b in data.buckets)
    ends = ((b.start + b.seconds, b.exposed) for b in data.buckets)
    triggered = source.triggered
    return Health(
        sample_ratio=ratio_of(data.buckets, weights, data.peak) if _splits(source) else _untested(source),
        maturity=maturity(ends, source.now, spec.closing),
        missing=dict(_missing(source)),
        crossed=data.crossed / total if total and spec.mode is not Mode.BANDIT else 0.0,
        mixed=() if spec.mode is Mode.HOLDOUT else changed_parts(data.digests, is_router_experiment(spec)),
        triggered=ratio_of(triggered.buckets, weights) if triggered and _splits(source) else None,
    )


def _splits(source: Source) -> bool:
    return source.spec.mode in (Mode.SPLIT, Mode.HOLDOUT)


def _untested(source: Source) -> SampleRatio:
    weights = tuple(source.design.weights.values())
    return sample_ratio([0] * len(weights), weights)


def _missing(source: Source) -> Iterator[tuple[str, Missing]]:
    """Arm by arm, over mature units. None where a missing outcome counts as 0: then it is an outcome."""
    spec = source.spec
    if spec.primary.missing is Unanswered.ZERO or spec.mode is Mode.SHADOW:
        return
    seen = {arm: _answers(source, arm) for arm in source.design.weights}
    for arm in source.design.treatments:
        yield arm, missing_outcomes(seen[spec.control], seen[arm])


def _answers(source: Source, arm: str) -> tuple[int, int]:
    found = answered_units(source.mature, arm, source.spec.primary.name)
    return exposed_units(source.mature, arm), found


def checks_of(source: Source, health: Health) -> tuple[Check, ...]:
    """All checks in words, in the order in which they make a verdict invalid."""
    failed = {fault.rule: fault.text for fault in health.faults()}
    sound = dict(_sound(source, health))
    return tuple(Check(name, name in failed, failed.get(name, text)) for name, text in sound.items())


def _sound(source: Source, health: Health) -> Iterator[tuple[str, str]]:
    yield "sample-ratio", _ratio(source, health.sample_ratio)
    if health.triggered is not None:
        yield "triggered-ratio", _ratio(source, health.triggered)
    yield "missing-outcomes", _told_missing(source, health)
    yield "crossed-units", _crossed(source, health)
    yield "mixed-digests", "adapters, base and router stayed what they were"
    whole = health.maturity
    left = f"{whole.matured:,} of {whole.exposed:,} units had their window of {window_of(source.spec)}"
    yield "maturity", f"{left} ({whole.share:.0%}, {source.spec.min_matured:.0%} are needed to promote)"


def _crossed(source: Source, health: Health) -> str:
    if source.spec.mode is Mode.BANDIT:
        return (
            f"not tested: between epochs a bandit moves units ({source.data.crossed:,} so far), which stay "
            "with the arm that they saw first"
        )
    return f"{health.crossed:.1%} of units saw more than one arm, over {CROSSED:.0%} is too many"


def _ratio(source: Source, ratio: SampleRatio) -> str:
    if source.spec.mode is Mode.BANDIT:
        return "not tested: a bandit's weights change"
    if source.spec.mode is Mode.SHADOW:
        return "not tested: control answers every unit, the other arms answer beside it"
    arms = ", ".join(
        f"{arm} {got:,} ({wanted:,.0f} expected)"
        for arm, got, wanted in zip(source.design.weights, ratio.counts, ratio.expected, strict=True)
    )
    return f"{arms}; p = {ratio.p:.2g}, alarm at {ratio.alpha:g}"


def _told_missing(source: Source, health: Health) -> str:
    spec = source.spec
    if spec.mode is Mode.SHADOW:
        return "not tested: users answer control only"
    if spec.primary.missing is Unanswered.ZERO:
        return f"a unit without {spec.primary.name} counts as 0, so none is missing"
    shares = [
        f"{found.treatment:.1%} in {arm}, {found.control:.1%} in {spec.control}"
        for arm, found in health.missing.items()
    ]
    return f"without {spec.primary.name}: {'; '.join(shares)}"


def changed_parts(digests: Mapping[str, tuple[str, ...]], routers: bool) -> tuple[str, ...]:
    """What changed under a phase, by arm, in words. Of `adapter/base/router` texts, in order of time.

    No adapter is no change of it: the base answered, as an arm does that has none or could not load its
    own. In a router experiment every arm has all adapters.
    """
    return tuple(_changed_parts(digests, PARTS[1:] if routers else PARTS))


def _changed_parts(digests: Mapping[str, tuple[str, ...]], parts: tuple[str, ...]) -> Iterator[str]:
    for arm, found in digests.items():
        split = [text.split("/") for text in found]
        for part in parts:
            place = PARTS.index(part)
            seen = dict.fromkeys(s[place] for s in split if len(s) > place and s[place])
            if len(seen) > 1:
                yield f"{part} of {arm} ({' -> '.join(map(short, seen))})"


def ratio_of(buckets: Sequence[Bucket], weights: Mapping[str, float], peak: float = 0.0) -> SampleRatio:
    """The test on all units, with its largest evidence at the end of any bucket or any look before."""
    arms = list(weights)
    counted = np.array([[b.exposed if b.arm == arm else 0 for arm in arms] for b in buckets], np.float64)
    running = np.cumsum(counted.reshape(len(buckets), len(arms)), axis=0)
    ends = _last_of_each(np.array([b.start for b in buckets]))
    found = evidence(running[ends], [weights[arm] for arm in arms])
    counts = [int(n) for n in running[-1]] if len(running) else [0] * len(arms)
    return sample_ratio(counts, [weights[arm] for arm in arms], max([peak, *found.tolist()]))


def _last_of_each(starts: Array) -> NDArray[np.int64]:
    """Which buckets are the last of their time: between two arms of one bucket nothing is tested."""
    if not len(starts):
        return np.array([], np.int64)
    return np.flatnonzero(np.append(starts[1:] != starts[:-1], True))


def evidence(counts: Array, weights: Sequence[float]) -> Array:
    """Log evidence, [looks], from units by look and arm, [looks, arms]."""
    found = -total_term(counts.sum(axis=1))
    for i, weight in enumerate(weights):
        found = found + arm_term(counts[:, i], weight)
    return np.asarray(found, np.float64)


def band(units: int, weight: float, alpha: float = ALPHA) -> tuple[float, float]:
    """Shares of one arm against all others, among `units`, between which the test has no alarm."""
    if not units:
        return 0.0, 1.0
    return _edge(units, weight, 0.0, alpha), _edge(units, weight, 1.0, alpha)


def _edge(units: int, weight: float, outside: float, alpha: float) -> float:
    """The evidence grows from the arm's own weight outwards, so by bisection."""
    inside, level = weight, -math.log(alpha)
    if _evidence_at(outside, units, weight) < level:
        return outside
    for _ in range(_STEPS):
        middle = (inside + outside) / 2
        if _evidence_at(middle, units, weight) < level:
            inside = middle
        else:
            outside = middle
    return inside


def _evidence_at(share: float, units: int, weight: float) -> float:
    counts = (share * units, (1 - share) * units)
    terms = sum(float(arm_term(n, w)) for n, w in zip(counts, (weight, 1 - weight), strict=True))
    return terms - float(total_term(units))
