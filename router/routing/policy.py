"""What the votes come to without a calibration. Pure functions of votes and candidates: no clock, no state.

The rule: votes count in the order in which classifiers are asked, cheap ones first. The first that is
sure decides. A vote is sure if its best candidate, after the policy of axes (axes.py), has at least
`threshold` confidence, more than 0, and leads the second by `margin` (the one that yields to it does not
count). If none is sure, the base answers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from router.routing.axes import Axes, Axis
from router.types import Reason, Vote

MARGIN = 0.1


@dataclass(frozen=True, slots=True)
class Conclusion:
    """Where a request goes. `adapter` empty means the base; `threshold` is what was needed."""

    adapter: str
    reason: Reason
    confidence: float = 0.0
    classifier: str = ""
    threshold: float = 0.0


class Rule(Protocol):
    """How votes are weighed."""

    def asks(self, classifier: str) -> bool:
        """Whether that classifier's vote counts."""
        ...

    def settled(self, votes: Sequence[Vote], candidates: Collection[str]) -> bool:
        """Whether no further vote can change the conclusion."""
        ...

    def conclude(self, votes: Sequence[Vote], candidates: Collection[str]) -> Conclusion:
        """Where the request goes; the same for all votes as for those up to the one that settles it."""
        ...


@dataclass(frozen=True, slots=True)
class Policy:
    """`threshold` and `margin` in [0, 1]; `required` names classifiers without which nobody is trusted;
    `kinds` are the axes of adapters."""

    threshold: float = 0.5
    margin: float = MARGIN
    required: frozenset[str] = frozenset()
    axes: Axes = Axes()
    kinds: Mapping[str, Axis] = field(default_factory=dict)

    def asks(self, classifier: str) -> bool:
        """Everybody's."""
        return True

    def settled(self, votes: Sequence[Vote], candidates: Collection[str]) -> bool:
        """Whether no further vote can change the conclusion."""
        last = votes[-1]
        return self.broken(last) or self.sure(last, candidates) is not None

    def conclude(self, votes: Sequence[Vote], candidates: Collection[str]) -> Conclusion:
        """The first sure vote; else abstention with the best guess; fallback if nobody could be asked."""
        best = Conclusion("", Reason.ABSTAINED, threshold=self.threshold)
        for vote in votes:
            if self.broken(vote):
                return Conclusion("", Reason.FALLBACK, classifier=vote.classifier, threshold=self.threshold)
            if (sure := self.sure(vote, candidates)) is not None:
                return sure
            top = max((c for name, c in vote.scores.items() if name in candidates), default=0.0)
            if top > best.confidence:
                best = Conclusion("", Reason.ABSTAINED, top, vote.classifier, self.threshold)
        if all(vote.error for vote in votes):
            return Conclusion("", Reason.FALLBACK, threshold=self.threshold)
        return best

    def broken(self, vote: Vote) -> bool:
        """Whether it is the lost vote of a classifier that is required."""
        return bool(vote.error) and vote.classifier in self.required

    def sure(self, vote: Vote, candidates: Collection[str]) -> Conclusion | None:
        """What this vote alone decides."""
        among = {name: c for name, c in vote.scores.items() if name in candidates}
        preference = None if vote.error else self.axes.prefer(among, self.kinds)
        if preference is None:
            return None
        confidence = among.pop(preference.winner)
        among.pop(preference.over, None)
        if confidence < self.threshold or confidence == 0:
            return None
        if among and confidence - max(among.values()) < self.margin:
            return None
        return Conclusion(preference.winner, Reason.CLASSIFIED, confidence, vote.classifier, self.threshold)
