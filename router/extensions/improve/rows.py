"""Training rows out of feedback: deduplicated, screened, bounded by unit, and divided by unit.

A row is what one unit (a user, a session) sent last for a prompt, where no other unit contradicts it. Rows
that look hostile are left out by three rules: no unit gives more than its part; a response that contradicts
a row that is known to be right is left out; and, where answers are labels, a unit whose labels are unlike
those of similar prompts far more often than the labels of others gives nothing. Who holds many units passes
all three: the comparison on held-out rows is the last defence.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import comb

from router.extensions.improve.likeness import Index, Texts, key
from router.extensions.improve.personal import masked
from router.feedback.examples import Example, example_of
from router.feedback.model import Feedback

SHOWN = 5  # ids of a reason in a report


class Left(StrEnum):
    """Why feedback is left out, beside `router.feedback.examples.NoExample`."""

    SAME_UNIT = "the unit sent newer feedback on this prompt"
    CONTRADICTED = "units contradict each other about this prompt"
    SAME_PROMPT = "another unit's row has this prompt"
    HELD_OUT = "the prompt is a row of validation or test"
    NEARLY_HELD_OUT = "nearly a row of validation or test"
    AGAINST_HELD_OUT = "contradicts a row of validation or test with nearly the same prompt"
    KNOWN = "already a training row"
    AGAINST_OWN = "contradicts a training row, and too few units agree"
    NO_LABEL = "the response is none of the adapter's labels"
    LENGTH = "far longer than the adapter's own rows"
    LANGUAGE = "another script or language than the adapter's own rows"
    PERSONAL = "personal data in the response"
    OUTLIER = "from a unit whose labels are unlike those of similar prompts"
    UNIT_CAP = "more rows than one unit may give"
    FEW_UNITS = "from too few units"


@dataclass(frozen=True, slots=True)
class AdapterRows:
    """An adapter's own rows, as (prompt, response): what it was trained on, and what must stay unseen.

    `system` is the system text of its prompt. `labels` are the answers that it may give; empty: any text.
    """

    train: Sequence[tuple[str, str]]
    held_out: Sequence[tuple[str, str]] = ()  # of validation and test
    system: str = ""
    labels: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is taken. `share` is of all rows taken; with few units an equal part for each, if that is more."""

    per_unit: int = 20
    share: float = 0.1
    least_units: int = 3  # below it nothing is taken; so many must agree to overrule a training row
    held_out: float = 0.25  # of the units: their rows are for the comparison alone
    outlier: float = 1e-3  # chance of so many unlike labels in a unit, below which it gives nothing


@dataclass(frozen=True, slots=True)
class Row:
    """One request with the answer it should get. All rows of a `unit` stand on one side of the split."""

    prompt: str
    response: str
    unit: str
    response_id: str = ""


@dataclass(frozen=True, slots=True)
class Taken:
    """Rows by use; how many records were left out, and ids of some, by reason; how many prompts had personal
    data masked, by its kind."""

    train: tuple[Row, ...] = ()
    held_out: tuple[Row, ...] = ()
    left: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    masked: Mapping[str, int] = field(default_factory=dict)

    def report(self) -> list[str]:
        """Lines for a person."""
        lines = [f"{len(self.train)} rows to train on, {len(self.held_out)} held out"]
        lines += [f"{count} prompts with the {kind} masked" for kind, count in self.masked.items()]
        for reason, count in sorted(self.left.items(), key=lambda one: -one[1]):
            lines.append(f"{count} left out: {reason} ({', '.join(self.examples[reason])})")
        return lines


def rows_from(feedback: Iterable[Feedback], own: AdapterRows, bounds: Bounds = Bounds()) -> Taken:
    """The rows of feedback on one adapter."""
    return _Screening(own, bounds).rows(feedback)


@dataclass(slots=True)
class _Candidate:
    """An example on its way to a row. `support`: units that say the same."""

    example: Example
    prompt: str
    response: str
    unit: str
    support: int = 1


