"""The gate that a fit sets for itself, by texts that were left out of it: from which chance on it routes."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
ERROR = 0.05  # of left-out examples that reach the level, routed wrong
STRANGERS = 0.05  # of left-out general requests, routed
LEVELS = (0.02, 0.98)


def level_of(chances: Array, right: Array, own: Array, general: Array) -> float:
    """The chance that routes, the higher of two: the one that examples reach of which at most ERROR go to
    another adapter, and the one that STRANGERS of the general requests reach.

    `chances` [texts] are those of the best adapter, `right` whether it is the text's own; `own` and `general`
    say which texts are examples and general requests. Where there are errors, half an error more counts: few
    examples say little.
    """
    order = np.argsort(-chances[own], kind="stable")
    wrong = np.cumsum(~right[own][order])
    shares = (wrong + 0.5 * (wrong > 0)) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(shares <= ERROR)
    errors = chances[own][order[enough[-1]]] if len(enough) else float(own.any())
    strangers = np.quantile(chances[general], 1 - STRANGERS) if general.any() else 0.0
    return float(np.clip(max(errors, strangers), *LEVELS))


def shifted(chances: Array, level: float) -> Array:
    """Chances whose odds are shifted so that `level` becomes 0.5."""
    moved = chances * (1 - level)
    found: Array = moved / np.maximum(moved + (1 - chances) * level, 1e-9)
    return found
