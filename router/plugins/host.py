"""Finds plugins, keeps their faults as data, and picks up changes of the folders while the server runs.

Built-in plugins are those of `router.built_in`. Any package that some other one draws in may say
that it has a plugin. So an installed plugin is code that the operator has not chosen until it is named; a
file in a plugins folder was put there.
"""

from __future__ import annotations

import asyncio
import difflib
import importlib.metadata
import logging
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path

from router.built_in import built_in_modules, is_built_in, name_of
from router.classifiers.contract import ClassifierStatus, Registration
from router.classifiers.isolation import await_in_thread
from router.errors import ConfigError
from router.hookspecs import MakeConstraint
from router.markers import NAME
from router.plugins.loader import (
    ENGINE,
    SOURCE,
    TEMPLATE,
    Entry,
    FoundPlugin,
    LoadedPlugin,
    LoadError,
    Stamp,
    describe,
    folder_stamp,
    forget,
    load_built_in,
    load_entry_point,
    load_file,
    scan,
)
from router.plugins.tables import SettingsTable, canonical

log = logging.getLogger(__name__)
SCAN_SECONDS = 0.2
ENGINE_HOOKS = {"register_settings", "register_engines"}
NOTHING = LoadedPlugin()
Allowed = frozenset[str] | None  # names of plugins; None: all


def _not_overridden(found: Sequence[FoundPlugin]) -> list[FoundPlugin]:
    """Without built-in files that there is another file of the same name for."""
    ours = {one.path for one in found if is_built_in(one.path, "plugins")}
    names = {one.name for one in found if not one.unusable and one.path not in ours}
    return [one for one in found if one.path not in ours or one.name not in names]


