"""Label values that cannot grow without end."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Bounded(Generic[T]):
    """Remembers the first `limit` values it sees; any other becomes `rest`."""

    def __init__(self, limit: int, rest: T) -> None:
        self._limit, self._rest = limit, rest
        self._seen: set[T] = set()

    def of(self, value: T) -> T:
        """`value` or the rest."""
        if value in self._seen:
            return value
        if len(self._seen) >= self._limit:
            return self._rest
        self._seen.add(value)
        return value
