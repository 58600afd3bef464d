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
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeAlias

from router.errors import AdapterNotFound, AdapterRejected, ChangedElsewhere, NotSaved, SharedDown, StaleEtag
from router.names import Key, known_names, known_versions, version_key
from router.ports import Force, SharedDocuments
from router.registry.format.manifest import Manifest
from router.registry.gate import Gate
from router.registry.record import NO_GATE, Live, Standing, VersionRecord
from router.registry.state import DefaultChoices, FormerDefault, PlannedDefault, yield_if_long
from router.reread import problem_of
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
    """What one watcher has not read yet: at most one event for each adapter version.

    Of those that are `present` nothing is kept but who they are: `look_up` says what they are when their turn
    comes.
    """

    def __init__(self, present: Iterable[AdapterRef] = (), look_up: LookUp = lambda _: None) -> None:
        self._present, self._look_up = OrderedDict.fromkeys(present), look_up
        self._events: OrderedDict[AdapterRef, AdapterEvent] = OrderedDict()
        self._began = time.time()
        self._filled = asyncio.Event()
        self._closed = False
        self._row = 0

    def put(self, event: AdapterEvent) -> None:
        """Add an event, merged with one that waits for the same version."""
        ref = event.adapter.ref
        if ref in self._present:  # its event shows it as it is then
            if event.kind is _REMOVED:
                del self._present[ref]
            return
        waiting = self._events.pop(ref, None)
        kind = _MERGED.get((waiting.kind, event.kind), event.kind) if waiting else event.kind
        if kind is not None:
            self._events[ref] = AdapterEvent(kind, event.adapter, event.time)
            self._filled.set()

    def close(self) -> None:
        """No more events: the reader ends after what is there."""
        self._closed = True
        self._filled.set()

    async def take(self) -> AdapterEvent | None:
        """The oldest event; None once closed and empty."""
        self._row += 1
        if self._row % IN_A_ROW == 0:
            await asyncio.sleep(0)
        while True:
            while self._present:
                ref, _ = self._present.popitem(last=False)
                if (info := self._look_up(ref)) is not None:
                    return AdapterEvent(_ADDED, info, self._began)
            if self._events:
                return self._events.popitem(last=False)[1]
            if self._closed:
                return None
            self._filled.clear()
            await self._filled.wait()


class EventHub:
    """Lifecycle events for any number of watchers, and one callback list for routing."""

    def __init__(self) -> None:
        self._boxes: set[Mailbox] = set()
        self._subscribers: list[Callable[[], None]] = []
        self._pending = False
        self._closed = False

    @property
    def watched(self) -> bool:
        """Whether anybody reads events."""
        return bool(self._boxes)

    def publish(self, kind: AdapterEventKind, info: AdapterInfo) -> None:
        """Hand an event to every watcher."""
        event = AdapterEvent(kind, info, time.time())
        for box in self._boxes:
            box.put(event)

    async def watch(
        self, present: Callable[[], Iterable[AdapterRef]], look_up: LookUp
    ) -> AsyncGenerator[AdapterEvent, None]:
        """The present set as ADDED, then every change, until closed. A slow reader gets merged events."""
        box = Mailbox(present(), look_up)
        if self._closed:
            box.close()
        self._boxes.add(box)
        try:
            while (event := await box.take()) is not None:
                yield event
        finally:
            self._boxes.discard(box)

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Call `changed` on the event loop when profiles may have changed, once for changes made together."""
        self._subscribers.append(changed)

    def profiles_changed(self) -> None:
        """Tell the subscribers soon."""
        if not self._pending and self._subscribers and not self._closed:
            self._pending = True
            asyncio.get_running_loop().call_soon(self._notify)

    def _notify(self) -> None:
        self._pending = False
        for changed in self._subscribers:
            try:
                changed()
            except Exception:
                log.exception("a subscriber of adapter changes failed")

    def close(self) -> None:
        """End every watcher's stream."""
        self._closed = True
        for box in self._boxes:
            box.close()


# -- the table of versions


