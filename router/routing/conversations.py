"""How a conversation carries its adapter from turn to turn.

The rule is `continued`, a pure function. `choose` applies it to a request:

- A chat carries its own past. The decisions of its earlier user turns are computed again from their text, so
  every edge comes to the same decision, also after a restart, and nothing is kept of the chat.
- A caller that sends one turn at a time names a conversation. What its last turn came to is kept in `Memory`.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from router.names import BASE
from router.routing.policy import Conclusion, Leaning
from router.routing.reading import Reading, UserTurn
from router.types import Continuity, LostVote, Progress, Reason, Vote

SURE_NONE = 0.999  # chance of "none of the adapters" from which a turn is a decision for the base
LIKELY_NONE = 0.95  # the same for a turn that points at nothing before it
GUESS = 0.5  # confidence of a guess that another reading may confirm
MOST_UNDECIDED = 2  # turns in a row without a decision of their own through which an adapter stays
QUIET_SECONDS = 30 * 60.0  # after which a named conversation is over
MOST_REMEMBERED, MOST_OF_A_TENANT = 16_384, 4_096


@dataclass(frozen=True, slots=True)
class Finding:
    """What classifiers came to on one text. `leaning` counts where the conclusion names no adapter."""

    conclusion: Conclusion
    leaning: Leaning = Leaning()
    votes: Sequence[Vote] = ()
    lost: tuple[LostVote, ...] = ()


class Ask(Protocol):
    """Asks the classifiers about a text."""

    def __call__(self, text: str, again: bool = False) -> Awaitable[Finding]:
        """What they came to; `again`: what they came to lately on the same text will do."""
        ...


@dataclass(frozen=True, slots=True)
class Previous:
    """What the turns before came to; adapter "" is the base.

    `undecided` is how many of them in a row, up to the latest, had no decision of their own.
    """

    conclusion: Conclusion
    undecided: int = 0

    @property
    def name(self) -> str:
        """Of the adapter, or `base`."""
        return self.conclusion.adapter or BASE


@dataclass(frozen=True, slots=True)
class Judged:
    """What a turn comes to by itself. `decided`: it names an adapter, or is surely for none of them.

    `alone`: classifiers got the turn's text and nothing else, as a calibration expects it.
    """

    finding: Finding
    decided: bool
    alone: bool = True


@dataclass(frozen=True, slots=True)
class Chosen:
    """Where a turn goes. `undecided` counts turns in a row without a decision of their own, this one
    included; `previous` is an adapter's name or `base`, empty for the first turn."""

    conclusion: Conclusion
    finding: Finding
    progress: Progress = "initial"
    previous: str = ""
    undecided: int = 0
    alone: bool = True


def continued(previous: Previous | None, now: Judged, sticky: bool = False) -> Chosen:
    """Where a turn goes that follows `previous`.

    A decision of its own counts. Without one the previous adapter stays, through MOST_UNDECIDED such turns
    in a row; after them the conversation is over, and this turn is the first of another. Where it is
    `sticky` a previous adapter stays whatever the turn is about.
    """
    own = now.finding.conclusion
    if previous is None:
        return Chosen(own, now.finding, undecided=0 if now.decided else 1, alone=now.alone)
    before = previous.conclusion.adapter
    pinned = sticky and bool(before)
    if now.decided and not pinned:
        progress: Progress = "kept" if own.adapter == before else "switched"
        return Chosen(own, now.finding, progress, previous.name, alone=now.alone)
    undecided = previous.undecided + 1
    if undecided > MOST_UNDECIDED and not pinned:
        return Chosen(own, now.finding, undecided=1, alone=now.alone)
    kept = previous.conclusion if before else own
    return Chosen(kept, now.finding, "kept", previous.name, undecided, alone=False)


async def choose(
    reading: Reading, ask: Ask, mode: Continuity, remembered: Previous | None = None, fresh: bool = False
) -> Chosen:
    """Where the newest turn of a reading goes. `remembered` is what a named conversation came to before;
    with it the chat's own earlier turns are not looked at."""
    newest, *earlier = reading.latest
    if mode == "none":
        return replace(continued(None, await judged(newest, reading, ask, False)), progress="", undecided=0)
    if fresh or not (earlier or remembered):
        return continued(None, await judged(newest, reading, ask, False))
    sticky = mode == "sticky"
    now = await judged(newest, reading, ask, True)
    previous = remembered
    if previous is None:
        previous = await _first(reading, ask) if sticky else await _latest(earlier, reading, ask)
    chosen = continued(previous, now, sticky)
    if chosen.progress == "initial" and not now.decided and newest.answer:
        finding = await ask(newest.with_answer)
        if finding.conclusion.adapter:
            return Chosen(finding.conclusion, finding, alone=False)
    return chosen


