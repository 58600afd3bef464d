"""Tasks that nobody waits for until the end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any


async def leave(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel them all, and wait until they have gone."""
    left = tuple(tasks)
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left)
