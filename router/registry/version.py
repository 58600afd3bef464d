"""One adapter version: what is on disk, what serves, and what was asked of it.

A version alone changes its state: others read its attributes, and call the transition that is named after
what they have learned. It checks that this may happen now. All of it happens on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from router.registry.folders import Examined, FoundFolder
from router.registry.format.artifact import Inspection
from router.registry.format.manifest import Manifest, ReportCard
from router.registry.residency import Resident
from router.types import AdapterInfo, AdapterRef, AdapterState, Override


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a report is worth for these weights: it passes, or `finding` says why not.

    `again`: another evaluation might help. `weights`: sha256 hex of those it is about, '' if not known.
    """

    finding: str = ""
    again: bool = False
    weights: str = ""
    report: ReportCard | None = None

    @property
    def passed(self) -> bool:
        """Whether the report alone lets the version be routed to."""
        return not self.finding


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """The gate's verdict on a version among the others of its name.

    `passed`: by itself. `open`: it may be routed to, for the `reason`, also as somebody overruled the gate.
    Otherwise `finding` is why not, and `advice` what to do.
    """

    passed: bool
    open: bool = False
    reason: str = ""
    finding: str = ""
    advice: str = ""
    override: Override | None = None


UNJUDGED = GateVerdict(passed=False, finding="it has not been judged yet")
NO_GATE = GateVerdict(passed=True, open=True, reason="the gate is off")


@dataclass(frozen=True, slots=True)
class Live:
    """What a version serves from: immutable, so a lease is one consistent set of weights and prompt."""

    resident: Resident
    inspection: Inspection
    found: FoundFolder


