"""Mixtures in messages: what a request names, what a decision and a header tell."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from router.errors import Findings
from router.names import ADAPTER_FORM, BASE, split_adapter
from router.types import MAX_MIXTURE_PARTS, MAX_MIXTURE_WEIGHT, MixturePart
from router.v1 import inference_pb2 as pb

FIELD = "routing.mixture"
DIGITS = 3  # of a weight after the point: so many different mixtures there are, and no more


def mixture_of(message: pb.Routing, found: Findings) -> tuple[tuple[str, float], ...]:
    """The names and weights of a request, each weight in thousandths; what is wrong is noted in `found`."""
    parts = message.mixture
    if not parts:
        return ()
    if message.adapter or message.domain or message.task:
        found.add(FIELD, "names who answers: leave out adapter, domain and task")
    if len(parts) > MAX_MIXTURE_PARTS:
        found.add(FIELD, f"must have at most {MAX_MIXTURE_PARTS} parts, got {len(parts)}")
        return ()
    named = tuple((part.adapter, _weight(part, number, found)) for number, part in enumerate(parts))
    for number, (name, _) in enumerate(named):
        _check_name(name, f"{FIELD}[{number}].adapter", found)
    if not any(weight for _, weight in named):
        found.add(FIELD, "must have a weight that is not 0, to three digits after the point")
    return named


def _weight(part: pb.MixturePart, number: int, found: Findings) -> float:
    field, weight = f"{FIELD}[{number}].weight", part.weight
    if not math.isfinite(weight):
        found.add(field, "must be a finite number")
        return 0.0
    if abs(weight) > MAX_MIXTURE_WEIGHT:
        most = MAX_MIXTURE_WEIGHT
        found.add(field, f"must be in [{-most:g}, {most:g}], got {weight:g}")
    return round(weight, DIGITS) + 0.0  # -0.0 is 0.0


def _check_name(name: str, field: str, found: Findings) -> None:
    parts = split_adapter(name)
    if name == BASE or (parts is not None and parts[0] == BASE):
        found.add(field, "must not be the base: adapters are added to it")
    elif parts is None:
        found.add(field, f"must be {ADAPTER_FORM}")


def mixture_messages(parts: Iterable[MixturePart]) -> list[pb.MixturePart]:
    """The parts of a decision."""
    return [pb.MixturePart(adapter=part.ref.resource, weight=part.weight) for part in parts]


def header_of(parts: Sequence[MixturePart]) -> str:
    """For `x-router-adapter`: the parts' resource names, each with its weight."""
    return ", ".join(f"{part.ref.resource};weight={part.weight:g}" for part in parts)
