"""Measures how much training data an adapter needs: trains it on parts of the data, scores each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from router.errors import ConfigError
from router.evaluation.extra import require_extra

FRACTIONS = (0.1, 0.3)
MOST_POINTS = 9


def learning_curve(
    recipe: Path,
    fractions: Sequence[float] = FRACTIONS,
    *,
    output: Path | None = None,
    work: Path = Path("runs"),
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> Path:
    """Train by `recipe` on each fraction of its training rows, score each on the test split.

    Writes data_need.json into the adapter's folder, `output` or adapters/NAME, and returns its path. Steps
    shrink in proportion, but not below 60 (or the recipe's own); all other settings stay. What is done
    already is kept in `work` and not done again, and an interrupted training goes on.

    Raises ConfigError (recipe, data, fractions, no adapter there), AdapterRejected (the adapter is of
    another base), and what `router.training.train` raises.
    """
    parts = _checked(fractions)
    require_extra("a learning curve")
    from router.evaluation.curve_points import measure_curve

    return measure_curve(recipe, parts, output, work, device, say)


def _checked(fractions: Sequence[float]) -> list[float]:
    wrong = [value for value in fractions if not 0 < value < 1]
    if wrong or not fractions or len(fractions) > MOST_POINTS:
        said = ", ".join(map(str, fractions)) or "none"
        raise ConfigError(
            f"fractions must be 1 to {MOST_POINTS} numbers above 0 and below 1, such as 0.1,0.3; got {said} "
            "(the whole data is the adapter itself: adapters evaluate measures it)"
        )
    return sorted(set(fractions))
