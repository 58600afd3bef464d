"""Plugins found in a folder, and imported: from a file, folder, entry point or built-in module to what it
registers.

Plugins are code, so a folder or file that strangers can write is refused. A stranger is anybody who could
not make this server run their code anyway: all but its user, root, and those who can write the router
package. Finding plugins takes `stat` alone. What goes wrong while one is loaded is a LoadError. pluggy
finds and checks the hooks of each plugin on its own: one that raises stops none of the others.
"""

from __future__ import annotations

import difflib
import grp
import hashlib
import importlib
import importlib.util
import inspect
import itertools
import os
import pwd
import re
import stat
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from router import hookspecs
from router.built_in import name_of
from router.classifiers import isolation
from router.classifiers.contract import Registrar, Registration
from router.classifiers.isolation import StillRunning, call_in_thread
from router.hookspecs import Check, FindBase
from router.markers import LIMITS, NAME, HookLimits
from router.plugins.tables import SettingsRegistrar, SettingsTable

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from pydantic import BaseModel


PACKAGE = Path(__file__).parents[1]
Stamp = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FoundPlugin:
    """A plugin, a file or a folder with `__init__.py`; or a plugins folder that is `unusable`.

    `refusal` empty: it may be loaded.
    """

    path: Path
    stamp: Stamp
    refusal: str = ""
    unusable: bool = False

    @property
    def name(self) -> str:
        """The plugin's name."""
        return self.path.stem if self.path.suffix == ".py" and not self.unusable else self.path.name


def scan(folders: Sequence[Path]) -> list[FoundPlugin]:
    """Plugins in order of folder and name, and folders that are refused."""
    return [found for folder in folders for found in _scan_one(folder)]


def _scan_one(folder: Path) -> list[FoundPlugin]:
    try:
        status = os.stat(folder)
        refusal = distrust(status, "folder") if stat.S_ISDIR(status.st_mode) else "not a folder"
        if refusal:
            return [FoundPlugin(folder, stamp_of(status), refusal, unusable=True)]
        names = sorted(os.listdir(folder))
    except OSError as error:
        return [FoundPlugin(folder, (), f"{error.strerror or type(error).__name__}", unusable=True)]
    files = (_look(folder / name) for name in names if name[0] not in "_.")
    return [found for found in files if found is not None]


def _look(path: Path) -> FoundPlugin | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None  # removed since it was listed, or a dangling link
    except OSError as error:
        return FoundPlugin(path, (), error.strerror or type(error).__name__)
    if stat.S_ISDIR(status.st_mode):
        return _look_inside(path, status)
    if not stat.S_ISREG(status.st_mode) or path.suffix != ".py":
        return None
    return FoundPlugin(path, stamp_of(status), distrust(status, "file"))


def _look_inside(path: Path, status: os.stat_result) -> FoundPlugin | None:
    """A folder that is one plugin: with a stamp of all its modules, each of which must be trusted."""
    if path.suffix or not (path / "__init__.py").is_file():
        return None
    stamp, refusal = stamp_of(status), distrust(status, "folder")
    for folder, below, files in os.walk(path):
        below[:] = sorted(name for name in below if name[0] not in "_.")
        for name in sorted(one for one in files if one.endswith(".py")):
            try:
                inside = os.stat(os.path.join(folder, name))
            except OSError:
                continue  # removed since it was listed
            stamp += stamp_of(inside)
            refusal = refusal or distrust(inside, f"file {name}")
    return FoundPlugin(path, stamp, refusal)


def folder_stamp(folder: Path) -> Stamp:
    """One stat: differs when a file was added to or removed from the folder. Empty: not there."""
    try:
        return stamp_of(os.stat(folder))
    except OSError:
        return ()


def stamp_of(found: os.stat_result) -> Stamp:
    """Differs when a file was written, replaced, or its owner or mode changed."""
    return (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)


