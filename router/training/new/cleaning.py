"""Rows fit to learn from: those without text and those that repeat a prompt are left out, and counted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from router.errors import ConfigError
from router.training.data import prompt_key
from router.training.new.columns import Columns
from router.training.new.table import Record

FEWEST = 50  # rows: fewer leave a test split that proves nothing


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with its answer; pairs of one `group` go to one split."""

    prompt: str
    response: str
    group: str


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What is left, and how many rows were left out for what."""

    pairs: tuple[Pair, ...]
    empty: int
    repeated: int
    contradicting: int  # the same prompt with another answer: the first one counts

    def left_out(self) -> list[str]:
        """In words, for a person."""
        counts = {
            "without prompt or answer": self.empty,
            "repeated": self.repeated,
            "repeated with another answer": self.contradicting,
        }
        return [f"{count} {words}" for words, count in counts.items() if count]


def clean(records: Iterable[Record], columns: Columns) -> Cleaned:
    """White space at the ends goes; prompts are compared without case, white space folded."""
    kept: dict[str, Pair] = {}
    empty = repeated = contradicting = 0
    for record in records:
        prompt, response = (
            record.values.get(name, "").strip() for name in (columns.prompt, columns.response)
        )
        key = prompt_key(prompt)
        if not prompt or not response:
            empty += 1
        elif key not in kept:
            group = prompt_key(record.values.get(columns.group, "")) if columns.group else ""
            kept[key] = Pair(prompt, response, group or key)
        elif kept[key].response == response:
            repeated += 1
        else:
            contradicting += 1
    return Cleaned(tuple(kept.values()), empty, repeated, contradicting)


def require_enough(usable: int, found: int, name: str) -> None:
    """Raises ConfigError where there are too few rows to learn from and to test with."""
    if usable < FEWEST:
        of = f" of {found}" if found != usable else ""
        raise ConfigError(
            f"{name} has {usable} usable rows{of}; {FEWEST} are needed at least, and some hundreds are better"
        )
