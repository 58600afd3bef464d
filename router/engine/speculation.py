"""When drafts pay: what a step costs by its number of tokens, and the drafts of a step that are worth it.

A few tokens more cost a small step nothing, since reading the weights takes all of its time; from some number
on each costs the same. Both are measured while the engine serves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from router.engine.drafts import AnswerMemory, Draft, Drafter, Folded
from router.engine.rows import AnswerRow, BatchRow, Chunk
from router.engine.tenant_cache import TenantCache

MOST_DRAFTS = 8  # of a row in a step
MOST_TOKENS = 64  # of a step up to which its time is kept by its number of tokens
MANY_TOKENS = 32  # of a step from which products take all of its time
_MEMORIES = 64  # of an adapter's answers to a tenant
_NEWEST = 0.1  # share of the last step in the time of such steps
_FRESH = 2000  # steps after which a time is measured anew
_KEPT, _MOST_PRICES = 16, 256  # steps for which prices are not computed anew, and how many there are
_MARGIN = 1.15  # of costs: drafts are looked for in vain, and times and chances are estimates
_LEAST_CHANCE = 0.03
_BUSY = 0.3  # chance from which drafts are few, so that rows without are not asked at each step
_MOST_REST = 16  # steps


class StepTimes:
    """Seconds of a step by its number of tokens: between those measured of late, on straight lines.

    Where nothing near was measured, by a roofline (Williams et al. 2009): a step takes as long as reading the
    weights, or as its products where those take longer.
    """

    def __init__(self) -> None:
        self._known: dict[int, Measured] = {}  # by the largest number of tokens of similar steps
        self._each = 0.0  # seconds of a token in steps of many
        self._steps = 0

    def note(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        self._steps += 1
        if tokens >= MANY_TOKENS:
            self._each += _NEWEST * (min(seconds / tokens, 2 * self._each) - self._each)
            self._each = self._each or seconds / tokens
        if tokens > MOST_TOKENS:
            return
        known = self._known.get(group := _group(tokens))
        if known is None or self._steps - known.step > _FRESH:
            self._known[group] = Measured(tokens, seconds, self._steps)
            return
        known.step = self._steps
        known.tokens += _NEWEST * (tokens - known.tokens)
        known.seconds += _NEWEST * (min(seconds, 2 * known.seconds) - known.seconds)  # one may be held up

    def of(self, tokens: int) -> float:
        """Seconds of a step of so many tokens; 0 until one of many tokens was made, such as a prompt's."""
        return self.curve(tokens, 0)[0] if self._each else 0.0

    def curve(self, tokens: int, most: int) -> list[float]:
        """Of steps of `tokens` .. `tokens` + `most` tokens; one of more never takes less.

        Where one of more took less, that holds for both: so it is tried, and measured again.
        """
        fresh = [one for one in self._known.values() if self._steps - one.step <= _FRESH]
        points = sorted((one.tokens, one.seconds) for one in fresh)
        for place in reversed(range(len(points) - 1)):
            points[place] = (points[place][0], min(points[place][1], points[place + 1][1]))
        found = list[float]()
        for number in range(tokens, tokens + most + 1):
            while len(points) > 1 and points[1][0] <= number:
                del points[0]
            found.append(self._between(points, number))
        return found

    def _between(self, points: list[tuple[float, float]], tokens: int) -> float:
        if not points:
            return self._each * tokens
        at, seconds = points[0]
        if tokens <= at or len(points) == 1:
            return seconds if tokens <= at else max(seconds, self._each * tokens)
        return seconds + (points[1][1] - seconds) * (tokens - at) / (points[1][0] - at)


@dataclass(slots=True)
class Measured:
    """Means of similar steps, and the step in which the last of them was made."""

    tokens: float
    seconds: float
    step: int


