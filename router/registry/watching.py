"""The kernel's reports of changes in adapters folders."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import watchfiles

from router.registry.folders import is_ignored
from router.registry.state import PendingWork

log = logging.getLogger(__name__)

# The kernel's changes come in groups at most so old, or when none came for a step.
_GROUP_MS, _STEP_MS = 200, 50
_LOOK_UP_MS = 1_000


class FolderWatcher:
    """A thread that waits for the kernel to report changes, and adds their paths to the pending work.

    Where that does not work (the limit on watches is reached, a file system without notifications), it says
    so once: then only the regular compare finds changes.
    """

    def __init__(self, dirs: Sequence[Path], pending: PendingWork) -> None:
        self._dirs = tuple(os.path.realpath(d) for d in dirs if d.is_dir())  # others are compared only
        self._pending = pending
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="adapters-watch", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Start watching, for the running event loop."""
        self._loop = asyncio.get_running_loop()
        if self._dirs:
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
                self._report({Path(path) for _, path in changes if not self._is_hidden(path)})
        except Exception as error:  # whatever notifications fail with, comparing goes on without them
            log.warning(
                "no change notifications for adapter folders (%s); they are compared regularly instead", error
            )

    def _is_hidden(self, path: str) -> bool:
        """Whether it is in a folder of which no scan knows, such as one that is still being copied."""
        inside = next((path[len(d) + 1 :] for d in self._dirs if path.startswith(d + os.sep)), "")
        return is_ignored(inside.partition(os.sep)[0])

    def _report(self, paths: set[Path]) -> None:
        if paths and self._loop is not None and not self._stop.is_set():
            self._loop.call_soon_threadsafe(self._pending.look, paths)
