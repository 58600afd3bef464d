"""One plugin over its life: loaded, reloaded, refused, dropped."""

from __future__ import annotations

import importlib.metadata
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

from router import hookspecs
from router.plugins.folder import Found, Stamp
from router.plugins.judges import JudgeRegistration
from router.plugins.loader import Loaded, LoadError, load_entry_point, load_file
from router.plugins.registration import Registration
from router.plugins.status import PluginStatus

log = logging.getLogger(__name__)
Allowed = frozenset[str] | None


@dataclass(eq=False, slots=True)
class Record:
    """A plugin's present state. `loaded` is the last version that worked."""

    name: str
    source: str
    path: str
    stamp: Stamp = field(default=())
    enabled: bool = True
    error: str = ""
    loaded: Loaded | None = None

    @property
    def registrations(self) -> tuple[Registration, ...]:
        """What the working version registered."""
        return self.loaded.registrations if self.loaded else ()

    @property
    def judges(self) -> tuple[JudgeRegistration, ...]:
        """Judges that the working version registered."""
        return self.loaded.judges if self.loaded else ()

    def status(self, duplicates: tuple[str, ...]) -> PluginStatus:
        """A snapshot."""
        loaded = self.loaded
        return PluginStatus(
            name=self.name,
            source=self.source,
            path=self.path,
            version=loaded.version if loaded else "",
            digest=loaded.digest if loaded else "",
            enabled=self.enabled,
            error=self.error,
            warnings=(*(loaded.warnings if loaded else ()), *duplicates),
            classifiers=tuple(r.status() for r in self.registrations),
            judges=tuple(r.status() for r in self.judges),
        )

    def drop(self) -> None:
        """Forget the code."""
        if self.loaded and self.loaded.module:
            sys.modules.pop(self.loaded.module, None)
        self.loaded = None


def file_record(found: Found, before: Record | None, allowed: Allowed) -> Record:
    """The record of what was found: the one before if nothing changed, else a newly loaded one."""
    if before is not None and before.stamp == found.stamp:
        return before
    name = found.path.name if found.is_folder else found.path.stem
    record = Record(name, "folder" if found.is_folder else "file", str(found.path), found.stamp)
    record.error = found.refusal
    record.enabled = found.is_folder or allowed is None or record.name in allowed
    if found.refusal or not record.enabled:
        if before is not None:
            before.drop()
        if found.refusal:
            log.warning("plugin %s refused: %s", found.path, found.refusal)
        return record
    _load(record, found.path, before)
    return record


def _load(record: Record, path: Path, before: Record | None) -> None:
    """A broken new version leaves the old one working and shows the error."""
    try:
        record.loaded = load_file(path)
    except LoadError as error:
        record.error = str(error)
        record.loaded = before.loaded if before else None
        log.warning("plugin %s not loaded: %s", path, error)
        return
    if before is not None:
        before.drop()


def entry_records(allowed: Allowed) -> list[Record]:
    """Installed plugins, by entry-point name; loaded once."""
    records = []
    for entry in sorted(
        importlib.metadata.entry_points(group=hookspecs.NAME), key=lambda e: (e.name, e.value)
    ):
        record = Record(entry.name, "entry-point", entry.value)
        records.append(record)
        record.enabled = allowed is None or entry.name in allowed
        if record.enabled:
            try:
                record.loaded = load_entry_point(entry)
            except LoadError as error:
                record.error = str(error)
                log.warning("plugin %s not loaded: %s", entry.name, error)
    return records
