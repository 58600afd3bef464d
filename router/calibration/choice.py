"""Whom an opinion on one request is for: all that routing needs of a cascade, without arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from router.calibration.model import Opinion
from router.routing.axes import Axes, Axis


@dataclass(frozen=True, slots=True)
class Choice:
    """Whom an opinion is for, and the confidence of that; the one that yields lends its chance."""

    adapter: str
    confidence: float


def choose(opinion: Opinion, axes: Axes, kinds: Mapping[str, Axis], among: Sequence[str]) -> Choice | None:
    """The adapter that the opinion and the policy of axes come to, of those `among`."""
    chances = {name: opinion.chances[name] for name in among if name in opinion.chances}
    preference = axes.prefer(chances, kinds)
    if preference is None:
        return None
    confidence = chances[preference.winner] + chances.get(preference.over, 0.0)
    return Choice(preference.winner, min(confidence, 1.0))
