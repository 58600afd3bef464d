"""What the votes come to. Pure functions of votes and candidates: no clock, no state.

The rule: votes count in the order in which classifiers are asked, cheap ones first. The first that is
sure decides. A vote is sure if its best candidate has at least `threshold` confidence, more than 0, and
leads the second by `margin`. If none is sure, the base answers. Votes are weighed one at a time; a rule
that weighs domain against task over all votes replaces `settled` and `conclude` and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from router.types import Reason, Vote

MARGIN = 0.1


@dataclass(frozen=True, slots=True)
class Conclusion:
    """Where a request goes. `adapter` empty means the base."""

    adapter: str
    reason: Reason
    confidence: float = 0.0
    classifier: str = ""


@dataclass(frozen=True, slots=True)
class Policy:
    """`threshold` and `margin` in [0, 1]; `required` names classifiers without which nobody is trusted."""

    threshold: float = 0.5
    margin: float = MARGIN
    required: frozenset[str] = frozenset()

    def settled(self, votes: Sequence[Vote], candidates: Collection[str]) -> bool:
        """Whether no further vote can change the conclusion."""
        last = votes[-1]
        return self._broken(last) or self._sure(last, candidates) is not None

    def conclude(self, votes: Sequence[Vote], candidates: Collection[str]) -> Conclusion:
        """The first sure vote; else abstention with the best guess; fallback if nobody could be asked."""
        best = Conclusion("", Reason.ABSTAINED)
        for vote in votes:
            if self._broken(vote):
                return Conclusion("", Reason.FALLBACK, classifier=vote.classifier)
            if (sure := self._sure(vote, candidates)) is not None:
                return sure
            top = max((c for name, c in vote.scores.items() if name in candidates), default=0.0)
            if top > best.confidence:
                best = Conclusion("", Reason.ABSTAINED, top, vote.classifier)
        if all(vote.error for vote in votes):
            return Conclusion("", Reason.FALLBACK)
        return best

    def _broken(self, vote: Vote) -> bool:
        return bool(vote.error) and vote.classifier in self.required

    def _sure(self, vote: Vote, candidates: Collection[str]) -> Conclusion | None:
        ranked = sorted(((c, name) for name, c in vote.scores.items() if name in candidates), reverse=True)
        if vote.error or not ranked or ranked[0][0] < self.threshold or ranked[0][0] == 0:
            return None
        if len(ranked) > 1 and ranked[0][0] - ranked[1][0] < self.margin:
            return None
        return Conclusion(ranked[0][1], Reason.CLASSIFIED, ranked[0][0], vote.classifier)
