"""One adapter version: what is on disk, what serves, and what was asked of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from router.registry.disk.places import Found, Stamp
from router.registry.format.examine import Inspection
from router.registry.gate.judging import UNJUDGED, Judgement, Verdict
from router.registry.residency import Resident
from router.types import AdapterInfo, AdapterRef, AdapterState


@dataclass(frozen=True, slots=True)
class Live:
    """What a version serves from: immutable, so a lease is one consistent set of weights and prompt."""

    resident: Resident
    inspection: Inspection
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class Parting:
    """What a version served from until an unload; the future ends when the bytes are freed."""

    live: Live
    freed: asyncio.Future[int]


@dataclass(eq=False, slots=True)
class Record:
    """A version. Changed on the event loop only; is an Owner of its resident digest."""

    ref: AdapterRef
    found: Found
    inspection: Inspection | None
    on_evicted: Callable[[Record], None] = field(repr=False)
    look: int = 0  # the look at the folders that found it
    live: Live | None = None
    parting: Parting | None = None
    task: asyncio.Task[None] | None = None  # a load, shared by all who need it
    proven: bool = False  # was loaded and answered its probes, if it has any
    was_live: bool = False
    quarantined: bool = False
    lost: bool = False  # `live` can no longer be read from disk
    error: str = ""
    attempt: Stamp | None = None  # the files that `task` reads
    tried: Stamp | None = None  # these files were refused; they are not tried again by themselves
    retry_at: float = 0.0  # time.monotonic(); after a fault that was not the adapter's
    wanted: bool = False  # to be loaded in the background while it fits
    successor: AdapterRef | None = None  # its folder holds that version now
    double: bool = False  # another folder stands for the same version, with other contents
    removed: bool = False
    pinned: bool = False
    waiting: int = 0  # requests that wait for `task`
    leases: int = 0
    last_used: float | None = None  # unix seconds
    weighed: tuple[Stamp, str] | None = None  # sha256 of the weights of these files
    judgement: Judgement | None = None  # what its own report is worth
    verdict: Verdict = UNJUDGED  # what the gate says of it among the versions of its name
    offered: bool = False  # was to be loaded once for being higher than the default version
    revision: int = 0  # counts changes that users see
    row: tuple[tuple[int, bool, int, float | None], AdapterInfo] | None = None

    @property
    def keeps(self) -> bool:
        """Whether its digest must not be evicted."""
        return self.pinned or self.waiting > 0 or self.lost

    def evicted(self) -> None:
        """Its digest is leaving host memory."""
        self.live = None
        self.on_evicted(self)

    @property
    def outdated(self) -> bool:
        """Serves from other files than those on disk, which were not refused."""
        return self.live is not None and self.live.stamp != self.found.stamp != self.tried

    @property
    def weights_sha256(self) -> str:
        """Of the weights it serves from, else of those on disk; empty where they were not read."""
        if self.live is not None:
            return self.live.inspection.weights_sha256
        if self.weighed is not None and self.weighed[0] == self.found.stamp:
            return self.weighed[1]
        return ""

    @property
    def awaits_files(self) -> bool:
        """Serves from other files than those on disk, refused or not."""
        return self.live is not None and (self.live.stamp != self.found.stamp or self.successor is not None)

    @property
    def state(self) -> AdapterState:
        """State as users see it: a version that can answer is READY whatever else is going on."""
        if self.live is not None:
            return AdapterState.READY
        if self.task is not None:
            return AdapterState.LOADING
        if self.quarantined:
            return AdapterState.QUARANTINED
        return AdapterState.OFFLOADED if self.was_live else AdapterState.DISCOVERED

    def info(self, default: bool) -> AdapterInfo:
        """The row of ListAdapters; made anew only when something in it changed, there may be thousands."""
        key = (self.revision, default, self.leases, self.last_used)
        if self.row is None or self.row[0] != key:
            self.row = (key, self._row(default))
        return self.row[1]

    def _row(self, default: bool) -> AdapterInfo:
        seen = self.live.inspection if self.live is not None else self.inspection
        info = AdapterInfo(
            ref=self.ref,
            state=self.state,
            digest=self.live.resident.digest if self.live is not None else "",
            default=default,
            pinned=self.pinned,
            leases=self.leases,
            last_used=self.last_used,
            error=self.error,
            override=self.verdict.override,
        )
        if self.state is not AdapterState.QUARANTINED:
            info = self._with_gate(info, default)
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
            size_bytes=seen.size_bytes,
            notes=seen.notes,
        )

    def _with_gate(self, info: AdapterInfo, default: bool) -> AdapterInfo:
        if self.verdict.open:
            return replace(info, routable=default)
        why = f"not routed to by itself: {self.verdict.finding}"
        return replace(info, gate=why, gate_advice=self.verdict.advice)
