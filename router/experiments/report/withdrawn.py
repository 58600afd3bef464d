"""What a report says of arms that were withdrawn."""

from __future__ import annotations

from collections.abc import Iterator

from router.experiments.model import Spec
from router.experiments.report.model import Ruling
from router.experiments.words import at

UNDECIDED, INVALID = "undecided", "invalid"


def standing(spec: Spec, arm: str, ruling: Ruling) -> Ruling:
    """The ruling of an arm. One that was withdrawn is neither promoted nor stopped, and its text has what its
    units showed until then."""
    since = spec.withdrawn.get(arm)
    if since is None or ruling.decision == INVALID:
        return ruling
    shown = f"by its units until then: {ruling.text}"
    return Ruling(UNDECIDED, "withdrawn", f"since {at(since)} it has no units; {shown}")


def withdrawal_notes(spec: Spec) -> Iterator[str]:
    """When, and what it changes."""
    for arm, since in spec.withdrawn.items():
        yield (
            f"{arm} was withdrawn at {at(since)}: its {spec.unit}s have the default since then. It is"
            f" compared with the {spec.unit}s that {spec.control} had until then; the other arms are judged"
            " as before"
        )
