"""pluggy registers hooks, once for each plugin on its own: one that raises stops none of the others."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import pluggy

from router import hookspecs
from router.plugins.judges import JudgeRegistrar, JudgeRegistration
from router.plugins.registration import Registrar, Registration

HOOKS = tuple(name for name in vars(hookspecs) if hasattr(vars(hookspecs)[name], f"{hookspecs.NAME}_spec"))


class HookError(Exception):
    """The plugin's hooks cannot be used as they are written."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What a plugin registers, and what is odd about it."""

    classifiers: tuple[Registration, ...]
    judges: tuple[JudgeRegistration, ...]
    warnings: tuple[str, ...]


def collect(plugin: object, name: str) -> Collected:
    """What `plugin` registers. Raises HookError, and whatever its hooks raise."""
    manager = pluggy.PluginManager(hookspecs.NAME)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin, name)
    warnings = tuple(check(manager, plugin))
    classifiers, judges = Registrar(name), JudgeRegistrar(name)
    manager.hook.register_classifiers(register=classifiers)
    manager.hook.register_judges(register=judges)
    if not classifiers.registrations and not judges.registrations:
        warnings += ("it registers no classifier and no judge",)
    return Collected(tuple(classifiers.registrations), tuple(judges.registrations), warnings)


def check(manager: pluggy.PluginManager, plugin: object) -> list[str]:
    """Warnings on unknown hooks; HookError where no hook is left or an argument would never arrive."""
    warnings, known = [], 0
    for caller in manager.get_hookcallers(plugin) or []:
        if not caller.has_spec():
            warnings.append(unknown_hook(caller.name))
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


def unknown_hook(name: str) -> str:
    """A text on a hook that does not exist, with the likeliest one that does."""
    close = difflib.get_close_matches(name, HOOKS, n=1, cutoff=0.7)
    return f"unknown hook {name!r}" + (f": did you mean {close[0]!r}?" if close else "")
