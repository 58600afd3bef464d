"""How much work the grammar of an answer was, counted: the same on every machine.

llguidance's parser fills a row of items behind each lexeme, and compares each item of a row with the others,
so a row costs as its length squared. Its limits hold for one mask (`source.limits`). An ambiguous grammar of
60 bytes keeps below them while its rows grow with the answer, so the work of a whole answer is counted too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from router.errors import EngineFailed

if TYPE_CHECKING:
    from llguidance import LLMatcher

PAIRS = 4_000_000  # of items, that an answer may begin with
# Optional properties make long rows. Their items wait for different keys, and cost a tenth of others.
SCHEMA_PAIRS = 4  # that count as one
PAIRS_PER_TOKEN = 100_000
FUEL = 1_000_000  # of the lexer, which is what it spends on parts of expressions that it has not met yet
FUEL_PER_TOKEN = 10_000
TOKEN_PAIRS, TOKEN_FUEL = 50_000, 5_000  # that are as much as a token to the tenant
_ALL = 1 << 40  # tokens, more than any answer has
_COUNT = re.compile(r'^  "(rows|all_items|lexer_cost)": (\d+)', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Counts:
    """What a parser did since it began; `fuel` is of the lexer, which all answers of a grammar share."""

    rows: int
    items: int
    fuel: int


def counts(matcher: LLMatcher) -> Counts:
    """What a matcher without an error did. Raises EngineFailed if the library does not say.

    The library shows it only in the text of an error. So a copy is asked to take back more than it has.
    """
    copied = matcher.deep_copy()
    copied.rollback(_ALL)
    found = dict(_COUNT.findall(copied.get_error().partition("<grammar>")[0]))
    if len(found) != 3:
        raise EngineFailed("llguidance no longer says what its parser did")
    return Counts(int(found["rows"]), int(found["all_items"]), int(found["lexer_cost"]))


class Lexer:
    """What is known of the lexer that all answers of a compiled grammar share."""

    def __init__(self, fuel: int) -> None:
        self.fuel = fuel  # spent so far, as the last mask showed it
        self.spoiled = False  # an answer broke off, and its limits with it


class Work:
    """The work of one answer."""

    def __init__(self, at: Counts, lexer: Lexer, *, schema: bool = False) -> None:
        self._at, self.lexer, self._as_one = at, lexer, SCHEMA_PAIRS if schema else 1
        self.pairs = self.fuel = 0

    def add(self, now: Counts) -> None:
        """Count what was done since the last time. `now` is behind a mask of this answer."""
        rows, items = now.rows - self._at.rows, now.items - self._at.items
        self.pairs += items * items // (max(rows, 1) * self._as_one)
        self.fuel += max(now.fuel - self.lexer.fuel, 0)
        self._at, self.lexer.fuel = now, max(now.fuel, self.lexer.fuel)

    def too_much(self, tokens: int) -> bool:
        """Whether it is more than an answer of so many tokens may take."""
        return self.pairs > PAIRS + PAIRS_PER_TOKEN * tokens or self.fuel > FUEL + FUEL_PER_TOKEN * tokens

    @property
    def tokens(self) -> int:
        """As how many tokens of an answer it counts to the tenant."""
        return self.pairs // TOKEN_PAIRS + self.fuel // TOKEN_FUEL
