"""A classifier's confidences as log chances of the adapters and of "none of them"."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FLOOR = 1e-4  # no classifier is surer than this that something is not so
LONGEST = 7.0  # bound of a log-odds, in nats


def log_chances(confidences: Mapping[str, float], names: Sequence[str]) -> list[float]:
    """[names + 1] natural logarithms; the last is "none of them".

    Confidences that sum below 1 leave the rest to none. Where they sum to more they are read as
    independent: none is the chance that all of them are wrong.
    """
    chances = [min(max(confidences.get(name, 0.0), 0.0), 1.0) for name in names]
    total = math.fsum(chances)
    none = 1.0 - total if total <= 1.0 else math.prod(1.0 - c for c in chances)
    return [math.log(max(c, FLOOR)) for c in (*chances, none)]


def softmax(logits: Sequence[float]) -> list[float]:
    """Chances that sum to 1."""
    top = max(logits)
    powers = [math.exp(value - top) for value in logits]
    total = math.fsum(powers)
    return [power / total for power in powers]


def log_odds(chance: float) -> float:
    """log(p / (1 - p)), bounded."""
    edge = math.exp(-LONGEST)
    kept = min(max(chance, edge), 1 - edge)
    return math.log(kept / (1 - kept))


def logistic(odds: float) -> float:
    """The chance of a log-odds."""
    return 1 / (1 + math.exp(-odds)) if odds >= 0 else math.exp(odds) / (1 + math.exp(odds))


@dataclass(frozen=True, slots=True)
class Scaler:
    """Temperature scaling (Guo et al., 2017) of one classifier, with a bias for "none"."""

    temperature: float = 1.0
    none: float = 0.0

    def chances(self, confidences: Mapping[str, float], names: Sequence[str]) -> list[float]:
        """[names + 1] calibrated chances; the last is none."""
        logits = [value / self.temperature for value in log_chances(confidences, names)]
        logits[-1] += self.none
        return softmax(logits)
