"""Whether the store answers: written by those who call it, read at every request."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from router.errors import StoreDown

log = logging.getLogger(__name__)
PATIENCE = 5.0


class Availability:
    """Up while the last read and the last write worked and none takes longer than `patience` seconds.

    Reads and writes are told apart: a full disk can be read.
    """

    def __init__(self, patience: float = PATIENCE) -> None:
        self._patience = patience
        self._failed: dict[str, str] = {}
        self._running: dict[int, float] = {}  # thread -> since when
        self._said = ""

    @property
    def up(self) -> bool:
        """Whether experiments may be served."""
        return not self.problem

    @property
    def problem(self) -> str:
        """Why not; empty if all is well."""
        if self._failed:
            return next(iter(tuple(self._failed.values())), "")
        if self._running:
            waited = time.monotonic() - min(tuple(self._running.values()), default=time.monotonic())
            if waited > self._patience:
                return f"the store has not answered for {waited:.0f} s"
        return ""

    @contextmanager
    def calling(self, kind: str) -> Iterator[None]:
        """Around one call of the store; `kind` is read or write."""
        thread = threading.get_ident()
        self._running[thread] = time.monotonic()
        try:
            yield
        except StoreDown as error:
            self._failed[kind] = error.message
            raise
        else:
            self.forgive(kind)
        finally:
            del self._running[thread]

    def forgive(self, kind: str) -> None:
        """Let the next call of that kind find out."""
        self._failed.pop(kind, None)

    def tell(self) -> None:
        """Log a change since the last time."""
        problem = self.problem
        if problem and not self._said:
            log.error("experiments are off: %s; requests are served without them", problem)
        elif self._said and not problem:
            log.info("experiments are on again")
        self._said = problem
