"""Labelled requests, JSON lines of `{"text": ..., "label": NAME or "", "source": ...}`, and where they go."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from router.routing.calibration import CalibrationError


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
class Choice:
    """The adapter ("" is the base) for thresholds up to `confidence`, and the classifier that decides so."""

    confidence: float = 0.0
    adapter: str = ""
    classifier: str = ""


BASE_ANSWERS = Choice()


@dataclass(frozen=True, slots=True)
class RoutedRow:
    """`choices` by falling confidence: each holds for thresholds down to the confidence of the next."""

    row: DataRow
    choices: tuple[Choice, ...]

    def at(self, threshold: float) -> Choice:
        """Where the request goes at that threshold."""
        return next((one for one in reversed(self.choices) if one.confidence >= threshold), BASE_ANSWERS)

    @property
    def forced(self) -> Choice:
        """Where it goes at the highest threshold at which it goes anywhere: the best guess."""
        return next((one for one in self.choices if one.adapter), BASE_ANSWERS)


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


def one_of_each(rows: Sequence[DataRow]) -> list[DataRow]:
    """One of each group, drawn by a hash of the text. Rows of a group go wrong together: a bound that counts
    each as a draw of its own would be too small."""
    kept: dict[tuple[str, str], DataRow] = {}
    for row in sorted(rows, key=lambda row: hashlib.sha256(row.text.encode("utf-8", "replace")).digest()):
        kept.setdefault((row.group, "" if row.group else row.text), row)
    return list(kept.values())
