"""Health of a phase, and each check in words, whether it failed or not."""

from __future__ import annotations

from collections.abc import Iterator

from router.experiments.health import CROSSED, Health
from router.experiments.model import Mode, Unanswered
from router.experiments.report import cohorts
from router.experiments.report.digests import changed
from router.experiments.report.model import Check
from router.experiments.report.shares import ratio_of
from router.experiments.report.source import Source, is_router_experiment
from router.experiments.report.words import span
from router.experiments.stats import Missing, SampleRatio, maturity, missing_outcomes, sample_ratio


def health_of(source: Source) -> Health:
    """The checks of a phase, from its sums."""
    spec, data, weights = source.spec, source.data, source.design.weights
    total = sum(b.exposed for b in data.buckets)
    ends = ((b.start + b.seconds, b.exposed) for b in data.buckets)
    triggered = source.triggered
    return Health(
        sample_ratio=ratio_of(data.buckets, weights, data.peak) if _splits(source) else _untested(source),
        maturity=maturity(ends, source.now, spec.window),
        missing=dict(_missing(source)),
        crossed=data.crossed / total if total and spec.mode is not Mode.BANDIT else 0.0,
        mixed=changed(data.digests, is_router_experiment(spec)),
        triggered=ratio_of(triggered.buckets, weights) if triggered and _splits(source) else None,
    )


def _splits(source: Source) -> bool:
    return source.spec.mode is Mode.SPLIT


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
    found = cohorts.answered(source.mature, arm, source.spec.primary.name)
    return cohorts.exposed(source.mature, arm), found


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
    left = f"{whole.matured:,} of {whole.exposed:,} units had their window of {span(source.spec.window)}"
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
