"""What a calibration is, and what it says of votes: chances of the adapters, and how strange the request
is.

`Axes` says which of two adapters gets a request that both could take. An adapter is a specialist in a
domain or in a task. A task instruction beats the topic (a medical text *to summarize* is for the
summarizer), and a bare question in a domain beats plain question answering (a question on tax law is for
the lawyer).

Routing uses this for every request, so there is no numpy here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from router.classifiers.contract import softmax
from router.errors import ConfigError
from router.types import AdapterProfile, Vote

PLAIN_TASKS = frozenset({"question-answering", "chat"})  # what any request asks for that gives no instruction
LEAST_CONFIDENCE = 0.1  # below which no adapter takes a request from another


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


def axes_of(profiles: Iterable[AdapterProfile]) -> dict[str, Axis]:
    """Axis of each adapter by name."""
    return {profile.name: axis_of(profile) for profile in profiles}


@dataclass(frozen=True, slots=True)
class AxisPreference:
    """The adapter that gets a request, and the one that leads but yields ("" if none does)."""

    winner: str
    over: str = ""


@dataclass(frozen=True, slots=True)
class Axes:
    """`near` is the share of the leader's confidence from which an adapter of the stronger axis wins."""

    task_first: bool = True
    domain_first: bool = True
    near: float = 0.8

    def prefer(self, confidences: Mapping[str, float], axes: Mapping[str, Axis]) -> AxisPreference | None:
        """The adapter that wins; None if there are no confidences. Ties go to the later name."""
        ranked = sorted(((c, name) for name, c in confidences.items()), reverse=True)
        if not ranked:
            return None
        confidence, leader = ranked[0]
        for stronger in self._stronger(axes.get(leader, Axis.BOTH)):
            for other, name in ranked[1:]:
                if axes.get(name) is stronger and other >= max(LEAST_CONFIDENCE, self.near * confidence):
                    return AxisPreference(name, leader)
        return AxisPreference(leader)

    def _stronger(self, axis: Axis) -> tuple[Axis, ...]:
        """Axes that win over this one, strongest first."""
        stronger = []
        if self.task_first and axis in (Axis.DOMAIN, Axis.PLAIN):
            stronger.append(Axis.TASK)
        if self.domain_first and axis is Axis.PLAIN:
            stronger.append(Axis.DOMAIN)
        return tuple(stronger)


NEVER = 1.01  # a confidence that is never reached
FLOOR = 1e-4  # no classifier is surer than this that something is not so
LONGEST = 7.0  # bound of a log-odds, in nats


class CalibrationError(ConfigError):
    """The rows, the votes or the file cannot be used; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Everything that `route calibrate` fits, in the order in which classifiers are asked.

    `threshold` is the confidence that routes, `novelty_limit` the most strangeness that does; `target`,
    `delta` and `ood_target` are what they were proven for. `left_out` are classifiers that were there and
    could not be asked; their votes do not count. `profiles` is what classifiers knew of the adapters: they
    are taught the same again whatever becomes of the folders, so that the proof goes on to hold (a
    calibration of an earlier version has none). `learned` are labelled requests by adapter that classifiers
    are taught beside the examples.
    """

    scalers: Mapping[str, TemperatureScaler]
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
    profiles: tuple[AdapterProfile, ...] = ()
    learned: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def taught(self, present: Iterable[AdapterProfile]) -> tuple[AdapterProfile, ...]:
        """What classifiers have to know for this calibration: the adapters as it knew them, with the labelled
        requests that it learned."""
        return with_learned(self.known(present), self.learned)

    def known(self, present: Iterable[AdapterProfile]) -> tuple[AdapterProfile, ...]:
        """The adapters of this calibration by name: as it knew them, or as they are now where it does not
        say. One that is neither kept nor present is missing."""
        known = {profile.name: profile for profile in self.profiles}
        now = {p.name: p for p in present if p.name in self.binding.adapters}
        found = {**now, **known}
        return tuple(found[name] for name in sorted(found))

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
        return pool_votes(self.stages[self.stage_of(votes)], self.scalers, votes, kinds)