def default_version(records: Collection[VersionRecord], chosen: str, current: str) -> str:
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
        best = _foremost(usable)
        return _highest([r for r in best if r.proven] or best)
    passed = [r for r in proven if r.verdict.open]
    if not present.verdict.open and passed:
        return _highest(passed)
    rivals = passed if present.verdict.open else proven
    return _highest([present, *(r for r in rivals if _order(r) > _order(present))])


def candidate(records: Collection[VersionRecord], current: str) -> VersionRecord | None:
    """The version that would become the default if it were proven: the highest above the present one."""
    open_now = any(r.verdict.open for r in records if r.ref.version == current)
    fresh = [r for r in records if not r.quarantined and not r.proven and r.ref.version != current]
    passed = [r for r in fresh if r.verdict.open]
    above = [r for r in (passed if open_now else fresh) if _order(r) > version_key(current)]
    return max(above if open_now else passed or above, key=_order, default=None)


def _foremost(records: Collection[VersionRecord]) -> list[VersionRecord]:
    """Those that passed the gate; else those that may yet pass; else all."""
    passed = [r for r in records if r.verdict.open]
    return passed or [r for r in records if r.verdict.standing is Standing.PENDING] or list(records)


def _highest(records: Collection[VersionRecord]) -> str:
    best = max(records, key=_order, default=None)
    return best.ref.version if best is not None else ""


def _order(record: VersionRecord) -> Key:
    return version_key(record.ref.version)


def _place(ref: AdapterRef) -> tuple[str, Key]:
    return ref.name, version_key(ref.version)