def distrust(found: os.stat_result, what: str) -> str:
    """Why code from a file or folder with this stat must not run; empty if it may."""
    package = os.stat(PACKAGE)
    if found.st_uid not in (os.geteuid(), 0, package.st_uid):
        return (
            f"{what} belongs to another user (uid {found.st_uid}): plugins are code and must belong to the "
            "server's user or root (chown it)"
        )
    if found.st_mode & stat.S_IWOTH:
        return f"{what} is writable by everyone: plugins are code (chmod o-w it)"
    group_writes = bool(found.st_mode & stat.S_IWGRP)
    group_writes_package = bool(package.st_mode & stat.S_IWGRP) and package.st_gid == found.st_gid
    if group_writes and not group_writes_package and not _private_group(found):
        return f"{what} is writable by its group: plugins are code (chmod g-w it)"
    return ""


def _private_group(found: os.stat_result) -> bool:
    """Whether the group is its owner's alone, as umask 002 with one group per user makes it."""
    if found.st_uid == 0:
        return False
    try:
        user, group = pwd.getpwuid(found.st_uid), grp.getgrgid(found.st_gid)
    except KeyError:
        return False
    return (
        user.pw_gid == found.st_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
    )


# -- loading

LOAD_SECONDS = 30.0
MODULE_PREFIX = "lora_router_plugin_"
HOOKS = tuple(name for name in vars(hookspecs) if hasattr(vars(hookspecs)[name], f"{NAME}_spec"))
OBSERVERS = {"on_decision": "record", "on_answer": "record", "on_report": "report"}  # and what they get
# No place to tell of a fault.
OURS = frozenset(
    {Path(__file__).parent, Path(isolation.__file__).parent, Path(hookspecs.__file__).parent / "server"}
)
ENGINE, SOURCE, TEMPLATE = "engine", "adapter source", "constraint template"  # kinds of entries
NAME_FORM = re.compile(r"[a-z0-9][a-z0-9_-]*|\*")  # `*`: any other
_serial = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Hook:
    """A plugin's implementation of one hook."""

    function: Callable[..., Any]
    arguments: tuple[str, ...]  # those that it takes
    limits: HookLimits
    settings: object  # the plugin's own

    @property
    def is_async(self) -> bool:
        """Whether calling it returns a coroutine."""
        return inspect.iscoroutinefunction(self.function)

    def __call__(self, **given: object) -> Any:
        """Call it with those of the arguments that it takes."""
        given["settings"] = self.settings
        return self.function(*(given[name] for name in self.arguments))


@dataclass(frozen=True, slots=True)
class Entry:
    """What a plugin registered under a name: an engine, a source of adapters by its scheme, or a template of
    constraints. `make` is as the hook says; `base` is of an engine."""

    kind: str
    name: str
    make: Any
    base: FindBase | None = None


@dataclass(frozen=True, eq=False, slots=True)
class LoadedPlugin:
    """A plugin that works: its hooks, what it registered, and what is odd about it."""

    hooks: Mapping[str, Hook] = field(default_factory=dict)
    registrations: tuple[Registration, ...] = ()
    entries: tuple[Entry, ...] = ()
    checks: tuple[Check, ...] = ()
    metrics: CollectorRegistry | None = None
    warnings: tuple[str, ...] = ()
    settings: BaseModel | None = None  # an instance of the model that it registered
    origins: Mapping[str, str] = field(default_factory=dict)  # of the fields that are set
    version: str = ""
    digest: str = ""  # sha256 of a file's bytes, or of a folder's files; hex
    module: str = ""  # its key in sys.modules if it is ours to drop


class LoadError(Exception):
    """A plugin could not be loaded; the text is for the operator."""


def load_file(path: Path, table: SettingsTable | None = None) -> LoadedPlugin:
    """Import a plugin file, or a folder with `__init__.py`, as a fresh module; collect what it registers."""
    name = f"{MODULE_PREFIX}{re.sub(r'[^0-9A-Za-z]', '_', path.stem)}_{next(_serial)}"

    def load() -> LoadedPlugin:
        folder = path.is_dir()
        first = path / "__init__.py" if folder else path
        source = first.read_bytes()
        digest = hashlib.sha256(source)
        for other in sorted(path.rglob("*.py")) if folder else ():
            digest.update(f"\0{other.relative_to(path)}\0".encode() + other.read_bytes())
        module = _import(name, first, source, path if folder else None)
        version = str(getattr(module, "__version__", ""))
        collected = collect(module, path.name if folder else path.stem, table)
        return replace(collected, version=version, digest=digest.hexdigest(), module=name)

    try:
        return _guarded(load, path.name)
    except LoadError:
        forget(name)
        raise


