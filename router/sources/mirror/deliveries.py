"""Folders on their way here: several at a time, and nobody waits for a large one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue

from router.errors import AdapterRejected, DataLoss, NotFound, Unavailable
from router.registry.format.folder import WEIGHTS
from router.sources.mirror.store import RemoteFolder

FETCHERS = 8  # folders that are brought at a time
MOST_FAULTS = 20  # of store or disk between two sends; then what waits is given back
ITS_OWN = (AdapterRejected, DataLoss, NotFound)  # say nothing of the next folder

Arrival = tuple[RemoteFolder, BaseException | None]
"""A folder that is here, or why it is not."""


class GivenBack(Exception):
    """It was not tried: too many others failed."""


class Deliveries:
    """What is under way. For one thread, but `progress`, which those that fetch call."""

    def __init__(
        self,
        bring: Callable[[RemoteFolder], None],
        stop: threading.Event,
        shown: Callable[[int, int], None],
    ) -> None:
        """`shown` is called with the bytes that are here and those of all that was sent for."""
        self._bring, self._stop, self._shown = bring, stop, shown
        self._pool = ThreadPoolExecutor(FETCHERS, thread_name_prefix="adapters-fetch")
        self._arrived: SimpleQueue[Arrival] = SimpleQueue()
        self._under_way: dict[str, RemoteFolder] = {}
        self._failed: set[str] = set()  # when they were last tried; they come last
        self._faults = 0
        self._lock = threading.Lock()
        self._coming: dict[tuple[int, str], int] = {}  # bytes of files, by thread and name
        self._came = self._to_come = 0
        self._moved = 0.0  # when bytes last came, monotonic

    @property
    def places(self) -> frozenset[str]:
        """What is under way."""
        return frozenset(self._under_way)

    @property
    def silent_seconds(self) -> float:
        """For how long nothing has come of what is under way."""
        return time.monotonic() - self._moved if self._under_way else 0.0

    def send_for(self, folders: Iterable[RemoteFolder]) -> None:
        """Have these brought."""
        if not self._under_way:
            self._came = self._to_come = 0
        self._faults, self._moved = 0, time.monotonic()
        ready = sorted(folders, key=lambda folder: folder.place in self._failed)
        for folder in ready:
            self._under_way[folder.place] = folder
            self._to_come += sum(file.size for file in folder.files.values())
        for group in _by_weights(ready):
            self._pool.submit(self._carry, group)

    def arrivals(self, seconds: float) -> Iterator[Arrival]:
        """What came or failed until now, or comes within so many seconds; ends when nothing is under way."""
        end = time.monotonic() + seconds
        while self._under_way:
            try:
                folder, fault = self._arrived.get(timeout=max(0.0, end - time.monotonic()))
            except Empty:
                return
            del self._under_way[folder.place]
            if not isinstance(fault, GivenBack):
                (self._failed.discard if fault is None else self._failed.add)(folder.place)
                yield folder, fault

    def close(self) -> None:
        """Begin nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    # -- in the threads that fetch

    def _carry(self, group: list[RemoteFolder]) -> None:
        for folder in group:
            fault: BaseException | None = None
            try:
                if self._faults >= MOST_FAULTS or self._stop.is_set():
                    raise GivenBack
                self._bring(folder)
            except BaseException as error:  # raised at all that wait
                fault = error
            with self._lock:
                mine = [key for key in self._coming if key[0] == threading.get_ident()]
                self._came += sum(self._coming.pop(key) for key in mine)
                self._faults += fault is not None and not isinstance(fault, (*ITS_OWN, GivenBack))
            self._arrived.put((folder, fault))

    def progress(self, name: str, done: int, size: int) -> None:
        """See Transfer. Raises Unavailable when all is to stop."""
        if self._stop.is_set():
            raise Unavailable("the server is stopping")
        self._moved = time.monotonic()
        with self._lock:
            self._coming[threading.get_ident(), name] = done
            came = self._came + sum(self._coming.values())
        self._shown(came, self._to_come)


def _by_weights(folders: Iterable[RemoteFolder]) -> list[list[RemoteFolder]]:
    """Those with the same weights together: they come one after the other, and fetch them once."""
    groups: dict[str, list[RemoteFolder]] = {}
    for folder in folders:
        weights = folder.files.get(WEIGHTS)
        groups.setdefault((weights and weights.content) or folder.place, []).append(folder)
    return list(groups.values())
