"""Which arm a unit gets: the same for ever, computed from hashes alone, in any language."""

from router.experiments.assignment.allocation import (
    Allocation,
    Arm,
    Assigned,
    NotAssigned,
    Reason,
    Salts,
)
from router.experiments.assignment.hashing import fraction, unit_hash
from router.experiments.assignment.units import is_missing, never_repeats, request_id_like

__all__ = [
    "Allocation",
    "Arm",
    "Assigned",
    "NotAssigned",
    "Reason",
    "Salts",
    "fraction",
    "is_missing",
    "never_repeats",
    "request_id_like",
    "unit_hash",
]
