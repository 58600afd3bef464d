"""When drafts pay: what a step costs by its number of tokens, and the drafts of a step that are worth it.

A few tokens more cost a small step nothing, since reading the weights takes all of its time; from some number
on each costs the same. Both are measured while the engine serves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from router.engine.drafts import AnswerMemory, Drafter, Folded
from router.engine.fairness import TenantCache
from router.engine.rows import AnswerRow, BatchRow, Chunk

MOST_DRAFTS = 8  # of a row in a step
MOST_TOKENS = 64  # of a step up to which its time is kept by its number of tokens
MANY_TOKENS = 32  # of a step from which products take all of its time
_MEMORIES = 64  # of an adapter's answers to a tenant
_NEWEST = 0.2  # share of the last step in the time of such steps
_FRESH = 2000  # steps after which a time is measured anew
_KEPT = 16  # steps for which prices are not computed anew
_LEAST_CHANCE = 0.03
_BUSY = 0.3  # chance from which drafts are few, so that rows without are not asked at each step
_MOST_REST = 16  # steps


class StepTimes:
    """Seconds of a step by its number of tokens: as measured of late, else by a roofline.

    A step takes as long as reading the weights, or as its products where those take longer (Williams et al.
    2009).
    """

    def __init__(self) -> None:
        self._known: dict[
            int, tuple[float, int]
        ] = {}  # seconds, and the step in which that was measured last
        self._least = 0.0  # of a step of few tokens
        self._each = 0.0  # of a token in steps of many
        self._steps = 0

    def note(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        self._steps += 1
        if tokens >= MANY_TOKENS:
            self._each = _mean(self._each, seconds / tokens)
        if tokens <= MOST_TOKENS:
            mean = _mean(self._known.get(tokens, (0.0, 0))[0], seconds)
            self._known[tokens] = (mean, self._steps)
            self._least = min(seconds for seconds, _ in self._known.values())

    def of(self, tokens: int) -> float:
        """Seconds of a step of so many tokens; 0 until one of many tokens was made, such as a prompt's."""
        seconds, step = self._known.get(tokens, (0.0, 0))
        if not self._each:
            return 0.0
        return seconds if seconds and self._steps - step <= _FRESH else max(self._least, self._each * tokens)

    def more(self, tokens: int, most: int) -> list[float]:
        """What 0 .. `most` tokens more cost a step of so many, in seconds; never less than fewer cost."""
        costs, first = [0.0], self.of(tokens)
        for number in range(1, most + 1):
            costs.append(max(costs[-1], self.of(tokens + number) - first))
        return costs


def _mean(old: float, new: float) -> float:
    """With the newest; one that was held up counts little."""
    return old + _NEWEST * (min(new, 2 * old) - old) if old else new


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
        self._steps = 0
        self._prices: dict[tuple[int, int], tuple[int, list[float], float]] = {}

    def add(self, chunks: list[Chunk]) -> list[Chunk]:
        """The chunks of a step with the drafts that pay; the very same list if none does."""
        self._steps += 1
        rows, tokens = sum(chunk.samples for chunk in chunks), sum(chunk.count for chunk in chunks)
        worth = self._times.of(rows) / rows if rows else 0.0  # seconds of one token less to come
        if not worth or tokens >= self._most_tokens or not self._times.of(tokens):
            return chunks
        costs, floor = self._priced(tokens, rows)
        floor = max(_LEAST_CHANCE, floor / worth)
        if floor >= 1:
            return chunks
        found: dict[int, list[int]] = {}
        offers: list[tuple[float, int]] = []  # minus a draft token's chance, and the place of its chunk
        for place, chunk in enumerate(chunks):
            if (
                chunk.samples
                and isinstance(chunk.row, AnswerRow)
                and (drafts := self._drafts(chunk.row, floor))
            ):
                found[place] = [token for token, _ in drafts]
                offers += [(-chance, place) for _, chance in drafts]
        if not offers:
            return chunks
        offers.sort()
        best, gain, chance = 0, 0.0, 0.0
        for number, offer in enumerate(offers[: min(len(costs) - 1, self._most_tokens - tokens)], 1):
            chance -= offer[0]
            if chance * worth - costs[number] > gain:
                best, gain = number, chance * worth - costs[number]
        taken = [place for _, place in offers[:best]]
        drafted = list(chunks)
        for place in found:
            chunk, used = drafted[place], found[place][: taken.count(place)]
            self._note_use(chunk.row, bool(used) or floor < _BUSY)
            if used:
                drafted[place] = replace(chunk, count=chunk.count + len(used), drafts=used)
        return drafted if taken else chunks

    def verified(self, row: AnswerRow, tokens: Sequence[int]) -> None:
        """A row went on with `tokens`."""
        if (drafter := self._drafters.get(row)) is not None:
            drafter.verified(tokens)

    def stop(self, row: AnswerRow) -> None:
        """No more drafts for a row."""
        self._drafters[row] = None

    def ended(self, row: BatchRow) -> None:
        """A row is over: later answers may continue as it did."""
        drafter = self._drafters.pop(row, None)
        if drafter is not None and isinstance(row, AnswerRow):
            drafter.learn(row.tokens[row.prompt_length :])

    def took(self, chunks: Sequence[Chunk], seconds: float) -> None:
        """A step took so long."""
        self._times.note(sum(chunk.count for chunk in chunks), seconds)

    def _priced(self, tokens: int, rows: int) -> tuple[list[float], float]:
        """What drafts cost, and a draft token at least, in seconds."""
        until, costs, least = self._prices.get((tokens, rows), (0, [], 0.0))
        if until <= self._steps:
            costs = self._times.more(tokens, min(MOST_DRAFTS * rows, max(MOST_DRAFTS, MOST_TOKENS - tokens)))
            least = min((cost / number for number, cost in enumerate(costs) if number), default=0.0)
            if len(self._prices) > 256:
                self._prices.clear()
            self._prices[tokens, rows] = (self._steps + _KEPT, costs, least)
        return costs, least

    def _drafts(self, row: AnswerRow, floor: float) -> list[tuple[int, float]]:
        drafter = self._drafter(row)
        if drafter is None:
            return []
        if drafter.rest:
            drafter.rest -= 1
            return []
        most = min(MOST_DRAFTS, row.total - len(row.tokens) - 1)
        drafts = drafter.propose(row.tokens, row.prompt_length, most, floor) if most > 0 else []
        if drafts and row.grammar is not None:
            drafts = drafts[: row.grammar.may_follow([token for token, _ in drafts])]
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
