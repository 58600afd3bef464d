"""The rule by which votes of classifiers become a conclusion: pure functions of votes and candidates.

The first classifier that is sure decides, in the order in which they are asked. It is sure where its best
candidate reaches the threshold, ahead of every other.

`Axes` says which of two adapters gets a request that both could take. An adapter is a specialist in a
domain or in a task. A task instruction beats the topic (a medical text *to summarize* is for the
summarizer), and a bare question in a domain beats plain question answering (a question on tax law is for
the lawyer).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from router.types import AdapterProfile, Reason, Vote

THRESHOLD = 0.5
SUPPORTING = 0.3  # confidence of a vote on a text in another language that another vote may confirm
PLAIN_TASKS = frozenset({"question-answering", "chat"})  # what any request asks for that gives no instruction
LEAST_CONFIDENCE = 0.1  # below which no adapter takes a request from another
NEAR = 0.8  # share of the leader's confidence from which an adapter of the stronger axis wins


class Axis(StrEnum):
    """What an adapter is a specialist in."""

    TASK = "task"  # a task with an instruction of its own, whatever the topic
    DOMAIN = "domain"  # a topic
    PLAIN = "plain"  # question answering on no topic
    BOTH = "both"  # a task on a topic, or neither: takes nothing from others and yields to none


def axis_of(profile: AdapterProfile) -> Axis:
    """By the manifest's `domain` and `task`."""
    plain = profile.task in PLAIN_TASKS
    if profile.domain and (plain or not profile.task):
        return Axis.DOMAIN
    if profile.task and not profile.domain:
        return Axis.PLAIN if plain else Axis.TASK
    return Axis.BOTH


# Axes that win over an axis, strongest first: a task instruction beats the topic, a question in a domain
# beats plain question answering.
STRONGER = {Axis.DOMAIN: (Axis.TASK,), Axis.PLAIN: (Axis.TASK, Axis.DOMAIN)}


def prefer(confidences: Mapping[str, float], axes: Mapping[str, Axis]) -> str:
    """The adapter that wins; "" if there are no confidences. Ties go to the later name."""
    ranked = sorted(((c, name) for name, c in confidences.items()), reverse=True)
    if not ranked:
        return ""
    confidence, leader = ranked[0]
    for stronger in STRONGER.get(axes.get(leader, Axis.BOTH), ()):
        for other, name in ranked[1:]:
            if axes.get(name) is stronger and other >= max(LEAST_CONFIDENCE, NEAR * confidence):
                return name
    return leader


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


@dataclass(frozen=True, slots=True)
class Conclusion:
    """Where a request goes. `adapter` empty means the base; `threshold` is what was needed.

    `foreign`: by the rule for texts in another language than the examples.
    """

    adapter: str
    reason: Reason
    confidence: float = 0.0
    classifier: str = ""
    threshold: float = 0.0
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class Leaning:
    """What votes lean to that decide nothing: the best adapter and its confidence, and the chance that the
    request is for none of the adapters; both in [0, 1]."""

    guess: str = ""
    confidence: float = 0.0
    none: float = 0.0


@dataclass(frozen=True, slots=True)
class Rule:
    """`kinds` are the axes of adapters. Without the vote of a classifier that is `required` no vote counts.

    The `voices` are asked only for texts in another language than the examples, before the others. Where one
    has an opinion and is not sure, another classifier decides only for the adapter that it names with at
    least SUPPORTING: in such a text the others read little more than names and single words.
    """

    threshold: float = THRESHOLD
    required: frozenset[str] = frozenset()
    kinds: Mapping[str, Axis] = field(default_factory=dict)
    voices: frozenset[str] = frozenset()

    def settled(self, votes: Sequence[Vote], candidates: Collection[str]) -> bool:
        """Whether no further vote can change the conclusion."""
        return self._broken(votes[-1]) or self._decided(votes, candidates) is not None

    def conclude(self, votes: Sequence[Vote], candidates: Collection[str]) -> Conclusion:
        """What the first vote decides that can; else abstention with the best guess, or fallback where no
        classifier could be asked."""
        foreign = self._voice(votes) is not None
        for count, vote in enumerate(votes, 1):
            if self._broken(vote):
                return Conclusion("", Reason.FALLBACK, classifier=vote.classifier, threshold=self.threshold)
            if (decided := self._decided(votes[:count], candidates)) is not None:
                return replace(decided, foreign=foreign)
        if all(vote.error for vote in votes):
            return Conclusion("", Reason.FALLBACK, threshold=self.threshold)
        nothing = Conclusion("", Reason.ABSTAINED, threshold=self.threshold)
        named = [one for vote in votes if (one := self._named(vote, candidates)) is not None]
        best = max(named, key=lambda one: one.confidence, default=nothing)
        return replace(best, adapter="", reason=Reason.ABSTAINED, foreign=foreign)

    def leaning(self, votes: Sequence[Vote], candidates: Collection[str]) -> Leaning:
        """The surest of the votes. Where a voice has an opinion it counts alone."""
        if (voice := self._voice(votes)) is not None:
            votes = [voice]
        named = [one for vote in votes if (one := self._named(vote, candidates)) is not None]
        if not named:
            return Leaning()
        best = max(named, key=lambda one: one.confidence)
        return Leaning(best.adapter, best.confidence, 1 - best.confidence)

    def _voice(self, votes: Sequence[Vote]) -> Vote | None:
        """The opinion of a classifier for other languages, if there is one among these votes."""
        return next((v for v in votes if v.classifier in self.voices and v.scores and not v.error), None)

    def _broken(self, vote: Vote) -> bool:
        """Whether it is the lost vote of a classifier that is required."""
        return bool(vote.error) and vote.classifier in self.required

    def _decided(self, votes: Sequence[Vote], candidates: Collection[str]) -> Conclusion | None:
        """What the last of these votes decides."""
        sure = self._named(votes[-1], candidates)
        if sure is None or sure.confidence < self.threshold:
            return None
        voice = self._voice(votes[:-1])
        if voice is not None:
            other = self._named(voice, candidates)
            if other is None or other.adapter != sure.adapter or other.confidence < SUPPORTING:
                return None
        return sure

    def _named(self, vote: Vote, candidates: Collection[str]) -> Conclusion | None:
        """The candidate that this vote prefers, sure of it or not; None for two that are level."""
        among = {name: c for name, c in vote.scores.items() if name in candidates}
        name = "" if vote.error else prefer(among, self.kinds)
        if not name or among[name] == 0:
            return None
        best = max(among.values())
        if among[name] == best and sum(c == best for c in among.values()) > 1:
            return None
        return Conclusion(name, Reason.CLASSIFIED, best, vote.classifier, self.threshold)

    def digest(self, fingerprints: Mapping[str, str]) -> str:
        """sha256 over all that decides beside the adapters: configuration, and the classifiers' fingerprints
        in the order in which they are asked."""
        parts: list[object] = [self.threshold, sorted(self.required), sorted(self.voices)]
        parts.append([[name, text] for name, text in fingerprints.items()])
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
