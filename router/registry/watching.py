"""Looks at adapter folders: as soon as the kernel reports a change, and at intervals."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import watchfiles

from router.registry.folders import is_ignored
from router.registry.reconcile import Reconciler
from router.reread import problem_of

log = logging.getLogger(__name__)

# The kernel's changes come in groups at most so old, or when none came for a step.
_GROUP_MS, _STEP_MS = 200, 50
_LOOK_UP_MS = 1_000
LEAST_GAP = 0.1  # seconds between two looks, however often the kernel reports something
START_SECONDS = 10.0  # a start waits so long for thousands of folders to be examined, where a gate needs that
SHARE = 0.05  # of the time that may go into looks when nothing happens


class LookLoop:
    """Runs looks one after another in a task, each followed by a plan of what to load."""

    def __init__(
        self,
        dirs: Sequence[Path],
        reconciler: Reconciler,
        plan: Callable[[], None],
        poll: float,
        settle: float,
    ) -> None:
        self._reconciler, self._plan, self._poll, self._settle = reconciler, plan, poll, settle
        self._watcher = FolderWatcher(dirs, self._note_changed)
        self._wake = asyncio.Event()
        self._dirty: set[Path] = set()
        self._due = 0.0  # when the next look at every file is due, monotonic
        self._task: asyncio.Task[None] | None = None
        self.problem = ""  # why the last look failed; empty if it did not

    async def start(self) -> None:
        """Look until what is there is known, and judged as far as time allows; go on in the background."""
        self._watcher.start()
        if await self._look(every_file=True):
            await asyncio.sleep(self._settle)
            await self._look()
        end = time.monotonic() + START_SECONDS
        while self._reconciler.behind and time.monotonic() < end:
            await self._look()
        self._plan()
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._wake.set()

    async def close(self) -> None:
        """Stop; a look under way is given up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._watcher.close()

    def look_soon(self, folder: Path) -> None:
        """Look at this folder without waiting for the next turn."""
        self._note_changed(frozenset((folder,)))

    def _note_changed(self, paths: frozenset[Path]) -> None:
        self._dirty |= paths
        self._wake.set()

    async def _run(self) -> None:
        while True:
            started = time.monotonic()
            unsettled = False
            try:
                unsettled = await self._look(every_file=self._due <= started)
                self._plan()
            except Exception as error:
                self._failed(error)
                unsettled = True
            else:
                self.problem = ""
            await asyncio.sleep(max(LEAST_GAP, time.monotonic() - started))
            await self._pause(unsettled)

    def _failed(self, error: Exception) -> None:
        """Note it, with one traceback for each problem: looks go on, several a second."""
        problem = f"adapter folders cannot be looked at: {problem_of(error)}"
        if problem != self.problem:
            log.error("looking at adapter folders failed; it is tried again", exc_info=error)
        self.problem = problem

    async def _look(self, every_file: bool = False) -> bool:
        dirty, self._dirty = self._dirty, set()
        try:
            return await self._reconciler.look(dirty, every_file)
        except BaseException:
            self._dirty |= dirty
            raise
        finally:
            if every_file:
                self._due = time.monotonic() + max(self._poll, self._reconciler.scan_seconds / SHARE)

    async def _pause(self, unsettled: bool) -> None:
        idle = max(self._due - time.monotonic(), 0.0)
        if not self._watcher.working:
            idle = min(idle, self._poll)
        try:
            async with asyncio.timeout(self._settle if unsettled else idle):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()


class FolderWatcher:
    """A thread that waits for the kernel to report changes, and gives their paths to the event loop.

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
                self._report(frozenset(Path(path) for _, path in changes if not self._is_hidden(path)))
        except Exception as error:  # whatever notifications fail with, comparing goes on without them
            log.warning(
                "no change notifications for adapter folders (%s); they are compared regularly instead", error
            )
            self.working = False

    def _is_hidden(self, path: str) -> bool:
        """Whether it is in a folder of which no scan knows, such as one that is still being copied."""
        inside = next((path[len(d) + 1 :] for d in self._dirs if path.startswith(d + os.sep)), "")
        return is_ignored(inside.partition(os.sep)[0])

    def _report(self, paths: frozenset[Path]) -> None:
        if paths and self._loop is not None and not self._stop.is_set():
            self._loop.call_soon_threadsafe(self._changed, paths)
