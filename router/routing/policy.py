"""What votes come to: rules, which are pure functions of votes and candidates.

Votes count in the order in which classifiers are asked, cheap ones first. `varied` gives the rule of a
router variant, for experiments.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from router.calibration.model import (
    AdapterChoice,
    Axes,
    Axis,
    Calibration,
    Opinion,
    axis_of,
    choose,
    log_odds,
    logistic,
)
from router.types import AdapterProfile, Reason, Vote

if TYPE_CHECKING:
    from router.types import RouterVariant

log = logging.getLogger(__name__)
WEIGHTS = Path(__file__).with_name("weights.json")  # by which votes are pooled without a calibration
MARGIN = 0.1
SUPPORTING = 0.3  # confidence of a voice for another language with which a learner may decide
STRICT = 0.9  # confidence that is needed where a calibration does not fit what is there now
FITTED = "fitted"
PROVISIONAL = "provisional"
FEW = 64  # adapters that every classifier learns where no calibration says which


@dataclass(frozen=True, slots=True)
class Conclusion:
    """Where a request goes. `adapter` empty means the base; `threshold` is what was needed.

    `provisional`: to an adapter that the calibration does not know. `incomplete`: votes that the calibration
    weighs were lost, so its guarantee does not hold. `foreign`: by the rule for texts in another language
    than the examples, of which a calibration says nothing.
    """

    adapter: str
    reason: Reason
    confidence: float = 0.0
    classifier: str = ""
    threshold: float = 0.0
    provisional: bool = False
    incomplete: bool = False
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class Leaning:
    """What votes lean to that decide nothing: the best adapter and its confidence, and the chance that the
    request is for none of the adapters; both in [0, 1]."""

    guess: str = ""
    confidence: float = 0.0
    none: float = 0.0


@dataclass(frozen=True, slots=True)
class PlainRule:
    """The rule without a calibration.

    The `learners` learned from the same few examples. Their votes are pooled by the built-in `weights`, which
    were fitted on deployments of other adapters (recipes/routing/general.py). The request goes to the best
    adapter if its pooled confidence is at least `threshold` and that of the weights; `alone` is needed where
    a learner that the weights know gave no vote. A learner that they do not know, such as keywords, decides
    with `alone`; where it names the same adapter with `threshold`, the pooled confidence has to reach no more
    than that. Without `weights` each learner needs `alone`, or a second one that names the same adapter.

    A classifier that learned nothing (a rule that somebody wrote) decides alone where it is sure, and so does
    the only learner. A vote is sure if its best candidate, after the policy of axes
    (router/calibration/model.py), has at least `threshold` confidence, more than 0, and leads the second by
    `margin` (the one that yields to it does not count). Confidences and margin lie in [0, 1].

    The `voices` are asked only for texts in another language than the examples, before the others. Where one
    of them has an opinion, it decides alone where it is sure: its 0.5 stands for a level that few strange
    requests reach. Else it decides together with a learner that names the same adapter, if it has at least
    `supporting` confidence and one of both `threshold`. Two other learners decide together only if both have
    `threshold`: in such a text they read little more than names and single words.

    Votes of the `idle` do not count. Without those of the `required` no vote counts. `kinds` are the axes of
    adapters.
    """

    threshold: float = 0.5
    margin: float = MARGIN
    required: frozenset[str] = frozenset()
    axes: Axes = Axes()
    kinds: Mapping[str, Axis] = field(default_factory=dict)
    learners: frozenset[str] = frozenset()
    idle: frozenset[str] = frozenset()
    alone: float = STRICT
    supporting: float = SUPPORTING
    voices: frozenset[str] = frozenset()
    weights: Calibration | None = None

    def counts(self, classifier: str) -> bool:
        """Whether that classifier's vote counts."""
        return classifier not in self.idle

    def settled(self, votes: Sequence[Vote], candidates: Collection[str]) -> bool:
        """Whether no further vote can change the conclusion."""
        return self.broken(votes[-1]) or self._decided(votes, candidates) is not None

    def conclude(self, votes: Sequence[Vote], candidates: Collection[str]) -> Conclusion:
        """What the first votes decide that can; else abstention with the best guess, or fallback where no
        classifier could be asked."""
        votes = [vote for vote in votes if self.counts(vote.classifier)]
        best = Conclusion("", Reason.ABSTAINED, threshold=self.threshold)
        for count, vote in enumerate(votes, 1):
            if self.broken(vote):
                return Conclusion("", Reason.FALLBACK, classifier=vote.classifier, threshold=self.threshold)
            if (decided := self._decided(votes[:count], candidates)) is not None:
                return replace(decided, foreign=self.voice(votes[:count]) is not None)
            top = max((c for name, c in vote.scores.items() if name in candidates), default=0.0)
            if top > best.confidence:
                best = Conclusion("", Reason.ABSTAINED, top, vote.classifier, self.threshold)
        if all(vote.error for vote in votes):
            return Conclusion("", Reason.FALLBACK, threshold=self.threshold)
        return replace(best, foreign=self.voice(votes) is not None)

    def leaning(self, votes: Sequence[Vote], candidates: Collection[str]) -> Leaning:
        """The surest of the votes. The learners' odds of "none" are multiplied, as if independent. Where a
        voice has an opinion it counts alone."""
        if (voice := self.voice(votes)) is not None:
            votes = [voice]
        elif self.weights is not None:
            pooled = [v for v in votes if v.classifier in self.weights.scalers and self.counts(v.classifier)]
            if pooled:
                opinion = self.weights.opinion(pooled, self.kinds)
                chosen, _ = self._opinion(pooled, self.weights, candidates)
                guess = ("", 0.0) if chosen is None else (chosen.adapter, chosen.confidence)
                return Leaning(*guess, none=opinion.none)
        named = [one for v in votes if v.classifier not in self.idle and (one := self.named(v, candidates))]
        best = max(named, key=lambda one: one.confidence, default=Conclusion("", Reason.ABSTAINED))
        odds = [
            log_odds(1 - min(math.fsum(vote.scores.values()), 1.0))
            for vote in votes
            if vote.classifier in self.learners | self.voices and vote.scores and not vote.error
        ]
        return Leaning(best.adapter, best.confidence, logistic(math.fsum(odds)) if odds else 0.0)

    def voice(self, votes: Sequence[Vote]) -> Vote | None:
        """The opinion of a classifier for other languages, if there is one among these votes."""
        voices = (v for v in votes if v.classifier in self.voices and v.scores and not v.error)
        return next(voices, None)

    def broken(self, vote: Vote) -> bool:
        """Whether it is the lost vote of a classifier that is required."""
        return bool(vote.error) and vote.classifier in self.required

    def _decided(self, votes: Sequence[Vote], candidates: Collection[str]) -> Conclusion | None:
        """What the last of these votes decides, alone or together with one before it."""
        *earlier, last = votes
        sure = self.sure(last, candidates)
        voice = self.voice(votes)
        if last.classifier not in self.learners or len(self.learners) == 1:
            return sure
        known = self.weights is not None and last.classifier in self.weights.scalers
        if voice is None and not known and sure is not None and sure.confidence >= self.alone:
            return sure
        if voice is None and self.weights is not None:
            return self._pooled(votes, self.weights, candidates)
        learners = self.learners | self.voices
        for vote in earlier:
            least = 0.0 if voice is None else self.supporting if vote is voice else self.threshold
            if vote.classifier in learners and (agreed := self.agreed(vote, last, candidates, least)):
                return agreed
        return None

    def _pooled(
        self, votes: Sequence[Vote], weights: Calibration, candidates: Collection[str]
    ) -> Conclusion | None:
        """What these votes decide by the weights, as far as the weights know their classifiers.

        A stage that is not the last one decides from its own, higher confidence on.
        """
        pooled = [vote for vote in votes if vote.classifier in weights.scalers]
        if not pooled:
            return None
        chosen, novelty = self._opinion(pooled, weights, candidates)
        if chosen is None:
            return None
        place = weights.stage_of(pooled)
        final = max(i for i, name in enumerate(weights.order) if name in self.learners)
        spoke = {vote.classifier for vote in pooled if not vote.error}
        others = (v for v in votes if v.classifier in self.learners and v.classifier not in weights.scalers)
        supported = any(
            (one := self.named(v, candidates)) is not None
            and one.adapter == chosen.adapter
            and one.confidence >= self.threshold
            for v in others
        )
        enough = self.threshold if supported else max(self.threshold, weights.threshold)
        least = enough if spoke.issuperset(weights.order[: place + 1]) else max(enough, self.alone)
        needed = least if place >= final else max(least, weights.stages[place].stop)
        if chosen.confidence < needed or novelty > weights.novelty_limit:
            return None
        classifier = votes[-1].classifier
        return Conclusion(chosen.adapter, Reason.CLASSIFIED, chosen.confidence, classifier, least)

    def _opinion(
        self, votes: Sequence[Vote], weights: Calibration, candidates: Collection[str]
    ) -> tuple[AdapterChoice | None, float]:
        """The best candidate by the weights, and how strange the request is, in [0, 1]."""
        opinion = weights.opinion(votes, self.kinds)
        among = [name for name in self.kinds if name in candidates]
        return choose(opinion, self.axes, self.kinds, among), opinion.novelty

    def agreed(self, vote: Vote, last: Vote, candidates: Collection[str], least: float) -> Conclusion | None:
        """What these two decide together, both with confidence of at least `least`."""
        one, other = self.named(vote, candidates), self.named(last, candidates)
        if one is None or other is None or one.adapter != other.adapter:
            return None
        surer, second = sorted((other, one), key=lambda named: -named.confidence)
        return surer if surer.confidence >= self.threshold and second.confidence >= least else None

    def named(self, vote: Vote, candidates: Collection[str]) -> Conclusion | None:
        """The candidate that this vote prefers, sure of it or not."""
        among = {name: c for name, c in vote.scores.items() if name in candidates}
        preference = None if vote.error else self.axes.prefer(among, self.kinds)
        if preference is None or among[preference.winner] == 0:
            return None
        confidence = among[preference.winner]
        return Conclusion(preference.winner, Reason.CLASSIFIED, confidence, vote.classifier, self.threshold)

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