async def judged(turn: UserTurn, reading: Reading, ask: Ask, follows: bool, again: bool = False) -> Judged:
    """What a turn comes to by itself; `follows`: there are turns before it.

    A system prompt that names an adapter counts where it does so together with the turn, too; where the turn
    decides nothing, the system prompt's best guess counts in the same way.
    """
    system = (
        await ask(reading.system, again=True) if reading.system else Finding(Conclusion("", Reason.ABSTAINED))
    )
    if asked_for := system.conclusion.adapter:
        finding = await ask(reading.under_system(turn), again)
        if finding.conclusion.adapter == asked_for:
            return Judged(finding, decided=True, alone=False)
    found = await _by_its_text(turn, ask, again)
    if found.decided:
        return found
    if not asked_for and system.leaning.confidence >= GUESS:
        finding = await ask(reading.under_system(turn), again)
        if finding.conclusion.adapter == system.leaning.guess:
            return Judged(finding, decided=True, alone=False)
    return (await _by_its_place(turn, found.finding, ask, again) if follows else None) or found


async def _by_its_text(turn: UserTurn, ask: Ask, again: bool) -> Judged:
    """Instructions between the ends of a long text count first. A text that decides nothing is read again
    without sentences that prescribe the form of the answer."""
    if instruction := turn.instruction:
        finding = await ask(instruction, again)
        if finding.conclusion.adapter:
            return Judged(finding, decided=True, alone=False)
    finding = await ask(turn.text, again)
    if finding.conclusion.adapter:
        return Judged(finding, decided=True)
    if request := turn.without_form:
        other = await ask(request, again)
        if other.conclusion.adapter:
            return Judged(other, decided=True, alone=False)
    none = finding.leaning.none
    return Judged(finding, decided=none >= SURE_NONE or (none >= LIKELY_NONE and turn.stands_alone))


async def _by_its_place(turn: UserTurn, finding: Finding, ask: Ask, again: bool) -> Judged | None:
    """A turn that follows others is read without its opening, such as "Other question:". Then its best guess
    counts if reading it with the answer before it confirms that."""
    if rest := turn.without_opening:
        other = await ask(rest, again)
        if other.conclusion.adapter:
            return Judged(other, decided=True, alone=False)
    if turn.answer and finding.leaning.confidence >= GUESS:
        other = await ask(turn.with_answer, again)
        if other.conclusion.adapter == finding.leaning.guess:
            return Judged(other, decided=True, alone=False)
    return None


async def _latest(earlier: Sequence[UserTurn], reading: Reading, ask: Ask) -> Previous | None:
    """The latest decision of the turns before, which come newest first."""
    for undecided, turn in enumerate(earlier):
        found = await judged(turn, reading, ask, turn.follows, again=True)
        if found.decided:
            return Previous(found.finding.conclusion, undecided)
    return None


async def _first(reading: Reading, ask: Ask) -> Previous | None:
    """The first decision for an adapter."""
    for turn in reading.earliest:
        found = await judged(turn, reading, ask, turn.follows, again=True)
        if found.finding.conclusion.adapter:
            return Previous(found.finding.conclusion)
    return None


Value = TypeVar("Value")


class Recent(Generic[Value]):
    """Values of tenants by key, the latest used ones, for `seconds` at most.

    At most `each` of a tenant and `most` of all. Where that is exceeded the tenant with the most loses its
    oldest, so that no tenant can push out the few of another.
    """

    def __init__(
        self,
        seconds: float,
        most: int = MOST_REMEMBERED,
        each: int = MOST_OF_A_TENANT,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds, self._most, self._each, self._now = seconds, most, each, now
        self._of: dict[str, OrderedDict[Hashable, tuple[Value, float]]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def get(self, tenant: str, key: Hashable) -> Value | None:
        """The value; None where there is none, or an old one."""
        mine = self._of.get(tenant)
        found = None if mine is None else mine.get(key)
        if mine is None or found is None:
            return None
        if self._now() - found[1] > self._seconds:
            self.drop(tenant, key)
            return None
        mine.move_to_end(key)
        return found[0]

    def put(self, tenant: str, key: Hashable, value: Value) -> None:
        """Keep it."""
        mine = self._of.setdefault(tenant, OrderedDict())
        self._count += key not in mine
        mine[key] = value, self._now()
        mine.move_to_end(key)
        if len(mine) > self._each:
            self._forget_oldest(tenant)
        elif self._count > self._most:
            self._forget_oldest(max(self._of, key=lambda one: len(self._of[one])))

    def drop(self, tenant: str, key: Hashable) -> None:
        """Keep it no longer."""
        mine = self._of.get(tenant)
        if mine is not None and mine.pop(key, None) is not None:
            self._gone(tenant, mine)

    def clear(self) -> None:
        """Keep nothing."""
        self._of.clear()
        self._count = 0

    def _forget_oldest(self, tenant: str) -> None:
        mine = self._of[tenant]
        mine.popitem(last=False)
        self._gone(tenant, mine)

    def _gone(self, tenant: str, mine: OrderedDict[Hashable, tuple[Value, float]]) -> None:
        self._count -= 1
        if not mine:
            del self._of[tenant]
