"""Whether requests are still those that routing was made for: shares of its latest decisions, and an alarm
where they moved.

ShareComparison are shares among the latest 1,000 decisions that classifiers made with

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

import hashlib
import json
import logging
import math
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from router.routing.policy import CalibratedRule
from router.types import AdapterProfile, Decision, Reason, Request

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
class DecisionCounts:
    """Decisions by their outcome: `abstained`, `unfamiliar` or adapters/NAME."""

    of: Mapping[str, int] = field(default_factory=dict)
    total: int = 0

    def share(self, what: str) -> float:
        """In [0, 1]."""
        return self.of.get(what, 0) / self.total if self.total else 0.0


@dataclass(frozen=True, slots=True)
class ShareComparison:
    """A share against what it was expected to be; `alarm` while it has moved."""

    what: str
    against: Against
    share: float
    expected: float
    alarm: bool


@dataclass(frozen=True, slots=True)
class DriftReport:
    """What the last look found: of so many `decisions` the `shares`, and what they were compared with."""

    decisions: int = 0
    shares: Mapping[str, float] = field(default_factory=dict)
    compared: tuple[ShareComparison, ...] = ()


class Drift:
    """Lives on one event loop; counting takes some microseconds, a look less than 0.1 ms. `seen` may be
    read by any thread. `rule` gives what is in force: where that changes, all begins anew.
    `baselines` keeps the first decisions over restarts."""

    def __init__(self, rule: Callable[[], object], baselines: BaselineFile | None = None) -> None:
        self._rule_now, self._baselines = rule, baselines
        self._rule: object = None
        self._proven: DecisionCounts | None = None
        self._baseline: DecisionCounts | None = None
        self._window: deque[str] = deque(maxlen=WINDOW)
        self._counts: Counter[str] = Counter()
        self._until_look = 0
        self._alarms: set[tuple[str, Against]] = set()
        self.seen = DriftReport()

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
        self._until_look, self.seen = 0, DriftReport()

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

    def _latest(self) -> DecisionCounts:
        return DecisionCounts(dict(self._counts), len(self._window))

    def _look(self) -> None:
        self._until_look = EVERY
        now = self._latest()
        compared = tuple(self._compared(now))
        for one in compared:
            self._tell(one)
        self._alarms = {(one.what, one.against) for one in compared if one.alarm}
        self.seen = DriftReport(now.total, {what: now.share(what) for what in sorted(now.of)}, compared)

    def _compared(self, now: DecisionCounts) -> Iterator[ShareComparison]:
        pairs: list[tuple[Against, DecisionCounts | None]] = [
            (CALIBRATION, self._proven),
            (BASELINE, self._baseline),
        ]
        for against, expected in pairs:
            if expected is None:
                continue
            names = set() if against == CALIBRATION else {*_large(now), *_large(expected)}
            for what in sorted({ABSTAINED, UNFAMILIAR} | names):
                before = (what, against) in self._alarms
                alarm = still_moved(now, expected, what) if before else has_moved(now, expected, what)
                yield ShareComparison(what, against, now.share(what), expected.share(what), alarm)

    def _tell(self, one: ShareComparison) -> None:
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


def proven_counts(rule: object) -> DecisionCounts | None:
    """What the calibration in force decided on the requests that it was proven on. None where it does not
    say, since an older version made it, where other thresholds are in force, and where it knows not all."""
    if not isinstance(rule, CalibratedRule) or rule.differences or rule.newcomers:
        return None
    of = rule.calibration
    held_out = of.report.get("held_out")
    proven: Any = held_out.get("decisions") if isinstance(held_out, Mapping) else None
    try:
        if (proven["threshold"], proven["novelty_limit"]) != (of.threshold, of.novelty_limit):
            return None
        counts = {what: int(proven[what]) for what in (ABSTAINED, UNFAMILIAR)}
        total = int(proven["rows"])
    except (KeyError, TypeError, ValueError):
        return None
    whole = all(0 <= count <= total for count in counts.values())
    return DecisionCounts(counts, total) if whole and total >= LEAST else None


def _large(counts: DecisionCounts) -> Iterator[str]:
    """What has a part that could have moved, or still be; of a thousand adapters at most twenty have."""
    return (what for what in counts.of if counts.share(what) >= ENDS)


# -- whether two shares are the same


def has_moved(now: DecisionCounts, expected: DecisionCounts, what: str) -> bool:
    """Whether the shares differ by much, and by more than chance."""
    if abs(now.share(what) - expected.share(what)) < BEGINS - ROUNDING:
        return False
    return chance(now.of.get(what, 0), now.total, expected.of.get(what, 0), expected.total) < CHANCE


def still_moved(now: DecisionCounts, expected: DecisionCounts, what: str) -> bool:
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


# -- first decisions, kept in the state folder over restarts

FILE = "routing-baseline.json"
MOST = 8  # sets that are remembered, so that going back to one finds its own
MOST_BYTES = 1 << 20


class BaselineFile:
    """Written by a thread of its own. `profiles` and `digest` say what decides now: the adapters, and all
    beside them. A file that cannot be used counts as empty; one that cannot be written is made another time.
    """

    def __init__(
        self, folder: Path, profiles: Callable[[], Iterable[AdapterProfile]], digest: Callable[[], str]
    ) -> None:
        self._file, self._profiles, self._digest = folder / FILE, profiles, digest
        self._writer = ThreadPoolExecutor(1, "baseline")

    def read(self) -> DecisionCounts | None:
        """Of what decides now."""
        return _counts(self._all().get(self._key()))

    def keep(self, counts: DecisionCounts) -> None:
        """For what decides now."""
        self._writer.submit(self._keep, self._key(), counts)

    def close(self) -> None:
        """Write what is left."""
        self._writer.shutdown()

    def _key(self) -> str:
        text = json.dumps([self._digest(), *sorted(map(_outline, self._profiles()))])
        return hashlib.sha256(text.encode()).hexdigest()

    def _all(self) -> dict[str, Any]:
        try:
            with self._file.open("rb") as opened:
                found = json.loads(opened.read(MOST_BYTES))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            log.warning("earlier first decisions are lost: %s cannot be used (%s)", self._file, error)
            return {}
        return found if isinstance(found, dict) else {}

    def _keep(self, key: str, counts: DecisionCounts) -> None:
        others = [(other, value) for other, value in self._all().items() if other != key]
        all_sets = dict([*others, (key, {"total": counts.total, "of": dict(counts.of)})][-MOST:])
        beside = self._file.with_name(f".{self._file.name}.new")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(all_sets), encoding="utf-8")
            os.replace(beside, self._file)
        except OSError as error:
            log.warning("the first decisions could not be kept for after a restart: %s", error)


def _outline(profile: AdapterProfile) -> list[str]:
    """What tells an adapter from what it was before: lengths stand for texts: there may be thousands."""
    texts = profile.examples, profile.negative_examples, profile.keywords
    return [profile.name, profile.domain, profile.task, *(f"{len(t)} {sum(map(len, t))}" for t in texts)]


def _counts(document: Any) -> DecisionCounts | None:
    """None where the document has another form."""
    try:
        of = {str(what): int(count) for what, count in document["of"].items()}
        total = int(document["total"])
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
        return None
    whole = total > 0 and sum(of.values()) == total and min(of.values()) >= 0
    return DecisionCounts(of, total) if whole else None