@dataclass(frozen=True, slots=True)
class CalibratedRule:
    """The rule of a calibration (router/calibration: how it is fitted and proven), for the adapters of
    `kinds`, which it knows.

    The classifiers in `scaling` vote on `newcomers`, which it does not know, and their votes count first. A
    request goes to the newcomer that one of the `comparing` is sure of by `plain`, or another one of the
    `scaling` if each of the `comparing` that has an opinion names it with `supporting`. Else the others
    decide as though there were no newcomers, but for adapters to which the `comparing` prefer a newcomer with
    at least `supporting`: the calibration was fitted without requests for newcomers, so it is sure of some of
    them.

    `differences` says what is not as it was fitted for. With any, and where a classifier's vote was lost, the
    guarantee does not hold: at least `strict` confidence is needed then, and classifiers that the calibration
    does not know are judged by `plain` with that threshold. Votes of classifiers it left out do not count.

    A text in another language than the examples is decided by `plain` where one of its `voices` has an
    opinion: a calibration that was fitted on requests in the language of the examples says nothing of it.
    """

    calibration: Calibration
    plain: PlainRule
    differences: tuple[str, ...] = ()
    strict: float = STRICT
    kinds: Mapping[str, Axis] | None = None  # those of `plain` where there are no newcomers
    newcomers: frozenset[str] = frozenset()
    scaling: frozenset[str] = frozenset()
    comparing: frozenset[str] = frozenset()  # of the scaling ones

    def counts(self, classifier: str) -> bool:
        """Whether that classifier's vote counts."""
        if classifier in self.plain.voices:
            return self.plain.counts(classifier)
        if classifier in self.scaling:
            return bool(self.newcomers)
        return classifier not in self.calibration.left_out

    def settled(self, votes: Sequence[Vote], candidates: Collection[str]) -> bool:
        """Whether no further vote can change the conclusion."""
        if self.plain.broken(votes[-1]):
            return True
        if self.plain.voice(votes) is not None:
            return self.plain.settled(votes, candidates)
        votes = self._without_voices(votes)
        return (
            bool(votes) and not self._open(votes, candidates) and self._decided(votes, candidates) is not None
        )

    def conclude(self, votes: Sequence[Vote], candidates: Collection[str]) -> Conclusion:
        """A newcomer that a scaling classifier is sure of, else the first stage that is sure; else abstention
        with the last stage's guess."""
        if self.plain.voice(votes) is not None:
            return self.plain.conclude(votes, candidates)
        votes = self._without_voices(votes)
        counting = [vote for vote in votes if self.counts(vote.classifier)]
        panel = [vote for vote in counting if vote.classifier not in self.scaling]
        for count, vote in enumerate(counting, 1):
            if self.plain.broken(vote):
                return Conclusion(
                    "",
                    Reason.FALLBACK,
                    classifier=vote.classifier,
                    threshold=self._needed(panel),
                    incomplete=True,
                )
            if count < len(counting) and self._open(counting[:count], candidates):
                continue
            if (sure := self._decided(counting[:count], candidates)) is not None:
                return sure
        if all(vote.error for vote in panel):
            return Conclusion("", Reason.FALLBACK, threshold=self._needed(panel), incomplete=bool(panel))
        return replace(self._unsure(panel, candidates), incomplete=_incomplete(panel))

    def leaning(self, votes: Sequence[Vote], candidates: Collection[str]) -> Leaning:
        """Of the last stage that these votes reach."""
        if self.plain.voice(votes) is not None:
            return self.plain.leaning(votes, candidates)
        panel = [v for v in votes if v.classifier in self.calibration.scalers and self.counts(v.classifier)]
        if not panel:
            return Leaning()
        opinion, chosen = self._opinion(panel, candidates)
        if chosen is None:
            return Leaning(none=opinion.none)
        return Leaning(chosen.adapter, chosen.confidence, opinion.none)

    def _without_voices(self, votes: Sequence[Vote]) -> Sequence[Vote]:
        return [vote for vote in votes if vote.classifier not in self.plain.voices]

    def _open(self, votes: Sequence[Vote], candidates: Collection[str]) -> bool:
        """Whether a newcomer may yet be named."""
        if self.scaling <= {vote.classifier for vote in votes}:
            return False
        return not self.newcomers.isdisjoint(candidates)

    def _decided(self, votes: Sequence[Vote], candidates: Collection[str]) -> Conclusion | None:
        """What these votes come to, once all have voted that speak for newcomers."""
        if (found := self._newcomer(votes, candidates)) is not None:
            return replace(found, provisional=True)
        panel = [v for v in votes if v.classifier not in self.scaling and self.counts(v.classifier)]
        first = 1 if len(panel) < len(votes) else len(panel)  # earlier ones were not asked while it was open
        for count in range(max(first, 1), len(panel) + 1):
            sure = self._sure(panel[:count], candidates)
            if sure is not None and not self._contested(sure.adapter, votes, candidates):
                return replace(sure, incomplete=_incomplete(panel[:count]))
        return None

    def _newcomer(self, votes: Sequence[Vote], candidates: Collection[str]) -> Conclusion | None:
        """The newcomer that these votes decide on."""
        comparing = self._comparing(votes)
        others = [v for v in votes if v.classifier in self.scaling - self.comparing]
        plain, least = self.plain, self.plain.supporting
        for vote in (*comparing, *others):
            found = plain.sure(vote, candidates)
            seconds = [] if vote in comparing else comparing
            if found is None or found.adapter not in self.newcomers:
                continue
            if all(plain.agreed(second, vote, candidates, least) for second in seconds):
                return found
        return None

    def _contested(self, adapter: str, votes: Sequence[Vote], candidates: Collection[str]) -> bool:
        """Whether a newcomer is more likely than this adapter."""
        rivals = self.newcomers.intersection(candidates)
        for vote in self._comparing(votes):
            best = max((vote.scores.get(name, 0.0) for name in rivals), default=0.0)
            if best >= self.plain.supporting and best > vote.scores.get(adapter, 0.0):
                return True
        return False

    def _comparing(self, votes: Sequence[Vote]) -> list[Vote]:
        """The opinions that compare newcomers with the others."""
        return [v for v in votes if v.classifier in self.comparing and v.scores and not v.error]

    def _needed(self, votes: Sequence[Vote]) -> float:
        doubtful = self.differences or _incomplete(votes)
        return max(self.calibration.threshold, self.strict) if doubtful else self.calibration.threshold

    def _opinion(
        self, votes: Sequence[Vote], candidates: Collection[str]
    ) -> tuple[Opinion, AdapterChoice | None]:
        kinds = self.plain.kinds if self.kinds is None else self.kinds
        opinion = self.calibration.opinion(votes, kinds)
        among = [name for name in kinds if name in candidates]
        return opinion, choose(opinion, self.plain.axes, kinds, among)

    def _sure(self, votes: Sequence[Vote], candidates: Collection[str]) -> Conclusion | None:
        """What the last of these decides, knowing those before."""
        last, of = votes[-1], self.calibration
        if last.classifier not in of.scalers:
            return replace(self.plain, threshold=self._needed(votes)).sure(last, candidates)
        opinion, chosen = self._opinion(votes, candidates)
        place, needed = of.stage_of(votes), self._needed(votes)
        least = needed if place == len(of.stages) - 1 else max(needed, of.stages[place].stop)
        if chosen is None or chosen.confidence < least or opinion.novelty > of.novelty_limit:
            return None
        return Conclusion(chosen.adapter, Reason.CLASSIFIED, chosen.confidence, last.classifier, needed)

    def _unsure(self, votes: Sequence[Vote], candidates: Collection[str]) -> Conclusion:
        of, needed = self.calibration, self._needed(votes)
        known = [vote for vote in votes if vote.classifier in of.scalers]
        if not known:
            return Conclusion("", Reason.ABSTAINED, threshold=needed)
        opinion, chosen = self._opinion(known, candidates)
        if chosen is None:
            return Conclusion("", Reason.ABSTAINED, threshold=needed)
        strange = opinion.novelty > of.novelty_limit and chosen.confidence >= needed
        reason = Reason.UNFAMILIAR if strange else Reason.ABSTAINED
        return Conclusion("", reason, chosen.confidence, known[-1].classifier, needed)


