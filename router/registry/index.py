"""Every version by name, which of them answers for the name, and the news of both.

Versions that passed the gate (`verdict.open`) come before those that did not, whatever their numbers.
"""

from __future__ import annotations

import logging
import secrets
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from router.errors import AdapterNotFound, AdapterRejected
from router.registry.events import EventHub
from router.registry.format.manifest import Manifest
from router.registry.format.names import Key, known_names, known_versions, version_key
from router.registry.gate import NO_GATE, Standing
from router.registry.gatekeeper import Gatekeeper
from router.registry.record import Live, Record
from router.registry.state import Choices, Served
from router.types import (
    EVERYTHING,
    AdapterEventKind,
    AdapterInfo,
    AdapterProfile,
    AdapterRef,
    AdapterState,
    Visible,
)

log = logging.getLogger(__name__)


def default_version(records: Collection[Record], chosen: str, current: str) -> str:
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


def candidate(records: Collection[Record], current: str) -> Record | None:
    """The version that would become the default if it were proven: the highest above the present one."""
    open_now = any(r.verdict.open for r in records if r.ref.version == current)
    fresh = [r for r in records if not r.quarantined and not r.proven and r.ref.version != current]
    passed = [r for r in fresh if r.verdict.open]
    above = [r for r in (passed if open_now else fresh) if _order(r) > version_key(current)]
    return max(above if open_now else passed or above, key=_order, default=None)


def _foremost(records: Collection[Record]) -> list[Record]:
    """Those that passed the gate; else those that may yet pass; else all."""
    passed = [r for r in records if r.verdict.open]
    return passed or [r for r in records if r.verdict.standing is Standing.PENDING] or list(records)


def _highest(records: Collection[Record]) -> str:
    best = max(records, key=_order, default=None)
    return best.ref.version if best is not None else ""


def _order(record: Record) -> Key:
    return version_key(record.ref.version)


def _place(ref: AdapterRef) -> tuple[str, Key]:
    return ref.name, version_key(ref.version)