class AdapterVersion:
    """A version, and an Owner of the digest it serves from.

    `changed` is called after every change that users see. `look` is the number of the look at the folders
    that found it.
    """

    def __init__(self, seen: Examined, changed: Callable[[AdapterVersion], None], look: int = 0) -> None:
        self.ref: Final = seen.ref
        self.look: Final = look
        self._notify: Final = changed
        # the files
        self.found, self.inspection, self.report = seen.found, seen.inspection, seen.report
        self._weights = seen.weights_sha256  # of the files as they were found
        self.quarantined, self.error = bool(seen.problem), seen.problem
        self.rivals = ""  # other folders that claim to be this version
        self._lost = False  # `live` can no longer be read from disk
        self._problem = seen.problem  # of the last examination
        self._tried: FoundFolder | None = seen.found if seen.problem else None  # these files were refused
        self.successor: AdapterRef | None = None  # the version that its folder holds now
        self.removed = False
        # memory
        self.live: Live | None = None
        self.unloading: Resident | None = None  # what it served from until the last unload
        self.proven = False  # it was loaded and answered its probes, if it has any
        self._was_live = False
        self.task: asyncio.Task[None] | None = None  # the load under way, shared by all who need it
        self._attempt: FoundFolder | None = None  # the files that `task` reads
        self._retry_at = 0.0  # time.monotonic(); after a fault that was not the adapter's
        self._preload = self._offered = False
        # use
        self.pinned = False  # an operator pinned it
        self._waiting = 0  # requests that wait for `task`
        self._leases = 0
        self._last_used: float | None = None  # unix seconds
        self._since = time.time()
        # the gate
        self.judgement: Judgement | None = None
        self.verdict = UNJUDGED
        # what users see
        self.revision = 0  # counts changes that users see
        self._row: tuple[tuple[int, bool], AdapterInfo] | None = None

    # -- what it is

    @property
    def serving(self) -> Inspection | None:
        """What the files are that it serves from, else those on disk; None if those cannot be examined."""
        return self.live.inspection if self.live is not None else self.inspection

    @property
    def size_bytes(self) -> int:
        """How much memory a load may need."""
        return self.inspection.size_bytes if self.inspection is not None else 0

    @property
    def weights_sha256(self) -> str:
        """Of the weights it serves from, else of those on disk; empty where they were not read."""
        return self.live.inspection.weights_sha256 if self.live is not None else self._weights

    @property
    def usable(self) -> bool:
        """Whether it serves or may be loaded."""
        return self.live is not None or not self.quarantined

    @property
    def keeps(self) -> bool:
        """Whether its digest must not be evicted."""
        return self.pinned or self._waiting > 0 or self._lost

    @property
    def outdated(self) -> bool:
        """Serves from other files than those on disk, which were not refused."""
        return self._differs and not _same(self._tried, self.found)

    @property
    def awaits_files(self) -> bool:
        """Serves from other files than those on disk, refused or not."""
        return self._differs or (self.live is not None and self.successor is not None)

    @property
    def _differs(self) -> bool:
        return self.live is not None and not self.live.found.same_files(self.found)

    @property
    def awaits_preload(self) -> bool:
        """To be loaded in the background while it fits."""
        return self._preload and self.live is None and not self.quarantined

    def may_load(self, now: float) -> bool:
        """Whether a load may begin by itself at `now` (time.monotonic() seconds)."""
        return self.task is None and not self.quarantined and now >= self._retry_at

    @property
    def state(self) -> AdapterState:
        """State as users see it: a version that can answer is READY whatever else is going on."""
        if self.live is not None:
            return AdapterState.READY
        if self.task is not None:
            return AdapterState.LOADING
        if self.quarantined:
            return AdapterState.QUARANTINED
        return AdapterState.OFFLOADED if self._was_live else AdapterState.DISCOVERED

    # -- on disk

    def files_examined(self, seen: Examined, rivals: str = "") -> None:
        """Its folder was examined; `rivals` says which other folders claim to be it."""
        assert not self.removed
        now = (seen.found, seen.inspection, seen.report, seen.problem, rivals)
        same = now == (self.found, self.inspection, self.report, self._problem, self.rivals)
        self.successor = None
        if same and (seen.problem or not self.error):
            return
        before, self.found, self.rivals, self.report = self.found, seen.found, rivals, seen.report
        mended, self._problem = bool(self._problem), seen.problem
        if not seen.found.same_files(before) or not self._weights:
            self._weights = seen.weights_sha256
        if seen.problem:
            self._refuse(seen.problem)
            self._tried = seen.found
        else:
            self.inspection = seen.inspection
            if mended or not _same(self._tried, seen.found):
                self.quarantined = self._lost = False
                self.error, self._retry_at, self._tried = "", 0.0, None
        self._changed()

    def folder_taken(self, by: AdapterRef) -> None:
        """Its folder holds another version now. See `superseded` and `gone` for what becomes of it."""
        assert not self.removed
        self.successor = by

    def superseded(self) -> None:
        """No folder holds it any more: it serves until its successor does."""
        assert self.live is not None
        assert self.successor is not None
        self._lost = True
        self.error = f"its folder holds {self.successor} now, which serves as soon as it is loaded"
        self._changed()

    def gone(self) -> Live | None:
        """It is listed no longer and gets no new lease; gives what it served from, which is to be dropped."""
        assert not self.removed
        live, self.live = self.live, None
        self.removed = True
        return live

    # -- loading

    def preload_wanted(self) -> None:
        """It should be loaded in the background, if it never was and is not refused."""
        self._preload |= not (self._was_live or self.quarantined)

    def preload_offered(self) -> None:
        """Like `preload_wanted`, but once only: for being higher than the default version."""
        if not (self._offered or self._was_live or self.quarantined):
            self._preload = self._offered = True

    def preload_dropped(self) -> None:
        """There is no room for it."""
        self._preload = False

    def load_began(self, task: asyncio.Task[None]) -> None:
        """A load began; the change until `load_ended` is shown as one."""
        assert self.task is None
        self.task = task
        self._changed()

    def load_attempted(self) -> FoundFolder:
        """The load reads the files as they are now."""
        assert self.task is not None
        self._attempt = self.found
        return self.found

    def load_succeeded(self, live: Live) -> Live | None:
        """It passed its probes, if it has any. New leases get `live`, those in flight keep what it served
        from so far, which is given back."""
        assert self.task is not None
        before, self.live = self.live, live
        self.inspection = live.inspection
        if not self._differs:
            self._weights = live.inspection.weights_sha256
        self._was_live = self.proven = True
        self.quarantined = self._preload = False
        self._retry_at = 0.0
        self._lost = self._differs and _same(self._tried, self.found)  # replaced by bad files meanwhile
        if not self._lost:
            self.error, self._tried = "", None
        return before

    def load_refused(self, reason: str) -> None:
        """The files that were read cannot be served; of others that came meanwhile nothing is known."""
        assert self.task is not None
        self._preload = False
        if _same(self._attempt, self.found):
            self._tried = self._attempt
            self._refuse(reason)

    def load_postponed(self, reason: str, retry_at: float) -> None:
        """The load failed, and not for the adapter's fault."""
        assert self.task is not None
        self.error, self._preload, self._retry_at = reason, False, retry_at

    def load_ended(self) -> None:
        """The load is over, well or not."""
        assert self.task is not None
        self.task = None
        self._changed()

    def _refuse(self, reason: str) -> None:
        """The files on disk cannot be served: it is quarantined unless it serves from older ones."""
        if self.live is None:
            self.quarantined, self.proven = True, False
            self.error = reason
        else:
            self._lost = True
            self.error = f"the files on disk are refused, those read before serve on: {reason}"

    # -- in use

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """A request waits for the load."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    @contextmanager
    def leased(self) -> Iterator[None]:
        """A request uses it."""
        assert self.live is not None
        self._leases += 1
        self._last_used = time.time()
        try:
            yield
        finally:
            self._leases -= 1
            self._last_used = time.time()

    def pin(self, pinned: bool) -> None:
        """An operator wants it to stay in memory, or no longer."""
        if self.pinned is not pinned:
            self.pinned = pinned
            self._changed()

    def unloaded(self) -> Live:
        """An operator wants it out of memory: its pin ends. Gives what it served from."""
        assert self.live is not None
        live, self.live, self.pinned = self.live, None, False
        self.unloading = live.resident
        self.quarantined = self._lost  # nothing on disk to load again
        self._changed()
        return live

    def evicted(self) -> None:
        """Its digest is leaving host memory."""
        assert self.live is not None
        assert not self.keeps
        self.live = None
        self._changed()

    def weights_read(self, found: FoundFolder, sha256: str) -> None:
        """The sha256 of the weights in its folder as it was `found`."""
        if not self.removed and self.found.same_files(found):
            self._weights = sha256
            self._changed()

    # -- the gate

    def judged(self, judgement: Judgement) -> None:
        """What its own report is worth now."""
        self.judgement = judgement

    def ruled(self, verdict: GateVerdict) -> None:
        """What the gate says of it now; `row_changed` when all versions of the name are ruled."""
        self.verdict = verdict

    # -- what users see

    def row_changed(self) -> None:
        """Its row differs for something outside of it: it is the default, or no longer, or the gate ruled."""
        self.revision += 1

    def info(self, default: bool) -> AdapterInfo:
        """The row of ListAdapters; made anew only when something in it changed, there may be thousands."""
        key, row = (self.revision, default), self._row
        if row is None or row[0] != key:
            row = (key, self._make_row(default))
        elif (row[1].leases, row[1].last_used) != (self._leases, self._last_used):
            row = (key, replace(row[1], leases=self._leases, last_used=self._last_used))
        self._row = row
        return row[1]

    def _changed(self) -> None:
        if not self.removed:
            self.revision += 1
            self._notify(self)

    def _routing(self, default: bool) -> str:
        """Why requests that name no adapter may come to it, or may not: one sentence for people."""
        verdict, seen = self.verdict, self.serving
        if not verdict.open:
            return f"Not routed to: {verdict.finding}."
        if not default:
            return "Answers by name only: another version is the default."
        if seen is not None and not _learnable(seen.manifest):
            lacks = "adapter.toml has no [routing] examples and no description"
            return f"Open ({verdict.reason}), but no classifier can pick it: {lacks}."
        return f"Routed to: {verdict.reason}."

    def _make_row(self, default: bool) -> AdapterInfo:
        seen, verdict = self.serving, self.verdict
        judged = self.state is not AdapterState.QUARANTINED
        shut = judged and not verdict.open
        info = AdapterInfo(
            ref=self.ref,
            state=self.state,
            digest=self.live.resident.digest if self.live is not None else "",
            default=default,
            pinned=self.pinned,
            leases=self._leases,
            last_used=self._last_used,
            since=self._since,
            error=self.error or self.rivals,
            folder=str(self.found.place.folder),
            override=verdict.override,
            routable=judged and verdict.open and default,
            routing=self._routing(default) if judged else "",
            gate=f"not routed to by itself: {verdict.finding}" if shut else "",
            gate_advice=verdict.advice if shut else "",
            built_in=self.found.built_in,
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


def _same(one: FoundFolder | None, other: FoundFolder) -> bool:
    return one is not None and one.same_files(other)


def _learnable(manifest: Manifest) -> bool:
    """Whether classifiers have something to learn the adapter from."""
    return bool(manifest.routing.examples or manifest.routing.keywords or manifest.description.strip())
