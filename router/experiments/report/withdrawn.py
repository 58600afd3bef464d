"""What a report says of arms that were withdrawn."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from router.experiments.model import Spec
from router.experiments.report.model import Ruling

UNDECIDED, INVALID = "undecided", "invalid"


def standing(spec: Spec, arm: str, ruling: Ruling) -> Ruling:
    """The ruling of an arm. One that was withdrawn is neither promoted nor stopped, and its text has what its
    units showed until then."""
    since = spec.withdrawn.get(arm)
    if since is None or ruling.decision == INVALID:
        return ruling
    shown = f"by its units until then: {ruling.decision} ({ruling.rule}): {ruling.text}"
    return Ruling(UNDECIDED, "withdrawn", f"withdrawn at {moment(since)}; {shown}")


def withdrawal_notes(spec: Spec) -> Iterator[str]:
    """When, and what it changes."""
    for arm, since in spec.withdrawn.items():
        yield (
            f"{arm} was withdrawn at {moment(since)}: its units have the default since, and it is compared"
            f" with {spec.control}'s units of its time; Holm goes on with all arms of the plan"
        )


def moment(unix_seconds: float) -> str:
    """A time as people write it.

    >>> moment(0.0)
    '1970-01-01 00:00 UTC'
    """
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
