"""The end of waiting for a database server that says nothing: its driver would wait without end."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any


def heard(
    steps: Generator[Any, Any, Any], seconds: float, leave: Callable[[], Exception]
) -> Generator[Any, Any, Any]:
    """The same steps of the driver; where nothing was heard for so long, what `leave` gives is raised."""
    last = time.monotonic()
    try:
        wanted = next(steps)
        while True:
            ready = yield wanted  # nothing, every tenth of a second while the server is silent
            now = time.monotonic()
            if not ready and now - last > seconds:
                raise leave()
            last = now if ready else last
            wanted = steps.send(ready)
    except StopIteration as done:
        return done.value
