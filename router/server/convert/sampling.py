"""Sampling: each field said is checked against the range in the proto's comments."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from router.errors import Findings
from router.types import Sampling
from router.v1 import inference_pb2 as pb

MAX_STOPS, MAX_STOP_BYTES, MAX_LOGPROBS = 16, 256, 20


@dataclass(frozen=True, slots=True)
class Range:
    """Closed at `high`, closed at `low` unless `above`."""

    field: str
    low: float
    high: float = math.inf
    above: bool = False

    def problem(self, value: float) -> str:
        """What is wrong with `value`; empty if nothing is."""
        if not math.isfinite(value):
            return "must be a finite number"
        low_ok = value > self.low if self.above else value >= self.low
        if low_ok and value <= self.high:
            return ""
        if math.isinf(self.high):
            return f"must be {self.low} or more, got {value:g}"
        return f"must be in {'(' if self.above else '['}{self.low}, {self.high}], got {value:g}"


RANGES = (
    Range("temperature", 0, 2),
    Range("top_p", 0, 1, above=True),
    Range("top_k", 0),
    Range("min_p", 0, 1),
    Range("repetition_penalty", 0, 2, above=True),
    Range("frequency_penalty", -2, 2),
    Range("presence_penalty", -2, 2),
    Range("seed", 0),
    Range("logprobs", 0, MAX_LOGPROBS),
)


def sampling_of(message: pb.Sampling, max_tokens_limit: int, found: Findings) -> Sampling:
    """What the caller said; a field that was not said stays None, an explicit 0 stays 0."""
    lengths = (Range("max_tokens", 1, max_tokens_limit), Range("min_tokens", 0, max_tokens_limit))
    said: dict[str, float | int] = {}
    for rule in (*lengths, *RANGES):
        if not message.HasField(rule.field):
            continue
        said[rule.field] = value = getattr(message, rule.field)
        if problem := rule.problem(value):
            found.add(f"sampling.{rule.field}", problem)
    if "max_tokens" in said and said.get("min_tokens", 0) > said["max_tokens"] >= 1:
        found.add("sampling.min_tokens", "must not be more than max_tokens")
    stop = _stops(message.stop, found)
    return Sampling(stop=stop, **said)  # type: ignore[arg-type]  # the proto fixes int or float for each


def _stops(stops: Iterable[str], found: Findings) -> tuple[str, ...] | None:
    strings = tuple(stops)
    if len(strings) > MAX_STOPS:
        found.add("sampling.stop", f"must have at most {MAX_STOPS} entries, got {len(strings)}")
        return None
    for i, stop in enumerate(strings):
        if not stop:
            found.add(f"sampling.stop[{i}]", "must not be empty")
        found.text(f"sampling.stop[{i}]", stop, MAX_STOP_BYTES)
    return strings or None
