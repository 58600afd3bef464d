"""Values for the `?` of a query, taken from the tables so that something is found."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from router.evaluation.sql.filling import Tables
from router.evaluation.sql.tokens import tokens
from router.training.data import Schema

Values = tuple[int | str, ...]


class Kind(Enum):
    """What a placeholder stands for."""

    COUNT = "a small number"
    VALUE = "a value of a column"
    PATTERN = "a part of a value of a column"


@dataclass(frozen=True, slots=True)
class Slot:
    """A placeholder; `table` and `column` are places in the schema and in a row."""

    kind: Kind
    table: str = ""
    column: int = 0


def slots(sql: str, schema: Schema) -> list[Slot]:
    """What each `?` of a query is compared with: the column or count that stands before it."""
    words = tokens(sql)
    named = [(table, columns) for table, columns in schema if table.lower() in words] or list(schema)
    known = {name.lower(): (table, place) for table, names in named[::-1] for place, name in enumerate(names)}
    return [_slot(words[:place], known) for place, word in enumerate(words) if word == "?"]


def _slot(before: Sequence[str], known: dict[str, tuple[str, int]]) -> Slot:
    kind = Kind.PATTERN if before[-1:] in (["like"], ["glob"]) else Kind.VALUE
    words = list(before)
    while words:
        word = words.pop()
        if word in known:
            # In count(DISTINCT x) > ? the count is what is compared.
            counted = words[-2:] == ["count", "("] or words[-3:] == ["count", "(", "distinct"]
            return Slot(Kind.COUNT) if counted else Slot(kind, *known[word])
        if word in ("limit", "offset", "count", "where", "having"):
            break
    return Slot(Kind.COUNT)


def bind(found: Sequence[Slot], tables: Tables, draw: random.Random, together: bool) -> Values:
    """A value for every slot; `together`: all of one row, as conditions joined by AND need it."""
    row = draw.random()
    return tuple(_value(slot, tables, draw, row if together else draw.random()) for slot in found)


def _value(slot: Slot, tables: Tables, draw: random.Random, row: float) -> int | str:
    if slot.kind is Kind.COUNT:
        return draw.randint(1, 3)
    rows = tables[slot.table]
    value = rows[int(row * len(rows))][slot.column]
    return value if slot.kind is Kind.VALUE else f"%{str(value)[draw.randrange(2)]}%"
