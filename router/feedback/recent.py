"""The latest answers of a server, in memory: bounded, by tenant, and with texts only where that is agreed."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

from router.access.clients import Client
from router.feedback.model import MAX_ANSWER, MAX_PROMPT, RAW
from router.ports import End
from router.types import Decision, FinishReason, Keeping, Request, weaker

MOST_ANSWERS = 10_000
MOST_BYTES = 16 << 20  # of memory, texts and all that is kept beside them
OVERHEAD = 600  # bytes of an answer beside its texts: id, entry and place, measured on CPython 3.11


class Sized(Protocol):
    """An entry."""

    @property
    def size(self) -> int:
        """Bytes of memory, about."""
        ...


E = TypeVar("E", bound=Sized)


@dataclass(slots=True)
class _Own(Generic[E]):
    """A tenant's answers, the oldest first."""

    answers: OrderedDict[str, E] = field(default_factory=OrderedDict)
    size: int = 0


class RecentAnswers(Generic[E]):
    """Bounded by number and bytes. Where there is no more room the oldest answer goes of the tenant that has
    most here, so that a flood of one tenant pushes out its own. Lives on one event loop."""

    def __init__(self, most_answers: int = MOST_ANSWERS, most_bytes: int = MOST_BYTES) -> None:
        self._most_answers, self._most_bytes = most_answers, most_bytes
        self._tenants: dict[str, _Own[E]] = {}
        self._count = self.size = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[E]:
        """All entries, of one tenant after another."""
        return (one for own in self._tenants.values() for one in own.answers.values())

    def add(self, response_id: str, tenant: str, answered: E) -> None:
        """Keep it, in place of an earlier entry of this id, and let go what there is no room for."""
        own = self._tenants.setdefault(tenant, _Own())
        before = own.answers.get(response_id)
        own.answers[response_id] = answered
        self._grow(own, int(before is None), answered.size - (before.size if before is not None else 0))
        while self._count > self._most_answers or self.size > self._most_bytes:
            self._forget_one()

    def get(self, response_id: str, tenant: str) -> E | None:
        """That answer, if it was given to this tenant and is still here."""
        own = self._tenants.get(tenant)
        return own.answers.get(response_id) if own is not None else None

    def forget(self, which: Callable[[str, E], bool]) -> None:
        """Let go the entries for which `which(tenant, entry)` is true."""
        for tenant, own in list(self._tenants.items()):
            for response_id in [key for key, one in own.answers.items() if which(tenant, one)]:
                self._grow(own, -1, -own.answers.pop(response_id).size)
            if not own.answers:
                del self._tenants[tenant]

    def _forget_one(self) -> None:
        tenant = max(self._tenants, key=lambda name: self._tenants[name].size)
        own = self._tenants[tenant]
        _, gone = own.answers.popitem(last=False)
        self._grow(own, -1, -gone.size)
        if not own.answers:
            del self._tenants[tenant]

    def _grow(self, own: _Own[E], count: int, size: int) -> None:
        own.size += size
        self.size += size
        self._count += count


@dataclass(frozen=True, slots=True)
class GivenAnswer:
    """An answer as feedback needs it. `unit` is the unit itself, which is hashed when feedback comes.

    `messages` and `answer` are there only with consent, and only of an exchange that is short enough.
    """

    adapter: str
    version: str
    digest: str
    unit: str
    messages: tuple[tuple[str, str], ...] = ()
    answer: str | None = None

    @property
    def size(self) -> int:
        """Bytes of memory, about."""
        texts = sum(sys.getsizeof(text) for _, text in self.messages)
        return OVERHEAD + texts + (sys.getsizeof(self.answer) if self.answer is not None else 0)


class AnswersGiven:
    """Remembers answers for feedback, as far as server and client agree: `keeping` is the server's part."""

    def __init__(self, keeping: Keeping, recent: RecentAnswers[GivenAnswer] | None = None) -> None:
        self.keeping = keeping
        self.recent: RecentAnswers[GivenAnswer] = recent if recent is not None else RecentAnswers()

    def begun(self, request: Request, decision: Decision, client: Client) -> Completion | None:
        """An answer begins: remember it. Returns what must hear of its end, where its text is remembered."""
        may = weaker(self.keeping, client.feedback)
        if may == "off":
            return None
        adapter, version = decision.answered_by
        given = GivenAnswer(adapter, version, decision.digest, request.routing.unit)
        messages = messages_of(request) if may == "texts" else ()
        if messages and sum(len(text.encode()) for _, text in messages) <= MAX_PROMPT:
            given = replace(given, messages=messages)
        self.recent.add(request.request_id, request.tenant, given)
        return Completion(self.recent, request, given) if given.messages else None


class Completion:
    """Implements router.ports.Watcher: adds the text of a whole answer to its entry."""

    def __init__(self, recent: RecentAnswers[GivenAnswer], request: Request, given: GivenAnswer) -> None:
        self._recent, self._request, self._given = recent, request, given

    def began(self) -> None:
        """Nothing to do: an answer that never begins is remembered, too."""

    def ended(self, end: End) -> None:
        """Keep the text. An answer that was cut off is no example of one."""
        key = self._request.request_id, self._request.tenant
        if end.reason is not FinishReason.STOP or self._recent.get(*key) is not self._given:
            return
        if len(end.text.encode()) <= MAX_ANSWER:
            self._recent.add(*key, replace(self._given, answer=end.text))


def messages_of(request: Request) -> tuple[tuple[str, str], ...]:
    """(role, text) of each turn; of a raw prompt one message of the role `raw`.

    None where functions were called or have to be: an adapter learns texts.
    """
    if request.tools.choice == "required" or any(turn.calls or turn.role == "tool" for turn in request.turns):
        return ()
    if request.raw_prompt is not None:
        return ((RAW, request.raw_prompt),)
    return tuple((turn.role, turn.text) for turn in request.turns)
