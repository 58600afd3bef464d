"""A prefix of an object store, followed by a thread: listed every few seconds, what is new brought, what is
gone removed. The store may be away: what is here stays.
"""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from router.errors import (
    AdapterRejected,
    ConfigError,
    DataLoss,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    RouterError,
    Unavailable,
)
from router.registry.format.folder import WEIGHTS
from router.registry.state import write_atomically
from router.sources.mirror.cache import Cache
from router.sources.mirror.copies import Copies
from router.sources.mirror.fetching import Fetcher
from router.sources.mirror.store import RemoteFolder, Store
from router.sources.mirror.survey import Due, Survey
from router.sources.source import Passing
from router.sources.staging import KEPT_SECONDS

log = logging.getLogger(__name__)

FETCHERS = 8  # folders that are brought at a time
SECOND_LOOK = 1.0  # seconds; or the time between two looks, if that is less
SHARE = 0.1  # of the time that may go into listings
FEW = 50  # of one look, each of which the log names
MOST_FAULTS = 20  # of one look; then the store is not asked for more
LONGEST_PAUSE = 2.0  # a fault that asks for a longer one is tried again at the next look
SILENT_SECONDS = 30.0  # a listing under way for so long is a store that does not answer
CLOSE_SECONDS = 2.0
WRONG = (PermissionDenied, NotFound, ConfigError, FailedPrecondition)  # at a start: somebody has to act

Shown = Callable[[str, int, int], None]
"""Called with the source, how many bytes of what is to come first are here, and how many it is."""


@dataclass(frozen=True, slots=True)
class Status:
    """`whole`: all that was there at the first look is here. `problem`: why it does not follow the store, ''
    if it does; `since`: unix seconds."""

    whole: bool = False
    folders: int = 0
    refused: int = 0
    problem: str = ""
    since: float = 0.0