class PluginHost:
    """Plugins from folders (in their order), from the entry-point group `lora_router`, and built-in ones.

    `load_plugins` is an allow-list for the folders, names separated by commas: None loads all, "" loads none.
    `installed_plugins` names the entry points to load, NAME or PACKAGE:NAME; no other is imported. A plugin's
    name is its file's stem, its folder's or its entry point's name. A file overrides the built-in one of its
    name. `tables` has the settings of plugins by their canonical names.
    """

    def __init__(
        self,
        dirs: Sequence[Path],
        load_plugins: str | None = None,
        installed_plugins: str = "",
        tables: Mapping[str, SettingsTable] | None = None,
        built_in: bool = False,
    ) -> None:
        self._dirs = tuple(Path(d).absolute() for d in dirs)
        self._allowed = None if load_plugins is None else _names(load_plugins)
        self._installed = frozenset(map(_canonical, _names(installed_plugins)))
        self._lock = threading.Lock()
        self._tables = dict(tables or {})
        self._files: dict[Path, PluginRecord] = {}
        self._built_in: list[PluginRecord] | None = None if built_in else []
        self._entries: list[PluginRecord] | None = None
        self._active: tuple[Registration, ...] = ()
        self._duplicates: dict[PluginRecord, tuple[str, ...]] = {}
        self._folder_stamps: tuple[Stamp, ...] = ()
        self._next_scan = 0.0
        self._started = 0.0
        self._pending: asyncio.Task[None] | None = None
        self._unannounced = False  # classifiers changed, and `subscribe`'s callbacks do not know yet
        self._changed: list[Callable[[], None]] = []
        self.refreshed: Callable[[], Awaitable[None]] | None = (
            None  # awaited after each refresh on the event loop
        )
        self.problem = ""  # why the last refresh failed; empty if it did not

    def refresh(self) -> bool:
        """Load what is new, reload what changed, drop what is gone. Blocks; True if classifiers changed."""
        with self._lock:
            stamps = tuple(folder_stamp(d) for d in self._dirs)
            found = _not_overridden(scan(self._dirs))
            if self._built_in is None:
                self._built_in = built_in_plugins(self._tables)
            if self._entries is None:
                self._entries = entry_point_plugins(self._installed, self._tables)
            before = self._files
            self._files = {
                f.path: file_plugin(f, before.get(f.path), self._allowed, self._tables) for f in found
            }
            for path, plugin in self._files.items():
                plugin.built_in = is_built_in(path, "plugins")
            for path in before.keys() - self._files.keys():
                before[path].drop()
            self._folder_stamps = stamps
            return self._activate()

    def _activate(self) -> bool:
        """The first classifier of a name wins; the others are reported."""
        classifiers: dict[str, Registration] = {}
        duplicates: dict[PluginRecord, tuple[str, ...]] = {}
        used: dict[tuple[str, str], str] = {}  # kind and name of an engine or source, and whose it is
        for plugin in self._plugins():
            for entry in plugin.contents.entries:
                if (owner := used.setdefault((entry.kind, entry.name), plugin.name)) != plugin.name:
                    text = f"{entry.kind} {entry.name!r} is not used: plugin {owner!r} has one of that name"
                    duplicates[plugin] = (*duplicates.get(plugin, ()), text)
            for registration in plugin.contents.registrations:
                if registration.optional and self._allowed is None and plugin.source == "file":
                    registration.health.state = "off"
                    continue
                first = classifiers.setdefault(registration.name, registration)
                if first is not registration:
                    text = (
                        f"classifier {first.name!r} is not used: plugin {first.plugin!r} has one of that name"
                    )
                    duplicates[plugin] = (*duplicates.get(plugin, ()), text)
        active = tuple(sorted(classifiers.values(), key=lambda r: (r.priority, r.name)))
        changed = active != self._active
        self._active, self._duplicates = active, duplicates
        return changed

    def _plugins(self) -> list[PluginRecord]:
        return [*self._files.values(), *(self._entries or ()), *(self._built_in or ())]

    def running(self) -> dict[LoadedPlugin, PluginRecord]:
        """The plugins that are loaded, by the version that works."""
        return {plugin.loaded: plugin for plugin in self._plugins() if plugin.loaded is not None}

    def engines(self) -> dict[str, Entry]:
        """Engines of plugins by name."""
        return self._entries_of(ENGINE)

    def sources(self) -> dict[str, Entry]:
        """Adapter sources of plugins by scheme."""
        return self._entries_of(SOURCE)

    def constraint_templates(self) -> dict[str, MakeConstraint]:
        """Templates of constraints of plugins by name."""
        return {name: entry.make for name, entry in self._entries_of(TEMPLATE).items()}

    def _entries_of(self, kind: str) -> dict[str, Entry]:
        """Entries by name; the first of a name counts."""
        found = (entry for plugin in reversed(self._plugins()) for entry in plugin.contents.entries)
        return {entry.name: entry for entry in found if entry.kind == kind}

    def check_tables(self) -> None:
        """Raises ConfigError for settings of a plugin that is nowhere, with the nearest name, and for those
        that a built-in plugin does not take."""
        known = {canonical(status.name): status for status in self.status()}
        for name, table in self._tables.items():
            if name not in known:
                raise ConfigError(_no_plugin(name, table, known))
            if table and known[name].source == "built-in" and known[name].error:
                raise ConfigError(known[name].error)

    def check_engine(self, engine: str) -> None:
        """Raises ConfigError for settings of a plugin that is there for other engines than this one."""
        for plugin in self._plugins():
            names = [entry.name for entry in plugin.contents.entries if entry.kind == ENGINE]
            table = self._tables.get(canonical(plugin.name))
            if (
                table
                and plugin.loaded
                and names
                and engine not in names
                and plugin.loaded.hooks.keys() <= ENGINE_HOOKS
            ):
                first, which = table.values[0], " or ".join(names)
                raise ConfigError(
                    f"{first.name} (from {first.origin}) is for the engine {which}, and engine is {engine}: "
                    f"set engine to {which}, or take {first.name} away"
                )

    def registrations(self) -> tuple[Registration, ...]:
        """Classifiers in the order in which they are asked: by priority, then name."""
        return self._active

    def status(self) -> tuple[PluginStatus, ...]:
        """Every plugin found, those that failed or are switched off too."""
        found = tuple(plugin.status(self._duplicates.get(plugin, ())) for plugin in self._plugins())
        return (*found, *self._not_found())

    def _not_found(self) -> list[PluginStatus]:
        files = (self._allowed or frozenset()) - {plugin.name for plugin in self._files.values()}
        entries = self._entries or ()
        installed = self._installed - {name for plugin in entries for name in (plugin.name, plugin.full_name)}
        absent = [(name, "allow-list", "no plugin of this name was found") for name in sorted(files)]
        absent += [(name, "installed", "no installed package has it") for name in sorted(installed)]
        return [PluginStatus(name, source, "", enabled=False, error=error) for name, source, error in absent]

    @property
    def flaws(self) -> list[str]:
        """What is wrong with plugins, for operators: those loaded before go on."""
        broken = [f"plugin {plugin.name}: {plugin.error}" for plugin in self._plugins() if plugin.error]
        return [*([self.problem] if self.problem else []), *broken]

    def subscribe(self, changed: Callable[[], None]) -> None:
        """`changed` is called on the event loop after classifiers changed."""
        self._changed.append(changed)

    def stale(self) -> bool:
        """Whether the folders may have changed: one stat a folder, and a whole scan every 200 ms."""
        if time.monotonic() >= self._next_scan:
            return True
        return tuple(folder_stamp(d) for d in self._dirs) != self._folder_stamps

    async def pick_up(self, wait: float | None = None) -> None:
        """Refresh off the event loop; callers share one refresh and none waits past `wait` s of it."""
        now = time.monotonic()
        if self._pending is None or self._pending.done():
            self._started, self._next_scan = now, now + SCAN_SECONDS
            self._pending = asyncio.create_task(self._refresh(), name="plugins refresh")
        left = None if wait is None else self._started + wait - now
        if left is None or left > 0:
            await asyncio.wait({self._pending}, timeout=left)

    async def _refresh(self) -> None:
        try:
            changed = await await_in_thread(self.refresh, "plugins refresh")
            self._unannounced |= changed
            if self._unannounced:
                log.info("classifiers: %s", ", ".join(r.name for r in self._active) or "none")
                for callback in self._changed:
                    callback()
                self._unannounced = False
            if self.refreshed is not None:
                await self.refreshed()
        except Exception as error:
            problem = f"plugins cannot be refreshed: {describe(error)}"
            if problem != self.problem:
                log.error("plugins could not be refreshed; those loaded go on", exc_info=error)
            self.problem = problem
        else:
            self.problem = ""

    async def watch(self, interval: float = 1.0) -> None:
        """Pick up changes until cancelled."""
        while True:
            await asyncio.sleep(interval)
            await self.pick_up()


