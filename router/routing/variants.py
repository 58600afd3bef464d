"""Other configurations of a router, for experiments: the same classifiers, votes weighed in another way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from router.routing.policy import Calibrated, Conclusion, Leaning, Policy, Rule
from router.types import Vote

if TYPE_CHECKING:
    from router.types import RouterVariant


def varied(rule: Policy | Calibrated, variant: RouterVariant | None) -> Rule:
    """`rule` as the variant has it; what the variant leaves open stays.

    A calibration was proven for its own axes and classifiers: with others the strict threshold is needed, as
    with any set that it does not fit, unless the variant says the threshold itself.
    """
    if variant is None:
        return rule
    changed = _policy(rule, variant) if isinstance(rule, Policy) else _calibrated(rule, variant)
    return (
        changed if variant.classifiers is None else SomeClassifiers(changed, frozenset(variant.classifiers))
    )


def _policy(plain: Policy, variant: RouterVariant) -> Policy:
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
    asked = frozenset(variant.classifiers)
    learners = plain.learners & asked or plain.idle & asked
    return replace(changed, learners=learners, idle=plain.idle - asked)


def _calibrated(rule: Calibrated, variant: RouterVariant) -> Calibrated:
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
    """A rule that hears some classifiers only."""

    rule: Policy | Calibrated
    classifiers: frozenset[str]

    def asks(self, classifier: str) -> bool:
        """Whether that classifier's vote counts."""
        return classifier in self.classifiers and self.rule.asks(classifier)

    def settled(self, votes: Sequence[Vote], candidates: Collection[str]) -> bool:
        """Whether no further vote can change the conclusion."""
        return self.rule.settled(votes, candidates)

    def conclude(self, votes: Sequence[Vote], candidates: Collection[str]) -> Conclusion:
        """By the votes of these classifiers alone."""
        return self.rule.conclude([v for v in votes if v.classifier in self.classifiers], candidates)

    def leaning(self, votes: Sequence[Vote], candidates: Collection[str]) -> Leaning:
        """Of the votes of these classifiers alone."""
        return self.rule.leaning([v for v in votes if v.classifier in self.classifiers], candidates)


def rule_digest(rule: Rule, fingerprints: Mapping[str, str]) -> str:
    """sha256 over all that decides beside the adapters: configuration, calibration, and the classifiers'
    fingerprints in the order in which they are asked.
    """
    inner = rule.rule if isinstance(rule, SomeClassifiers) else rule
    plain = inner.plain if isinstance(inner, Calibrated) else inner
    said: list[object] = [type(inner).__name__]
    if isinstance(plain, Policy):
        said += [plain.threshold, plain.margin, sorted(plain.required), asdict(plain.axes)]
        said += [sorted(plain.learners), sorted(plain.idle), plain.alone]
    if isinstance(inner, Calibrated):
        said += [asdict(inner.calibration), inner.strict, bool(inner.differences)]
    said.append([[name, text] for name, text in fingerprints.items() if rule.asks(name)])
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()
