"""Blind comparisons of two answers by people, in the console's playground, and what they say.

Comparisons of one person are not independent, so each person counts once, however many answers they compare:
the test of shadow pairs (`stats.checks.paired`).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from router.errors import FailedPrecondition, FieldViolation, InvalidRequest
from router.experiments.model import Preference
from router.experiments.report.model import Pairs
from router.experiments.stats.checks import paired
from router.experiments.words import preferred
from router.quantities import OPEN, counted
from router.units import unit_hash

if TYPE_CHECKING:
    from router.experiments.runtime import LiveExperiments
    from router.experiments.store.series import PreferenceCounts

ALPHA = 0.05
CHOICES = ("left", "right", "same", "both_bad")
MOST_WAITING = 2000  # answers that nobody has compared yet
SHOWN = "✓ preferred"


class BlindAnswer(NamedTuple):
    """An answer whose author is hidden: who gave it, and who asked."""

    model: str
    viewer: str


@dataclass(frozen=True, slots=True)
class ComparedVersions:
    """One version against another, the one that is preferred more often first."""

    version: str
    other: str
    pairs: Pairs
    both_bad: int

    @property
    def text(self) -> str:
        """`preferred in 34 of 50 comparisons without a tie (55 to 79 %)`."""
        return preferred(self.pairs, "person")

    @property
    def reading(self) -> str:
        """Whether that is shown."""
        return SHOWN if self.pairs.low > 0.5 else OPEN

    @property
    def ties(self) -> str:
        """How often neither was preferred."""
        bad = f", {self.both_bad:,} of them bad" if self.both_bad else ""
        return f"{counted(self.pairs.ties, 'tie')}{bad}"


class Preferences:
    """Lives on one event loop. Answers wait in memory until they are compared, or the oldest is forgotten."""

    def __init__(self, live: LiveExperiments) -> None:
        self._live = live
        self._waiting: OrderedDict[str, BlindAnswer] = OrderedDict()  # by response

    def hide(self, response_id: str, model: str, viewer: str) -> None:
        """Remember who gave an answer."""
        self._waiting[response_id] = BlindAnswer(model, viewer)
        while len(self._waiting) > MOST_WAITING:
            self._waiting.popitem(last=False)

    async def keep(self, left: str, right: str, choice: str, viewer: str) -> tuple[str, str]:
        """Keep what the viewer chose of two responses; returns who gave the left one and the right one.

        Raises InvalidRequest, FailedPrecondition for answers that may not be compared (any more), StoreDown.
        """
        if choice not in CHOICES:
            raise InvalidRequest([FieldViolation("choice", f"must be one of {', '.join(CHOICES)}")])
        answers = [self._waiting.get(response) for response in (left, right)]
        if left == right or any(one is None or one.viewer != viewer for one in answers):
            raise FailedPrecondition("these answers were compared already, or too long ago: ask once more")
        models = [one.model for one in answers if one is not None]
        if models[0] == models[1]:
            raise FailedPrecondition(f"both answers are by {models[0]}: name two different versions")
        made = _preference(models, (left, right), choice, viewer)
        await self._live.threads.run(self._live.store.prefer, made)
        for response in (left, right):
            self._waiting.pop(response, None)
        return models[0], models[1]

    async def compared(self) -> list[ComparedVersions]:
        """All pairs of versions, those with the most comparisons first. Raises StoreDown."""
        found = map(compared, await self._live.threads.run(self._live.store.preferred))
        return sorted(found, key=lambda one: (-one.pairs.wins - one.pairs.losses, one.version))


def _preference(models: Sequence[str], responses: Sequence[str], choice: str, viewer: str) -> Preference:
    order = sorted((0, 1), key=lambda i: models[i])
    chosen = CHOICES.index(choice)
    result = 0 if chosen > 1 else 1 if order[1] == chosen else -1
    first, second = (models[i] for i in order)
    both_bad = choice == "both_bad"
    return Preference(
        first, second, responses[order[0]], time.time(), result, unit_hash(viewer), both_bad=both_bad
    )


def compared(found: PreferenceCounts) -> ComparedVersions:
    """Counts with their share, its range, and the test."""
    c, version, other = found.pairs, found.second, found.first
    wins, losses, share = c.wins, c.losses, c.share_sum
    if 2 * share < c.units:
        wins, losses, share, version, other = c.losses, c.wins, c.units - share, other, version
    test = paired(wins, losses, c.ties, ALPHA, units=c.units, share_sum=share)
    pairs = Pairs(wins, losses, c.ties, test.share, test.low, test.high, test.p, c.units)
    return ComparedVersions(version, other, pairs, found.both_bad)


def preferences_of(experiments: object) -> Preferences | None:
    """Those of a server's experiments; None where a plugin has others that keep no comparisons."""
    from router.experiments.runtime import LiveExperiments

    return Preferences(experiments) if isinstance(experiments, LiveExperiments) else None
