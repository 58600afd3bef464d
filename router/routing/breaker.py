"""A circuit breaker: a classifier that keeps failing is left alone for a while."""

from __future__ import annotations

from collections import deque
from enum import StrEnum

FAILURES = 5
WINDOW_SECONDS = 60.0
OPEN_SECONDS = 30.0


class BreakerState(StrEnum):
    """Closed lets calls through, open none, half-open exactly one."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """Opens after `failures` failures within `window` s, tries one call after `rest` s. Times in seconds."""

    def __init__(
        self, failures: int = FAILURES, window: float = WINDOW_SECONDS, rest: float = OPEN_SECONDS
    ) -> None:
        self.state = BreakerState.CLOSED
        self._window, self._rest = window, rest
        self._failures: deque[float] = deque(maxlen=failures)
        self._opened = 0.0

    def allow(self, now: float) -> bool:
        """Whether a call may start; the one allowed after the rest must be reported back."""
        if self.state is BreakerState.OPEN and now - self._opened >= self._rest:
            self.state = BreakerState.HALF_OPEN
            return True
        return self.state is BreakerState.CLOSED

    def succeeded(self) -> None:
        """A call came back in time with a valid answer."""
        if self.state is BreakerState.HALF_OPEN:
            self._failures.clear()
            self.state = BreakerState.CLOSED

    def failed(self, now: float) -> None:
        """A call raised, was late or lied."""
        self._failures.append(now)
        full = len(self._failures) == self._failures.maxlen and now - self._failures[0] <= self._window
        if self.state is BreakerState.HALF_OPEN or full:
            self.state, self._opened = BreakerState.OPEN, now

    def abandoned(self) -> None:
        """The trial call was never made or judged: the next one may try."""
        if self.state is BreakerState.HALF_OPEN:
            self.state = BreakerState.OPEN
