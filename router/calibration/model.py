"""What a calibration says of a request: chances of the adapters, and how strange it is. No numpy here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from router.calibration.binding import Binding
from router.calibration.evidence import Scaler, log_odds, logistic, softmax
from router.routing.axes import Axes, Axis
from router.types import Vote

NEVER = 1.01  # a confidence that nobody has


@dataclass(frozen=True, slots=True)
class Stage:
    """The votes up to some classifier, weighed together.

    `weights` of log chances; for task adapters `task_weights` are added to them. `bias` of each axis is added
    to the log chances of its adapters, `none` and `declined` to that of none (the second for each classifier
    that declined). `novelty` are weights of the classifiers' log-odds of none, for the test
    of strange requests. `stop` is the confidence from which the classifiers after this one are not asked.
    """

    weights: Mapping[str, float]
    task_weights: Mapping[str, float] = field(default_factory=dict)
    bias: Mapping[str, float] = field(default_factory=dict)
    none: float = 0.0
    declined: Mapping[str, float] = field(default_factory=dict)
    novelty: Mapping[str, float] = field(default_factory=dict)
    novelty_bias: float = 0.0
    stop: float = NEVER


@dataclass(frozen=True, slots=True)
class Opinion:
    """Chances of adapters and of none, and of the request being strange; all in [0, 1]."""

    chances: Mapping[str, float]
    none: float
    novelty: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Everything that `route calibrate` fits, in the order in which classifiers are asked.

    `threshold` is the confidence that routes, `novelty_limit` the most strangeness that does; `target`,
    `delta` and `ood_target` are what they were proven for. `left_out` are classifiers that were there and
    could not be asked; their votes do not count.
    """

    scalers: Mapping[str, Scaler]
    stages: tuple[Stage, ...]
    threshold: float
    novelty_limit: float
    target: float
    delta: float
    ood_target: float
    axes: Axes
    binding: Binding
    left_out: tuple[str, ...] = ()
    created: str = ""
    report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def order(self) -> tuple[str, ...]:
        """Classifiers, cheap ones first; stage i knows the first i + 1 of them."""
        return tuple(self.scalers)

    def stage_of(self, votes: Sequence[Vote]) -> int:
        """The stage that these votes reach; -1 if none of them is known."""
        order = self.order
        return max((order.index(v.classifier) for v in votes if v.classifier in self.scalers), default=-1)

    def opinion(self, votes: Sequence[Vote], kinds: Mapping[str, Axis]) -> Opinion:
        """What the votes come to for the adapters in `kinds`; votes of unknown classifiers do not count."""
        return weigh(self.stages[self.stage_of(votes)], self.scalers, votes, kinds)


def weigh(
    stage: Stage, scalers: Mapping[str, Scaler], votes: Sequence[Vote], kinds: Mapping[str, Axis]
) -> Opinion:
    """Log-linear pooling of the calibrated votes for adapters and their axes; a lost vote says nothing."""
    names = tuple(kinds)
    logits = [*(stage.bias.get(axis, 0.0) for axis in kinds.values()), stage.none]
    task = [axis is Axis.TASK for axis in kinds.values()] + [False]
    strange = stage.novelty_bias
    for vote in votes:
        name = vote.classifier
        if vote.error or name not in stage.weights:
            continue
        if vote.declined or not vote.scores:
            logits[-1] += stage.declined.get(name, 0.0)
            continue
        chances = scalers[name].chances(vote.scores, names)
        weight, more = stage.weights[name], stage.task_weights.get(name, 0.0)
        for i, chance in enumerate(chances):
            logits[i] += (weight + more * task[i]) * math.log(max(chance, 1e-12))
        strange += stage.novelty.get(name, 0.0) * log_odds(chances[-1])
    *chances, none = softmax(logits)
    novelty = logistic(strange) if stage.novelty else none
    return Opinion(dict(zip(names, chances, strict=True)), none, novelty)
