"""The table of versions: which of them answers for a name, by the rule or as operators chose, and the events.

Versions that passed the gate (`verdict.open`) come before those that did not, whatever their numbers.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Iterator
from dataclasses import replace

from router.errors import AdapterNotFound, AdapterRejected
from router.names import Key, known_names, known_versions, version_key
from router.ports import Measured
from router.registry.choices import DefaultChoices, FormerDefault
from router.registry.format.folder import read_document
from router.registry.format.manifest import Manifest
from router.registry.gate import Gate
from router.registry.state import PendingWork
from router.registry.version import NO_GATE, AdapterVersion, Live
from router.types import (
    EVERYTHING,
    AdapterEvent,
    AdapterEventKind,
    AdapterInfo,
    AdapterProfile,
    AdapterRef,
    AdapterState,
    Visible,
)

log = logging.getLogger(__name__)

_ADDED, _CHANGED, _REMOVED = AdapterEventKind.ADDED, AdapterEventKind.CHANGED, AdapterEventKind.REMOVED

LookUp = Callable[[AdapterRef], AdapterInfo | None]
IN_A_ROW = 64  # events to one watcher until others have their turn on the event loop

# (not yet delivered, new) -> what is delivered instead of both; None: nothing
_MERGED: dict[tuple[AdapterEventKind, AdapterEventKind], AdapterEventKind | None] = {
    (_ADDED, _CHANGED): _ADDED,
    (_ADDED, _REMOVED): None,
    (_REMOVED, _ADDED): _CHANGED,
}


class Mailbox:
    """What one watcher has not read yet: at most one event for each adapter version, with the version as it
    is when it is read. `present`: those that are there at first."""

    def __init__(self, present: Iterable[AdapterRef], look_up: LookUp) -> None:
        self._look_up, now = look_up, time.time()
        self._waiting = OrderedDict((ref, (_ADDED, now)) for ref in present)
        self._removed: dict[AdapterRef, AdapterInfo] = {}
        self._filled, self._closed = asyncio.Event(), False

    def put(self, kind: AdapterEventKind, info: AdapterInfo) -> None:
        """Add an event, merged with one that waits for the same version."""
        waiting = self._waiting.pop(info.ref, None)
        self._removed.pop(info.ref, None)
        merged = _MERGED.get((waiting[0], kind), kind) if waiting else kind
        if merged is not None:
            self._waiting[info.ref] = (merged, time.time())
            if merged is _REMOVED:
                self._removed[info.ref] = info
            self._filled.set()

    def close(self) -> None:
        """No more events: the reader ends after what is there."""
        self._closed = True
        self._filled.set()

    async def events(self) -> AsyncGenerator[AdapterEvent, None]:
        """The events, the oldest first, until it is closed and empty."""
        given = 0
        while self._waiting or not self._closed:
            while self._waiting:
                ref, (kind, when) = self._waiting.popitem(last=False)
                info = self._removed.pop(ref, None) or self._look_up(ref)
                if info is not None:
                    yield AdapterEvent(kind, info, when)
                given += 1
                if given % IN_A_ROW == 0:
                    await asyncio.sleep(0)
            if not self._closed:
                self._filled.clear()
                await self._filled.wait()


# -- the table of versions


def default_version(records: Collection[AdapterVersion], chosen: str, current: str) -> str:
    """The default version of a name, '' if none can be.

    A chosen version that is there is the default even when it is quarantined: serving another one in its
    place could bring back what was rolled back. Otherwise the default moves to a higher version only after
    that one was loaded and proven, so that the present one serves until then; where there is no present one
    it is the highest. One that did not pass the gate never takes over from one that did, and gives way to it.
    """
    if any(r.ref.version == chosen for r in records):
        return chosen
    usable = [r for r in records if r.usable]
    present = next((r for r in usable if r.ref.version == current), None)
    proven = [r for r in usable if r.proven]
    if present is None:
        best = [r for r in usable if r.verdict.open] or usable
        return _highest([r for r in best if r.proven] or best)
    passed = [r for r in proven if r.verdict.open]
    if not present.verdict.open and passed:
        return _highest(passed)
    rivals = passed if present.verdict.open else proven
    return _highest([present, *(r for r in rivals if _order(r) > _order(present))])


def candidate(records: Collection[AdapterVersion], current: str) -> AdapterVersion | None:
    """The version that would become the default if it were proven: the highest above the present one."""
    open_now = any(r.verdict.open for r in records if r.ref.version == current)
    fresh = [r for r in records if not r.quarantined and not r.proven and r.ref.version != current]
    passed = [r for r in fresh if r.verdict.open]
    above = [r for r in (passed if open_now else fresh) if _order(r) > version_key(current)]
    return max(above if open_now else passed or above, key=_order, default=None)


def _highest(records: Collection[AdapterVersion]) -> str:
    best = max(records, key=_order, default=None)
    return best.ref.version if best is not None else ""


def _order(record: AdapterVersion) -> Key:
    return version_key(record.ref.version)


def _place(ref: AdapterRef) -> tuple[str, Key]:
    return ref.name, version_key(ref.version)


class Table:
    """The table of versions. Used on the event loop only; nothing here waits."""

    def __init__(self, choices: DefaultChoices, gate: Gate, pending: PendingWork, preload: bool) -> None:
        self._choices, self._gate, self._pending, self._preload = choices, gate, pending, preload
        self._names: dict[str, dict[str, AdapterVersion]] = {}
        self._sorted: list[AdapterVersion] = []  # by name and order of versions
        self._keys: list[tuple[str, Key]] = []  # theirs
        self._defaults: dict[str, str] = {}
        # Defaults that were chosen among judged versions.
        self._former: dict[str, tuple[str, FormerDefault]] = {}
        self._profiles: dict[str, AdapterProfile] = {}
        self._profiled: tuple[AdapterProfile, ...] | None = ()  # all of them, by name; None: to be made anew
        self._made: dict[str, tuple[Manifest, AdapterProfile]] = {}  # by name, and what they were made of
        self._start = secrets.token_hex(4)  # etags of an earlier process never match
        self._boxes: set[Mailbox] = set()
        self._subscribers: list[Callable[[], None]] = []
        self._told = True  # the subscribers know of all changes of profiles
        self._closed = False

    # -- looking up

    def at(self, ref: AdapterRef) -> AdapterVersion | None:
        """The version, if it is there."""
        return self._names.get(ref.name, {}).get(ref.version)

    def versions(self, name: str) -> tuple[AdapterVersion, ...]:
        """All versions of a name."""
        return tuple(self._names.get(name, {}).values())

    def default_of(self, name: str) -> str:
        """The default version of a name, ''  if there is none."""
        return self._defaults.get(name, "")

    def chosen(self, name: str) -> str:
        """The version set by an operator, if it is there, else ''."""
        version = self._choices.get(name).version
        return version if version in self._names.get(name, {}) else ""

    def compares_weights(self, ref: AdapterRef, report: bool) -> bool:
        """Whether the gate asks which weights a version has: there is a report of them, or somebody overruled
        the gate for them; from any thread."""
        override = self._choices.get(ref.name).override
        return self._gate.on and (report or (override is not None and override.version == ref.version))

    def find(self, name: str, version: str = "", visible: Visible = EVERYTHING) -> AdapterVersion:
        """The version, or the default version, or if there is none the highest (a quarantined one).

        Raises AdapterNotFound with a hint, which names nothing but what is visible.
        """
        versions = self._names.get(name)
        if versions is None or name not in visible:
            raise AdapterNotFound(name, known_names(name, filter(visible.__contains__, self._names)))
        if version and version not in versions:
            raise AdapterNotFound(f"{name}@{version}", known_versions(versions))
        return versions[version or self.default_of(name) or max(versions, key=version_key)]

    def find_usable(self, name: str, version: str = "", visible: Visible = EVERYTHING) -> AdapterVersion:
        """Like `find`. Raises AdapterRejected, with the reason, if it is quarantined."""
        record = self.find(name, version, visible)
        if record.state is AdapterState.QUARANTINED:
            raise AdapterRejected(
                f"adapter {record.ref} is quarantined: {record.error}", adapter=str(record.ref)
            )
        return record

    def info(self, version: AdapterVersion) -> AdapterInfo:
        """The version as users see it."""
        return version.info(default=self.default_of(version.ref.name) == version.ref.version)

    # -- as users see it

    def resolve(self, name: str, version: str = "", visible: Visible = EVERYTHING) -> AdapterInfo:
        """The version, or the default version of `name`. Raises AdapterNotFound, or AdapterRejected with the
        reason.
        """
        return self.info(self.find_usable(name, version, visible))

    def get(self, name: str, version: str = "", visible: Visible = EVERYTHING) -> AdapterInfo:
        """Like `resolve`, but a quarantined version is returned too."""
        return self.info(self.find(name, version, visible))

    def listed(self, after: AdapterRef | None = None) -> Iterator[AdapterInfo]:
        """Every version by name and order of versions, those behind `after`, made as they are asked for.

        Nothing may change meanwhile: use it in one step of the event loop.
        """
        start = 0 if after is None else bisect_right(self._keys, _place(after))
        return (self.info(self._sorted[i]) for i in range(start, len(self._sorted)))

    def list(self) -> tuple[AdapterInfo, ...]:
        """Every version, quarantined ones too, by name and version."""
        return tuple(self.listed())

    def count(self) -> int:
        """How many versions there are."""
        return len(self._sorted)

    def resident(self) -> Iterator[AdapterInfo]:
        """The versions that are in memory, in no order."""
        return (self.info(version) for version in self._sorted if version.live is not None)

    def etag(self, ref: AdapterRef) -> str:
        """Changes with every change of that version, not with its use."""
        return f"{self._start}-{self.find(ref.name, ref.version).revision}"

    def measured(self, ref: AdapterRef) -> Measured | None:
        """The score and gain of the report that was read of it; None without one."""
        judgement = self.find(ref.name, ref.version).judgement
        if judgement is None or judgement.report is None:
            return None
        score, gain = judgement.report.score, judgement.report.gain
        return Measured(
            judgement.report.metric, (score.value, score.low, score.high), (gain.value, gain.low, gain.high)
        )

    async def document(self, ref: AdapterRef, name: str) -> bytes | None:
        """A file of its folder that is for people; None where there is none, or it is refused."""
        version = self.find(ref.name, ref.version)
        if version.quarantined:
            return None
        return await asyncio.to_thread(read_document, version.found.place.folder, name)

    def profiles(self) -> tuple[AdapterProfile, ...]:
        """Default versions that can be routed to and passed the gate: the same objects until they change."""
        if self._profiled is None:
            self._profiled = tuple(self._profiles[name] for name in sorted(self._profiles))
        return self._profiled

    def why_none(self, visible: Visible = EVERYTHING) -> str:
        """Why no default version can be routed to: one sentence with the first of them; '' where one can."""
        names = [name for name in sorted(self._defaults) if name in visible]
        if not names:
            return "There is no adapter here: copy a folder that PEFT saved into the adapters folder."
        if any(name in visible for name in self._profiles):
            return ""
        first = self.info(self.find(names[0]))
        why = first.error or first.gate or first.routing
        return (
            f"None of the {len(names)} adapters here is routed to; {first.ref} is {why}. "
            f"`lora-router adapters show {first.ref.name}` says what to do."
        )

    def _profile(self, record: AdapterVersion) -> AdapterProfile | None:
        seen, ref = record.serving, record.ref
        if seen is None or record.state is AdapterState.QUARANTINED or not record.verdict.open:
            return None
        manifest, profile = self._made.get(ref.name, (None, None))
        if profile is None or manifest is not seen.manifest or profile.version != ref.version:
            profile = replace(seen.manifest.profile(), name=ref.name, version=ref.version)
            self._made[ref.name] = (seen.manifest, profile)
        return profile

    # -- events

    async def watch(self) -> AsyncGenerator[AdapterEvent, None]:
        """The present set as ADDED, then every change, until closed. A slow reader gets merged events."""
        box = Mailbox([version.ref for version in self._sorted], self._look_up)
        if self._closed:
            box.close()
        self._boxes.add(box)
        try:
            async for event in box.events():
                yield event
        finally:
            self._boxes.discard(box)

    def _look_up(self, ref: AdapterRef) -> AdapterInfo | None:
        version = self.at(ref)
        return None if version is None else self.info(version)

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Call `changed` on the event loop when profiles may have changed, once for changes made together."""
        self._subscribers.append(changed)

    def _publish(self, kind: AdapterEventKind, version: AdapterVersion) -> None:
        for box in self._boxes:
            box.put(kind, self.info(version))

    def _profiles_changed(self) -> None:
        self._profiled = None
        if self._told and self._subscribers and not self._closed:
            self._told = False
            asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        self._told = True
        for changed in self._subscribers:
            try:
                changed()
            except Exception:
                log.exception("a subscriber of adapter changes failed")

    def end_watches(self) -> None:
        """End every watcher's stream."""
        self._closed = True
        for box in self._boxes:
            box.close()

    # -- changing

    def add(self, version: AdapterVersion) -> None:
        """A version appeared. Call `settle` when all that appeared together are added."""
        if not self._gate.on:
            version.ruled(NO_GATE)
        self._names.setdefault(version.ref.name, {})[version.ref.version] = version
        at = bisect_left(self._keys, key := _place(version.ref))
        self._keys.insert(at, key)
        self._sorted.insert(at, version)
        self._publish(AdapterEventKind.ADDED, version)

    def remove(self, version: AdapterVersion) -> Live | None:
        """A version is gone from disk: no new request gets it. Gives what it served from."""
        name = version.ref.name
        del self._names[name][version.ref.version]
        live = version.gone()
        at = bisect_left(self._keys, _place(version.ref))
        del self._keys[at], self._sorted[at]
        if not self._names[name]:
            del self._names[name]
            self._made.pop(name, None)
            self._gate.name_gone(name)
        self._publish(AdapterEventKind.REMOVED, version)
        self.settle(name)
        return live

    def changed(self, version: AdapterVersion) -> None:
        """Something users see of it changed: every version in the table calls this."""
        self._publish(AdapterEventKind.CHANGED, version)
        self.settle(version.ref.name)

    def settle(self, name: str) -> None:
        """Find the default version of `name` again, and publish it if it is another one."""
        versions, before = self.versions(name), self.default_of(name)
        judged = self._gate.settle(name, versions)
        now = default_version(versions, self._choices.get(name).version, before)
        self._defaults[name] = now
        default = self.at(AdapterRef(name, now))
        self._remember(name, before, default)
        if default is None:
            del self._defaults[name]
        self._settle_profile(name, None if default is None else self._profile(default))
        moved = () if now == before else filter(None, (self.at(AdapterRef(name, before)), default))
        for changed in dict.fromkeys((*judged, *moved)):
            changed.row_changed()
            self._publish(AdapterEventKind.CHANGED, changed)
        if self._preload:
            self._want(name, default, before)
        self._pending.plan(name)

    def _want(self, name: str, default: AdapterVersion | None, before: str) -> None:
        """A new default is to be loaded; and, once, what is newer than the default and only did not pass the
        gate: somebody put it there."""
        if default is None:
            return
        if default.ref.version != before:
            default.preload_wanted()
        for version in self.versions(name) if not self.chosen(name) else ():
            if not version.verdict.passed and _order(version) > _order(default):
                version.preload_offered()

    def _remember(self, name: str, before: str, now: AdapterVersion | None) -> None:
        """The way back to a default stays open when another version takes its place. One that only stood in
        while better versions were being loaded was none.
        """
        former = self._former.get(name)
        if former is not None and former[0] == before and (now is None or now.ref.version != before):
            self._choices.replaced(name, *former)
        better = any(v.verdict.open for v in self.versions(name) if not v.quarantined)
        if now is None:
            self._former.pop(name, None)
        elif now.verdict.open or not better:
            routed = self._gate.on and now.verdict.open
            kept = FormerDefault(weights_sha256=now.weights_sha256, routed=routed)
            self._former[name] = (now.ref.version, kept)
        elif former is not None and former[0] != now.ref.version:
            del self._former[name]

    def _settle_profile(self, name: str, profile: AdapterProfile | None) -> None:
        if self._profiles.get(name) == profile:
            return
        if profile is None:
            del self._profiles[name]
        else:
            self._profiles[name] = profile
        self._profiles_changed()
