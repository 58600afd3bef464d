"""Lost votes in the log: one line per classifier and minute, with how many and why."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from router.types import LostVote

log = logging.getLogger(__name__)
SECONDS = 60.0  # between two lines about one classifier


class LossLog:
    """Lives on one event loop. A first loss is logged at once, those of the next `seconds` together."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._counts: dict[str, Counter[str]] = {}  # since the last line, of classifiers with a timer
        self._timers: dict[str, asyncio.TimerHandle] = {}

    @property
    def waiting(self) -> bool:
        """Whether a line was written less than `seconds` ago."""
        return bool(self._timers)

    def note(self, lost: LostVote) -> None:
        """Count a lost vote."""
        if lost.classifier in self._timers:
            self._counts[lost.classifier][lost.reason.value] += 1
        else:
            self._begin(lost.classifier, Counter([lost.reason.value]))

    def _begin(self, classifier: str, counts: Counter[str]) -> None:
        _write(classifier, counts)
        self._counts[classifier] = Counter()
        loop = asyncio.get_running_loop()
        self._timers[classifier] = loop.call_later(self._seconds, self._passed, classifier)

    def _passed(self, classifier: str) -> None:
        del self._timers[classifier]
        if counts := self._counts.pop(classifier):
            self._begin(classifier, counts)

    def close(self) -> None:
        """Log what was counted since the last lines."""
        for classifier, timer in self._timers.items():
            timer.cancel()
            if counts := self._counts.pop(classifier):
                _write(classifier, counts)
        self._timers.clear()


def _write(classifier: str, counts: Counter[str]) -> None:
    reasons = ", ".join(f"{reason} {count}" for reason, count in counts.most_common())
    log.warning("votes of classifier %s were lost: %s", classifier, reasons)
