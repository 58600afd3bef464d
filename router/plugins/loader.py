"""From a file or entry point to what it registers; whatever goes wrong is a LoadError with a text.

pluggy calls the hooks, of each plugin on its own: one that raises stops none of the others.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import itertools
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pluggy

from router import hookspecs
from router.classifiers import isolation
from router.classifiers.isolation import StillRunning, call_in_thread
from router.classifiers.registration import Registrar, Registration
from router.plugins.judges import JudgeRegistrar, JudgeRegistration

LOAD_SECONDS = 30.0
MODULE_PREFIX = "lora_router_plugin_"
HOOKS = tuple(name for name in vars(hookspecs) if hasattr(vars(hookspecs)[name], f"{hookspecs.NAME}_spec"))
OURS = frozenset({Path(__file__).parent, Path(isolation.__file__).parent})  # no place to tell of a fault
_serial = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A plugin that works: what it registered, and what is odd about it."""

    registrations: tuple[Registration, ...]
    judges: tuple[JudgeRegistration, ...]
    warnings: tuple[str, ...]
    version: str = ""
    digest: str = ""  # sha256 of a file's bytes, hex
    module: str = ""  # its key in sys.modules if it is ours to drop


class LoadError(Exception):
    """A plugin could not be loaded; the text is for the operator."""


def load_file(path: Path) -> Loaded:
    """Import a plugin file under a fresh module name and collect what it registers."""
    name = f"{MODULE_PREFIX}{re.sub(r'[^0-9A-Za-z]', '_', path.stem)}_{next(_serial)}"

    def load() -> Loaded:
        source = path.read_bytes()
        module = _import(name, path, source)
        version = str(getattr(module, "__version__", ""))
        digest = hashlib.sha256(source).hexdigest()
        return replace(_collect(module, path.stem), version=version, digest=digest, module=name)

    try:
        return _guarded(load, path.name)
    except LoadError:
        sys.modules.pop(name, None)
        raise


def load_entry_point(entry: EntryPoint) -> Loaded:
    """Import an installed plugin and collect what it registers."""

    def load() -> Loaded:
        version = entry.dist.version if entry.dist else ""
        return replace(_collect(entry.load(), entry.name), version=version)

    return _guarded(load, entry.name)


def _guarded(load: Callable[[], Loaded], label: str) -> Loaded:
    try:
        return call_in_thread(load, LOAD_SECONDS, f"load {label}")
    except StillRunning as error:
        raise LoadError(f"loading it {error}") from error
    except BaseException as error:
        raise LoadError(describe(error)) from error


def _import(name: str, path: Path, source: bytes) -> ModuleType:
    loader = _BytesLoader(name, str(path), source)
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    if spec is None:
        raise ImportError(f"{path.name} is not importable")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader.exec_module(module)
    return module


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


def _collect(plugin: object, name: str) -> Loaded:
    """What `plugin` registers. Raises HookError, and whatever its hooks raise."""
    manager = pluggy.PluginManager(hookspecs.NAME)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin, name)
    warnings = tuple(_check_hooks(manager, plugin))
    classifiers, judges = Registrar(name), JudgeRegistrar(name)
    manager.hook.register_classifiers(register=classifiers)
    manager.hook.register_judges(register=judges)
    if not classifiers.registrations and not judges.registrations:
        warnings += ("it registers no classifier and no judge",)
    return Loaded(tuple(classifiers.registrations), tuple(judges.registrations), warnings)


def _check_hooks(manager: pluggy.PluginManager, plugin: object) -> list[str]:
    """Warnings on unknown hooks; HookError where no hook is left or an argument would never arrive."""
    warnings, known = [], 0
    for caller in manager.get_hookcallers(plugin) or []:
        if not caller.has_spec():
            warnings.append(_unknown_hook(caller.name))
            continue
        known += 1
        for impl in caller.get_hookimpls():
            if impl.kwargnames:
                raise HookError(
                    f"{caller.name}: argument {impl.kwargnames[0]!r} has a default, so it is never passed: "
                    f"write {caller.name}({', '.join((*impl.argnames, *impl.kwargnames))}) without it"
                )
    if not known:
        text = "; ".join(warnings) or "decorate a function register_classifiers(register) with @hookimpl"
        raise HookError(f"no hook of {hookspecs.NAME} is implemented: {text}")
    return warnings


def _unknown_hook(name: str) -> str:
    """A text on a hook that does not exist, with the likeliest one that does."""
    close = difflib.get_close_matches(name, HOOKS, n=1, cutoff=0.7)
    return f"unknown hook {name!r}" + (f": did you mean {close[0]!r}?" if close else "")


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
