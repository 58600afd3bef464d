"""Overrides of the gate and earlier defaults as JSON, and the book in which overrides are kept for good."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from router.registry.durable import append
from router.types import Override

log = logging.getLogger(__name__)


def to_json(override: Override) -> dict[str, Any]:
    """As it is written into a file."""
    return asdict(override)


def from_json(value: Any) -> Override:
    """As it was written. Raises ValueError for anything else."""
    if not isinstance(value, Mapping):
        raise ValueError("an override is not a table")
    names = [f.name for f in fields(Override)]
    when, texts = value.get("time"), [value.get(name) for name in names if name != "time"]
    if not isinstance(when, float) or not math.isfinite(when) or not all(isinstance(t, str) for t in texts):
        raise ValueError("an override is damaged")
    return Override(**{name: value[name] for name in names})


@dataclass(frozen=True, slots=True)
class Served:
    """A version was the default until another took over: its weights then, and whether it was routed to."""

    weights_sha256: str
    routed: bool


def served_from_json(value: Any) -> Served:
    """As `asdict` wrote it. Raises ValueError for anything else."""
    if not isinstance(value, Mapping):
        raise ValueError("an earlier default is not a table")
    weights, routed = value.get("weights_sha256"), value.get("routed")
    if not isinstance(weights, str) or not isinstance(routed, bool):
        raise ValueError("an earlier default is damaged")
    return Served(weights, routed)


@dataclass(frozen=True, slots=True)
class Line:
    """What was done with an override of an adapter, and when."""

    action: str
    name: str
    override: Override
    time: float


class Book:
    """`overrides.jsonl`: one line for every override, every one taken back, every way back. Only grows."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "overrides.jsonl"

    def write(self, line: Line) -> None:
        """Add a line, to the log too; blocks until it is on the disk. Raises OSError."""
        override = line.override
        entry = {"time": line.time, "action": line.action, "adapter": line.name}
        log.warning(
            "gate of %s@%s %s (by %s: %s); it said: %s",
            *(line.name, override.version, line.action, override.by, override.reason or "no reason given"),
            override.finding,
        )
        append(self._file, json.dumps({**entry, "override": to_json(override)}))
