"""Better or not: the rule that decides whether users may see a new version.

A version is better if three things are shown. It answers feedback that it was not trained on better than the
version before, by the paired test. It agrees with those right answers more than with the right answers of
other requests: people correct what was wrong, so any other answer looks like a gain. And it is not worse on
the adapter's own validation rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from router.quantities import SHARE


@dataclass(frozen=True, slots=True)
class Gap:
    """A paired difference in shares of the best score, as `lora-router compare --json` has it."""

    mean: float
    low: float
    high: float
    p: float
    rows: int

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Gap:
        """From its JSON."""
        return cls(**{name: values[name] for name in ("mean", "low", "high", "p", "rows")})

    @property
    def points(self) -> str:
        """`+12.0 points (8.1 to 15.7)`."""
        return SHARE.change(self.mean, self.low, self.high)

    def is_gain(self, alpha: float) -> bool:
        """Whether it is above zero by more than chance, two-sided at `alpha`."""
        return self.mean > 0 and self.p <= alpha


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether the new version is better, and a sentence with the numbers."""

    better: bool
    why: str


def decide(new: Mapping[str, Any], old: Mapping[str, Any], alpha: float, margin: float) -> Decision:
    """`new`: the comparison on held-out feedback, `old`: on validation rows. `margin` in points of 100."""
    gain, kept, chance = Gap.of(new["difference"]), Gap.of(old["difference"]), Gap.of(new["by_chance"])
    on_new = f"{gain.points} on {gain.rows} rows of feedback that it was not trained on"
    on_old = f"{kept.points} on {kept.rows} validation rows"
    if not gain.is_gain(alpha):
        return Decision(False, f"no gain is shown: {on_new}")
    if not chance.is_gain(alpha):
        return Decision(
            False,
            f"its answers agree with the corrections no more than with those of other requests ({on_new}): "
            "the feedback contradicts itself",
        )
    if 100 * kept.mean < -margin:
        return Decision(False, f"it forgets: {on_old}, a loss of {margin:g} is allowed ({on_new})")
    return Decision(True, f"{on_new}, {on_old}")
