"""Making the table of versions agree with the folders on disk, one look after another."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from router.registry.folders import (
    Changes,
    Debouncer,
    DueFolders,
    Examined,
    FolderReader,
    FoundFolder,
    Scan,
    Scanner,
    examine,
    sketch,
)
from router.registry.format.manifest import ReportCard, read_report
from router.registry.gate import Gate
from router.registry.index import Index
from router.registry.record import VersionRecord
from router.registry.state import Workers, yield_if_long
from router.types import AdapterRef


class Claims:
    """Folders in the order in which they came; the first one without a problem stands for its version."""

    def __init__(self) -> None:
        self._by_folder: dict[Path, Examined] = {}
        self._folders: dict[AdapterRef, list[Path]] = {}

    def get(self, folder: Path) -> Examined | None:
        """What a folder held when it was last examined."""
        return self._by_folder.get(folder)

    def put(self, examined: Examined) -> tuple[AdapterRef, AdapterRef | None]:
        """Take note of a folder; gives the version it stands for, and the one before if it was another.

        A folder that turned bad stands for what it stood for: bad files cannot say who they are.
        """
        folder = examined.found.place.folder
        before = self._by_folder.get(folder)
        if before is not None and examined.problem:
            examined = replace(examined, ref=before.ref, inspection=before.inspection)
        self._by_folder[folder] = examined
        if before is not None and before.ref == examined.ref:
            return examined.ref, None
        self._folders.setdefault(examined.ref, []).append(folder)
        if before is None:
            return examined.ref, None
        self._unclaim(before)
        return examined.ref, before.ref

    def drop(self, folder: Path) -> AdapterRef | None:
        """A folder is gone; returns the version it stood for."""
        examined = self._by_folder.pop(folder, None)
        if examined is None:
            return None
        self._unclaim(examined)
        return examined.ref

    def _unclaim(self, before: Examined) -> None:
        folders = self._folders[before.ref]
        folders.remove(before.found.place.folder)
        if not folders:
            del self._folders[before.ref]

    def claimants(self, ref: AdapterRef) -> list[Examined]:
        """Who claims a version: first the one that stands for it."""
        found = [self._by_folder[folder] for folder in self._folders.get(ref, ())]
        return sorted(found, key=lambda e: bool(e.problem))


class Duplicates:
    """Lists a folder that claims the version of another one: quarantined, beside that version."""

    def __init__(self, claims: Claims, index: Index) -> None:
        self._claims, self._index = claims, index
        self._shown: dict[AdapterRef, dict[Path, VersionRecord]] = {}

    def show(self, ref: AdapterRef) -> None:
        """Make what is listed agree with the claims of a version."""
        claimants = self._claims.claimants(ref)
        wanted = {one.found.place.folder: _refusal(one, claimants[0]) for one in claimants[1:]}
        shown = self._shown.pop(ref, {})
        for folder in [f for f, record in shown.items() if record.error != wanted.get(f)]:
            self._index.remove(shown.pop(folder))
        for one in claimants[1:]:
            folder = one.found.place.folder
            if folder not in shown:
                shown[folder] = self._add(ref, one, wanted[folder])
        if shown:
            self._shown[ref] = shown

    def _add(self, ref: AdapterRef, examined: Examined, problem: str) -> VersionRecord:
        number = 1
        while self._index.get(duplicate_ref(ref, number)) is not None:
            number += 1
        record = VersionRecord(
            duplicate_ref(ref, number),
            examined.found,
            examined.inspection,
            self._index.changed,
            problem=problem,
            duplicate=True,
        )
        self._index.add(record)
        return record


def _refusal(examined: Examined, first: Examined) -> str:
    mine, theirs = (one.found.place.folder.name for one in (examined, first))
    return examined.problem or (
        f"folder {mine!r} claims {examined.ref}, which folder {theirs!r} holds; remove one of them, or give "
        "one another name or version"
    )


def duplicate_ref(ref: AdapterRef, number: int) -> AdapterRef:
    """Under what the `number`th refused duplicate of a version is listed: as build metadata, so beside it."""
    mark = f"{'.' if '+' in ref.version else '+'}double.{number}"
    return AdapterRef(ref.name, ref.version[: 63 - len(mark)] + mark)


# -- one look: scan, examine, and change the table


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
        reader: FolderReader,
        workers: Workers,
        index: Index,
        gate: Gate,
        remove: Callable[[VersionRecord], None],
        grace: float,
        caught_up: Callable[[], None],
    ) -> None:
        self._scanner, self._reader, self._workers = scanner, reader, workers
        self._index, self._gate = index, gate
        self._remove, self._grace, self._caught_up = remove, grace, caught_up
        self._folders = Debouncer(settle)
        self._reports = Debouncer(settle, lambda found: found.report)
        self._claims = Claims()
        self._duplicates = Duplicates(self._claims, index)
        self._unreadable: dict[Path, str] = {}
        self._again: dict[Path, float] = {}
        self._seen = Scan({})  # the last one that the debouncers know of
        self._unsure: set[Path] = set()  # to be looked at the next time, whether or not a change is reported
        self._taken: set[VersionRecord] = set()  # their folder holds another version
        self._looks = 0
        self._left = False  # the last look had no time for all
        self.scan_seconds = 0.0  # what the last look cost when nothing had changed

    @property
    def behind(self) -> bool:
        """Whether something was left that may not be routed to until it is read."""
        return self._left and self._gate.on

    async def look(self, dirty: Collection[Path] = (), every_file: bool = True) -> bool:
        """Look once; whether another look is needed soon."""
        now = time.monotonic()
        again = [p for p, due in self._again.items() if due <= now]
        for path in again:
            del self._again[path]
            self._folders.again(path)
        paths = {*dirty, *self._unsure, *again}
        scan, changes = await self._workers.in_order(self._scan, paths, every_file, self._seen)
        self.scan_seconds = time.monotonic() - now
        self._log_unreadable(dict(scan.unreadable))
        due = self._folders.look(changes, time.monotonic())
        reports = self._reports.look(changes, time.monotonic()) if self._gate.on else DueFolders()
        self._seen, self._unsure = scan, {*due.awaited, *reports.awaited}
        left, self._left = self._left, False
        await self._settle(due.gone, await self._sketched(due.ready))
        examined = await self._examine_still(self._new_first(due.ready))
        reported, more = await self._read_reports(reports)
        await self._settle((), examined, reported)
        if left and not self._left:
            self._caught_up()
        return due.unsettled or more or len(examined) < len(due.ready)

    def _scan(self, paths: Collection[Path], every_file: bool, seen: Scan) -> tuple[Scan, Changes]:
        scan = self._scanner.scan(paths, every_file)
        return scan, scan.since(seen)

    def _new_first(self, ready: Sequence[FoundFolder]) -> list[FoundFolder]:
        """Somebody waits for new ones."""
        new, known = list[FoundFolder](), list[FoundFolder]()
        for found in ready:
            (known if self._is_known(found) else new).append(found)
        return new + known

    async def _read_reports(self, due: DueFolders) -> tuple[list[Path], bool]:
        """Read reports that are new; gives their folders, and whether there are more.

        A report waits for its adapter: copied in together, they are judged together.
        """
        for folder in due.gone:
            self._gate.forget(folder)
        ready = [found for found in due.ready if self._folders.is_done(found) and self._may_read(found)]
        read = await self._workers.in_order(_in_time, ready, _report_of)
        self._gate.reported({found.place.folder: report for found, report in read})
        self._reports.done(found for found, _ in read)
        self._left |= len(read) < len(ready)
        return [found.place.folder for found, _ in read], due.unsettled or len(read) < len(ready)

    def _may_read(self, found: FoundFolder) -> bool:
        """Whether the report may be parsed."""
        known = self._claims.get(found.place.folder)
        return not self._reader.vets or (known is not None and not known.problem)

    async def _sketched(self, ready: Sequence[FoundFolder]) -> list[Examined]:
        """Where many folders are new at once: all of them by name, so that none waits for its turn."""
        new = [found for found in ready if not self._is_known(found)]
        if len(new) <= BATCH or self._reader.vets:
            return []
        sketches: list[tuple[FoundFolder, Examined | None]] = []
        while len(sketches) < len(new):  # others want that thread, too
            sketches += await self._workers.in_order(_in_time, new[len(sketches) :], sketch)
        return [e for _, e in sketches if e is not None]

    def _is_known(self, found: FoundFolder) -> bool:
        known = self._claims.get(found.place.folder)
        return known is not None and (known.found is found or known.found == found)

    async def _examine_still(self, ready: Sequence[FoundFolder]) -> list[Examined]:
        """What is known of folders now: not of those that changed again or may still be written."""
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
            began = await yield_if_long(began)
        read = (self._claims.get(folder) for folder in reported)
        for name in dict.fromkeys(e.ref.name for e in read if e is not None):
            self._index.settle_default(name)
            began = await yield_if_long(began)

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
        for ref in touched:
            self._apply(ref)
            self._duplicates.show(ref)
        for name in dict.fromkeys(ref.name for ref in touched):
            self._index.settle_default(name)

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
            log.info("adapter %s is gone from disk, or another folder overrides it", ref)
            self._remove(record)

    def _appear(self, examined: Examined) -> None:
        if examined.problem:
            log.warning("adapter %s is quarantined: %s", examined.ref, examined.problem)
        record = VersionRecord(
            examined.ref,
            examined.found,
            examined.inspection,
            self._index.changed,
            look=self._looks,
            problem=examined.problem,
        )
        self._index.add(record)

    def _update(self, record: VersionRecord, examined: Examined) -> None:
        if examined.problem:
            log.warning("new files of adapter %s are refused: %s", record.ref, examined.problem)
            record.files_refused(examined.found, examined.problem)
        else:
            record.files_found(examined.found, examined.inspection)

    def _log_unreadable(self, unreadable: dict[Path, str]) -> None:
        for path, reason in unreadable.items():
            if self._unreadable.get(path) != reason:
                log.warning(
                    "adapters folder %s cannot be read (%s); its adapters stay as they are", path, reason
                )
        self._unreadable = unreadable


def _in_time(
    ready: Sequence[FoundFolder], look_at: Callable[[FoundFolder], T]
) -> list[tuple[FoundFolder, T]]:
    """Look at as many as there is time for, the first BATCH at least."""
    end = time.monotonic() + EXAMINE_SECONDS
    seen: list[tuple[FoundFolder, T]] = []
    for found in ready:
        if len(seen) >= BATCH and time.monotonic() >= end:
            break
        seen.append((found, look_at(found)))
    return seen


def _report_of(found: FoundFolder) -> ReportCard | str | None:
    return read_report(found.place.folder) if found.report.files else None
