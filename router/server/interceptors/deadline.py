"""Deadlines: the caller's, or the server's where the caller brings none or a longer one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from router.errors import DeadlineExceeded
from router.server.interceptors.call import Call


@asynccontextmanager
async def deadline(call: Call, remaining: float | None, cap: float) -> AsyncIterator[None]:
    """Raise DeadlineExceeded and stop what runs inside when the time is over (seconds)."""
    limit = cap if remaining is None else min(remaining, cap)
    call.deadline = time.monotonic() + limit
    if limit <= 0:
        raise DeadlineExceeded("the deadline had passed when the request arrived")
    timeout = asyncio.timeout(limit)
    try:
        async with timeout:
            yield
    except TimeoutError:
        if not timeout.expired():
            raise
        raise DeadlineExceeded("the deadline passed before the answer was complete") from None