def with_learned(
    profiles: Iterable[AdapterProfile], learned: Mapping[str, Sequence[str]]
) -> tuple[AdapterProfile, ...]:
    """The adapters with further examples, by name."""
    return tuple(
        replace(p, examples=(*p.examples, *learned[p.name])) if learned.get(p.name) else p for p in profiles
    )


@dataclass(frozen=True, slots=True)
class Stage:
    """The votes up to some classifier, weighed together.

    `weights` of log chances; for task adapters `task_weights` are added to them. `bias` of each axis is added
    to the log chances of its adapters, `none` and `declined` to that of none (the second for each classifier
    that declined), `own` to that of one adapter. `pairs` is what a classifier's log chance of one adapter
    says for and against each, by classifier, adapter named and adapter meant; "" is none of them. `novelty`
    are weights of the classifiers' log-odds of none, for the test of strange requests. `stop` is the
    confidence from which the classifiers after this one are not asked.
    """

    weights: Mapping[str, float]
    task_weights: Mapping[str, float] = field(default_factory=dict)
    bias: Mapping[str, float] = field(default_factory=dict)
    none: float = 0.0
    declined: Mapping[str, float] = field(default_factory=dict)
    own: Mapping[str, float] = field(default_factory=dict)
    pairs: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    novelty: Mapping[str, float] = field(default_factory=dict)
    novelty_bias: float = 0.0
    stop: float = NEVER


@dataclass(frozen=True, slots=True)
class Opinion:
    """Chances of adapters and of none, and of the request being strange; all in [0, 1]."""

    chances: Mapping[str, float]
    none: float
    novelty: float


def pool_votes(
    stage: Stage, scalers: Mapping[str, TemperatureScaler], votes: Sequence[Vote], kinds: Mapping[str, Axis]
) -> Opinion:
    """Log-linear pooling of the calibrated votes for adapters and their axes; a lost vote says nothing."""
    names = tuple(kinds)
    logits = [stage.bias.get(axis, 0.0) + stage.own.get(name, 0.0) for name, axis in kinds.items()]
    logits.append(stage.none + stage.own.get("", 0.0))
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
        pairs = stage.pairs.get(name, {})
        for i, (named, chance) in enumerate(zip((*names, ""), chances, strict=True)):
            log = math.log(max(chance, 1e-12))
            logits[i] += (weight + more * task[i]) * log
            if named in pairs:
                effects = pairs[named]
                for j, meant in enumerate((*names, "")):
                    logits[j] += effects.get(meant, 0.0) * log
        strange += stage.novelty.get(name, 0.0) * log_odds(chances[-1])
    *chances, none = softmax(logits)
    novelty = logistic(strange) if stage.novelty else none
    return Opinion(dict(zip(names, chances, strict=True)), none, novelty)


@dataclass(frozen=True, slots=True)
class AdapterChoice:
    """Whom an opinion is for, and the confidence of that; the one that yields lends its chance."""

    adapter: str
    confidence: float


def choose(
    opinion: Opinion, axes: Axes, kinds: Mapping[str, Axis], among: Sequence[str]
) -> AdapterChoice | None:
    """The adapter that the opinion and the policy of axes come to, of those `among`."""
    chances = {name: opinion.chances[name] for name in among if name in opinion.chances}
    preference = axes.prefer(chances, kinds)
    if preference is None:
        return None
    confidence = chances[preference.winner] + chances.get(preference.over, 0.0)
    return AdapterChoice(preference.winner, min(confidence, 1.0))


# -- one classifier's confidences as log chances of the adapters and of "none of them"