def _group(tokens: int) -> int:
    """The largest number of tokens of steps that are measured together."""
    width = 1 if tokens <= 2 else 2 if tokens <= 12 else 4 if tokens <= 24 else 8
    return -(-tokens // width) * width


class Prices(NamedTuple):
    """What drafts cost in a step, in tokens of answers that would be made in that time."""

    until: int  # step
    costs: list[float]  # of 0, 1, ... drafts
    least: float  # of a draft in the cheapest number of them


class Speculation:
    """The drafts of all rows; used by the engine's thread only."""

    def __init__(
        self, spell: Callable[[int], str], room: Callable[[AnswerRow, int], int], max_step_tokens: int
    ) -> None:
        """`spell`: the text of a token; `room`: how many of so many tokens a row has blocks for."""
        self._folded, self._room, self._most_tokens = Folded(spell), room, max_step_tokens
        self._times = StepTimes()
        self._memories = TenantCache[str, AnswerMemory](_MEMORIES)
        self._drafters: dict[BatchRow, Drafter | None] = {}  # None: no more drafts for the row
        self.asked: dict[BatchRow, Drafter] = {}  # rows for which drafts were looked for in this step
        self._chunks: Sequence[Chunk] = ()  # of the last step
        self._counts = (0, 0)  # its tokens, and its rows that get one
        self._steps = 0
        self._prices: dict[tuple[int, int], Prices] = {}  # by tokens and rows

    def add(self, chunks: list[Chunk]) -> list[Chunk]:
        """The chunks of a step with the drafts that pay; the very same list if none does."""
        self._steps += 1
        if self.asked:
            self.asked.clear()
        tokens, rows = self._counted(chunks)
        if not rows or tokens >= self._most_tokens:
            return chunks
        prices = self._priced(tokens, rows)
        costs, floor = prices.costs, max(_LEAST_CHANCE, prices.least)
        if floor >= 1:
            return chunks
        found: dict[int, list[int]] = {}
        offers: list[Offer] = []
        for place, chunk in enumerate(chunks):
            if (
                chunk.samples
                and isinstance(chunk.row, AnswerRow)
                and (drafts := self._drafts(chunk.row, floor))
            ):
                found[place] = [draft.token for draft in drafts]
                offers += [(-draft.chance, place, draft.saves) for draft in drafts]
        if not offers:
            return chunks
        taken = _worth(sorted(offers), costs, self._most_tokens - tokens)
        drafted = list(chunks)
        for place in found:
            chunk, used = drafted[place], found[place][: taken.count(place)]
            self._note_use(chunk.row, bool(used) or floor < _BUSY)
            if used:
                drafted[place] = replace(chunk, count=chunk.count + len(used), drafts=used)
        return drafted if taken else chunks

    def verified(self, row: AnswerRow, tokens: Sequence[int]) -> None:
        """A row went on with `tokens`."""
        if (drafter := self.asked.get(row)) is not None:
            drafter.verified(tokens)

    def stop(self, row: AnswerRow) -> None:
        """No more drafts for a row."""
        self._drafters[row] = None

    def ended(self, row: BatchRow) -> None:
        """A row is over: later answers may continue as it did."""
        drafter = self._drafters.pop(row, None)
        self.asked.pop(row, None)
        if drafter is not None and isinstance(row, AnswerRow):
            drafter.learn(row.tokens[row.prompt_length :])

    def took(self, chunks: Sequence[Chunk], seconds: float) -> None:
        """A step took so long."""
        self._times.note(self._counted(chunks)[0], seconds)

    def _counted(self, chunks: Sequence[Chunk]) -> tuple[int, int]:
        """Its tokens, and rows that get one; counted once as long as it is the very same list."""
        if chunks is not self._chunks:
            self._chunks = chunks
            self._counts = (sum(chunk.count for chunk in chunks), sum(chunk.samples for chunk in chunks))
        return self._counts

    def _priced(self, tokens: int, rows: int) -> Prices:
        """For a step of so many tokens without drafts, in which so many rows get a token."""
        prices = self._prices.get((tokens, rows))
        if prices is None or prices.until <= self._steps:
            if len(self._prices) >= _MOST_PRICES:
                self._prices.clear()
            most = min(MOST_DRAFTS * rows, max(MOST_DRAFTS, MOST_TOKENS - tokens))
            worth, seconds = self._times.of(rows) / rows, self._times.curve(tokens, most)
            costs = [_MARGIN * (more - seconds[0]) / worth for more in seconds] if worth else []
            least = min((cost / number for number, cost in enumerate(costs) if number), default=1.0)
            prices = self._prices[tokens, rows] = Prices(self._steps + _KEPT, costs, least)
        return prices

    def _drafts(self, row: AnswerRow, floor: float) -> list[Draft]:
        if row.skipped:  # its masks are much work, and each draft makes one more in the same step
            return []
        drafter = self._drafter(row)
        if drafter is None:
            return []
        if drafter.rest:
            drafter.rest -= 1
            return []
        most = min(MOST_DRAFTS, row.total - len(row.tokens) - 1)
        if most <= 0:
            return []
        self.asked[row] = drafter
        looks_ahead = row.grammar is not None and not row.grammar.mask_first
        grammar = (
            row.grammar if looks_ahead else None
        )  # without it, a draft that may not come is refused later
        drafts = drafter.propose(row.tokens, row.prompt_length, most, floor, grammar)
        if not drafts:
            self._note_use(row, floor < _BUSY)
        return drafts[: self._room(row, len(drafts))]

    def _drafter(self, row: AnswerRow) -> Drafter | None:
        if row not in self._drafters:
            tenant, adapter = row.tenant, row.adapter or ""
            memory = self._memories.get(tenant, adapter)
            if memory is None:
                memory = AnswerMemory(self._memories.get("", adapter))
                self._memories.put(tenant, adapter, memory)
            self._drafters[row] = Drafter(self._folded, memory)
        return self._drafters[row]

    def _note_use(self, row: BatchRow, used: bool) -> None:
        """A row whose drafts do not pay is left alone for some steps, each time for longer."""
        drafter = self._drafters.get(row)
        if drafter is not None:
            drafter.resting = 0 if used else min(_MOST_REST, 2 * drafter.resting + 1)
            drafter.rest = drafter.resting


Offer = tuple[float, int, float]
"""A draft: minus its chance, the place of its chunk, the steps that it saves by its chance."""


def _worth(offers: Sequence[Offer], costs: Sequence[float], most: int) -> list[int]:
    """The places of those of `offers`, the likeliest first, that together gain most; `most` at most."""
    best, most_gained, saved = 0, 0.0, 0.0
    for number, (_, _, saves) in enumerate(offers[: min(len(costs) - 1, most)], 1):
        saved += saves
        if saved - costs[number] > most_gained:
            best, most_gained = number, saved - costs[number]
    return [place for _, place, _ in offers[:best]]
