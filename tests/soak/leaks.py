"""Servers that leak on purpose, one thing each: a detector that has never fired has not been tested."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Any

from router.cli.compose import Composition
from router.engine.base import Job

Leak = Callable[[Job], None]
EVERY = 20  # requests for one thing that is never given back
BLOCK = 1 << 20

_kept: list[object] = []
_compositions: list[Composition] = []


class Held(Composition):
    """A server whose parts a leak can reach."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        _compositions.append(self)


def make(what: str) -> Leak:
    """The leak of that name; of nothing for ''. Raises KeyError."""
    act, asked = LEAKS[what], iter(range(1 << 62))

    def leak(job: Job) -> None:
        if next(asked) % EVERY == 0:
            act(job)

    return leak


def _memory(job: Job) -> None:
    _kept.append(b"\1" * BLOCK)


def _descriptor(job: Job) -> None:
    _kept.append(os.open(os.devnull, os.O_RDONLY))


def _thread(job: Job) -> None:
    thread = threading.Thread(target=threading.Event().wait, daemon=True)
    thread.start()
    _kept.append(thread)


def _task(job: Job) -> None:
    _kept.append(asyncio.get_running_loop().create_task(asyncio.Event().wait()))


def _lease(job: Job) -> None:
    if job.adapter is None:
        return
    registry = _compositions[0].registry
    ref = next((i.ref for i in registry.list() if i.digest == job.adapter), None)
    if ref is not None:
        _kept.append(asyncio.get_running_loop().create_task(_take(registry.lease(ref))))


async def _take(lease: Any) -> None:
    await lease.__aenter__()
    _kept.append(lease)


def _slot(job: Job) -> None:
    engine = _compositions[0].app.engine
    engine._adapters[f"{job.request_id}"] = 1  # type: ignore[attr-defined]  # never unloaded again


LEAKS: dict[str, Leak] = {
    "": lambda job: None,
    "rss": _memory,
    "fds": _descriptor,
    "threads": _thread,
    "tasks": _task,
    "leases": _lease,
    "slots": _slot,
}
