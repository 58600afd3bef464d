"""A digest in host memory, and what may serve from it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol


class Owner(Protocol):
    """A version that serves from a resident digest."""

    @property
    def keeps(self) -> bool:
        """Whether it must not be evicted now."""
        ...

    def evicted(self) -> None:
        """Its digest is leaving."""
        ...


class Phase(Enum):
    """Where a digest is between disk and gone."""

    LOADING = auto()
    READY = auto()
    LEAVING = auto()


@dataclass(eq=False, slots=True)
class Resident:
    """A digest in host memory. `size` counts against the budget from before the load until it is gone."""

    digest: str
    size: int
    phase: Phase = Phase.LOADING
    owners: set[Owner] = field(default_factory=set)
    leases: int = 0
    last_used: float = field(default_factory=time.monotonic)
    retiring: asyncio.Future[int] | None = None  # an unload waits; its result is the bytes freed
    moved: asyncio.Event = field(default_factory=asyncio.Event)  # set when the phase is left


@dataclass(slots=True)
class Room:
    """Bytes set aside for a load."""

    size: int
