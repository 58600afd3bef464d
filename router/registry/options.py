"""What an operator can set of the registry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from router.config import Settings
from router.registry.format.artifact import EqualsBase


@dataclass(frozen=True, slots=True)
class RegistryOptions:
    """Times are seconds, sizes bytes."""

    host_memory_bytes: int = 2048 << 20
    max_rank: int = 64
    preload: bool = True
    gate: bool = True  # False: every version may be routed to
    poll_seconds: float = 1.0
    settle_seconds: float = 0.35  # a folder that looks the same after so long is read
    grace_seconds: float = 3.0  # a bad folder that looks the same for so long is quarantined
    room_seconds: float = 5.0  # how long a load waits for memory, or for an unload under way
    probe_seconds: float = 10.0  # for all probes of one adapter
    state_dir: Path | None = None  # the user's state folder if None
    ignore_fields: tuple[str, ...] = ()
    equals_base: EqualsBase | None = None  # tells copies of base matrices from changed ones

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The options that `settings` gives."""
        return cls(
            host_memory_bytes=settings.host_memory_mb << 20,
            max_rank=settings.max_rank,
            preload=settings.preload,
            gate=settings.gate == "report",
            poll_seconds=settings.poll_seconds,
        )
