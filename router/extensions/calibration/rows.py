"""Labelled requests, JSON lines of `{"text": ..., "label": NAME or "", "source": ...}`, and votes on them.

A calibration stores some of them in a file beside it, so that it can be proven again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router.calibration.model import CalibrationError
from router.reread import read_file
from router.types import Vote

MOST_LOST = 0.05  # share of votes that may be lost


@dataclass(frozen=True, slots=True)
class DataRow:
    """A request and the adapter it is for; `label` "" is none of them, `source` where it comes from.

    Rows of one `group` are about the same text, such as two questions on a passage; "" is alone.
    """

    text: str
    label: str
    source: str = ""
    group: str = ""


@dataclass(frozen=True, slots=True)
class Ballot:
    """One row, and one vote of each classifier in the order in which they are asked."""

    row: DataRow
    votes: tuple[Vote, ...]


def spoke(vote: Vote) -> bool:
    """Whether there is anything to weigh."""
    return bool(vote.scores) and not vote.error and not vote.declined


def read_rows(path: Path, names: Collection[str], label: str | None = None) -> list[DataRow]:
    """Rows of a file, in order. `label` is that of rows which say none (None: each must say one).

    Raises CalibrationError naming file and line: no JSON, no text, a label that no adapter has, no rows.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # other ends of lines may stand in a text
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path} is not UTF-8: byte {error.start}") from None
    except OSError as error:
        raise CalibrationError(f"{path}: {error.strerror}; it must be a file of JSON lines") from None
    rows = [_row(f"{path}:{i}", line, names, label) for i, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise CalibrationError(
            f'{path} is empty: write one request a line, {{"text": "...", "label": "NAME"}}'
        )
    return rows


def _row(where: str, line: str, names: Collection[str], default: str | None) -> DataRow:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CalibrationError(f"{where}: not JSON: {error}") from None
    if not isinstance(said, dict) or not isinstance(said.get("text"), str) or not said["text"].strip():
        raise CalibrationError(f'{where}: needs a "text" that is not empty')
    label = said.get("label", default)
    if not isinstance(label, str):
        raise CalibrationError(f'{where}: needs a "label": the name of an adapter, or "" for none of them')
    if label and label not in names:
        known = ", ".join(sorted(names)) or "none"
        raise CalibrationError(f"{where}: no adapter is called {label!r}; there are {known}")
    return DataRow(said["text"], label, str(said.get("source", "")), str(said.get("group", "")))


def distinct(rows: Iterable[DataRow]) -> list[DataRow]:
    """Each text once. Raises CalibrationError for a text with two labels."""
    found: dict[str, DataRow] = {}
    for row in rows:
        known = found.setdefault(" ".join(row.text.split()), row)
        if known.label != row.label:
            raise CalibrationError(
                f"the request {row.text[:60]!r} is labelled both {known.label!r} and {row.label!r}: keep one"
            )
    return list(found.values())


def unseen(rows: Sequence[DataRow], examples: Collection[str]) -> list[DataRow]:
    """Without those that classifiers learned from: their scores say nothing of other requests."""
    learned = {" ".join(text.split()) for text in examples}
    return [row for row in rows if " ".join(row.text.split()) not in learned]


def check_votes(ballots: Sequence[Ballot], classifiers: Sequence[str]) -> None:
    """Raises CalibrationError where votes are missing, lost too often, or not numbers in [0, 1]."""
    if not classifiers:
        raise CalibrationError("no classifier votes: `lora-router plugins doctor` says why")
    for place, name in enumerate(classifiers):
        votes = [ballot.votes[place] for ballot in ballots]
        for vote in votes:
            bad = [s for s in vote.scores.values() if not math.isfinite(s) or not 0 <= s <= 1]
            if bad:
                raise CalibrationError(f"classifier {name} scored {bad[0]}: a confidence lies in 0 to 1")
        lost = [vote.error for vote in votes if vote.error]
        if len(lost) > MOST_LOST * len(votes):
            raise CalibrationError(
                f"classifier {name} lost {len(lost)} of {len(votes)} votes ({lost[0]}): repair it first, "
                "`lora-router plugins doctor` says more, or leave it out with LORA_ROUTER_LOAD_PLUGINS"
            )


def stratified_split(rows: Sequence[DataRow], share: float) -> tuple[list[int], list[int]]:
    """Indices of about `share` of the rows of each label, and of the rest; drawn by a hash of the text, a
    group as a whole."""
    first: list[int] = []
    rest: list[int] = []
    alone, grouped = _apart(rows)
    for drawn in _shuffled(rows, alone):
        count = round(len(drawn) * share)
        first += drawn[:count]
        rest += drawn[count:]
    for i in grouped:
        (first if _drawn(rows[i].group) < share else rest).append(i)
    return sorted(first), sorted(rest)


def stratified_folds(rows: Sequence[DataRow], folds: int) -> list[list[int]]:
    """Indices in `folds` parts with about the same share of each label; drawn by a hash of the text, a group
    as a whole."""
    alone, grouped = _apart(rows)
    order = [i for drawn in _shuffled(rows, alone) for i in drawn]
    parts = [order[start::folds] for start in range(folds)]
    for i in grouped:
        parts[int(_drawn(rows[i].group) * folds)].append(i)
    return [sorted(part) for part in parts]


def one_of_each(ballots: Sequence[Ballot]) -> list[Ballot]:
    """One of each group, drawn by a hash of the text: those of a group go wrong together, so that a bound
    which counts each as a draw of its own would be too small."""
    kept: dict[str, Ballot] = {}
    for ballot in ballots:
        row = ballot.row
        key = f"group {row.group}" if row.group else f"row {row.text}"
        other = kept.get(key)
        if other is None or _hash(row.text) < _hash(other.row.text):
            kept[key] = ballot
    return list(kept.values())


def _apart(rows: Sequence[DataRow]) -> tuple[list[int], list[int]]:
    """Indices of rows without a group, and of those with one."""
    return [i for i, row in enumerate(rows) if not row.group], [i for i, row in enumerate(rows) if row.group]


def _shuffled(rows: Sequence[DataRow], among: Sequence[int]) -> list[list[int]]:
    """Indices of each label."""
    labels: dict[str, list[int]] = {}
    for i in among:
        labels.setdefault(rows[i].label, []).append(i)
    return [sorted(found, key=lambda i: _hash(rows[i].text)) for _, found in sorted(labels.items())]


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _drawn(text: str) -> float:
    """A number in [0, 1) that the text alone decides."""
    return int.from_bytes(_hash(text)[:6], "big") / 2**48


# -- the file beside a calibration

MOST_BYTES = 16 << 20
MOST_FIT = 300  # of the rows that weights were fitted on
MOST_PROOF = 3000  # of labelled and of strange rows
DIGEST = "rows"  # in a calibration's report: sha256 of the file


@dataclass(frozen=True, slots=True)
class StoredRows:
    """`fit` are labelled rows that weights were fitted on; `known` and `strange` are for the proof."""

    fit: tuple[DataRow, ...]
    known: tuple[DataRow, ...]
    strange: tuple[DataRow, ...]

    @classmethod
    def of(cls, fit: Sequence[DataRow], known: Sequence[DataRow], strange: Sequence[DataRow]) -> StoredRows:
        """At most so many as a file keeps, drawn by a hash."""
        return cls(_at_most(fit, MOST_FIT), _at_most(known, MOST_PROOF), _at_most(strange, MOST_PROOF))

    def written(self) -> bytes:
        """As JSON lines."""
        parts = (("fit", self.fit), ("proof", self.known), ("strange", self.strange))
        return b"".join(_line(part, row) for part, rows in parts for row in rows)


def path_of(calibration: Path) -> Path:
    """Of the rows of that calibration file."""
    return calibration.with_name(f"{calibration.stem}.rows.jsonl")


def digest(data: bytes) -> str:
    """What a calibration's report has of its rows."""
    return hashlib.sha256(data).hexdigest()


def read_stored(calibration: Path, wanted: str) -> StoredRows | None:
    """The rows beside that calibration, which must have the digest `wanted`. None where there are none.

    Raises CalibrationError for rows of another calibration and for a file that is something else.
    """
    path = path_of(calibration)
    if not wanted or not path.exists():
        return None
    try:
        data = read_file(path, MOST_BYTES)
    except OSError as error:
        raise CalibrationError(f"{path}: {error.strerror}") from None
    if digest(data) != wanted:
        raise CalibrationError(
            f"{path} has the requests of another calibration: run `lora-router route calibrate` again"
        )
    found: dict[str, list[DataRow]] = {"fit": [], "proof": [], "strange": []}
    try:
        for line in data.decode().split("\n"):
            if line:
                said = json.loads(line)
                found[said.pop("part")].append(DataRow(**said))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CalibrationError(f"{path} is damaged: {type(error).__name__}: {error}") from None
    return StoredRows(tuple(found["fit"]), tuple(found["proof"]), tuple(found["strange"]))


def _line(part: str, row: DataRow) -> bytes:
    said: dict[str, Any] = {"part": part, "text": row.text, "label": row.label}
    said |= {name: value for name in ("source", "group") if (value := getattr(row, name))}
    return json.dumps(said, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _at_most(rows: Sequence[DataRow], most: int) -> tuple[DataRow, ...]:
    if len(rows) <= most:
        return tuple(rows)
    order = sorted(range(len(rows)), key=lambda i: _key(rows[i].text))
    return tuple(rows[i] for i in sorted(order[:most]))


def _key(text: str) -> bytes:
    return hashlib.sha256(f"kept {text}".encode("utf-8", "surrogatepass")).digest()
