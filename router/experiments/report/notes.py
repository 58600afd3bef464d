"""What a reader should know of how a report's numbers came about; times, counts and digests in words."""

from __future__ import annotations

from collections.abc import Iterator

from router.experiments.model import Mode, Spec, Unanswered
from router.experiments.report.source import Source, is_router_experiment, length_moments
from router.experiments.stats import Kind
from router.experiments.verdict import Health

LENGTHS = (("day", 86_400.0), ("hour", 3600.0), ("minute", 60.0), ("second", 1.0))
MODES = {
    Mode.SHADOW: (
        "shadow arms: nobody saw their answers, so pairs tell what the judge {judge} prefers and how the arms"
        " run (operational), not what users prefer; to learn that, run a split"
    ),
    Mode.BANDIT: (
        "bandit: weights follow outcomes, which biases plain means and makes intervals wrong, so none is"
        " shown; what stops an arm is which arm the events of an epoch fell to, which holds however weights"
        " and rates move: of proportions, and of guardrails with a relative margin; nothing is promoted from"
        " a bandit: run a split to confirm"
    ),
    Mode.HOLDOUT: (
        "holdout: units that took part in any experiment against those that the server keeps out of all;"
        " nothing is promoted or stopped by it"
    ),
}


def span(seconds: float) -> str:
    """A length of time.

    >>> span(86400), span(5400), span(2.5)
    ('1 day', '1.5 hours', '2.5 seconds')
    """
    unit, length = next(((u, n) for u, n in LENGTHS if seconds >= n), LENGTHS[-1])
    count = seconds / length
    return f"{count:.3g} {unit}{'' if count == 1 else 's'}"


def window_of(spec: Spec) -> str:
    """How long outcomes count."""
    return span(spec.window) + (f" and its grace of {span(spec.grace)}" if spec.grace else "")


def count(number: int, noun: str) -> str:
    """A number with its noun.

    >>> count(1, "unit"), count(2000, "unit")
    ('1 unit', '2,000 units')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def short(digest: str) -> str:
    """The part of a digest that people compare."""
    return digest[:12] if digest else "none"


def notes_of(source: Source, health: Health) -> tuple[str, ...]:
    """In the order of how much they change the reading."""
    return tuple(_notes(source, health))


def _notes(source: Source, health: Health) -> Iterator[str]:
    spec = source.spec
    if text := MODES.get(spec.mode):
        yield text.format(judge=spec.judge)
    yield from _routers(source)
    young = health.maturity.exposed - health.maturity.matured
    if young:
        yield (
            f"{count(young, 'unit')} had less than the window of {window_of(spec)} and are in no number but"
            " the sample ratio and the guardrails"
        )
    yield from _unanswered(source)
    yield from _degraded(source)
    yield from _lengths(source)
    yield from _phases(source)


def _routers(source: Source) -> Iterator[str]:
    if source.triggered is not None:
        yield (
            f"router experiment: {source.spec.primary.name} is compared on units for which the two routers"
            " differed at least once, since nothing could change for the others; guardrails are of all units"
        )
    elif is_router_experiment(source.spec):
        yield "router experiment with shadow arms: the other router's choice was answered, unseen"


def _unanswered(source: Source) -> Iterator[str]:
    spec = source.spec
    if spec.mode is Mode.SHADOW:
        return
    units = sum(b.exposed for b in source.mature)
    missing = units - sum(b.answered.get(spec.primary.name, 0) for b in source.mature)
    if missing:
        treated = "count as 0" if spec.primary.missing is Unanswered.ZERO else "are left out of its value"
        yield f"{missing:,} of {count(units, 'mature unit')} have no {spec.primary.name} and {treated}"


def _degraded(source: Source) -> Iterator[str]:
    for arm in source.design.weights:
        if broken := sum(b.degraded for b in source.data.buckets if b.arm == arm):
            yield (
                f"{arm} could not answer for {count(broken, 'unit')}; something else did, and they stay in"
                f" {arm}, which they were meant to have"
            )


def _lengths(source: Source) -> Iterator[str]:
    if source.spec.mode is Mode.SHADOW:
        return
    if source.spec.primary.kind is Kind.RATIO:
        yield "no effect at equal answer length: the primary metric is a ratio"
    elif source.deciding and all(length_moments(source.deciding, a) is None for a in source.design.weights):
        yield "no effect at equal answer length: no unit has both its outcome and a count of tokens"


def _phases(source: Source) -> Iterator[str]:
    phase, last = source.phase, source.experiment.phase
    if phase.number > 1:
        yield f"phase {phase.number} ({phase.reason or 'no reason given'}): no unit of an earlier one counts"
    if last is not None and last.number != phase.number:
        yield f"this is phase {phase.number}; the last one is {last.number}"
