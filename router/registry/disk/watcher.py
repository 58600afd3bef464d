"""Hearing of changes in adapter folders the moment they are made."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import watchfiles

log = logging.getLogger(__name__)

_GROUP_MS, _STEP_MS = 200, 50  # changes are told in groups at most so old, or when nothing came for a step
_LOOK_UP_MS = 1_000


class Watcher:
    """A thread that waits for the kernel to report changes and tells the event loop which paths.

    Where that does not work (the limit on watches is reached, a file system without notifications), it says
    so once and `working` is False: then only the regular compare finds changes.
    """

    def __init__(self, dirs: Sequence[Path], changed: Callable[[frozenset[Path]], None]) -> None:
        self._dirs = tuple(os.path.realpath(d) for d in dirs if d.is_dir())  # others are compared only
        self._changed = changed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="adapters-watch", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.working = bool(self._dirs)

    def start(self) -> None:
        """Start watching; `changed` is called on the running event loop."""
        self._loop = asyncio.get_running_loop()
        if self.working:
            self._thread.start()

    async def close(self) -> None:
        """Stop the thread and wait for it."""
        self._stop.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        try:
            for changes in watchfiles.watch(
                *self._dirs,
                watch_filter=None,
                debounce=_GROUP_MS,
                step=_STEP_MS,
                rust_timeout=_LOOK_UP_MS,
                stop_event=self._stop,
                raise_interrupt=False,
                ignore_permission_denied=True,
            ):
                self._tell(frozenset(Path(path) for _, path in changes))
        except Exception as error:  # whatever notifications fail with, comparing goes on without them
            log.warning(
                "no change notifications for adapter folders (%s); they are compared regularly instead", error
            )
            self.working = False

    def _tell(self, paths: frozenset[Path]) -> None:
        if self._loop is not None and not self._stop.is_set():
            self._loop.call_soon_threadsafe(self._changed, paths)