class Index:
    """The table of versions. Used on the event loop only; nothing here waits."""

    def __init__(
        self,
        hub: EventHub,
        choices: DefaultChoices,
        gate: Gate,
        preload: bool,
        hash_weights: Callable[[VersionRecord], None],
        plan_soon: Callable[[], None],
    ) -> None:
        self._hub, self._choices, self._gate, self._preload = hub, choices, gate, preload
        self._hash_weights, self._plan_soon = hash_weights, plan_soon
        self._names: dict[str, dict[str, VersionRecord]] = {}
        self._sorted: list[VersionRecord] = []  # by name and order of versions
        self._keys: list[tuple[str, Key]] = []  # theirs
        # Names of which something changed since the planner took them.
        self.changed_names: dict[str, None] = {}
        self._defaults: dict[str, str] = {}
        # Defaults that were chosen among judged versions.
        self._former: dict[str, tuple[str, FormerDefault]] = {}
        self._profiles: dict[str, AdapterProfile] = {}
        self._profiled: tuple[AdapterProfile, ...] | None = ()  # all of them, by name; None: to be made anew
        self._made: dict[str, tuple[Manifest, AdapterProfile]] = {}  # by name, and what they were made of
        self._start = secrets.token_hex(4)  # etags of an earlier process never match

    def __iter__(self) -> Iterator[VersionRecord]:
        return (r for versions in self._names.values() for r in versions.values())

    def __len__(self) -> int:
        return len(self._sorted)

    # -- looking up

    def get(self, ref: AdapterRef) -> VersionRecord | None:
        """The version, if it is there."""
        return self._names.get(ref.name, {}).get(ref.version)

    def versions(self, name: str) -> tuple[VersionRecord, ...]:
        """All versions of a name."""
        return tuple(self._names.get(name, {}).values())

    def default_of(self, name: str) -> str:
        """The default version of a name, ''  if there is none."""
        return self._defaults.get(name, "")

    def chosen(self, name: str) -> str:
        """The version set by an operator, if it is there, else ''."""
        version = self._choices.get(name)
        return version if version in self._names.get(name, {}) else ""

    def find(self, name: str, version: str = "", visible: Visible = EVERYTHING) -> VersionRecord:
        """The version, or the default version, or if there is none the highest (a quarantined one).

        Raises AdapterNotFound with a hint, which names nothing but what is visible.
        """
        versions = self._names.get(name)
        if versions is None or name not in visible:
            raise AdapterNotFound(name, known_names(name, filter(visible.__contains__, self._names)))
        if version and version not in versions:
            raise AdapterNotFound(f"{name}@{version}", known_versions(versions))
        return versions[version or self.default_of(name) or max(versions, key=version_key)]

    def find_usable(self, name: str, version: str = "", visible: Visible = EVERYTHING) -> VersionRecord:
        """Like `find`. Raises AdapterRejected, with the reason, if it is quarantined."""
        record = self.find(name, version, visible)
        if record.state is AdapterState.QUARANTINED:
            raise AdapterRejected(
                f"adapter {record.ref} is quarantined: {record.error}", adapter=str(record.ref)
            )
        return record

    def info(self, record: VersionRecord) -> AdapterInfo:
        """The version as users see it."""
        return record.info(default=self.default_of(record.ref.name) == record.ref.version)

    def listed(self, after: AdapterRef | None = None) -> Iterator[AdapterInfo]:
        """Every version by name and order of versions, those behind `after`, made as they are asked for.

        Nothing may change meanwhile: use it in one step of the event loop.
        """
        start = 0 if after is None else bisect_right(self._keys, _place(after))
        return (self.info(self._sorted[i]) for i in range(start, len(self._sorted)))

    def refs(self) -> tuple[AdapterRef, ...]:
        """Every version in the same order."""
        return tuple(record.ref for record in self._sorted)

    def look_up(self, ref: AdapterRef) -> AdapterInfo | None:
        """The version as users see it, if it is there."""
        record = self.get(ref)
        return None if record is None else self.info(record)

    def etag(self, record: VersionRecord) -> str:
        """Changes with every change of that version, not with its use."""
        return f"{self._start}-{record.revision}"

    def profiles(self) -> tuple[AdapterProfile, ...]:
        """Default versions that can be routed to and passed the gate: the same objects until they change."""
        if self._profiled is None:
            self._profiled = tuple(self._profiles[name] for name in sorted(self._profiles))
        return self._profiled

    def why_none(self, visible: Visible) -> str:
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

    def _profile(self, record: VersionRecord) -> AdapterProfile | None:
        seen, ref = record.serving, record.ref
        if seen is None or record.state is AdapterState.QUARANTINED or not record.verdict.open:
            return None
        manifest, profile = self._made.get(ref.name, (None, None))
        if profile is None or manifest is not seen.manifest or profile.version != ref.version:
            profile = replace(seen.manifest.profile(), name=ref.name, version=ref.version)
            self._made[ref.name] = (seen.manifest, profile)
        return profile

    # -- changing

    def add(self, record: VersionRecord) -> None:
        """A version appeared. Call `settle_default` when all that appeared together are added."""
        if not self._gate.on:
            record.ruled(NO_GATE)
        self._names.setdefault(record.ref.name, {})[record.ref.version] = record
        at = bisect_left(self._keys, key := _place(record.ref))
        self._keys.insert(at, key)
        self._sorted.insert(at, record)
        self._publish(AdapterEventKind.ADDED, record)

    def remove(self, record: VersionRecord) -> Live | None:
        """A version is gone from disk: no new request gets it. Gives what it served from."""
        versions = self._names[record.ref.name]
        del versions[record.ref.version]
        live = record.gone()
        at = bisect_left(self._keys, _place(record.ref))
        del self._keys[at], self._sorted[at]
        if not versions:
            del self._names[record.ref.name]
            self._made.pop(record.ref.name, None)
            self._gate.name_gone(record.ref.name)
        self._publish(AdapterEventKind.REMOVED, record)
        self.settle_default(record.ref.name)
        return live

    def _publish(self, kind: AdapterEventKind, record: VersionRecord) -> None:
        if self._hub.watched:  # else nobody wants the row, which is made for that
            self._hub.publish(kind, self.info(record))

    def changed(self, record: VersionRecord) -> None:
        """Something users see of it changed: every record in the table calls this."""
        self._publish(AdapterEventKind.CHANGED, record)
        self.settle_default(record.ref.name)

    def settle_default(self, name: str) -> None:
        """Find the default version of `name` again, and publish it if it is another one."""
        self.changed_names[name] = None
        before = self.default_of(name)
        judged = self._gate.settle(self.versions(name))
        now = default_version(self.versions(name), self._choices.get(name), before)
        self._defaults[name] = now
        record = self.get(AdapterRef(name, now))
        self._remember(name, before, record)
        if record is None:
            del self._defaults[name]
        self._settle_profile(name, None if record is None else self._profile(record))
        moved = () if now == before else filter(None, (self.get(AdapterRef(name, before)), record))
        for changed in dict.fromkeys((*judged, *moved)):
            changed.row_changed()
            self._publish(AdapterEventKind.CHANGED, changed)
        self._read_more(name, now)
        if record is not None and now != before and self._preload:
            record.preload_wanted()
        if now != before or (judged and len(self.versions(name)) > 1):
            self._plan_soon()

    def _remember(self, name: str, before: str, now: VersionRecord | None) -> None:
        """The way back to a default stays open when another version takes its place. One that only stood in
        while better versions were still being judged and loaded was none.
        """
        former = self._former.get(name)
        if former is not None and former[0] == before and (now is None or now.ref.version != before):
            self._choices.replaced(name, *former)
        rivals = [r.verdict for r in self.versions(name) if not r.quarantined]
        judged = all(v.standing is not Standing.PENDING for v in rivals)
        if now is None:
            self._former.pop(name, None)
        elif judged and (now.verdict.open or not any(v.open for v in rivals)):
            routed = self._gate.on and now.verdict.open
            self._former[name] = (now.ref.version, FormerDefault(now.weights_sha256, routed))
        elif former is not None and former[0] != now.ref.version:
            del self._former[name]

    def _read_more(self, name: str, default: str) -> None:
        """Read weights that are to be compared with a report.

        And load, once, what is newer than the default and only did not pass the gate: somebody put it there.
        """
        for record in self.versions(name):
            if record.verdict.needs_weights:
                self._hash_weights(record)
            failed = record.verdict.standing is Standing.FAILED
            if failed and self._preload and not self.chosen(name) and _order(record) > version_key(default):
                record.preload_offered()

    def _settle_profile(self, name: str, profile: AdapterProfile | None) -> None:
        if self._profiles.get(name) == profile:
            return
        if profile is None:
            del self._profiles[name]
        else:
            self._profiles[name] = profile
        self._profiled = None
        self._hub.profiles_changed()