@dataclass(frozen=True, slots=True)
class TemperatureScaler:
    """Temperature scaling (Guo et al., 2017) of one classifier, with a bias for "none"."""

    temperature: float = 1.0
    none: float = 0.0

    def chances(self, confidences: Mapping[str, float], names: Sequence[str]) -> list[float]:
        """[names + 1] calibrated chances; the last is none."""
        logits = [value / self.temperature for value in log_chances(confidences, names)]
        logits[-1] += self.none
        return softmax(logits)


def log_chances(confidences: Mapping[str, float], names: Sequence[str]) -> list[float]:
    """[names + 1] natural logarithms; the last is "none of them".

    Confidences that sum below 1 leave the rest to none. Where they sum to more they are read as
    independent: none is the chance that all of them are wrong.
    """
    chances = [min(max(confidences.get(name, 0.0), 0.0), 1.0) for name in names]
    total = math.fsum(chances)
    none = 1.0 - total if total <= 1.0 else math.prod(1.0 - c for c in chances)
    return [math.log(max(c, FLOOR)) for c in (*chances, none)]


def log_odds(chance: float) -> float:
    """log(p / (1 - p)), bounded."""
    edge = math.exp(-LONGEST)
    bounded = min(max(chance, edge), 1 - edge)
    return math.log(bounded / (1 - bounded))


def logistic(odds: float) -> float:
    """The chance of a log-odds."""
    return 1 / (1 + math.exp(-odds)) if odds >= 0 else math.exp(odds) / (1 + math.exp(odds))


# -- what a calibration was fitted for: adapters, classifiers and base, by hash


@dataclass(frozen=True, slots=True)
class Binding:
    """`adapters`: name to digest of what routing knows of it. `classifiers`: name to digest of its
    fingerprint, in the order in which they are asked. `versions` of adapters and classifiers are for people:
    a new version with the same routing text routes alike."""

    adapters: Mapping[str, str]
    classifiers: Mapping[str, str]
    base: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


def binding_of(
    profiles: Iterable[AdapterProfile], fingerprints: Mapping[str, str], base: str = ""
) -> Binding:
    """The binding of a set; `fingerprints` by classifier, in order of asking."""
    found = tuple(profiles)
    return Binding(
        adapters={p.name: profile_digest(p) for p in sorted(found, key=lambda p: p.name)},
        classifiers={n: hashlib.sha256(text.encode()).hexdigest() for n, text in fingerprints.items()},
        base=base,
        versions={p.name: p.version for p in sorted(found, key=lambda p: p.name)},
    )


def profile_digest(profile: AdapterProfile) -> str:
    """sha256 over all that classifiers may read of an adapter."""
    fields = [
        profile.name,
        profile.domain,
        profile.task,
        profile.description,
        profile.examples,
        profile.negative_examples,
        profile.keywords,
    ]
    return hashlib.sha256(json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def differences(fitted: Binding, present: Binding) -> tuple[str, ...]:
    """What is not as it was, for people; empty if all is."""
    found = [
        *_compare("adapter", fitted.adapters, present.adapters),
        *_compare("classifier", fitted.classifiers, present.classifiers),
    ]
    if not found and list(fitted.classifiers) != list(present.classifiers):
        found.append("classifiers are asked in another order")
    if fitted.base and present.base and fitted.base != present.base:
        found.append(f"the base is {present.base}, not {fitted.base}")
    return tuple(found)


def newcomers(fitted: Binding, present: Iterable[AdapterProfile]) -> frozenset[str]:
    """Adapters that a calibration does not know, or knows otherwise."""
    return frozenset(
        profile.name
        for profile in present
        if profile.name not in fitted.adapters or profile_digest(profile) != fitted.adapters[profile.name]
    )


def _compare(what: str, fitted: Mapping[str, str], present: Mapping[str, str]) -> Iterable[str]:
    for name in sorted(fitted.keys() | present.keys()):
        if name not in fitted:
            yield f"{what} {name} is new"
        elif name not in present:
            yield f"{what} {name} is gone"
        elif fitted[name] != present[name]:
            yield f"{what} {name} changed"
