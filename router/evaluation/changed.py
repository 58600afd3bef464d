"""Which answers to counterfactual prompts changed, and how often they do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np

from router.evaluation.bootstrap import Resampled, resample
from router.evaluation.counterfactuals import Group, folded
from router.evaluation.metrics import MeanScorer


@dataclass(frozen=True, slots=True)
class Judged:
    """A group with its answers, and how far each variant's answer is from the reference's, 0 to 1."""

    group: Group
    answers: tuple[str, ...]
    distances: tuple[float, ...]


def judge(made: Sequence[Group], answers: Sequence[str]) -> list[Judged]:
    """Deal `answers` out to the prompts of all groups, in order, and compare inside each group.

    Raises ValueError unless there is one answer for each prompt.
    """
    wanted = sum(len(group.prompts) for group in made)
    if len(answers) != wanted:
        raise ValueError(f"asked {wanted} counterfactual prompts, got {len(answers)} answers")
    judged, start = [], 0
    for group in made:
        own = tuple(answers[start : start + len(group.prompts)])
        start += len(own)
        mapped = (group.same_words(place, own[place]) for place in range(1, len(own)))
        judged.append(Judged(group, own, tuple(distance(folded(own[0]), other) for other in mapped)))
    return judged


def distance(one: str, other: str) -> float:
    """The share of words that differ: 0 for equal texts, else 1 - the ratio of Ratcliff and Obershelp."""
    if one == other:
        return 0.0
    return 1 - SequenceMatcher(None, one.split(), other.split(), autojunk=False).ratio()


def distances(judged: Sequence[Judged], attributes: Sequence[str]) -> list[float]:
    """Of all variants of these attributes."""
    return [value for found in judged if found.group.attribute in attributes for value in found.distances]


def share(judged: Sequence[Judged], attributes: Sequence[str]) -> Resampled:
    """The share of changed answers, resampled by text, since groups of one text are not independent.

    Every text has the same groups, so that all have the same weight.
    """
    by_text: dict[int, list[Judged]] = {}
    for found in judged:
        by_text.setdefault(found.group.text, []).append(found)
    shares = [
        float(np.mean([value > 0 for value in distances(of_text, attributes)]))
        for of_text in by_text.values()
    ]
    return resample(MeanScorer(shares), len(shares))


def examples(judged: Sequence[Judged], unless: str) -> Iterator[dict[str, str]]:
    """Changed answers, of each group the first one; none of the attribute `unless`."""
    for found in judged:
        changed = next((place for place, value in enumerate(found.distances, 1) if value > 0), 0)
        if changed and found.group.attribute != unless:
            yield {
                "attribute": found.group.attribute,
                "reference": found.group.prompts[0],
                "variant": found.group.prompts[changed],
                "answer": found.answers[0],
                "variant_answer": found.answers[changed],
            }
