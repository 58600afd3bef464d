"""One adapter version: what is on disk, what serves, and what was asked of it.

A record alone changes its state. Code that learns of something calls the transition of that name: it checks
that this may happen now, and reports what users can see. All of it happens on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final

from router.registry.folders import FoundFolder, Stamp
from router.registry.format.artifact import Inspection
from router.registry.format.folder import REPORT
from router.registry.format.manifest import Manifest, ReportCard
from router.registry.residency import Resident
from router.types import AdapterInfo, AdapterRef, AdapterState, Override


class Standing(Enum):
    """Where a version stands with the gate."""

    PASSED = auto()
    PENDING = auto()  # something has not been read yet
    FAILED = auto()


@dataclass(frozen=True, slots=True)
class ReportJudgement:
    """What a report is worth for these weights. `again`: another evaluation might help."""

    standing: Standing
    finding: str = ""
    again: bool = False
    weights: str = ""  # sha256 hex of those it is about; empty where they were not read
    report: ReportCard | None = None


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """The gate's verdict on a version among the others of its name.

    `open`: it may be routed to, for the `reason`. Otherwise `finding` is why not, and `advice` what to do.
    """

    standing: Standing
    open: bool = False
    reason: str = ""
    finding: str = ""
    advice: str = ""
    override: Override | None = None
    needs_weights: bool = False  # they have to be read before more is known


UNJUDGED = GateVerdict(Standing.PENDING, finding=f"its {REPORT} has not been read yet")
NO_GATE = GateVerdict(Standing.PASSED, open=True, reason="the gate is off")


@dataclass(frozen=True, slots=True)
class Live:
    """What a version serves from: immutable, so a lease is one consistent set of weights and prompt."""

    resident: Resident
    inspection: Inspection
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class UnloadUnderWay:
    """What a version served from until an unload; the future ends when the bytes are freed."""

    live: Live
    freed: asyncio.Future[int]


class VersionRecord:
    """A version, and an Owner of the digest it serves from.

    `notify` is called after every change that users see. A `problem` with its files quarantines it from the
    start. A `duplicate` stands beside the version that its folder claims. `look` is the number of the look at
    the folders that found it.
    """

    def __init__(
        self,
        ref: AdapterRef,
        found: FoundFolder,
        inspection: Inspection | None,
        notify: Callable[[VersionRecord], None],
        *,
        look: int = 0,
        problem: str = "",
        duplicate: bool = False,
    ) -> None:
        self.ref: Final = ref
        self.look: Final = look
        self.duplicate: Final = duplicate
        self._notify: Final = notify
        # the files
        self._found, self._inspection = found, inspection
        self._weights: tuple[Stamp, str] | None = None  # sha256 of the weights of these files
        self._quarantined, self._error = bool(problem), problem
        self._lost = False  # `live` can no longer be read from disk
        self._tried: Stamp | None = None  # these files were refused; they are not tried again by themselves
        self._successor: AdapterRef | None = None
        self._removed = False
        # memory
        self._live: Live | None = None
        self._unloading: UnloadUnderWay | None = None
        self._was_live = self._proven = False
        self._task: asyncio.Task[None] | None = None
        self._attempt: Stamp | None = None  # the files that `_task` reads
        self._retry_at = 0.0  # time.monotonic(); after a fault that was not the adapter's
        self._preload = self._offered = False
        # use
        self._pinned = False
        self._waiting = 0  # requests that wait for `_task`
        self._leases = 0
        self._last_used: float | None = None  # unix seconds
        self._since = time.time()
        # the gate
        self._judgement: ReportJudgement | None = None
        self._verdict = UNJUDGED
        # what users see
        self._revision = 0
        self._row: tuple[tuple[int, bool], AdapterInfo] | None = None

    # -- what it is

    @property
    def found(self) -> FoundFolder:
        """Its folder as it is now."""
        return self._found

    @property
    def inspection(self) -> Inspection | None:
        """What the files on disk are; None where they could not be examined."""
        return self._inspection

    @property
    def serving(self) -> Inspection | None:
        """What the files are that it serves from, else those on disk."""
        return self._live.inspection if self._live is not None else self._inspection

    @property
    def size_bytes(self) -> int:
        """How much memory a load may need."""
        return self._inspection.size_bytes if self._inspection is not None else 0

    @property
    def weights_sha256(self) -> str:
        """Of the weights it serves from, else of those on disk; empty where they were not read."""
        if self._live is not None:
            return self._live.inspection.weights_sha256
        if self._weights is not None and self._weights[0] == self._found.stamp:
            return self._weights[1]
        return ""

    @property
    def live(self) -> Live | None:
        """What it serves from."""
        return self._live

    @property
    def unloading(self) -> UnloadUnderWay | None:
        """The last unload."""
        return self._unloading

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The load under way, shared by all who need it."""
        return self._task

    @property
    def proven(self) -> bool:
        """Was loaded and answered its probes, if it has any."""
        return self._proven

    @property
    def quarantined(self) -> bool:
        """Its files are refused, and it serves from no others."""
        return self._quarantined

    @property
    def usable(self) -> bool:
        """Whether it serves or may be loaded."""
        return self._live is not None or not self._quarantined

    @property
    def error(self) -> str:
        """Why its files cannot be served, or why the last load failed."""
        return self._error

    @property
    def successor(self) -> AdapterRef | None:
        """The version that its folder holds now."""
        return self._successor

    @property
    def removed(self) -> bool:
        """Gone from disk."""
        return self._removed

    @property
    def pinned(self) -> bool:
        """Must not be evicted: an operator pinned it."""
        return self._pinned

    @property
    def keeps(self) -> bool:
        """Whether its digest must not be evicted."""
        return self._pinned or self._waiting > 0 or self._lost

    @property
    def outdated(self) -> bool:
        """Serves from other files than those on disk, which were not refused."""
        return self._live is not None and self._live.stamp != self._found.stamp != self._tried

    @property
    def awaits_files(self) -> bool:
        """Serves from other files than those on disk, refused or not."""
        return self._live is not None and (
            self._live.stamp != self._found.stamp or self._successor is not None
        )

    @property
    def awaits_preload(self) -> bool:
        """To be loaded in the background while it fits."""
        return self._preload and self._live is None and not self._quarantined

    def may_load(self, now: float) -> bool:
        """Whether a load may begin by itself at `now` (time.monotonic() seconds)."""
        return self._task is None and not self._quarantined and now >= self._retry_at

    @property
    def judgement(self) -> ReportJudgement | None:
        """What its own report is worth."""
        return self._judgement

    @property
    def verdict(self) -> GateVerdict:
        """What the gate says of it among the versions of its name."""
        return self._verdict

    @property
    def revision(self) -> int:
        """Counts changes that users see."""
        return self._revision

    @property
    def state(self) -> AdapterState:
        """State as users see it: a version that can answer is READY whatever else is going on."""
        if self._live is not None:
            return AdapterState.READY
        if self._task is not None:
            return AdapterState.LOADING
        if self._quarantined:
            return AdapterState.QUARANTINED
        return AdapterState.OFFLOADED if self._was_live else AdapterState.DISCOVERED

    # -- on disk

    def files_found(self, found: FoundFolder, inspection: Inspection | None) -> None:
        """Its folder was examined and can be served as far as one can see."""
        assert not self._removed
        self._successor = None
        if (self._found, self._inspection) == (found, inspection) and not self._error:
            return
        self._found, self._inspection = found, inspection
        if self._tried != found.stamp:
            self._quarantined = self._lost = False
            self._error, self._retry_at = "", 0.0
        self._changed()

    def files_refused(self, found: FoundFolder, reason: str) -> None:
        """Its folder was examined and cannot be served."""
        assert not self._removed
        self._successor, self._found = None, found
        self._refuse(reason)
        self._tried = found.stamp
        self._changed()

    def folder_taken(self, by: AdapterRef) -> None:
        """Its folder holds another version now. See `superseded` and `gone` for what becomes of it."""
        assert not self._removed
        self._successor = by

    def superseded(self) -> None:
        """No folder holds it any more: it serves until its successor does."""
        assert self._live is not None
        assert self._successor is not None
        self._lost = True
        self._error = f"its folder holds {self._successor} now, which serves as soon as it is loaded"
        self._changed()

    def gone(self) -> Live | None:
        """It is listed no longer and gets no new lease; gives what it served from, which is to be dropped."""
        assert not self._removed
        live, self._live = self._live, None
        self._removed = True
        return live

    # -- loading

    def preload_wanted(self) -> None:
        """It should be loaded in the background, if it never was and is not refused."""
        self._preload |= not (self._was_live or self._quarantined)

    def preload_offered(self) -> None:
        """Like `preload_wanted`, but once only: for being higher than the default version."""
        if not (self._offered or self._was_live or self._quarantined):
            self._preload = self._offered = True

    def preload_dropped(self) -> None:
        """There is no room for it."""
        self._preload = False

    def load_began(self, task: asyncio.Task[None]) -> None:
        """A load began; the change until `load_ended` is shown as one."""
        assert self._task is None
        self._task = task
        self._changed()

    def load_attempted(self) -> FoundFolder:
        """The load reads the files as they are now."""
        assert self._task is not None
        self._attempt = self._found.stamp
        return self._found

    def load_succeeded(self, live: Live) -> Live | None:
        """It passed its probes, if it has any. New leases get `live`, those in flight keep what it served
        from so far, which is given back."""
        assert self._task is not None
        before, self._live = self._live, live
        self._inspection, self._weights = live.inspection, (live.stamp, live.inspection.weights_sha256)
        self._was_live = self._proven = True
        self._quarantined = self._preload = False
        self._retry_at = 0.0
        self._lost = live.stamp != self._found.stamp == self._tried  # replaced by bad files meanwhile
        if not self._lost:
            self._error, self._tried = "", None
        return before

    def load_refused(self, reason: str) -> None:
        """The files that were read cannot be served; of others that came meanwhile nothing is known."""
        assert self._task is not None
        self._preload = False
        if self._attempt == self._found.stamp:
            self._tried = self._attempt
            self._refuse(reason)

    def load_postponed(self, reason: str, retry_at: float) -> None:
        """The load failed, and not for the adapter's fault."""
        assert self._task is not None
        self._error, self._preload, self._retry_at = reason, False, retry_at

    def load_ended(self) -> None:
        """The load is over, well or not."""
        assert self._task is not None
        self._task = None
        self._changed()

    def _refuse(self, reason: str) -> None:
        """The files on disk cannot be served: it is quarantined unless it serves from older ones."""
        if self._live is None:
            self._quarantined, self._proven = True, False
            self._error = reason
        else:
            self._lost = True
            self._error = f"the files on disk are refused, those read before serve on: {reason}"

    # -- in use

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """A request waits for the load."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    def leased(self) -> None:
        """A request uses it."""
        assert self._live is not None or self._unloading is not None
        self._leases += 1
        self._last_used = time.time()

    def released(self) -> None:
        """A request uses it no longer."""
        assert self._leases > 0
        self._leases -= 1
        self._last_used = time.time()

    def pin(self, pinned: bool) -> None:
        """An operator wants it to stay in memory, or no longer."""
        if self._pinned is not pinned:
            self._pinned = pinned
            self._changed()

    def unloaded(self, freed: asyncio.Future[int]) -> UnloadUnderWay:
        """An operator wants it out of memory, which ends when its bytes are `freed`; its pin ends, too."""
        assert self._live is not None
        self._unloading = UnloadUnderWay(self._live, freed)
        self._live, self._pinned = None, False
        self._quarantined = self._lost  # nothing on disk to load again
        self._changed()
        return self._unloading

    def evicted(self) -> None:
        """Its digest is leaving host memory."""
        assert self._live is not None
        assert not self.keeps
        self._live = None
        self._changed()

    # -- the gate

    def weights_read(self, found: FoundFolder, sha256: str) -> None:
        """The sha256 of the weights in the folder as it was `found`."""
        assert not self._removed
        self._weights = (found.stamp, sha256)
        self._changed()

    def judged(self, judgement: ReportJudgement) -> None:
        """What its own report is worth now."""
        self._judgement = judgement

    def ruled(self, verdict: GateVerdict) -> None:
        """What the gate says of it now; `row_changed` when all versions of the name are ruled."""
        self._verdict = verdict

    # -- what users see

    def row_changed(self) -> None:
        """Its row differs for something outside of it: it is the default, or no longer, or the gate ruled."""
        self._revision += 1

    def info(self, default: bool) -> AdapterInfo:
        """The row of ListAdapters; made anew only when something in it changed, there may be thousands."""
        key, row = (self._revision, default), self._row
        if row is None or row[0] != key:
            row = (key, self._make_row(default))
        elif (row[1].leases, row[1].last_used) != (self._leases, self._last_used):
            row = (key, replace(row[1], leases=self._leases, last_used=self._last_used))
        self._row = row
        return row[1]

    def _changed(self) -> None:
        if not self._removed:
            self._revision += 1
            self._notify(self)

    def _routing(self, default: bool) -> str:
        """Why requests that name no adapter may come to it, or may not: one sentence for people."""
        verdict, seen = self._verdict, self.serving
        if not verdict.open:
            return f"Not routed to: {verdict.finding}."
        if not default:
            return "Answers by name only: another version is the default."
        if seen is not None and not _learnable(seen.manifest):
            lacks = "adapter.toml has no [routing] examples and no description"
            return f"Open ({verdict.reason}), but no classifier can pick it: {lacks}."
        return f"Routed to: {verdict.reason}."

    def _make_row(self, default: bool) -> AdapterInfo:
        seen, verdict = self.serving, self._verdict
        judged = self.state is not AdapterState.QUARANTINED
        shut = judged and not verdict.open
        info = AdapterInfo(
            ref=self.ref,
            state=self.state,
            digest=self._live.resident.digest if self._live is not None else "",
            default=default,
            pinned=self._pinned,
            leases=self._leases,
            last_used=self._last_used,
            since=self._since,
            error=self._error,
            folder=str(self._found.place.folder),
            override=verdict.override,
            routable=judged and verdict.open and default,
            routing=self._routing(default) if judged else "",
            gate=f"not routed to by itself: {verdict.finding}" if shut else "",
            gate_advice=verdict.advice if shut else "",
            built_in=self._found.built_in,
        )
        if seen is None:
            return info
        return replace(
            info,
            domain=seen.manifest.domain,
            task=seen.manifest.task,
            description=seen.manifest.description,
            base_model=seen.base_model,
            rank=seen.rank,
            target_modules=seen.target_modules,
            invocation_tokens=seen.invocation_tokens,
            size_bytes=seen.size_bytes,
            notes=seen.notes,
        )


def _learnable(manifest: Manifest) -> bool:
    """Whether classifiers have something to learn the adapter from."""
    return bool(manifest.routing.examples or manifest.routing.keywords or manifest.description.strip())