def forget(module: str) -> None:
    """Drop a plugin's module and its submodules."""
    for name in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
        del sys.modules[name]


def load_built_in(module: str, table: SettingsTable | None = None) -> LoadedPlugin:
    """Import a module of `router.built_in` and collect what it registers."""

    def load() -> LoadedPlugin:
        from router import __version__

        return replace(collect(importlib.import_module(module), name_of(module), table), version=__version__)

    return _guarded(load, module)


def load_entry_point(entry: EntryPoint, table: SettingsTable | None = None) -> LoadedPlugin:
    """Import an installed plugin and collect what it registers."""

    def load() -> LoadedPlugin:
        version = entry.dist.version if entry.dist else ""
        return replace(collect(entry.load(), entry.name, table), version=version)

    return _guarded(load, entry.name)


def _guarded(load: Callable[[], LoadedPlugin], label: str) -> LoadedPlugin:
    """Raises LoadError for whatever the plugin raises; Ctrl-C meanwhile is no such thing."""

    def described() -> LoadedPlugin:
        try:
            return load()
        except BaseException as error:
            raise LoadError(describe(error)) from error

    try:
        return call_in_thread(described, LOAD_SECONDS, f"load {label}")
    except StillRunning as error:
        raise LoadError(f"loading it {error}") from error


def _import(name: str, path: Path, source: bytes, folder: Path | None) -> ModuleType:
    loader = _BytesLoader(name, str(path), source)
    below = [str(folder)] if folder is not None else None
    spec = importlib.util.spec_from_file_location(name, path, loader=loader, submodule_search_locations=below)
    if spec is None:
        raise ImportError(f"{path.name} is not importable")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader.exec_module(module)
    return module


class _Submodules(MetaPathFinder):
    """Finds the modules in a plugin's folder, which are read as its first one is."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is None or not fullname.startswith(MODULE_PREFIX):
            return None
        for folder in path:
            whole = Path(folder) / fullname.rpartition(".")[2]
            for file, below in ((whole.with_suffix(".py"), None), (whole / "__init__.py", [str(whole)])):
                if file.is_file():
                    loader = _BytesLoader(fullname, str(file), file.read_bytes())
                    return importlib.util.spec_from_file_location(
                        fullname, file, loader=loader, submodule_search_locations=below
                    )
        return None


sys.meta_path.insert(0, _Submodules())


class _BytesLoader(SourceFileLoader):
    """Runs exactly the bytes that were hashed, and neither reads nor writes a .pyc: its key is too coarse."""

    def __init__(self, name: str, path: str, source: bytes) -> None:
        super().__init__(name, path)
        self._source = source

    def get_data(self, path: str) -> bytes:
        return self._source

    def path_stats(self, path: str) -> dict[str, float]:
        raise OSError("no byte code cache")


class HookError(Exception):
    """The plugin's hooks cannot be used as they are written."""


def collect(plugin: object, name: str, table: SettingsTable | None = None) -> LoadedPlugin:
    """What `plugin` registers. Raises HookError, and whatever its hooks raise.

    The methods of a class `Plugin` in it are hooks, too: an object of the class is made here.
    """
    stateful = getattr(plugin, "Plugin", None)
    found, warnings = _hooks_of(name, [plugin, *([stateful()] if isinstance(stateful, type) else [])])
    registrar = SettingsRegistrar(name, table)
    if "register_settings" in found:
        found["register_settings"](register=registrar)
    elif table:
        unused = ", ".join(sorted(one.key for one in table.values))
        warnings.append(f"its settings are not used, since it registers none: {unused}")
    hooks = {hook: replace(impl, settings=registrar.settings) for hook, impl in found.items()}
    classifiers = Registrar(name)
    entries: list[Entry] = []
    checks: list[Check] = []
    registrars: dict[str, Any] = {
        "register_classifiers": classifiers,
        "register_engines": partial(_add_entry, entries, ENGINE),
        "register_adapter_sources": partial(_add_entry, entries, SOURCE),
        "register_constraint_templates": partial(_add_entry, entries, TEMPLATE),
        "register_checks": checks.append,
    }
    for hook, register in registrars.items():
        if hook in hooks:
            hooks[hook](register=register)
    registry = None
    if "register_metrics" in hooks:
        from prometheus_client import CollectorRegistry

        registry = CollectorRegistry()
        hooks["register_metrics"](registry=registry)
    registered = (*classifiers.registrations, *entries, *checks)
    if hooks.keys() <= registrars.keys() and not registered:
        warnings.append("it registers no classifier, nor anything else")
    return LoadedPlugin(
        hooks,
        tuple(classifiers.registrations),
        tuple(entries),
        tuple(checks),
        registry,
        tuple(warnings),
        registrar.settings,
        registrar.origins,
    )


