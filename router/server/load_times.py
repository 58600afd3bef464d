"""How long cold loads take, read off the registry's own events."""

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import Protocol

from router.types import AdapterEvent, AdapterRef, AdapterState


class Report(Protocol):
    """Receives one load."""

    def __call__(self, ref: AdapterRef, seconds: float) -> None:
        """A version went from LOADING to READY."""
        ...


async def measure_loads(events: AsyncIterable[AdapterEvent], report: Report) -> None:
    """Report every LOADING that became READY."""
    began: dict[AdapterRef, float] = {}
    async for event in events:
        ref, state = event.adapter.ref, event.adapter.state
        if state is AdapterState.LOADING:
            began.setdefault(ref, event.time)
            continue
        start = began.pop(ref, None)
        if start is not None and state is AdapterState.READY:
            report(ref, max(event.time - start, 0.0))