class Mirror:
    """Keeps `folder`/adapters like the store at `url`. One process has the folder, others that want the same
    watch what it does, and one of them takes over when it ends.

    `seconds`: between two looks, and more where a listing takes long. Raises ConfigError, FailedPrecondition.
    """

    def __init__(
        self,
        url: str,
        folder: Path,
        cache: Cache,
        seconds: float,
        most_bytes: int,
        shown: Shown = lambda *_: None,
    ) -> None:
        self._store, self._folder, self._seconds, self._cache = Store(url), folder, seconds, cache
        self._copies, self._survey = Copies(folder, self._store.said), Survey()
        aside = folder / "fetching"
        self._fetcher = Fetcher(
            self._store, cache, self._copies, aside, most_bytes, self._progress, self._pause
        )
        self._shown, self._status = shown, Status()
        self._leads: IO[str] | None = None  # the lock, while this process has it
        self._pins: dict[str, str] = {}
        self._refused: dict[str, str] = {}  # pins of what is not to be had
        self._coming: dict[tuple[int, str], int] = {}  # bytes of files under way, by thread and name
        self._came = self._to_come = 0
        self._few = True
        self._failed: set[str] = set()  # at the last look; these come last at the next
        self._asking: float | None = None  # since when a listing is under way, monotonic
        self._listing_seconds = 0.0
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._run, name="adapters-mirror", daemon=True)
        self.looked = False  # once, with success or without
        self.wrong: RouterError | None = None  # found by the first look: somebody has to act
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._copies.root.mkdir(mode=0o700, exist_ok=True)

    @property
    def said(self) -> str:
        """The prefix."""
        return self._store.said

    @property
    def status(self) -> Status:
        """How it stands, now."""
        return self._status

    @property
    def folders(self) -> int:
        """How many adapter folders are here."""
        return max(len(self._pins), self._status.folders)

    @property
    def flaw(self) -> str:
        """What is wrong, and since when; '' if nothing is."""
        status, asking = self._status, self._asking
        if status.problem:
            since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(status.since))
            return f"adapters of {self.said} do not follow it since {since}: {status.problem}"
        if asking is not None and time.monotonic() - asking > SILENT_SECONDS:
            return f"{self.said} has not answered for {time.monotonic() - asking:.0f} s"
        return "" if status.whole else f"not all adapters of {self.said} are here yet"

    @property
    def behind_seconds(self) -> float:
        """For how long the store has not been followed; 0 while it is."""
        status, asking = self._status, self._asking
        silent = time.monotonic() - asking if asking is not None else 0.0
        late = silent if silent > SILENT_SECONDS else 0.0
        return max(0.0, time.time() - status.since) if status.problem else late

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Begin to stop; what is under way is taken up by the next start."""
        self._stop.set()

    def close(self) -> None:
        """Stop, and leave the folder to others."""
        self.stop()
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)
        if self._leads is not None and not self._thread.is_alive():
            self._leads.close()
            self._leads = None

    # -- in the thread

    def _run(self) -> None:
        while not self._stop.is_set():
            pause = self._seconds
            try:
                pause = self.turn()
            except Exception:
                log.exception("a look at %s failed; the next one is tried", self.said)
            self.looked = True
            self._stop.wait(pause)

    def turn(self) -> float:
        """Look once, and do what is due; gives the seconds to wait until the next look."""
        fresh = self._lead() if self._is_mine() else self._follow()
        self.looked = True
        pause = max(self._seconds, self._listing_seconds / SHARE)
        return min(pause, SECOND_LOOK) if fresh else pause

    def _is_mine(self) -> bool:
        """Whether this process has the folder; it keeps it to its end."""
        if self._leads is not None:
            return True
        file = (self._folder / "lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._pins = self._copies.pins()
            self._forget_old()
            self._leads = file
        except BlockingIOError:
            return False
        finally:
            if self._leads is None:
                file.close()
        return True

    def _forget_old(self) -> None:
        for path in (self._folder / "fetching").glob("*"):
            if time.time() - path.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(path, ignore_errors=True)

    def _follow(self) -> bool:
        """As whoever has the folder says."""
        try:
            self._status = Status(**json.loads((self._folder / "status.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            self._status = Status()  # not written yet
        return not self._status.whole

    def _lead(self) -> bool:
        """One look; whether the next one is to come soon."""
        problem, due = "", Due()
        try:
            due = self._look()
        except (Passing, RouterError) as fault:
            problem = fault.message
            if not self.looked and isinstance(fault, WRONG):
                self.wrong = fault
        except OSError as error:
            problem = f"{error.filename or self._folder}: {error.strerror or error}"
        self._tell(problem, whole=self._status.whole or not (problem or due.fresh))
        return bool(due.fresh) and not problem

    def _look(self) -> Due:
        self._asking = began = time.monotonic()
        try:
            there = self._store.listing()
        finally:
            self._asking, self._listing_seconds = None, time.monotonic() - began
        if not there and len(self._pins) > 1:
            raise Unavailable("the store lists no adapter at all, and none is taken away for that")
        self._refused = {p: pin for p, pin in self._refused.items() if p in there}
        due = self._survey.look(there, self._pins | self._refused, time.monotonic())
        for place in due.gone:
            self._copies.remove(place)
            del self._pins[place]
            log.info("removed, as in the store", extra={"fields": {"adapter": place, "store": self.said}})
        if due.ready:
            self._bring_all(due)
        return due

    def _bring_all(self, due: Due) -> None:
        """Raises the first fault of store or disk. What is wrong with one folder is its own affair."""
        faults: dict[str, Passing | RouterError] = {}
        sizes = [file.size for folder in due.ready for file in folder.files.values()]
        self._came, self._to_come = 0, sum(sizes)

        def bring(folders: list[RemoteFolder]) -> None:
            for folder in folders:
                if len(faults) >= MOST_FAULTS or self._stop.is_set():
                    return
                try:
                    self._bring(folder)
                except (Passing, Unavailable, ResourceExhausted, PermissionDenied) as fault:
                    faults[folder.place] = fault

        self._few = len(due.ready) <= FEW
        ready = sorted(due.ready, key=lambda folder: folder.place in self._failed)
        with ThreadPoolExecutor(FETCHERS, thread_name_prefix="adapters-fetch") as pool:
            list(pool.map(bring, _by_weights(ready)))
        self._failed = set(faults)
        self._cache.trim()
        if not self._few:
            fields = {"store": self.said, "folders": len(due.ready) - len(faults)}
            log.info("mirrored", extra={"fields": fields})
        for fault in faults.values():
            raise fault

    def _bring(self, folder: RemoteFolder) -> None:
        fields = {"adapter": folder.place, "store": self.said}
        try:
            self._fetcher.bring(folder)
        except AdapterRejected as refused:
            self._refused[folder.place] = folder.pin
            log.warning("not mirrored: %s", refused.message, extra={"fields": fields})
        except (DataLoss, NotFound) as moved:
            log.info("not mirrored yet: %s", moved.message, extra={"fields": fields})
        else:
            self._refused.pop(folder.place, None)
            self._pins[folder.place] = folder.pin
            log.log(logging.INFO if self._few else logging.DEBUG, "mirrored", extra={"fields": fields})
        with self._lock:
            mine = [key for key in self._coming if key[0] == threading.get_ident()]
            self._came += sum(self._coming.pop(key) for key in mine)

    def _tell(self, problem: str, whole: bool) -> None:
        before = self._status
        now = Status(
            whole,
            len(self._pins),
            len(self._refused),
            problem,
            (before.since if before.problem else time.time()) if problem else 0.0,
        )
        fields = {"store": self.said}
        if problem and problem != before.problem:
            log.warning("%s; what is here stays", problem, extra={"fields": fields})
        if before.problem and not problem:
            log.info("follows the store again", extra={"fields": fields})
        if now != before:
            self._status = now
            self._tell_others(now)

    def _tell_others(self, status: Status) -> None:
        file = self._folder / "status.json"
        try:
            write_atomically(file, json.dumps(asdict(status)).encode())
        except OSError as error:
            log.warning("%s: %s; servers that share it do not know how it stands", file, error.strerror)

    # -- in the threads that fetch

    def _progress(self, name: str, done: int, size: int) -> None:
        if self._stop.is_set():
            raise Unavailable("the server is stopping")
        with self._lock:
            self._coming[threading.get_ident(), name] = done
            came = self._came + sum(self._coming.values())
        self._shown(self.said, came, self._to_come)

    def _pause(self, fault: str, seconds: float) -> None:
        if seconds > LONGEST_PAUSE or self._stop.wait(seconds):
            raise Unavailable(fault)


def _by_weights(folders: Iterable[RemoteFolder]) -> list[list[RemoteFolder]]:
    """Those with the same weights together: they come one after the other, and fetch them once."""
    groups: dict[str, list[RemoteFolder]] = {}
    for folder in folders:
        weights = folder.files.get(WEIGHTS)
        groups.setdefault((weights and weights.content) or folder.place, []).append(folder)
    return list(groups.values())