def _no_plugin(name: str, table: SettingsTable, known: Iterable[str]) -> str:
    first = next(iter(table.values), None)
    origin = first.origin if first else "a settings file"
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean [{near[0]}]?" if near else "`lora-router plugins list` shows all plugins"
    return f"[{name}] (from {origin}) is no setting, and no plugin is called so; {hint}"


def _names(listed: str) -> frozenset[str]:
    return frozenset(name.strip() for name in listed.split(",") if name.strip())


def _canonical(name: str) -> str:
    """NAME, or PACKAGE:NAME with the package as registries compare it."""
    package, colon, entry = name.rpartition(":")
    return re.sub(r"[-_.]+", "-", package.strip()).lower() + colon + entry.strip()


@dataclass(eq=False, slots=True)
class PluginRecord:
    """One plugin over its life. `loaded` is the last version that worked."""

    name: str
    source: str
    path: str
    stamp: Stamp = field(default=())
    enabled: bool = True
    error: str = ""
    loaded: LoadedPlugin | None = None
    package: str = ""  # of an entry point
    built_in: bool = False
    faults: Callable[[], Sequence[str]] = tuple  # of its hooks while the server runs

    @property
    def full_name(self) -> str:
        """PACKAGE:NAME of an entry point."""
        return _canonical(f"{self.package}:{self.name}")

    @property
    def contents(self) -> LoadedPlugin:
        """The version that works; an empty one where there is none."""
        return self.loaded or NOTHING

    def status(self, duplicates: tuple[str, ...]) -> PluginStatus:
        """A snapshot."""
        loaded = self.contents
        return PluginStatus(
            name=self.name,
            source=self.source,
            path=self.path,
            version=loaded.version,
            digest=loaded.digest,
            enabled=self.enabled,
            error=self.error,
            warnings=(*loaded.warnings, *duplicates, *self.faults()),
            classifiers=tuple(r.status() for r in loaded.registrations),
            package=self.package,
            built_in=self.built_in,
            hooks=tuple(sorted(loaded.hooks)),
        )

    def drop(self) -> None:
        """Forget the code."""
        if self.loaded and self.loaded.module:
            forget(self.loaded.module)
        self.loaded = None


