"""Better or not: the rule that decides whether users may see a new version.

Two things must be shown. On rows of the task that no version was trained on, the new version loses less than
`MARGIN` against the first version, and against the version that serves. On feedback of users that no verdict
saw before, it answers better than the version that serves, and agrees with those right answers more than with
the right answers of other requests: people correct what was wrong, so any other answer looks like a gain.

The verdicts against one serving version share `ALPHA`: the k-th may err with ALPHA / (k (k + 1)), which adds
up to ALPHA however many there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.quantities import SHARE

ALPHA = 0.05  # chance that any of the verdicts against a serving version is wrongly "better"
MARGIN = 0.02  # loss on rows of the task that must be excluded, as a share of the best score
POWER = 0.8  # with which the rows that are asked for show that nothing is lost
Array = NDArray[np.float64]


def level(verdict: int) -> float:
    """The chance of error of the n-th verdict against a serving version, from 1 on.

    >>> [round(level(verdict), 4) for verdict in (1, 2, 3, 10)]
    [0.025, 0.0083, 0.0042, 0.0005]
    """
    return ALPHA / (verdict * (verdict + 1))


def users_needed(verdict: int) -> int:
    """Users whose feedback the n-th verdict takes: its test can pass even if half of them show no gain.

    >>> [users_needed(verdict) for verdict in (1, 2, 3, 10)]
    [12, 14, 16, 24]
    """
    return 2 * math.ceil(math.log2(1 / level(verdict)))


def rows_needed(verdict: int) -> int:
    """Task rows that the n-th verdict takes: with fewer, not even equal answers show that nothing is lost.

    >>> [rows_needed(verdict) for verdict in (1, 2, 3, 10)]
    [193, 287, 349, 551]
    """
    return math.ceil(NormalDist().inv_cdf(1 - level(verdict)) ** 2 / MARGIN)


def lowest(total: Array, squares: Array, rows: int, alpha: float) -> Array:
    """Lower confidence bounds, one-sided at `alpha`, of the mean change by row.

    `total` and `squares` are the sums of the changes (-1 to 1) and of their squares. Pairs of +1 and -1 are
    added (Agresti and Coull), so that few equal rows do not give an interval of width zero.
    """
    reach = NormalDist().inv_cdf(1 - alpha)
    pairs = reach**2 / 2
    count = rows + 2 * pairs
    mean = total / count
    spread = (squares + 2 * pairs) / count - mean**2
    bounds: Array = mean - reach * np.sqrt(spread / count)
    return bounds


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether the new version passes, and a sentence with the numbers."""

    passes: bool
    why: str


def keeps(changes: Sequence[float], verdict: int, other: str) -> Decision:
    """Whether a loss of `MARGIN` against the version `other` is excluded. `changes`: of scores, by row."""
    each = np.asarray(changes, dtype=float)
    squares = (each**2).sum()
    low = float(lowest(each.sum(), squares, len(each), level(verdict)))
    found = (
        f"{SHARE.difference(float(each.mean()))} ({SHARE.difference(low)} or more) on {len(each)} task rows "
        f"against {other}"
    )
    if low > -MARGIN:
        return Decision(True, found)
    enough = _rows_needed(float(squares) / len(each), verdict)
    advice = (
        f"; about {enough:,} rows show that nothing is lost, where nothing is" if enough > len(each) else ""
    )
    lost = f"it may forget: {found}, and a loss of {SHARE.margin(MARGIN)} must be excluded{advice}"
    return Decision(False, lost)


def _rows_needed(square: float, verdict: int) -> int:
    """Rows that exclude a loss of MARGIN with POWER where nothing is lost. `square`: mean squared change."""
    reach = NormalDist().inv_cdf(1 - level(verdict))
    whole = (reach + NormalDist().inv_cdf(POWER)) ** 2
    root = math.hypot(square * whole, 2 * MARGIN * math.sqrt(whole) * reach)
    return math.ceil((square * whole + root) / (2 * MARGIN**2) / 100) * 100


def gains(found: Mapping[str, Any], verdict: int) -> Decision:
    """Whether a gain is shown. `found`: a comparison on feedback, as `lora-router compare --json` has it."""
    gap, chance = found["difference"], found["by_chance"]
    shown = (
        f"{SHARE.change(gap['mean'], gap['low'], gap['high'])} on {gap['rows']} rows of {gap['groups']} "
        "users who were not seen before"
    )
    if not _is_gain(gap, verdict):
        return Decision(False, f"no gain is shown: {shown}, p = {gap['p']:.2g} in verdict {verdict}")
    if not _is_gain(chance, verdict):
        return Decision(
            False,
            f"its answers agree with the corrections no more than with those of other requests ({shown}): "
            "the feedback contradicts itself",
        )
    return Decision(True, shown)


def _is_gain(gap: Mapping[str, Any], verdict: int) -> bool:
    """Whether it is above zero by more than chance. Half of a two-sided p is the one-sided one."""
    return bool(gap["mean"] > 0 and gap["p"] / 2 <= level(verdict))
