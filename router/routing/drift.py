"""Whether requests are still those that routing was made for: shares of its latest decisions, and an alarm
where they moved.

Compared are shares among the latest 1,000 decisions that classifiers made with

- the calibration's own, on the requests that it was proven on: how many are abstained from or unfamiliar. If
  these differ, users ask what the calibration does not speak of. The shares of adapters say nothing there:
  nobody draws labelled requests in the proportions in which users ask.
- the first 1,000 decisions with these adapters, classifiers and thresholds, kept over restarts: the same two,
  and each adapter's share. If these differ, something has changed since.

A share has moved if it differs by 10 points and a G-test of both counts (Sokal and Rohlf, 1981) finds that
less likely than one in a million. Shares are looked at every 50 decisions, so that 11 of them are tested 220
times in 1,000 decisions: by the union bound at most one false alarm in 4.5 million decisions of independent
requests. Requests that come in bursts are not independent; the 10 points are for them. An alarm ends at 5.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from router.routing.policy import Calibrated
from router.types import Decision, Reason, Request

log = logging.getLogger(__name__)
WINDOW = 1000  # latest decisions, and first ones
LEAST = 200  # decisions before anything is said
EVERY = 50  # decisions from one look to the next
BEGINS, ENDS = 0.10, 0.05  # difference of two shares
ROUNDING = 1e-9
CHANCE = 1e-6  # of a difference as large, were there none
ABSTAINED, UNFAMILIAR = "abstained", "unfamiliar"
Against = Literal["calibration", "baseline"]
CALIBRATION: Against = "calibration"
BASELINE: Against = "baseline"
WORDS: Mapping[Against, str] = {
    CALIBRATION: "the requests that the calibration was proven on",
    BASELINE: "the first requests here",
}


@dataclass(frozen=True, slots=True)
class Counts:
    """Decisions by what became of them: `abstained`, `unfamiliar` or adapters/NAME."""

    of: Mapping[str, int] = field(default_factory=dict)
    total: int = 0

    def share(self, what: str) -> float:
        """In [0, 1]."""
        return self.of.get(what, 0) / self.total if self.total else 0.0


@dataclass(frozen=True, slots=True)
class Compared:
    """A share against what it was expected to be; `alarm` while it has moved."""

    what: str
    against: Against
    share: float
    expected: float
    alarm: bool


@dataclass(frozen=True, slots=True)
class Seen:
    """What the last look found: of so many `decisions` the `shares`, and what they were compared with."""

    decisions: int = 0
    shares: Mapping[str, float] = field(default_factory=dict)
    compared: tuple[Compared, ...] = ()


class Baselines(Protocol):
    """Where first decisions are kept, for the rule in force. Called on the event loop: returns at once."""

    def read(self) -> Counts | None:
        """Those of this very rule, from before a restart; None where there are none."""
        ...

    def keep(self, counts: Counts) -> None:
        """Remember them for next time."""
        ...


class Drift:
    """Lives on one event loop; counting takes some microseconds, a look less than 0.1 ms. `seen` may be
    read by any thread. `rule` gives what is in force: where that changes, all begins anew."""

    def __init__(self, rule: Callable[[], object], baselines: Baselines | None = None) -> None:
        self._rule_now, self._baselines = rule, baselines
        self._rule: object = None
        self._proven: Counts | None = None
        self._baseline: Counts | None = None
        self._window: deque[str] = deque(maxlen=WINDOW)
        self._counts: Counter[str] = Counter()
        self._until_look = 0
        self._alarms: set[tuple[str, Against]] = set()
        self.seen = Seen()

    def observe(self, request: Request, decision: Decision) -> None:
        """Count it, if classifiers chose among all adapters that the caller knows."""
        what = what_became(decision)
        if not what or request.routing.domain or request.routing.task:
            return
        self._follow_rule()
        if len(self._window) == WINDOW:
            self._forget(self._window[0])
        self._window.append(what)
        self._counts[what] += 1
        self._until_look -= 1
        if self._baseline is None and len(self._window) == WINDOW:
            self._look()
            self._baseline = self._latest()
            if self._baselines is not None:
                self._baselines.keep(self._baseline)
            self._window.clear()
            self._counts.clear()
        elif self._until_look <= 0 and len(self._window) >= LEAST:
            self._look()

    def _begin_anew(self) -> None:
        self._window.clear()
        self._counts.clear()
        self._until_look, self.seen = 0, Seen()

    def _follow_rule(self) -> None:
        rule = self._rule_now()
        if rule is self._rule:
            return
        same, self._rule = rule == self._rule, rule
        if same:
            return
        self._proven = proven_counts(rule)
        self._begin_anew()
        self._baseline = self._baselines.read() if self._baselines is not None else None
        if self._alarms:
            log.info("adapters, classifiers or thresholds changed: routing is compared anew")
            self._alarms.clear()

    def _forget(self, what: str) -> None:
        self._counts[what] -= 1
        if not self._counts[what]:
            del self._counts[what]

    def _latest(self) -> Counts:
        return Counts(dict(self._counts), len(self._window))

    def _look(self) -> None:
        self._until_look = EVERY
        now = self._latest()
        compared = tuple(self._compared(now))
        for one in compared:
            self._tell(one)
        self._alarms = {(one.what, one.against) for one in compared if one.alarm}
        self.seen = Seen(now.total, {what: now.share(what) for what in sorted(now.of)}, compared)

    def _compared(self, now: Counts) -> Iterator[Compared]:
        pairs: list[tuple[Against, Counts | None]] = [(CALIBRATION, self._proven), (BASELINE, self._baseline)]
        for against, expected in pairs:
            if expected is None:
                continue
            names = set() if against == CALIBRATION else {*_large(now), *_large(expected)}
            for what in sorted({ABSTAINED, UNFAMILIAR} | names):
                before = (what, against) in self._alarms
                alarm = still_moved(now, expected, what) if before else has_moved(now, expected, what)
                yield Compared(what, against, now.share(what), expected.share(what), alarm)

    def _tell(self, one: Compared) -> None:
        before = (one.what, one.against) in self._alarms
        if one.alarm == before:
            return
        words = one.what, one.share * 100, one.expected * 100, WORDS[one.against]
        if one.alarm:
            log.warning("routing drifts: %s is %.0f %% of the latest requests, and was %.0f %% of %s", *words)
        else:
            log.info("routing drifts no more: %s is %.0f %%, and was %.0f %% of %s", *words)


def what_became(decision: Decision) -> str:
    """`abstained`, `unfamiliar` or adapters/NAME; '' where it was no classifier's, or an earlier turn's."""
    if decision.undecided and decision.continuity == "kept":
        return ""
    if decision.reason is Reason.ABSTAINED:
        return ABSTAINED
    if decision.reason is Reason.UNFAMILIAR:
        return UNFAMILIAR
    if decision.reason is Reason.CLASSIFIED and decision.adapter is not None:
        return f"adapters/{decision.adapter.name}"
    return ""


def proven_counts(rule: object) -> Counts | None:
    """What the calibration in force decided on the requests that it was proven on. None where it does not
    say, since an older version made it, where other thresholds are in force, and where it knows not all."""
    if not isinstance(rule, Calibrated) or rule.differences or rule.newcomers:
        return None
    of = rule.calibration
    held_out = of.report.get("held_out")
    said: Any = held_out.get("decisions") if isinstance(held_out, Mapping) else None
    try:
        if (said["threshold"], said["novelty_limit"]) != (of.threshold, of.novelty_limit):
            return None
        counts = {what: int(said[what]) for what in (ABSTAINED, UNFAMILIAR)}
        total = int(said["rows"])
    except (KeyError, TypeError, ValueError):
        return None
    whole = all(0 <= count <= total for count in counts.values())
    return Counts(counts, total) if whole and total >= LEAST else None


def _large(counts: Counts) -> Iterator[str]:
    """What has a part that could have moved, or still be; of a thousand adapters at most twenty have."""
    return (what for what in counts.of if counts.share(what) >= ENDS)


# -- whether two shares are the same


def has_moved(now: Counts, expected: Counts, what: str) -> bool:
    """Whether the shares differ by much, and by more than chance."""
    if abs(now.share(what) - expected.share(what)) < BEGINS - ROUNDING:
        return False
    return chance(now.of.get(what, 0), now.total, expected.of.get(what, 0), expected.total) < CHANCE


def still_moved(now: Counts, expected: Counts, what: str) -> bool:
    """The same of shares that had moved before."""
    return abs(now.share(what) - expected.share(what)) >= ENDS - ROUNDING


def chance(one: int, of_one: int, other: int, of_other: int) -> float:
    """p-value of the G-test, two-sided: `one` of `of_one` and `other` of `of_other` have the same share."""
    total, hits = of_one + of_other, one + other
    cells = ((one, of_one), (other, of_other))
    g = sum(
        2 * count * math.log(count * total / (size * part))
        for hit, size in cells
        for count, part in ((hit, hits), (size - hit, total - hits))
        if count
    )
    return math.erfc(math.sqrt(max(g, 0.0) / 2))
