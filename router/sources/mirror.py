"""A prefix of an object store, followed by a thread: listed every few seconds, what is new brought, what is
gone removed. The store may be away: what is here stays.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

from router.errors import (
    AdapterRejected,
    ConfigError,
    DataLoss,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    RouterError,
    Unavailable,
)
from router.registry.format.folder import WEIGHTS
from router.registry.state import write_atomically
from router.reread import problem_of
from router.sources.fetching import Cache, Copies, Fetcher, private_folder
from router.sources.source import Passing
from router.sources.staging import KEPT_SECONDS
from router.sources.store import Folders, RemoteFolder, Survey

FETCHERS = 8  # folders that are brought at a time
MOST_FAULTS = 20  # of store or disk between two sends; then what waits is given back
ITS_OWN = (AdapterRejected, DataLoss, NotFound)  # say nothing of the next folder

Fetched = tuple[RemoteFolder, BaseException | None]
"""A folder that is here, or why it is not."""


class NotTried(Exception):
    """It was not tried: too many others failed."""


class Downloads:
    """Folders that are being brought: several at a time, and none waits for a large one. For one thread, but
    `progress`, which those that fetch call.
    """

    def __init__(
        self,
        bring: Callable[[RemoteFolder], None],
        stop: threading.Event,
        shown: Callable[[int, int], None],
    ) -> None:
        """`shown` is called with the bytes that are here and those of all that was sent for."""
        self._bring, self._stop, self._shown = bring, stop, shown
        self._pool = ThreadPoolExecutor(FETCHERS, thread_name_prefix="adapters-fetch")
        self._finished: SimpleQueue[Fetched] = SimpleQueue()
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

    def start(self, folders: Iterable[RemoteFolder]) -> None:
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

    def finished(self, seconds: float) -> Iterator[Fetched]:
        """What came or failed until now, or comes within so many seconds; ends when nothing is under way."""
        end = time.monotonic() + seconds
        while self._under_way:
            try:
                folder, fault = self._finished.get(timeout=max(0.0, end - time.monotonic()))
            except Empty:
                return
            del self._under_way[folder.place]
            if not isinstance(fault, NotTried):
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
                    raise NotTried
                self._bring(folder)
            except BaseException as error:  # raised at all that wait
                fault = error
            with self._lock:
                mine = [key for key in self._coming if key[0] == threading.get_ident()]
                self._came += sum(self._coming.pop(key) for key in mine)
                self._faults += fault is not None and not isinstance(fault, (*ITS_OWN, NotTried))
            self._finished.put((folder, fault))

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


# -- the store, followed


log = logging.getLogger(__name__)

SECOND_LOOK = 1.0  # seconds; or the time between two looks, if that is less
SHARE = 0.1  # of the time that may go into listings
# A look waits so long for what it started, or the time between two looks, if that is more.
LOOK_SECONDS = 5.0
FEW = 50  # of one look, each of which the log names
LONGEST_PAUSE = 2.0  # a fault that asks for a longer one is tried again at the next look
SILENT_SECONDS = 30.0  # without an answer: the store is away, though nothing failed
CLOSE_SECONDS = 2.0
WRONG = (PermissionDenied, NotFound, ConfigError, FailedPrecondition)  # at a start: somebody has to act

Shown = Callable[[str, int, int], None]
"""Called with the source, how many bytes of what is to come first are here, and how many it is."""


@dataclass(frozen=True, slots=True)
class MirrorStatus:
    """`whole`: all that was there at the first look is here. `problem`: why it does not follow the store, ''
    if it does; `since`: unix seconds."""

    whole: bool = False
    folders: int = 0
    refused: int = 0
    problem: str = ""
    since: float = 0.0


class Mirror:
    """Keeps `folder`/adapters like `store`. One process has the folder, others that want the same
    watch what it does, and one of them takes over when it ends.

    `seconds`: between two looks, and more where a listing takes long.
    """

    def __init__(
        self,
        store: Folders,
        folder: Path,
        cache: Cache,
        seconds: float,
        most_bytes: int,
        shown: Shown = lambda *_: None,
    ) -> None:
        self._store, self._folder, self._seconds, self._cache = store, folder, seconds, cache
        self._copies, self._survey = Copies(folder, self._store.reference), Survey()
        aside = folder / "fetching"
        self._stop = threading.Event()
        self._downloads = Downloads(
            lambda folder: self._fetcher.bring(folder),
            self._stop,
            lambda came, to_come: shown(self.reference, came, to_come),
        )
        self._fetcher = Fetcher(
            self._store, cache, self._copies, aside, most_bytes, self._downloads.progress, self._pause
        )
        self._status = MirrorStatus()
        self._leads: int | None = None  # the lock's descriptor, while this process has it
        self._pins: dict[str, str] = {}
        self._refused: dict[str, str] = {}  # pins of what is not to be had
        self._faults: dict[str, str] = {}  # of what could not be brought, by place
        self._failed = ""  # why the last look ended by an exception
        self._asking: float | None = None  # since when a listing is under way, monotonic
        self._listing_seconds = 0.0
        self._thread = threading.Thread(target=self._run, name="adapters-mirror", daemon=True)
        self.looked = False  # once, with success or without
        self.wrong: RouterError | None = None  # found by the first look: somebody has to act
        private_folder(folder)
        self._copies.root.mkdir(mode=0o700, exist_ok=True)

    @property
    def reference(self) -> str:
        """The prefix."""
        return self._store.reference

    @property
    def status(self) -> MirrorStatus:
        """How it stands, now."""
        return self._status

    @property
    def folders(self) -> int:
        """How many adapter folders are here."""
        return max(len(self._pins), self._status.folders)

    @property
    def flaw(self) -> str:
        """What is wrong, and since when; '' if nothing is."""
        status, silent = self._status, self._silent_seconds
        if self._failed:
            return f"a look at {self.reference} failed and is tried again: {self._failed}"
        if status.problem:
            since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(status.since))
            return f"adapters of {self.reference} do not follow it since {since}: {status.problem}"
        if silent > SILENT_SECONDS:
            return f"{self.reference} has not answered for {silent:.0f} s"
        return "" if status.whole else f"not all adapters of {self.reference} are here yet"

    @property
    def behind_seconds(self) -> float:
        """For how long the store has not been followed; 0 while it is."""
        status, silent = self._status, self._silent_seconds
        if status.problem:
            return max(0.0, time.time() - status.since)
        return silent if silent > SILENT_SECONDS else 0.0

    @property
    def _silent_seconds(self) -> float:
        asking = self._asking
        listing = time.monotonic() - asking if asking is not None else 0.0
        return max(listing, self._downloads.silent_seconds)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Begin to stop; what is under way is taken up by the next start."""
        self._stop.set()

    def close(self) -> None:
        """Stop, and leave the folder to others."""
        self.stop()
        self._downloads.close()
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)
        if self._leads is not None and not (self._thread.is_alive() or self._downloads.places):
            os.close(self._leads)
            self._leads = None

    # -- in the thread

    def _run(self) -> None:
        while not self._stop.is_set():
            pause = self._seconds
            try:
                pause = self.turn()
            except Exception as error:
                problem = problem_of(error)
                if problem != self._failed:
                    log.error("a look at %s failed; it is tried again", self.reference, exc_info=error)
                self._failed = problem
            else:
                self._failed = ""
            self.looked = True
            self._stop.wait(pause)

    def turn(self) -> float:
        """Look once, and do what is due; gives the seconds to wait until the next look."""
        soon = self._lead() if self._is_mine() else self._follow()
        self.looked = True
        pause = self._pause_seconds
        return min(pause, max(SECOND_LOOK, self._listing_seconds)) if soon else pause

    @property
    def _pause_seconds(self) -> float:
        return max(self._seconds, self._listing_seconds / SHARE)

    def _is_mine(self) -> bool:
        """Whether this process has the folder; it keeps it to its end."""
        if self._leads is not None:
            return True
        lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._pins = self._copies.pins()
            self._forget_old()
            self._leads = lock
        except BlockingIOError:
            return False
        finally:
            if self._leads is None:
                os.close(lock)
        return True

    def _forget_old(self) -> None:
        for path in (self._folder / "fetching").glob("*"):
            if time.time() - path.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(path, ignore_errors=True)

    def _follow(self) -> bool:
        """As the owner of the folder says."""
        try:
            self._status = MirrorStatus(**json.loads((self._folder / "status.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            self._status = MirrorStatus()  # not written yet
        return not self._status.whole

    def _lead(self) -> bool:
        """One look; whether the next one is to come soon."""
        problem, fresh = "", 0
        try:
            fresh = self._look()
            problem = next(iter(self._faults.values()), "")
        except (Passing, RouterError) as fault:
            problem = fault.message
            if not self.looked and isinstance(fault, WRONG):
                self.wrong = fault
        except OSError as error:
            problem = self._of_disk(error)
        if self._stop.is_set():
            return False
        under_way = bool(self._downloads.places)
        self._set_status(problem, whole=self._status.whole or not (problem or fresh or under_way))
        return bool(under_way or fresh)

    def _look(self) -> int:
        """Gives how many folders were new."""
        self._asking = began = time.monotonic()
        try:
            there = self._store.listing()
        finally:
            self._asking, self._listing_seconds = None, time.monotonic() - began
        if not there and len(self._pins) > 1:
            raise Unavailable("the store lists no adapter at all, and none is taken away for that")
        self._refused = {p: pin for p, pin in self._refused.items() if p in there}
        self._faults = {p: fault for p, fault in self._faults.items() if p in there}
        coming = {p: there[p].pin for p in self._downloads.places if p in there}
        due = self._survey.look(there, self._pins | self._refused | coming, time.monotonic())
        for place in due.gone:
            self._copies.remove(place)
            del self._pins[place]
            log.info(
                "removed, as in the store", extra={"fields": {"adapter": place, "store": self.reference}}
            )
        self._downloads.start(due.ready)
        self._receive()
        return due.fresh

    def _receive(self) -> None:
        """Note what came. What is wrong with one folder is its own affair, what keeps others back is not."""
        before = len(self._pins)
        few = len(self._downloads.places) <= FEW
        for folder, fault in self._downloads.finished(max(LOOK_SECONDS, self._pause_seconds)):
            fields = {"adapter": folder.place, "store": self.reference}
            self._faults.pop(folder.place, None)
            if fault is None:
                self._refused.pop(folder.place, None)
                self._pins[folder.place] = folder.pin
                log.log(logging.INFO if few else logging.DEBUG, "mirrored", extra={"fields": fields})
            elif isinstance(fault, AdapterRejected):
                self._refused[folder.place] = folder.pin
                log.warning("not mirrored: %s", fault.message, extra={"fields": fields})
            elif isinstance(fault, DataLoss | NotFound):
                log.info("not mirrored yet: %s", fault.message, extra={"fields": fields})
            elif isinstance(fault, Passing | RouterError):
                self._faults[folder.place] = fault.message
            elif isinstance(fault, OSError):
                self._faults[folder.place] = self._of_disk(fault)
            else:
                raise fault
        if not few:
            fields = {"store": self.reference, "folders": str(len(self._pins) - before)}
            log.info("mirrored", extra={"fields": fields})
        self._cache.trim()

    def _of_disk(self, error: OSError) -> str:
        return f"{error.filename or self._folder}: {error.strerror or error}"

    def _set_status(self, problem: str, whole: bool) -> None:
        before = self._status
        now = MirrorStatus(
            whole,
            len(self._pins),
            len(self._refused),
            problem,
            (before.since if before.problem else time.time()) if problem else 0.0,
        )
        fields = {"store": self.reference}
        if problem and problem != before.problem:
            log.warning("%s; what is here stays", problem, extra={"fields": fields})
        if before.problem and not problem:
            log.info("follows the store again", extra={"fields": fields})
        if now != before:
            self._status = now
            self._write_status(now)

    def _write_status(self, status: MirrorStatus) -> None:
        file = self._folder / "status.json"
        try:
            write_atomically(file, json.dumps(asdict(status)).encode())
        except OSError as error:
            log.warning("%s: %s; servers that share it do not know how it stands", file, error.strerror)

    # -- in the threads that fetch

    def _pause(self, fault: str, seconds: float) -> None:
        if seconds > LONGEST_PAUSE or self._stop.wait(seconds):
            raise Unavailable(fault)
