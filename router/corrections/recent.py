"""The latest answers by id: who gave them, and what was asked, as far as that may be kept. In memory only."""

from __future__ import annotations

import sys
from collections import OrderedDict
from dataclasses import dataclass, field

MOST_ANSWERS = 10_000
MOST_BYTES = 16 << 20  # of memory, texts and all that is kept beside them
OVERHEAD = 600  # bytes of an answer beside its text: id, entry and place, measured on CPython 3.11


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer. `chosen` "" is the base, None several adapters at once; `text` None was not kept."""

    chosen: str | None
    reason: str
    confidence: float
    text: str | None = None

    @property
    def size(self) -> int:
        """Bytes of memory, about."""
        return OVERHEAD + (sys.getsizeof(self.text) if self.text is not None else 0)


@dataclass(slots=True)
class _Own:
    """A tenant's answers, the oldest first."""

    answers: OrderedDict[str, Answered] = field(default_factory=OrderedDict)
    size: int = 0


class Recent:
    """Bounded by number and bytes. Where there is no more room the oldest answer goes of the tenant that has
    most here, so that nobody's flood makes another's be forgotten. Lives on one event loop."""

    def __init__(self, most_answers: int = MOST_ANSWERS, most_bytes: int = MOST_BYTES) -> None:
        self._most_answers, self._most_bytes = most_answers, most_bytes
        self._tenants: dict[str, _Own] = {}
        self._count = self.size = 0

    def __len__(self) -> int:
        return self._count

    def add(self, response_id: str, tenant: str, answered: Answered) -> None:
        """Keep it, and let go what there is no room for."""
        own = self._tenants.setdefault(tenant, _Own())
        own.answers[response_id] = answered
        self._grow(own, 1, answered.size)
        while self._count > self._most_answers or self.size > self._most_bytes:
            self._forget_one()

    def get(self, response_id: str, tenant: str) -> Answered | None:
        """That answer, if it was given to this tenant and is still here."""
        own = self._tenants.get(tenant)
        return own.answers.get(response_id) if own is not None else None

    def _forget_one(self) -> None:
        tenant = max(self._tenants, key=lambda name: self._tenants[name].size)
        own = self._tenants[tenant]
        _, gone = own.answers.popitem(last=False)
        self._grow(own, -1, -gone.size)
        if not own.answers:
            del self._tenants[tenant]

    def _grow(self, own: _Own, count: int, size: int) -> None:
        own.size += size
        self.size += size
        self._count += count
