"""Making the table of versions agree with the folders on disk, one look after another."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from router.registry.conflicts import Conflicts
from router.registry.disk.places import Changes, Debouncer, Depth, Due, Found, Scan, Scanner
from router.registry.disk.reading import Claims, Examined, Reader, examine, sketch
from router.registry.format import limits
from router.registry.format.folder import REPORT, Folder, FolderError
from router.registry.gate import ReportCard, ReportError, parse_report
from router.registry.gatekeeper import Gatekeeper
from router.registry.index import Index
from router.registry.options import Workers, breathe
from router.registry.record import Record
from router.types import AdapterRef

log = logging.getLogger(__name__)

T = TypeVar("T")
BATCH = 64  # folders examined in one look at least; where more are new, all of them are sketched first
EXAMINE_SECONDS = 0.25  # more folders are examined, or reports read, until it has taken so long
RETRY_SECONDS = 10.0  # a folder that could not be read at all


class Reconciler:
    """A look: scan, see which folders are still by now, examine those, and change the table in one step."""

    def __init__(
        self,
        scanner: Scanner,
        settle: float,
        reader: Reader,
        workers: Workers,
        index: Index,
        gatekeeper: Gatekeeper,
        vanish: Callable[[Record], None],
        grace: float,
        caught_up: Callable[[], None],
    ) -> None:
        self._scanner, self._reader, self._workers = scanner, reader, workers
        self._index, self._gatekeeper = index, gatekeeper
        self._vanish, self._grace, self._caught_up = vanish, grace, caught_up
        self._folders = Debouncer(settle)
        self._reports = Debouncer(settle, lambda found: found.report)
        self._claims = Claims()
        self._conflicts = Conflicts(self._claims, index, reader, workers)
        self._unreadable: dict[Path, str] = {}
        self._again: dict[Path, float] = {}
        self._seen = Scan({})  # the last one that the debouncers know of
        self._unsure: set[Path] = set()  # to be looked at the next time, whatever is heard of them
        self._taken: set[Record] = set()  # their folder holds another version
        self._looks = 0
        self._left = False  # the last look had no time for all
        self.scan_seconds = 0.0  # what the last look cost when nothing had changed

    @property
    def behind(self) -> bool:
        """Whether something was left that may not be routed to until it is read."""
        return self._left and self._gatekeeper.on

    async def look(self, dirty: Collection[Path] = (), depth: Depth = Depth.FILES) -> bool:
        """Look once; whether another look is needed soon."""
        now = time.monotonic()
        again = [p for p, due in self._again.items() if due <= now]
        for path in again:
            del self._again[path]
            self._folders.again(path)
        paths = {*dirty, *self._unsure, *again}
        scan, changes = await self._workers.in_order(self._scan, paths, depth, self._seen)
        self.scan_seconds = time.monotonic() - now
        self._tell_unreadable(dict(scan.unreadable))
        due = self._folders.look(changes, time.monotonic())
        reports = self._reports.look(changes, time.monotonic()) if self._gatekeeper.on else Due()
        self._seen, self._unsure = scan, {*due.awaited, *reports.awaited}
        left, self._left = self._left, False
        await self._settle(due.gone, await self._sketched(due.ready))
        examined = await self._examine_still(self._new_first(due.ready))
        reported, more = await self._read_reports(reports)
        await self._settle((), examined, reported)
        if left and not self._left:
            self._caught_up()
        return due.unsettled or more or len(examined) < len(due.ready)

    def _scan(self, paths: Collection[Path], depth: Depth, seen: Scan) -> tuple[Scan, Changes]:
        scan = self._scanner.scan(paths, depth)
        return scan, scan.since(seen)

    def _new_first(self, ready: Sequence[Found]) -> list[Found]:
        """Somebody waits for new ones."""
        new, known = list[Found](), list[Found]()
        for found in ready:
            (known if self._is_known(found) else new).append(found)
        return new + known

    async def _read_reports(self, due: Due) -> tuple[list[Path], bool]:
        """Read reports that are new; gives their folders, and whether there are more.

        A report waits for its adapter: copied in together, they are judged together.
        """
        for folder in due.gone:
            self._gatekeeper.forget(folder)
        ready = [found for found in due.ready if self._folders.is_done(found) and self._may_read(found)]
        read = await self._workers.in_order(_in_time, ready, _report_of)
        self._gatekeeper.reported({found.place.folder: report for found, report in read})
        self._reports.done(found for found, _ in read)
        self._left |= len(read) < len(ready)
        return [found.place.folder for found, _ in read], due.unsettled or len(read) < len(ready)

    def _may_read(self, found: Found) -> bool:
        """Whether the report may be parsed."""
        known = self._claims.get(found.place.folder)
        return not self._reader.vets or (known is not None and not known.problem)

    async def _sketched(self, ready: Sequence[Found]) -> list[Examined]:
        """Where many folders are new at once: all of them by name, so that none waits for its turn."""
        new = [found for found in ready if not self._is_known(found)]
        if len(new) <= BATCH or self._reader.vets:
            return []
        sketches: list[tuple[Found, Examined | None]] = []
        while len(sketches) < len(new):  # others want that thread, too
            sketches += await self._workers.in_order(_in_time, new[len(sketches) :], sketch)
        return [e for _, e in sketches if e is not None]

    def _is_known(self, found: Found) -> bool:
        known = self._claims.get(found.place.folder)
        return known is not None and (known.found is found or known.found == found)

    async def _examine_still(self, ready: Sequence[Found]) -> list[Examined]:
        """What can be said of folders now: not of those that changed again or may still be written."""
        seen = await self._workers.in_order(_in_time, ready, partial(examine, self._reader))
        self._left |= len(seen) < len(ready)
        known = [e for _, e in seen if e is not None and not self._too_early(e)]
        self._folders.done(e.found for e in known)
        self._unsure |= {found.place.folder for found, _ in seen} - {e.found.place.folder for e in known}
        return known

    async def _settle(
        self, gone: Sequence[Path], examined: Sequence[Examined], reported: Sequence[Path] = ()
    ) -> None:
        """Change the table: all in one step of the event loop, or, where that is much, name by name."""
        self._looks += 1
        few = len(gone) + len(examined) <= BATCH
        pieces = [(gone, examined)] if few else list(self._by_name(gone, examined))
        began = time.monotonic()
        for some_gone, some in pieces:
            self._change(some_gone, some)
            began = await breathe(began)
        told = (self._claims.get(folder) for folder in reported)
        for name in dict.fromkeys(e.ref.name for e in told if e is not None):
            self._index.settle_default(name)
            began = await breathe(began)

    def _by_name(
        self, gone: Iterable[Path], examined: Iterable[Examined]
    ) -> Iterator[tuple[list[Path], list[Examined]]]:
        """The same, those of one name together: the one that a folder had, if it had one."""
        pieces: dict[str, tuple[list[Path], list[Examined]]] = {}
        for folder in gone:
            if (before := self._claims.get(folder)) is not None:
                pieces.setdefault(before.ref.name, ([], []))[0].append(folder)
        for one in examined:
            before = self._claims.get(one.found.place.folder)
            pieces.setdefault((before or one).ref.name, ([], []))[1].append(one)
        yield from pieces.values()

    def _change(self, gone: Sequence[Path], examined: Sequence[Examined]) -> None:
        touched = dict.fromkeys(ref for ref in map(self._claims.drop, gone) if ref is not None)
        for one in examined:
            touched.update(dict.fromkeys(self._put(one)))
        for name in {ref.name for ref in touched}:
            touched.update(dict.fromkeys(self._claims.carried(name)))
        for ref in touched:
            self._apply(ref)
        for name in {ref.name for ref in touched}:
            carried = self._claims.carried(name)
            for record in self._index.versions(name):
                record.covers(() if record.found.carried else carried)
        self._conflicts.check(touched)
        for name in dict.fromkeys(ref.name for ref in touched):
            self._index.settle_default(name)

    async def close(self) -> None:
        """Stop what runs in the background."""
        await self._conflicts.close()

    def _too_early(self, examined: Examined) -> bool:
        """A folder may be bad because it is still being written: it gets some time of quiet first."""
        return bool(examined.problem) and self._folders.quiet(examined.found, time.monotonic()) < self._grace

    def _put(self, examined: Examined) -> list[AdapterRef]:
        """Take note of a folder; gives the versions it stands for and stood for."""
        folder = examined.found.place.folder
        if examined.passing:
            self._again[folder] = time.monotonic() + RETRY_SECONDS
        ref, left = self._claims.put(examined)
        if left is None:
            return [ref]
        self._taken = {r for r in self._taken if r.successor is not None and not r.removed}
        before = self._index.get(left)
        followed = [before] if before is not None else []
        for record in [*followed, *(r for r in self._taken if r.successor == left)]:
            record.folder_taken(by=ref)
            self._taken.add(record)
        return [ref, left]

    def _apply(self, ref: AdapterRef) -> None:
        claimants, record = self._claims.claimants(ref), self._index.get(ref)
        if claimants and record is None:
            self._appear(claimants[0])
        elif claimants and record is not None:
            self._update(record, claimants[0])
        elif record is not None and record.successor is not None and record.live is not None:
            record.superseded()
        elif record is not None:
            hidden = self._claims.is_hidden(ref)
            log.info("adapter %s %s", ref, "gives way to yours" if hidden else "is gone from disk")
            self._vanish(record)

    def _appear(self, examined: Examined) -> None:
        if examined.problem:
            log.warning("adapter %s is quarantined: %s", examined.ref, examined.problem)
        record = Record(
            examined.ref,
            examined.found,
            examined.inspection,
            self._index.changed,
            look=self._looks,
            problem=examined.problem,
        )
        self._index.add(record)

    def _update(self, record: Record, examined: Examined) -> None:
        if examined.problem:
            log.warning("new files of adapter %s are refused: %s", record.ref, examined.problem)
            record.files_refused(examined.found, examined.problem)
        else:
            record.files_found(examined.found, examined.inspection)

    def _tell_unreadable(self, unreadable: dict[Path, str]) -> None:
        for path, reason in unreadable.items():
            if self._unreadable.get(path) != reason:
                log.warning(
                    "adapters folder %s cannot be read (%s); its adapters stay as they are", path, reason
                )
        self._unreadable = unreadable


def _in_time(ready: Sequence[Found], look_at: Callable[[Found], T]) -> list[tuple[Found, T]]:
    """Look at as many as there is time for, the first BATCH at least."""
    end = time.monotonic() + EXAMINE_SECONDS
    seen: list[tuple[Found, T]] = []
    for found in ready:
        if len(seen) >= BATCH and time.monotonic() >= end:
            break
        seen.append((found, look_at(found)))
    return seen


def read_report(path: Path) -> ReportCard | str | None:
    """The report of an adapter folder, or why it cannot be used, or None if there is none. Blocks."""
    try:
        with Folder.open(path) as folder:
            if folder.entry(REPORT) is None:
                return None
            return parse_report(folder.read(REPORT, limits.REPORT_BYTES))
    except FolderError as error:
        return error.message
    except ReportError as error:
        return str(error)


def _report_of(found: Found) -> ReportCard | str | None:
    return read_report(found.place.folder) if found.report.files else None