# -- default versions as operators choose them: on the disk, and at all edges that share their choices


DEFAULTS = "default/"  # and a name: what edges share of it
NewDefault: TypeAlias = tuple[AdapterInfo, AdapterRef | None]  # and the one before


class Chooser:
    """One change at a time, so that an etag is good for one; a change goes to its end when its caller leaves.

    Raises NotSaved where the disk does not take it: then the default is as before. What is `shared` holds at
    all edges or at none.
    """

    def __init__(self, index: Index, choices: DefaultChoices, gate: Gate) -> None:
        self._index, self._choices, self._gate = index, choices, gate
        self.shared: SharedDocuments | None = None  # set before it starts
        self._lock, self._tasks = asyncio.Lock(), set[asyncio.Task[Any]]()
        choices.touched = self._touched

    async def start(self) -> None:
        """Take over what other edges chose."""
        if (shared := self.shared) is None:
            return

        def agree(keys: Collection[str]) -> None:
            self._task(self._agree(shared, keys))

        shared.join(DEFAULTS, self._own, agree)
        await asyncio.gather(*self._tasks)

    @property
    def flaws(self) -> list[str]:
        """Defaults that were chosen for all edges and cannot be served at this one."""
        if self.shared is None:
            return []
        names = (key.removeprefix(DEFAULTS) for key in self.shared.keys(DEFAULTS))
        return [flaw for name in names if (flaw := self._flaw(name, self._choices.get(name)))]

    def _flaw(self, name: str, version: str) -> str:
        if not version or not self._index.versions(name):
            return ""
        record = self._index.get(AdapterRef(name, version))
        if record is None:
            return f"{name}@{version}, the default of all edges, is in no adapters folder of this one"
        problem = record.error if record.state is AdapterState.QUARANTINED else ""
        return f"{record.ref}, the default of all edges, is refused at this one: {problem}" if problem else ""

    def _own(self) -> dict[str, Any]:
        return {f"{DEFAULTS}{name}": entry for name, entry in self._choices.entries().items()}

    async def _agree(self, shared: SharedDocuments, keys: Collection[str]) -> None:
        """As it is now: while this waited, it may have become another."""
        async with self._lock:
            began = time.monotonic()
            for key in keys:
                self._take_over(shared, key.removeprefix(DEFAULTS))
                began = await yield_if_long(began)
            await self._write_rest()

    def _take_over(self, shared: SharedDocuments, name: str) -> None:
        before = self._choices.get(name)
        try:
            self._choices.agree(name, shared.get(f"{DEFAULTS}{name}"))
        except Exception as error:
            log.warning("the choice of another edge for %s cannot be used: %s", name, problem_of(error))
            return
        if (now := self._choices.get(name)) != before:
            log.info("default of %s is %s, as chosen at another edge", name, now or "what the rule says")
        self._index.settle_default(name)

    async def set(self, ref: AdapterRef, etag: str, force: Force | None) -> NewDefault:
        """Make it the default; gives it and the one before."""
        return await asyncio.shield(self._task(self._set(ref, etag, force)))

    async def reset(self, name: str) -> NewDefault:
        """Let the rule decide again; gives what it decided and the default before."""
        return await asyncio.shield(self._task(self._reset(name)))

    async def close(self) -> None:
        """Finish what is under way."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _set(self, ref: AdapterRef, etag: str, force: Force | None) -> NewDefault:
        async with self._lock:
            record = self._index.find(ref.name, ref.version)
            if etag and etag != self._index.etag(record):
                raise StaleEtag(f"adapter {record.ref} changed since its etag was read; read it again")
            if record.state is AdapterState.QUARANTINED:
                raise AdapterRejected(f"adapter {record.ref} is quarantined: {record.error}")
            previous = self._index.default_of(ref.name)
            serving = self._index.get(AdapterRef(ref.name, previous))
            override = self._gate.overruling(record, force, serving)
            await self._make(self._choices.planned(ref.name, record.ref.version, override))
            return self._index.info(record), AdapterRef(ref.name, previous) if previous else None

    async def _reset(self, name: str) -> NewDefault:
        async with self._lock:
            self._index.find(name)
            previous = self._index.default_of(name)
            if self._choices.get(name):
                await self._make(self._choices.planned(name))
            return self._index.info(self._index.find(name)), AdapterRef(name, previous) if previous else None

    async def _make(self, change: PlannedDefault) -> None:
        if self.shared is not None:
            entry = self._choices.entry(change.name, change)
            await self.shared.put(f"{DEFAULTS}{change.name}", entry)
        try:
            await asyncio.to_thread(self._choices.save, change)
        except NotSaved as error:
            if self.shared is None:
                raise
            log.warning("it holds at all edges, but this one's file lacks it: %s", error.message)
        self._choices.take(change)
        self._index.settle_default(change.name)
        await self._write_rest()

    def _touched(self) -> None:
        if not self._lock.locked():  # else its holder writes it
            self._task(self._later())

    async def _later(self) -> None:
        async with self._lock:
            await self._write_rest()

    async def _write_rest(self) -> None:
        """What nobody waits for: the rule made it, and would make it again."""
        while self._choices.unsaved:
            document = self._choices.document()
            try:
                await asyncio.to_thread(self._choices.write, document)
            except OSError as error:
                log.warning("holds until restart, what is known of versions that were the default: %s", error)
        if self.shared is not None:
            for name in self._choices.moved():
                await self._share_rest(self.shared, name)

    async def _share_rest(self, shared: SharedDocuments, name: str) -> None:
        """Every edge finds it out by itself; one that comes later does not."""
        key, entry = f"{DEFAULTS}{name}", self._choices.entry(name)
        if shared.get(key) == entry:
            return
        try:
            await shared.put(key, entry)
        except (ChangedElsewhere, SharedDown) as error:
            log.debug("what became of %s is not shared: %s", name, error.message)

    def _task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
