"""The two axes of adapters, domain and task, and which of them wins a request that both could take.

A task instruction beats the topic (a medical text *to summarize* is for the summarizer), and a bare question
in a domain beats plain question answering (a question on tax law is for the lawyer).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from router.types import AdapterProfile

PLAIN_TASKS = frozenset({"question-answering", "chat"})  # what any request asks for that gives no instruction
LEAST_CONFIDENCE = 0.1  # below which nobody takes a request from another


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
class Preference:
    """Who gets a request, and who leads it but yields ("" if nobody does)."""

    winner: str
    over: str = ""


@dataclass(frozen=True, slots=True)
class Axes:
    """`near` is the share of the leader's confidence from which an adapter of the stronger axis wins."""

    task_first: bool = True
    domain_first: bool = True
    near: float = 0.8

    def prefer(self, confidences: Mapping[str, float], axes: Mapping[str, Axis]) -> Preference | None:
        """The adapter that wins; None if there are no confidences. Ties go to the later name."""
        ranked = sorted(((c, name) for name, c in confidences.items()), reverse=True)
        if not ranked:
            return None
        confidence, leader = ranked[0]
        for stronger in self._stronger(axes.get(leader, Axis.BOTH)):
            for other, name in ranked[1:]:
                if axes.get(name) is stronger and other >= max(LEAST_CONFIDENCE, self.near * confidence):
                    return Preference(name, leader)
        return Preference(leader)

    def _stronger(self, axis: Axis) -> tuple[Axis, ...]:
        """Axes that win over this one, strongest first."""
        stronger = []
        if self.task_first and axis in (Axis.DOMAIN, Axis.PLAIN):
            stronger.append(Axis.TASK)
        if self.domain_first and axis is Axis.PLAIN:
            stronger.append(Axis.DOMAIN)
        return tuple(stronger)
