"""Rows to train on and to compare on, out of feedback."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from router.extensions.improve.records import Feedback

HELD_OUT = 0.25  # of the units: their rows are for the comparison alone


@dataclass(frozen=True, slots=True)
class Row:
    """One request with the answer it should get. Texts of one `unit` stand on one side of the split."""

    prompt: str
    response: str
    unit: str


@dataclass(frozen=True, slots=True)
class Taken:
    """Rows by use, and how many records were left out, by reason."""

    train: tuple[Row, ...] = ()
    held_out: tuple[Row, ...] = ()
    left: Mapping[str, int] = field(default_factory=dict)


def rows_from(feedback: Iterable[Feedback], own: Iterable[str]) -> Taken:
    """Corrected and praised answers as rows; `own` are prompts of rows that must not be trained on."""
    known = {_key(prompt) for prompt in own}
    left: Counter[str] = Counter()
    rows: dict[str, Row] = {}
    for one in feedback:
        response = one.corrected if one.verdict == "corrected" else one.answer
        asked = [text for role, text in one.messages if role == "user"]
        if one.verdict == "bad":
            left["bad, without a correction"] += 1
        elif not response or len(asked) != 1:
            left["no text, or more than one turn"] += 1
        elif _key(asked[0]) in known:
            left["also a row of validation or test"] += 1
        elif _key(asked[0]) in rows:
            left["the same request again"] += 1
        else:
            rows[_key(asked[0])] = Row(asked[0], response, one.unit or one.response_id)
    sides: tuple[list[Row], list[Row]] = ([], [])
    for row in rows.values():
        sides[_is_held_out(row.unit)].append(row)
    return Taken(tuple(sides[0]), tuple(sides[1]), dict(left))


def _is_held_out(unit: str) -> bool:
    return int(hashlib.sha256(unit.encode()).hexdigest()[:8], 16) / 2**32 < HELD_OUT


def _key(prompt: str) -> str:
    return " ".join(prompt.casefold().split())
