"""What the votes come to with a calibration: see router/calibration for how it was fitted and proven."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from router.calibration.choice import choose
from router.calibration.model import Calibration
from router.routing.policy import Conclusion, Policy
from router.types import Reason, Vote

STRICT = 0.9  # confidence that is needed where a calibration does not fit what is there now


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The rule of a calibration for the adapters of `plain.kinds`.

    `differences` says what is not as it was fitted for. With any, and where a classifier's vote was lost, the
    guarantee does not hold: at least `strict` confidence is needed then, and classifiers that the calibration
    does not know are judged by `plain` with that threshold. Votes of classifiers it left out do not count.
    """

    calibration: Calibration
    plain: Policy
    differences: tuple[str, ...] = ()
    strict: float = STRICT

    def asks(self, classifier: str) -> bool:
        """Whether that classifier's vote counts."""
        return classifier not in self.calibration.left_out

    def settled(self, votes: Sequence[Vote], candidates: Collection[str]) -> bool:
        """Whether no further vote can change the conclusion."""
        return self.plain.broken(votes[-1]) or self._sure(votes, candidates) is not None

    def conclude(self, votes: Sequence[Vote], candidates: Collection[str]) -> Conclusion:
        """The first stage that is sure; else abstention, with the last stage's guess."""
        heard = [vote for vote in votes if self.asks(vote.classifier)]
        for count, vote in enumerate(heard, 1):
            if self.plain.broken(vote):
                return Conclusion(
                    "", Reason.FALLBACK, classifier=vote.classifier, threshold=self._needed(heard)
                )
            if (sure := self._sure(heard[:count], candidates)) is not None:
                return sure
        if all(vote.error for vote in heard):
            return Conclusion("", Reason.FALLBACK, threshold=self._needed(heard))
        return self._unsure(heard, candidates)

    def _needed(self, votes: Sequence[Vote]) -> float:
        doubtful = self.differences or any(vote.error for vote in votes)
        return max(self.calibration.threshold, self.strict) if doubtful else self.calibration.threshold

    def _sure(self, votes: Sequence[Vote], candidates: Collection[str]) -> Conclusion | None:
        heard = [vote for vote in votes if self.asks(vote.classifier)]
        if not heard:
            return None
        last, of = heard[-1], self.calibration
        if last.classifier not in of.scalers:
            return replace(self.plain, threshold=self._needed(heard)).sure(last, candidates)
        place = of.stage_of(heard)
        opinion = of.opinion(heard, self.plain.kinds)
        chosen = choose(opinion, self.plain.axes, self.plain.kinds, sorted(candidates))
        needed = self._needed(heard)
        least = needed if place == len(of.stages) - 1 else max(needed, of.stages[place].stop)
        if chosen is None or chosen.confidence < least or opinion.novelty > of.novelty_limit:
            return None
        return Conclusion(chosen.adapter, Reason.CLASSIFIED, chosen.confidence, last.classifier, needed)

    def _unsure(self, votes: Sequence[Vote], candidates: Collection[str]) -> Conclusion:
        of, needed = self.calibration, self._needed(votes)
        known = [vote for vote in votes if vote.classifier in of.scalers]
        if not known:
            return Conclusion("", Reason.ABSTAINED, threshold=needed)
        opinion = of.opinion(known, self.plain.kinds)
        chosen = choose(opinion, self.plain.axes, self.plain.kinds, sorted(candidates))
        if chosen is None:
            return Conclusion("", Reason.ABSTAINED, threshold=needed)
        strange = opinion.novelty > of.novelty_limit and chosen.confidence >= needed
        reason = Reason.UNFAMILIAR if strange else Reason.ABSTAINED
        return Conclusion("", reason, chosen.confidence, known[-1].classifier, needed)
