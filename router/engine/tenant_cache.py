"""A bounded cache whose values belong to tenants."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class TenantCache(Generic[Key, Value]):
    """Values that tenants use, each found by its own tenant only: at most `most`.

    Where there are more, the least recently used one of the tenant with the most goes. A value counts as
    many as `size` says of its key.
    """

    def __init__(self, most: int, size: Callable[[Key], int] = lambda _: 1) -> None:
        self._most, self._size = most, size
        self._values: OrderedDict[tuple[str, Key], Value] = OrderedDict()

    def get(self, tenant: str, key: Key) -> Value | None:
        """The value, which is used now; None if there is none."""
        value = self._values.get((tenant, key))
        if value is not None:
            self._values.move_to_end((tenant, key))
        return value

    def put(self, tenant: str, key: Key, value: Value) -> None:
        """Keep a value, in place of an older one of the key."""
        self._values[tenant, key] = value
        self._values.move_to_end((tenant, key))
        while (held := self._held()).total() > self._most and len(self._values) > 1:
            del self._values[next(found for found in self._values if held[found[0]] == max(held.values()))]

    def _held(self) -> Counter[str]:
        """How many each tenant has."""
        held: Counter[str] = Counter()
        for tenant, key in self._values:
            held[tenant] += self._size(key)
        return held

    def discard(self, tenant: str, key: Key, value: Value) -> None:
        """Keep this value no longer."""
        if self._values.get((tenant, key)) is value:
            del self._values[tenant, key]
