"""Training rows out of feedback: deduplicated, screened, bounded by unit, and divided by unit.

A row is what one unit (a user, a session) sent last for a prompt, where no other unit contradicts it. Rows
that look hostile are left out by three rules: no unit gives more than its part; a response that contradicts
a row that is known to be right is left out; and, where answers are labels, a unit whose labels are unlike
those of similar prompts far more often than the labels of others gives nothing. Who holds many units passes
all three: the comparison on held-out rows is the last defence.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from router.errors import ConfigError
from router.feedback.examples import Example, example_of
from router.feedback.model import Feedback

WORD = re.compile(r"\w+")
RARE = 0.05  # share of texts that have a word, up to which it says what a text is about
NEIGHBOURS = 5
HELD_OUT = 0.25  # of the units: their rows are for a comparison alone, until it was made
AGREEING = 3  # units that overrule a training row
PER_UNIT, SHARE = 20, 0.1  # most rows of a unit, and their share of all
OUTLIER = 1e-3  # chance of so many unlike labels in a unit, below which it gives nothing
RECORD = TypeAdapter(Feedback)


class Left(StrEnum):
    """Why feedback is left out, beside `router.feedback.examples.NoExample`."""

    SAME_UNIT = "the unit sent newer feedback on this prompt"
    CONTRADICTED = "units contradict each other about this prompt"
    SAME_PROMPT = "another unit's row has this prompt"
    HELD_OUT = "the prompt is a row of validation or test"
    KNOWN = "already a training row"
    AGAINST_OWN = "contradicts a training row, and too few units agree"
    NO_LABEL = "the response is none of the adapter's labels"
    OUTLIER = "from a unit whose labels are unlike those of similar prompts"
    UNIT_CAP = "more rows than one unit may give"


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
class Row:
    """One request with the answer it should get. All rows of a `unit` stand on one side of the split.

    `asked` is the prompt without a system text, and `support` how many units say the same.
    """

    prompt: str
    response: str
    unit: str
    asked: str = ""
    time: float = 0.0
    support: int = 1


@dataclass(frozen=True, slots=True)
class Taken:
    """Rows by use, and how many records were left out, by reason."""

    train: Sequence[Row] = ()
    held_out: Sequence[Row] = ()
    left: Mapping[str, int] = field(default_factory=dict)


def read_records(path: Path, adapter: str) -> list[Feedback]:
    """The feedback on `adapter` in a file of JSON lines. Raises ConfigError naming the line that is wrong."""
    found = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(RECORD.validate_json(line))
            except ValidationError as error:
                first = error.errors()[0]
                where = "".join(f"{part}: " for part in first["loc"])
                raise ConfigError(f"{path.name}:{number} is no feedback: {where}{first['msg']}") from error
    return [one for one in found if one.adapter == adapter]


def rows_from(feedback: Iterable[Feedback], own: AdapterRows, judged: Collection[str] = ()) -> Taken:
    """The rows of feedback on one adapter. `judged`: digests of units whose rows were held out and compared
    before; they are trained on from then on."""
    left: Counter[str] = Counter()
    rows = _fitting(_agreed(feedback, own.system, left), own, left)
    if own.labels:
        rows = _without_outliers(rows, own, left)
    sides: tuple[list[Row], list[Row]] = ([], [])
    for row in _capped(rows, left):
        digest = digest_of(row.unit)
        sides[digest not in judged and int(digest[:8], 16) / 2**32 < HELD_OUT].append(row)
    return Taken(*sides, {why: count for why, count in left.items() if count})


def _agreed(feedback: Iterable[Feedback], system: str, left: Counter[str]) -> list[Row]:
    """One row for each prompt: what most units say, each by its newest feedback."""
    by_prompt: dict[str, dict[str, Example]] = defaultdict(dict)
    against: Counter[tuple[str, str]] = Counter()  # units that found an answer bad, by prompt and answer
    for one in sorted(feedback, key=lambda one: one.time):
        if one.verdict == "bad" and one.messages and one.answer:
            against[key(one.messages[-1][1]), key(one.answer)] += 1
        made = example_of(one, system)
        if not isinstance(made, Example):
            left[made] += 1
            continue
        units = by_prompt[key(made.prompt)]
        left[Left.SAME_UNIT] += units.pop(unit_of(one), None) is not None
        units[unit_of(one)] = made
    found = []
    for units in by_prompt.values():  # each with the oldest first
        winner, count = Counter(key(one.response) for one in units.values()).most_common(1)[0]
        same = [(unit, one) for unit, one in units.items() if key(one.response) == winner]
        unit, newest = same[-1]
        if 2 * count <= len(units) or count <= against[key(newest.asked), winner]:
            left[Left.CONTRADICTED] += len(units)
            continue
        left[Left.CONTRADICTED] += len(units) - count
        left[Left.SAME_PROMPT] += count - 1
        found.append(Row(newest.prompt, newest.response, unit, newest.asked, newest.feedback.time, count))
    return found


def _fitting(rows: Iterable[Row], own: AdapterRows, left: Counter[str]) -> list[Row]:
    """Without rows whose right answers are known, or are none of the labels; labels are spelt as they are."""
    labels = {key(label): label for label in own.labels}
    held_out = {key(prompt) for prompt, _ in own.held_out}
    known = {key(prompt): key(response) for prompt, response in own.train}
    found = []
    for row in rows:
        keys = {key(row.prompt), key(row.asked)}
        before = {known[name] for name in keys if name in known}
        if labels and key(row.response) not in labels:
            left[Left.NO_LABEL] += 1
        elif keys & held_out:
            left[Left.HELD_OUT] += 1
        elif key(row.response) in before:
            left[Left.KNOWN] += 1
        elif before and row.support < AGREEING:
            left[Left.AGAINST_OWN] += 1
        else:
            found.append(replace(row, response=labels.get(key(row.response), row.response)))
    return found


def _without_outliers(rows: Sequence[Row], own: AdapterRows, left: Counter[str]) -> list[Row]:
    """Without units whose labels differ from those of the nearest prompts of others, far more often than the
    labels of all units do."""
    index = _Index([*(row.prompt for row in rows), *(prompt for prompt, _ in own.train)])
    for prompt, response in own.train:
        index.add(prompt, key(response))
    for row in rows:
        index.add(row.prompt, key(row.response), row.unit)
    unlike: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        if (expected := index.expected(row.prompt, row.unit)) is not None:
            unlike[row.unit].append(expected != key(row.response))
    rates = sorted(sum(each) / len(each) for each in unlike.values())
    usual = max(rates[len(rates) // 2], 0.05) if rates else 0.0  # of the unit in the middle
    outliers = {unit for unit, each in unlike.items() if _chance(sum(each), len(each), usual) < OUTLIER}
    left[Left.OUTLIER] += sum(row.unit in outliers for row in rows)
    return [row for row in rows if row.unit not in outliers]


def _capped(rows: Iterable[Row], left: Counter[str]) -> list[Row]:
    """The newest rows of each unit: at most PER_UNIT, and SHARE of the rows that are taken (with few units an
    equal part for each, if that is more)."""
    by_unit: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: -row.time):
        by_unit[row.unit].append(row)
    counts = [len(each) for each in by_unit.values()]
    share = max(SHARE, 1 / max(1, len(counts)))
    cap = PER_UNIT
    while cap > 1 and cap > share * sum(min(count, cap) for count in counts) + 1e-9:
        cap -= 1
    left[Left.UNIT_CAP] += sum(max(0, count - cap) for count in counts)
    return sorted((row for each in by_unit.values() for row in each[:cap]), key=lambda row: row.time)


def unit_of(one: Feedback) -> str:
    """The unit; all feedback of a tenant without units is of one."""
    return one.unit or f"{one.tenant}/"


def digest_of(unit: str) -> str:
    """By which a run remembers a unit; its first digits decide whether it is held out."""
    return hashlib.sha256(unit.encode()).hexdigest()[:16]


def key(text: str) -> str:
    """What two texts share that count as the same: no case, white space folded."""
    return " ".join(text.casefold().split())


def _chance(hits: int, of: int, rate: float) -> float:
    """Of at least so many hits, each with this rate (binomial)."""
    return sum(math.comb(of, n) * rate**n * (1 - rate) ** (of - n) for n in range(hits, of + 1))


class _Index:
    """Labels of texts, found by the rare words that they share with another text; rare among `texts`."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._frequency = Counter(word for text in texts for word in _words(text))
        self._total = len(texts)
        self._rows: list[tuple[int, str, str]] = []  # rare words, label, owner
        self._by_word: dict[str, list[int]] = defaultdict(list)

    def add(self, text: str, label: str, owner: str = "") -> None:
        """A text; `owner` is the unit that it comes from."""
        rare = self._rare(text)
        for word in rare:
            self._by_word[word].append(len(self._rows))
        self._rows.append((len(rare), label, owner))

    def expected(self, text: str, owner: str) -> str | None:
        """The label that the nearest texts of other owners have; None where none shares a rare word."""
        scores: defaultdict[int, float] = defaultdict(float)
        for word in self._rare(text):
            weight = math.log((self._total + 1) / (self._frequency[word] + 1)) + 0.1
            for row in self._by_word.get(word, ()):
                if not owner or self._rows[row][2] != owner:
                    scores[row] += weight
        votes: defaultdict[str, float] = defaultdict(float)
        for row in sorted(scores, key=lambda row: -scores[row])[:NEIGHBOURS]:
            count, label, _ = self._rows[row]
            votes[label] += scores[row] / math.sqrt(1 + count)
        return max(votes, key=lambda label: votes[label]) if votes else None

    def _rare(self, text: str) -> set[str]:
        most = max(RARE * self._total, 1)
        return {word for word in _words(text) if self._frequency[word] <= most}


def _words(text: str) -> set[str]:
    return set(WORD.findall(text.casefold()))
