"""Work beside the caller's, in a thread that keeps no process alive."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def beside(task: Callable[[], T], name: str) -> Future[T]:
    """Begin it; `result()` of what is returned waits for what it returns, or raises what it raises."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(task())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
