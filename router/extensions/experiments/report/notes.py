"""What the reader of a report should know of how it came about, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from router.extensions.experiments.model import Mode, Spec, Unanswered
from router.extensions.experiments.report.source import PhaseEvidence
from router.quantities import counted

if TYPE_CHECKING:
    from router.extensions.experiments.store.series import PhaseData

MODE_NOTES = {
    Mode.SHADOW: (
        "nobody saw the answers of the other arms: the log says how these arms run, not what users prefer"
    ),
    Mode.HOLDOUT: (
        "this compares those who took part in any experiment with those whom the server keeps out of all;"
        " nothing is promoted or stopped by it"
    ),
}


def notes_of(source: PhaseEvidence) -> tuple[str, ...]:
    """In the order of how much they change the reading."""
    return tuple(_notes(source))


def _notes(source: PhaseEvidence) -> Iterator[str]:
    spec = source.spec
    if text := MODE_NOTES.get(spec.mode):
        yield text
    yield from _unanswered_notes(source)
    if source.data.late:
        yield f"not counted: {counted(source.data.late, 'outcome')} that happened or came too late"
    yield from _unserved_notes(source.data, spec)
    yield from _degraded_notes(source)
    yield from _phase_notes(source)


def _unanswered_notes(source: PhaseEvidence) -> Iterator[str]:
    spec = source.spec
    if spec.mode is Mode.SHADOW:
        return
    units = sum(b.exposed for b in source.mature)
    missing = units - sum(b.answered.get(spec.primary.name, 0) for b in source.mature)
    if missing:
        treated = "count as 0" if spec.primary.missing is Unanswered.ZERO else "are left out"
        whole = f"{counted(units, spec.unit)} with their whole window"
        yield f"{missing:,} of {whole} have no {spec.primary.name} and {treated}"


def _degraded_notes(source: PhaseEvidence) -> Iterator[str]:
    for arm in source.design.weights:
        if broken := sum(b.degraded for b in source.data.buckets if b.arm == arm):
            yield (
                f"{arm} could not answer {counted(broken, source.spec.unit)}; something else did, and they"
                f" still count for {arm}"
            )


def _phase_notes(source: PhaseEvidence) -> Iterator[str]:
    phase, last = source.phase, source.experiment.phase
    if phase.number > 1:
        why = phase.reason or "no reason given"
        yield f"this is phase {phase.number} ({why}): nothing of an earlier phase counts"
    if last is not None and last.number != phase.number:
        yield f"this is phase {phase.number}; the last one is {last.number}"


def _unserved_notes(data: PhaseData, spec: Spec) -> Iterator[str]:
    """A note with the counts of each arm, and what they leave out; none where every answer began."""
    shown = [
        f"{arm.name} {many:,} of {data.responses.get(arm.name, 0):,}"
        for arm in spec.arms
        if (many := data.unserved.get(arm.name, 0))
    ]
    if shown:
        yield (
            f"requests that ended before their first token: {'; '.join(shown)}. Their {spec.unit}s count in"
            " their arms; they have no time_to_first_token, so a slow arm looks faster by it than it is"
        )
