"""Requests of an arm that ended before their first token, in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from router.experiments.model import EarlyEnds, Spec
from router.ports import Stage
from router.quantities import percent

if TYPE_CHECKING:
    from router.experiments.store.series import PhaseData


def unserved_notes(data: PhaseData, spec: Spec) -> Iterator[str]:
    """A note with the counts of each arm, and what they leave out; none where every answer began."""
    shown = [text for arm in spec.arms if (text := _unserved(data, arm.name))]
    if shown:
        yield (
            f"requests that ended before their first token: {'; '.join(shown)}. Their {spec.unit}s count in"
            " their arms; they have no time_to_first_token, so a slow arm looks faster by it than it is"
        )


def _unserved(data: PhaseData, arm: str) -> str:
    found = [ends for ends in data.ended.get(arm, ()) if ends.stage != Stage.STREAM]
    total, requests = sum(e.errors + e.cancelled for e in found), data.responses.get(arm, 0)
    if not total:
        return ""
    share = f" ({percent(total / requests)})" if requests else ""
    return f"{arm} {total:,} of {requests:,}{share}: {', '.join(map(ends_in_words, found))}"


def ends_in_words(ends: EarlyEnds) -> str:
    """`lease 3 errors, 1 cancelled`."""
    counts = [f"{ends.errors:,} error{'' if ends.errors == 1 else 's'}"] if ends.errors else []
    counts += [f"{ends.cancelled:,} cancelled"] if ends.cancelled else []
    return f"{ends.stage} {' and '.join(counts)}"
