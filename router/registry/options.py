"""What the parts of the registry share: what an operator can set, and threads for files."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, Self, TypeVar

from router.config import Settings
from router.registry.format.checks import EqualsBase
from router.registry.format.trust import Trust
from router.registry.gate import GateMode

LOAD_THREADS = 4
PIECE_SECONDS = 0.005  # of work on the event loop until others have their turn

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RegistryOptions:
    """Times are seconds, sizes bytes."""

    host_memory_bytes: int = 2048 << 20
    max_rank: int = 64
    max_mixtures: int = 16
    preload: bool = True
    gate: GateMode = "replacements"
    poll_seconds: float = 1.0
    settle_seconds: float = 0.35  # a folder that looks the same after so long is read
    grace_seconds: float = 3.0  # a bad folder that looks the same for so long is quarantined
    room_seconds: float = 5.0  # how long a load waits for memory, or for an unload under way
    probe_seconds: float = 10.0  # for all probes of one adapter
    state_dir: Path | None = None  # the user's state folder if None
    ignore_fields: tuple[str, ...] = ()
    trust: Trust | None = None  # who may bring adapters; None: who can write the folder
    equals_base: EqualsBase | None = None  # tells copies of base matrices from changed ones

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The options that `settings` gives. Raises ConfigError for keys or a lock that cannot be used."""
        return cls(
            host_memory_bytes=settings.host_memory_mb << 20,
            max_rank=settings.max_rank,
            max_mixtures=settings.max_mixtures,
            preload=settings.preload,
            gate="strict" if settings.gate == "report" else settings.gate,
            poll_seconds=settings.poll_seconds,
            trust=Trust.of(settings.require_signed, settings.adapters_lock),
        )


class Workers:
    """The event loop never waits for a disk, and loads that requests wait for never queue behind looks."""

    def __init__(self) -> None:
        self._loads = ThreadPoolExecutor(LOAD_THREADS, thread_name_prefix="adapters-load")
        self._ordered = ThreadPoolExecutor(1, thread_name_prefix="adapters-look")

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do `work` beside other work."""
        return await self._submit(self._loads, work, *args, **kwargs)

    async def in_order(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do `work` after all earlier calls of this method: one at a time."""
        return await self._submit(self._ordered, work, *args, **kwargs)

    @staticmethod
    async def _submit(pool: ThreadPoolExecutor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.wrap_future(pool.submit(work, *args, **kwargs))

    async def close(self) -> None:
        """Finish what runs, drop what waits."""
        for pool in (self._loads, self._ordered):
            pool.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._loads.shutdown)
        await asyncio.to_thread(self._ordered.shutdown)


async def breathe(began: float) -> float:
    """Let others have a turn where this one has lasted long enough; gives when the present one began."""
    if time.monotonic() - began < PIECE_SECONDS:
        return began
    await asyncio.sleep(0)
    return time.monotonic()