def file_plugin(
    found: FoundPlugin, before: PluginRecord | None, allowed: Allowed, tables: Mapping[str, SettingsTable]
) -> PluginRecord:
    """What was found as a plugin: the one before if nothing changed, else a newly loaded one."""
    if before is not None and before.stamp == found.stamp:
        return before
    plugin = PluginRecord(found.name, "folder" if found.unusable else "file", str(found.path), found.stamp)
    plugin.error = found.refusal
    plugin.enabled = found.unusable or allowed is None or plugin.name in allowed
    if found.refusal or not plugin.enabled:
        if before is not None:
            before.drop()
        if found.refusal:
            log.warning("plugin %s refused: %s", found.path, found.refusal)
        return plugin
    table = tables.get(canonical(plugin.name))
    _load(plugin, partial(load_file, found.path, table), before)
    return plugin


def _load(plugin: PluginRecord, load: Callable[[], LoadedPlugin], before: PluginRecord | None = None) -> None:
    """Load it, or note its error: a broken new version leaves the one before working."""
    try:
        plugin.loaded = load()
    except LoadError as error:
        plugin.error = str(error)
        plugin.loaded = before.loaded if before is not None else None
        log.warning(
            "plugin %s not loaded: %s", plugin.path if plugin.source == "file" else plugin.name, error
        )
        return
    if before is not None:
        before.drop()


def built_in_plugins(tables: Mapping[str, SettingsTable]) -> list[PluginRecord]:
    """All of them; one that cannot be loaded has an error, as any other plugin."""
    found = []
    for module, path in built_in_modules().items():
        plugin = PluginRecord(name_of(module), "built-in", str(path), built_in=True)
        _load(plugin, partial(load_built_in, module, tables.get(canonical(plugin.name))))
        found.append(plugin)
    return found


def entry_point_plugins(named: frozenset[str], tables: Mapping[str, SettingsTable]) -> list[PluginRecord]:
    """Installed plugins, by entry-point name; those that are `named` are imported, once."""
    entries = importlib.metadata.entry_points(group=NAME)
    made = [(_entry_plugin(entry), entry) for entry in sorted(entries, key=lambda e: (e.name, e.value))]
    for plugin, entry in made:
        alike = {other.full_name for other, _ in made if other.name == plugin.name}
        plugin.enabled = bool(named & {plugin.name, plugin.full_name})
        if plugin.name in named and len(alike) > 1 and not named & alike:
            plugin.error = (
                f"several packages have it, so none is loaded: name one of {', '.join(sorted(alike))}"
            )
        elif plugin.enabled and (len(alike) == 1 or plugin.full_name in named):
            _load(plugin, partial(load_entry_point, entry, tables.get(canonical(entry.name))))
        else:
            plugin.enabled = False
    return [plugin for plugin, _ in made]


def _entry_plugin(entry: EntryPoint) -> PluginRecord:
    return PluginRecord(entry.name, "entry-point", entry.value, package=entry.dist.name if entry.dist else "")


@dataclass(frozen=True, slots=True)
class PluginStatus:
    """One plugin, loaded or not.

    `error` says why it, or its newest version, does not work; classifiers listed beside an error belong
    to the last version that did.
    """

    name: str
    source: str  # file, entry-point, built-in; folder: a plugins folder; allow-list, installed: not found
    path: str
    version: str = ""
    digest: str = ""  # sha256 of the file's bytes, hex
    enabled: bool = True
    error: str = ""
    warnings: tuple[str, ...] = ()
    classifiers: tuple[ClassifierStatus, ...] = ()
    package: str = ""  # that an entry point came with
    built_in: bool = False  # it comes with lora-router
    hooks: tuple[str, ...] = ()  # that it implements