def _add_entry(
    entries: list[Entry], kind: str, name: str, make: Any, /, base: FindBase | None = None
) -> None:
    """The `register` of a hook. Raises ValueError for an invalid name and for one that is there, TypeError
    where there is no function."""
    if not isinstance(name, str) or not NAME_FORM.fullmatch(name):
        raise ValueError(f"{kind} {name!r}: use a-z, 0-9, '_' and '-', starting with a letter or digit")
    if not callable(make):
        raise TypeError(f"{kind} {name!r}: register() got a {type(make).__name__}, not a function")
    if any((other.kind, other.name) == (kind, name) for other in entries):
        raise ValueError(f"{kind} {name!r} is registered twice")
    entries.append(Entry(kind, name, make, base))


def _hooks_of(name: str, parts: Sequence[object]) -> tuple[dict[str, Hook], list[str]]:
    """The hooks of a plugin's module and object, and warnings on unknown ones.

    Raises HookError where there is none, one is there twice, an argument would never arrive, or an observer
    is asynchronous.
    """
    manager = pluggy.PluginManager(NAME)
    manager.add_hookspecs(hookspecs)
    warnings: list[str] = []
    found: dict[str, Hook] = {}
    for part in parts:
        manager.register(part, f"{name} {len(manager.get_plugins())}")
        for caller in manager.get_hookcallers(part) or []:
            if not caller.has_spec():
                warnings.append(_unknown_hook(caller.name))
                continue
            if caller.name in found:
                raise HookError(f"{caller.name} is implemented twice: by a function and by the class Plugin")
            (impl,) = (one for one in caller.get_hookimpls() if one.plugin is part)
            if impl.kwargnames:
                raise HookError(
                    f"{caller.name}: argument {impl.kwargnames[0]!r} has a default, so it is never passed: "
                    f"write {caller.name}({', '.join((*impl.argnames, *impl.kwargnames))}) without it"
                )
            hook = Hook(
                impl.function, tuple(impl.argnames), getattr(impl.function, LIMITS, HookLimits()), None
            )
            if hook.is_async and caller.name in OBSERVERS:
                raise HookError(f"{caller.name} is asynchronous: it has a thread of its own and may block")
            found[caller.name] = hook
    if not found:
        text = "; ".join(warnings) or "decorate a function register_classifiers(register) with @hookimpl"
        raise HookError(f"no hook of {NAME} is implemented: {text}")
    return found, warnings


def _unknown_hook(name: str) -> str:
    """A text on a hook that does not exist, with the likeliest one that does, and all of them."""
    close = difflib.get_close_matches(name, HOOKS, n=1, cutoff=0.7)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown hook {name!r}: {hint}the hooks are {', '.join(HOOKS)}"


def describe(error: BaseException) -> str:
    """Type, text and the last place in foreign code, on one line of at most 500 characters."""
    text = " ".join(traceback.format_exception_only(error)[-1].split())
    return f"{text}{_place(error)}"[:500]


def _place(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f" ({Path(error.filename or '').name}:{error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    foreign = [f for f in frames if Path(f.filename).parent not in OURS and not f.filename.startswith("<")]
    return f" ({Path(foreign[-1].filename).name}:{foreign[-1].lineno})" if foreign else ""
