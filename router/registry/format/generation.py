"""`[generation]`: default sampling of an adapter, with the ranges of router.v1.Sampling."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, NamedTuple

from router.registry.format.table import Table
from router.registry.format.text import show
from router.types import Sampling

STOPS, STOP_BYTES = 16, 256
INT32, INT64 = (1 << 31) - 1, (1 << 63) - 1


class _Range(NamedTuple):
    kind: type
    low: float
    high: float
    open_low: bool = False

    @property
    def words(self) -> str:
        number = "a whole number" if self.kind is int else "a number"
        return f"{number} in {'(' if self.open_low else '['}{self.low:g}, {self.high:g}]"

    def holds(self, value: Any) -> bool:
        allowed = int if self.kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, allowed):
            return False
        above = self.low < value if self.open_low else self.low <= value
        return bool(above and value <= self.high)  # false for NaN, too


RANGES = {
    "max_tokens": _Range(int, 1, INT32),
    "min_tokens": _Range(int, 0, INT32),
    "temperature": _Range(float, 0, 2),
    "top_p": _Range(float, 0, 1, open_low=True),
    "top_k": _Range(int, 0, INT32),
    "min_p": _Range(float, 0, 1),
    "repetition_penalty": _Range(float, 0, 2, open_low=True),
    "frequency_penalty": _Range(float, -2, 2),
    "presence_penalty": _Range(float, -2, 2),
    "seed": _Range(int, 0, INT64),
    "logprobs": _Range(int, 0, 20),
}
KEYS = tuple(f.name for f in fields(Sampling))


def read_generation(table: Table) -> Sampling:
    """Sampling as `[generation]` gives it; bad values become findings and are left out."""
    said: dict[str, Any] = {}
    for key, allowed in RANGES.items():
        if key not in table.values:
            continue
        value = table.values[key]
        if allowed.holds(value):
            said[key] = allowed.kind(value)
        else:
            table.bad(key, f"must be {allowed.words}, is {show(value)}")
    if said.get("min_tokens", 0) > said.get("max_tokens", INT32):
        table.bad("min_tokens", f"{said['min_tokens']} is more than max_tokens {said['max_tokens']}")
    if "stop" in table.values:
        said["stop"] = _stops(table)
    return Sampling(**said)


def _stops(table: Table) -> tuple[str, ...]:
    stops = table.strings("stop", STOPS)
    for index, text in enumerate(stops):
        size = len(text.encode("utf-8"))
        if not 1 <= size <= STOP_BYTES:
            table.bad("stop", f"entry {index} must have 1 to {STOP_BYTES} bytes, has {size}")
            return ()
    return stops