def _incomplete(votes: Sequence[Vote]) -> bool:
    return any(vote.error for vote in votes)


class Kinds(Mapping[str, Axis]):
    """Axes of adapters, found when they are asked for: there may be thousands of adapters."""

    def __init__(self, profiles: Iterable[AdapterProfile]) -> None:
        self._profiles = {profile.name: profile for profile in profiles}

    def __getitem__(self, name: str) -> Axis:
        return axis_of(self._profiles[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._profiles)

    def __len__(self) -> int:
        return len(self._profiles)


def varied(rule: PlainRule | CalibratedRule, variant: RouterVariant | None) -> Rule:
    """`rule` as the variant has it; what the variant leaves open stays.

    A calibration was proven for its own axes and classifiers: with others the strict threshold is needed, as
    with any set that it does not fit, unless the variant says the threshold itself.
    """
    if variant is None:
        return rule
    changed = _policy(rule, variant) if isinstance(rule, PlainRule) else _calibrated(rule, variant)
    return (
        changed if variant.classifiers is None else SomeClassifiers(changed, frozenset(variant.classifiers))
    )


def _policy(plain: PlainRule, variant: RouterVariant) -> PlainRule:
    task, domain = variant.task_first, variant.domain_first
    axes = replace(
        plain.axes,
        task_first=plain.axes.task_first if task is None else task,
        domain_first=plain.axes.domain_first if domain is None else domain,
    )
    threshold = plain.threshold if variant.threshold is None else variant.threshold
    changed = replace(plain, axes=axes, threshold=threshold)
    if variant.classifiers is None:
        return changed
    names = frozenset(variant.classifiers)
    learners = plain.learners & names or plain.idle & names
    return replace(changed, learners=learners, idle=plain.idle - names)


def _calibrated(rule: CalibratedRule, variant: RouterVariant) -> CalibratedRule:
    plain, differences = _policy(rule.plain, variant), list(rule.differences)
    if plain.axes != rule.plain.axes:
        differences.append("the router variant has other axes")
    if variant.classifiers is not None and not set(rule.calibration.scalers) <= set(variant.classifiers):
        differences.append("the router variant asks fewer classifiers")
    changed = replace(rule, plain=plain, differences=tuple(differences))
    if variant.threshold is None:
        return changed
    calibration = replace(rule.calibration, threshold=variant.threshold)
    return replace(changed, calibration=calibration, strict=variant.threshold)


@dataclass(frozen=True, slots=True)
class SomeClassifiers:
    """A rule by which only some classifiers count."""

    rule: PlainRule | CalibratedRule
    classifiers: frozenset[str]

    def counts(self, classifier: str) -> bool:
        """Whether that classifier's vote counts."""
        return classifier in self.classifiers and self.rule.counts(classifier)

    def settled(self, votes: Sequence[Vote], candidates: Collection[str]) -> bool:
        """Whether no further vote can change the conclusion."""
        return self.rule.settled(votes, candidates)

    def conclude(self, votes: Sequence[Vote], candidates: Collection[str]) -> Conclusion:
        """By the votes of these classifiers alone."""
        return self.rule.conclude([v for v in votes if v.classifier in self.classifiers], candidates)

    def leaning(self, votes: Sequence[Vote], candidates: Collection[str]) -> Leaning:
        """Of the votes of these classifiers alone."""
        return self.rule.leaning([v for v in votes if v.classifier in self.classifiers], candidates)


Rule = PlainRule | CalibratedRule | SomeClassifiers


def rule_digest(rule: Rule, fingerprints: Mapping[str, str]) -> str:
    """sha256 over all that decides beside the adapters: configuration, calibration, and the classifiers'
    fingerprints in the order in which they are asked.
    """
    inner = rule.rule if isinstance(rule, SomeClassifiers) else rule
    plain = inner.plain if isinstance(inner, CalibratedRule) else inner
    parts: list[object] = ["Calibrated" if isinstance(inner, CalibratedRule) else "Policy"]
    if isinstance(plain, PlainRule):
        parts += [plain.threshold, plain.margin, sorted(plain.required), asdict(plain.axes)]
        parts += [sorted(plain.learners), sorted(plain.idle), plain.alone]
    if isinstance(inner, CalibratedRule):
        parts += [asdict(inner.calibration), inner.strict, bool(inner.differences)]
    parts.append([[name, text] for name, text in fingerprints.items() if rule.counts(name)])
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
