"""One unit of a phase: what is known of it, as few numbers as its row in the sums needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from router.experiments.store.series import EVERYTHING, RESPONSES, PhaseInfo, Values


class Address(NamedTuple):
    """Which sums a unit is in: phase, arm, whether the routers ever differed for it, stretch of time."""

    phase: int
    arm: str
    differed: bool
    stretch: int


@dataclass(slots=True)
class Unit:
    """A row of `units` with its rows of `values`. `old` is what it was; None if it is new.

    `changed` names the outcomes that changed it, so that only the sums that read them are made anew.
    """

    id: int
    info: PhaseInfo
    unit: str
    arm: str
    first: float
    stretch: int
    answers: int = 0
    responses: int = 0
    degraded: bool = False
    crossed: bool = False
    differed: bool = False
    values: dict[str, Values] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    dirty: bool = False
    old: Unit | None = None

    def remember(self) -> Unit:
        """Keep what it is now as what it was. `old` gets its values when they are read."""
        place = (self.id, self.info, self.unit, self.arm, self.first, self.stretch)
        flags = (self.degraded, self.crossed, self.differed)
        self.old = Unit(*place, self.answers, self.responses, *flags)
        return self

    @property
    def address(self) -> Address:
        """Where it counts."""
        return Address(self.info.id, self.arm, self.differed, self.stretch)

    def in_window(self, time: float) -> bool:
        """Whether an outcome of that time still counts."""
        return time <= self.first + self.info.window

    def shown(self, arm: str, time: float, degraded: bool) -> None:
        """One more answer to it."""
        self.answers += 1
        self.dirty = True
        self.degraded |= degraded
        self.crossed |= arm != self.arm
        if self.in_window(time):
            self.responses += 1
            self.changed.add(RESPONSES)

    def differ(self) -> None:
        """The two routers differed for it: it moves to the sums of those."""
        if not self.differed:
            self.differed = self.dirty = True
            self.changed.add(EVERYTHING)

    def count(self, metric: str, value: float, time: float) -> None:
        """One more outcome within the window."""
        if metric in self.info.names:
            self.values[metric] = self.values.get(metric, Values()).plus(value, time)
            self.changed.add(metric)

    def recall(self, metric: str, value: float) -> None:
        """One more outcome from before the phase."""
        if metric in self.info.covariates:
            found = self.values.get(metric, Values())
            total = found.before_total + value
            self.values[metric] = found._replace(before_n=found.before_n + 1, before_total=total)
            self.changed.add(metric)