class _Screening:
    """One pass over feedback."""

    def __init__(self, own: AdapterRows, bounds: Bounds) -> None:
        self._own, self._bounds = own, bounds
        self._prompts = Texts([prompt for prompt, _ in own.train])
        self._responses = Texts([response for _, response in own.train])
        self._labels = {key(label): label for label in own.labels}
        self._held_out = {key(prompt): response for prompt, response in own.held_out}
        self._known = {key(prompt): response for prompt, response in own.train}
        everything = [prompt for prompt, _ in (*own.train, *own.held_out)]
        self._near = Index.over(everything)
        for prompt, response in own.held_out:
            self._near.add(prompt, response)
        self._left: dict[str, list[str]] = defaultdict(list)
        self._masked: Counter[str] = Counter()

    def rows(self, feedback: Iterable[Feedback]) -> Taken:
        """All steps."""
        found = self._agreed(feedback)
        found = [one for one in found if self._passes(one)]
        if self._labels:
            found = self._without_outliers(found)
        found = self._capped(found)
        sides: tuple[list[Row], list[Row]] = ([], [])
        for one in found:
            row = Row(one.prompt, one.response, one.unit, one.example.feedback.response_id)
            sides[_is_held_out(one.unit, self._bounds.held_out)].append(row)
        return Taken(
            tuple(sides[0]),
            tuple(sides[1]),
            {reason: len(ids) for reason, ids in self._left.items()},
            {reason: tuple(ids[:SHOWN]) for reason, ids in self._left.items()},
            dict(self._masked),
        )

    def _leave(self, one: Feedback, reason: StrEnum) -> None:
        self._left[reason.value].append(one.response_id)

    # -- One prompt, one row

    def _agreed(self, feedback: Iterable[Feedback]) -> list[_Candidate]:
        """One for each prompt: what most units say, each by its newest feedback."""
        by_prompt: dict[str, dict[str, Example]] = defaultdict(dict)
        against: Counter[tuple[str, str]] = Counter()  # units that found an answer bad, by prompt and answer
        for one in sorted(feedback, key=lambda one: one.time):
            if one.verdict == "bad" and one.messages and one.answer:
                against[key(one.messages[-1][1]), key(one.answer)] += 1
            made = example_of(one, self._own.system)
            if not isinstance(made, Example):
                self._leave(one, made)
                continue
            units = by_prompt[key(made.prompt)]
            if (before := units.pop(unit_of(one), None)) is not None:
                self._leave(before.feedback, Left.SAME_UNIT)
            units[unit_of(one)] = made
        found = (self._majority(units, against) for units in by_prompt.values())
        return [candidate for candidate in found if candidate is not None]

    def _majority(
        self, units: Mapping[str, Example], against: Mapping[tuple[str, str], int]
    ) -> _Candidate | None:
        votes = Counter(key(one.response) for one in units.values())
        winner, count = votes.most_common(1)[0]
        asked = key(next(iter(units.values())).asked)
        agreed = 2 * count > len(units) and count > against.get((asked, winner), 0)
        newest: tuple[str, Example] | None = None
        for unit, one in units.items():  # the oldest first
            if not agreed or key(one.response) != winner:
                self._leave(one.feedback, Left.CONTRADICTED)
            else:
                if newest is not None:
                    self._leave(newest[1].feedback, Left.SAME_PROMPT)
                newest = unit, one
        if newest is None:
            return None
        return _Candidate(newest[1], newest[1].prompt, newest[1].response, newest[0], count)

    # -- Screens of one row

    def _passes(self, one: _Candidate) -> bool:
        """Whether it passes; makes its prompt and response what they are in the row."""
        reason = self._problem(one)
        if reason is not None:
            self._leave(one.example.feedback, reason)
        return reason is None

    def _problem(self, one: _Candidate) -> Left | None:
        if self._labels:
            if (label := self._labels.get(key(one.response))) is None:
                return Left.NO_LABEL
            one.response = label
        elif self._responses.too_long(one.response):
            return Left.LENGTH
        if self._prompts.too_long(one.prompt):
            return Left.LENGTH
        if self._prompts.foreign(one.example.asked) or (
            not self._labels and self._responses.foreign(one.response)
        ):
            return Left.LANGUAGE
        if not self._labels and masked(one.response)[1]:
            return Left.PERSONAL
        if (problem := self._known_problem(one)) is None:
            one.prompt, kinds = masked(one.prompt)
            self._masked.update(kinds)
        return problem

    def _known_problem(self, one: _Candidate) -> Left | None:
        """Against rows whose answers are known."""
        keys = {key(one.prompt), key(one.example.asked)}
        if keys & self._held_out.keys():
            return Left.HELD_OUT
        near = self._near.same(one.example.asked)
        if near is not None:
            return Left.NEARLY_HELD_OUT if key(near) == key(one.response) else Left.AGAINST_HELD_OUT
        known = next((self._known[name] for name in keys if name in self._known), None)
        if known is None:
            return None
        if key(known) == key(one.response):
            return Left.KNOWN
        return Left.AGAINST_OWN if one.support < self._bounds.least_units else None

    # -- Screens of a unit

    def _without_outliers(self, found: Sequence[_Candidate]) -> list[_Candidate]:
        """Without units whose labels differ from those of the nearest prompts of others, far more often than
        the labels of all units do."""
        index = Index.over([*(one.prompt for one in found), *(prompt for prompt, _ in self._own.train)])
        for prompt, response in self._own.train:
            index.add(prompt, key(response))
        for one in found:
            index.add(one.prompt, key(one.response), one.unit)
        unlike: dict[str, list[bool]] = defaultdict(list)
        for one in found:
            expected = index.expected(one.prompt, one.unit)
            if expected is not None:
                unlike[one.unit].append(expected != key(one.response))
        rates = sorted(sum(each) / len(each) for each in unlike.values())
        usual = max(rates[len(rates) // 2], 0.05) if rates else 0.0  # of the unit in the middle
        least = self._bounds.outlier
        outliers = {unit for unit, each in unlike.items() if _chance(sum(each), len(each), usual) < least}
        for one in found:
            if one.unit in outliers:
                self._leave(one.example.feedback, Left.OUTLIER)
        return [one for one in found if one.unit not in outliers]

    def _capped(self, found: Sequence[_Candidate]) -> list[_Candidate]:
        """The newest rows of each unit, no more than its part."""
        by_unit: dict[str, list[_Candidate]] = defaultdict(list)
        for one in sorted(found, key=lambda one: -one.example.feedback.time):
            by_unit[one.unit].append(one)
        few = len(by_unit) < self._bounds.least_units
        cap = 0 if few else self._cap([len(each) for each in by_unit.values()])
        for each in by_unit.values():
            for one in each[cap:]:
                self._leave(one.example.feedback, Left.FEW_UNITS if few else Left.UNIT_CAP)
        kept = [one for each in by_unit.values() for one in each[:cap]]
        return sorted(kept, key=lambda one: one.example.feedback.time)

    def _cap(self, counts: Sequence[int]) -> int:
        """The most rows of a unit, so that none gives more than `share` of the rows that are then taken."""
        share = max(self._bounds.share, 1 / len(counts))
        for cap in range(min(self._bounds.per_unit, max(counts)), 1, -1):
            taken = sum(min(count, cap) for count in counts)
            if cap <= share * taken + 1e-9:
                return cap
        return 1


def unit_of(one: Feedback) -> str:
    """The unit; all feedback of a tenant without units is of one."""
    return one.unit or f"{one.tenant}/"


def _is_held_out(unit: str, share: float) -> bool:
    return int(hashlib.sha256(unit.encode()).hexdigest()[:8], 16) / 2**32 < share


def _chance(hits: int, of: int, rate: float) -> float:
    """Of at least so many hits, each with this rate (binomial)."""
    return sum(comb(of, n) * rate**n * (1 - rate) ** (of - n) for n in range(hits, of + 1))
