"""What a reader should know of how a report's numbers came about."""

from __future__ import annotations

from collections.abc import Iterator

from router.experiments.health import Health
from router.experiments.model import Mode, Unanswered
from router.experiments.report import cohorts
from router.experiments.report.source import Source, is_router_experiment
from router.experiments.report.words import count, span
from router.experiments.stats import Kind

MODES = {
    Mode.SHADOW: (
        "shadow arms: nobody saw their answers, so pairs tell what the judge {judge} prefers and how the arms"
        " run (operational), not what users prefer; to learn that, run a split"
    ),
    Mode.BANDIT: (
        "bandit: weights follow outcomes, which biases plain means and makes the usual intervals wrong, so"
        " none is shown; exact ones of proportions hold while rates do not drift, and are shown, so of"
        " guardrails only proportions are judged; nothing is promoted from a bandit: run a split to confirm"
    ),
}


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
            f"{count(young, 'unit')} had less than the window of {span(spec.window)} and are in no number but"
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
    elif source.deciding and all(cohorts.lengths(source.deciding, a) is None for a in source.design.weights):
        yield "no effect at equal answer length: no unit has both its outcome and a count of tokens"


def _phases(source: Source) -> Iterator[str]:
    phase, last = source.phase, source.experiment.phase
    if phase.number > 1:
        yield f"phase {phase.number} ({phase.reason or 'no reason given'}): no unit of an earlier one counts"
    if last is not None and last.number != phase.number:
        yield f"this is phase {phase.number}; the last one is {last.number}"
