"""The last acts and refusals, in memory: what the console shows, with a file for the audit or without."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path

from router.access.audit import Act, Acts, last_entries

REMEMBERED_BYTES = 512 << 10  # of the file, at start-up
REFUSALS = ("UNAUTHENTICATED", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED")  # codes
TOLD = ("request_id", "client", "peer", "method", "resource", "code", "reason")
MOST_ACTS, MOST_REFUSALS = 1000, 500  # each apart, so that a flood of refusals pushes no act out


@dataclass(frozen=True, slots=True)
class Entry:
    """One of them. `time` in unix seconds, `number` in the order in which they came."""

    number: int
    time: float
    act: Act
    refused: bool = False


class Recent:
    """Keeps the last ones and passes each on to the file, where there is one. Lives on one event loop."""

    def __init__(self, audit: Acts | None = None, now: Callable[[], float] = time.time) -> None:
        self._audit, self._now, self._numbers = audit, now, count(1)
        self._acts: deque[Entry] = deque(maxlen=MOST_ACTS)
        self._refusals: deque[Entry] = deque(maxlen=MOST_REFUSALS)
        self.since = now()

    def remember(self, path: Path) -> None:
        """What the end of the audit file tells of before this server started. Raises OSError."""
        for fields in last_entries(path, REMEMBERED_BYTES):
            told = {name: str(fields.get(name, "")) for name in TOLD}
            moment = moment_of(str(fields.get("time", "")))
            if not told["method"] or moment is None:
                continue  # it only says how many more refusals there were
            refused = told["code"] in REFUSALS
            kept = self._refusals if refused else self._acts
            kept.append(Entry(next(self._numbers), moment, Act(**told), refused))
            self.since = min(self.since, moment)

    def acted(self, act: Act) -> Future[None]:
        """Done when the file has it."""
        self._acts.append(Entry(next(self._numbers), self._now(), act))
        if self._audit is not None:
            return self._audit.acted(act)
        kept: Future[None] = Future()
        kept.set_result(None)
        return kept

    def refused(self, act: Act) -> None:
        """Note a refusal."""
        self._refusals.append(Entry(next(self._numbers), self._now(), act, refused=True))
        if self._audit is not None:
            self._audit.refused(act)

    def __iter__(self) -> Iterator[Entry]:
        """The newest first."""
        return heapq.merge(reversed(self._acts), reversed(self._refusals), key=lambda entry: -entry.number)


def moment_of(text: str) -> float | None:
    """Unix seconds of a time as the file has it."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