class Index:
    """The table of versions. Used on the event loop only; nothing here waits."""

    def __init__(
        self,
        hub: EventHub,
        choices: Choices,
        gatekeeper: Gatekeeper,
        preload: bool,
        hash_weights: Callable[[Record], None],
        plan_soon: Callable[[], None],
    ) -> None:
        self._hub, self._choices, self._gatekeeper, self._preload = hub, choices, gatekeeper, preload
        self._hash_weights, self._plan_soon = hash_weights, plan_soon
        self._names: dict[str, dict[str, Record]] = {}
        self._sorted: list[Record] = []  # by name and order of versions
        self._keys: list[tuple[str, Key]] = []  # theirs
        self.restless: dict[str, None] = {}  # names of which something changed since somebody emptied this
        self._defaults: dict[str, str] = {}
        self._stood: dict[str, tuple[str, Served]] = {}  # defaults that were chosen among judged versions
        self._profiles: dict[str, AdapterProfile] = {}
        self._profiled: tuple[AdapterProfile, ...] | None = ()  # all of them, by name; None: to be made anew
        self._made: dict[str, tuple[Manifest, AdapterProfile]] = {}  # by name, and what they were made of
        self._start = secrets.token_hex(4)  # etags of an earlier process never match

    def __iter__(self) -> Iterator[Record]:
        return (r for versions in self._names.values() for r in versions.values())

    def __len__(self) -> int:
        return len(self._sorted)

    # -- looking up

    def get(self, ref: AdapterRef) -> Record | None:
        """The version, if it is there."""
        return self._names.get(ref.name, {}).get(ref.version)

    def versions(self, name: str) -> tuple[Record, ...]:
        """All versions of a name."""
        return tuple(self._names.get(name, {}).values())

    def default_of(self, name: str) -> str:
        """The default version of a name, ''  if there is none."""
        return self._defaults.get(name, "")

    def chosen(self, name: str) -> str:
        """The version set by an operator, if it is there, else ''."""
        version = self._choices.get(name)
        return version if version in self._names.get(name, {}) else ""

    def find(self, name: str, version: str = "", visible: Visible = EVERYTHING) -> Record:
        """The version, or the default version, or if there is none the highest (a quarantined one).

        Raises AdapterNotFound with a hint, which names nothing but what is visible.
        """
        versions = self._names.get(name)
        if versions is None or name not in visible:
            raise AdapterNotFound(name, known_names(name, filter(visible.__contains__, self._names)))
        if version and version not in versions:
            raise AdapterNotFound(f"{name}@{version}", known_versions(versions))
        return versions[version or self.default_of(name) or max(versions, key=version_key)]

    def find_usable(self, name: str, version: str = "", visible: Visible = EVERYTHING) -> Record:
        """Like `find`. Raises AdapterRejected, with the reason, if it is quarantined."""
        record = self.find(name, version, visible)
        if record.state is AdapterState.QUARANTINED:
            raise AdapterRejected(
                f"adapter {record.ref} is quarantined: {record.error}", adapter=str(record.ref)
            )
        return record

    def info(self, record: Record) -> AdapterInfo:
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

    def etag(self, record: Record) -> str:
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

    def _profile(self, record: Record) -> AdapterProfile | None:
        seen, ref = record.serving, record.ref
        if seen is None or record.state is AdapterState.QUARANTINED or not record.verdict.open:
            return None
        manifest, profile = self._made.get(ref.name, (None, None))
        if profile is None or manifest is not seen.manifest or profile.version != ref.version:
            profile = replace(seen.manifest.profile(), name=ref.name, version=ref.version)
            self._made[ref.name] = (seen.manifest, profile)
        return profile

    # -- changing

    def add(self, record: Record) -> None:
        """A version appeared. Call `settle_default` when all that appeared together are added."""
        if not self._gatekeeper.on:
            record.ruled(NO_GATE)
        self._names.setdefault(record.ref.name, {})[record.ref.version] = record
        at = bisect_left(self._keys, key := _place(record.ref))
        self._keys.insert(at, key)
        self._sorted.insert(at, record)
        self._publish(AdapterEventKind.ADDED, record)

    def remove(self, record: Record) -> Live | None:
        """A version is gone from disk: no new request gets it. Gives what it served from."""
        versions = self._names[record.ref.name]
        del versions[record.ref.version]
        live = record.gone()
        at = bisect_left(self._keys, _place(record.ref))
        del self._keys[at], self._sorted[at]
        if not versions:
            del self._names[record.ref.name]
            self._made.pop(record.ref.name, None)
            self._gatekeeper.name_gone(record.ref.name)
        self._publish(AdapterEventKind.REMOVED, record)
        self.settle_default(record.ref.name)
        return live

    def _publish(self, kind: AdapterEventKind, record: Record) -> None:
        if self._hub.watched:  # else nobody wants the row, which is made for that
            self._hub.publish(kind, self.info(record))

    def changed(self, record: Record) -> None:
        """Something users see of it changed: what every record in the table tells."""
        self._publish(AdapterEventKind.CHANGED, record)
        self.settle_default(record.ref.name)

    def settle_default(self, name: str) -> None:
        """Find the default version of `name` again, and tell everybody if it is another one."""
        self.restless[name] = None
        before = self.default_of(name)
        judged = self._gatekeeper.settle(self.versions(name))
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

    def _remember(self, name: str, before: str, now: Record | None) -> None:
        """The way back to a default stays open when another version takes its place. One that only stood in
        while better versions were still being judged and loaded was none.
        """
        stood = self._stood.get(name)
        if stood is not None and stood[0] == before and (now is None or now.ref.version != before):
            self._choices.replaced(name, *stood)
        rivals = [r.verdict for r in self.versions(name) if not r.quarantined]
        judged = all(v.standing is not Standing.PENDING for v in rivals)
        if now is None:
            self._stood.pop(name, None)
        elif judged and (now.verdict.open or not any(v.open for v in rivals)):
            routed = self._gatekeeper.on and now.verdict.open
            self._stood[name] = (now.ref.version, Served(now.weights_sha256, routed))
        elif stood is not None and stood[0] != now.ref.version:
            del self._stood[name]

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
