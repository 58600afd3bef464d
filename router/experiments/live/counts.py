"""What happened, as plain numbers: read at every scrape, cheap to change."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counts:
    """Everything but `lost` is changed on the event loop only."""

    exposures: Counter[tuple[str, str]] = field(default_factory=Counter)  # experiment, arm
    degraded: Counter[tuple[str, str]] = field(default_factory=Counter)  # experiment, arm
    unit_missing: Counter[str] = field(default_factory=Counter)  # experiment
    skipped: Counter[str] = field(default_factory=Counter)  # experiment: not assigned, the store was down
    shadows: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # experiment, arm, result
    acts: Counter[tuple[str, str]] = field(default_factory=Counter)  # experiment, what a rule did
    outcomes: Counter[str] = field(default_factory=Counter)  # what became of them: Accepted, or invalid
    lost: Counter[str] = field(default_factory=Counter)  # kind of record that was not kept
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def lose(self, kind: str, number: int) -> None:
        """Records of a kind were not kept. From any thread."""
        with self._lock:
            self.lost[kind] += number
