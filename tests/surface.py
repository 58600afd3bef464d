"""What users' own files, scripts and programs hold on to, as lists of names: `python -m tests.surface`.

That writes released.json, at a release, as `buf build` writes the image of the protos. What stands in there
has to stay: tests/test_surface.py looks, docs/stability.md says it.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

from pydantic import BaseModel

from router import hookspecs
from router.access import clients
from router.config import Settings
from router.errors import RouterError
from router.extensions.training.recipe import Recipe
from router.plugins import PluginHost
from router.plugins.tables import old_names
from router.registry.format import manifest
from router.server.http import Route
from tests.commands import all_commands

ROOT = Path(__file__).parents[1]
RELEASED = Path(__file__).with_name("released.json")
PUBLIC = (
    "router",
    "router.client",
    "router.engine",
    "router.routing",
    "router.serving",
    "router.sources",
    "router.testing",
)
# Of modules without a list of their own: what plugins are given and give.
OF_PLUGINS = {
    "router.errors": (
        "ConfigError",
        "FailedPrecondition",
        "InvalidRequest",
        "NotFound",
        "PermissionDenied",
        "RouterError",
        "Unauthenticated",
        "Unavailable",
    ),
    "router.judging": ("Case", "Heard", "Judge", "Judgement", "Preference", "Scorer"),
    "router.types": ("AdapterProfile", "Request", "Turn"),
}


def surface() -> dict[str, list[str]]:
    """Names by kind, sorted."""
    client_tables = {"client": clients.FIELDS, "tenant": clients.TENANT_FIELDS}
    found = {
        "commands": commands(),
        "settings": (*Settings.model_fields, *settings_of_plugins()),
        "errors": (
            f"{kind.code} {kind.reason}" for kind in errors(RouterError) if kind.__module__ == "router.errors"
        ),
        "http": http_routes(),
        "metrics": re.findall(r"`(lora_router_[a-z_]+)`", (ROOT / "docs/grpc.md").read_text()),
        "adapter.toml": (f"{table}.{key}" for table, keys in manifest.KEYS.items() for key in keys),
        "recipe": fields(Recipe),
        "clients.toml": (f"{table}.{key}" for table, keys in client_tables.items() for key in keys),
        "python": names(),
    }
    return {kind: sorted(set(all_)) for kind, all_ in found.items()}


def settings_of_plugins() -> Iterator[str]:
    """PLUGIN.KEY of built-in plugins, and the old names of those."""
    host = PluginHost([], built_in=True)
    host.refresh()
    for loaded, plugin in host.running().items():
        for name, field in type(loaded.settings).model_fields.items() if loaded.settings else ():
            yield from (f"{plugin.name}.{name}", *old_names(field))


def http_routes() -> Iterator[str]:
    """Paths of the routes that built-in plugins add."""
    host, found = PluginHost([], built_in=True), list[Route]()
    host.refresh()
    for loaded in host.running():
        if (hook := loaded.hooks.get("register_http")) is not None:
            done = hook(register=lambda routes, rows: found.extend(routes), server=Mock(recent=None))
            if inspect.isawaitable(done):
                asyncio.run(done)
    return (route.path for route in found)


def commands() -> Iterator[str]:
    """Every command, and every command with each of its options."""
    waiting = [("lora-router", all_commands())]
    while waiting:
        name, command = waiting.pop()
        children = getattr(command, "commands", {})
        waiting += [(f"{name} {child}", found) for child, found in children.items()]
        yield name
        options = (o for p in command.params for o in (*p.opts, *p.secondary_opts) if o.startswith("--"))
        yield from (f"{name} {option}" for option in options)


def errors(kind: type[RouterError]) -> Iterator[type[RouterError]]:
    """An error and all below it."""
    yield kind
    for child in kind.__subclasses__():
        yield from errors(child)


def fields(table: type[BaseModel], path: str = "") -> Iterator[str]:
    """Keys of a table and of those in it."""
    for name, field in table.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from fields(inner, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def names() -> Iterator[str]:
    """Public names, and of what can be called or made, its parameters."""
    for module in (*PUBLIC, *OF_PLUGINS):
        there = importlib.import_module(module)
        told = OF_PLUGINS.get(module) or there.__all__
        yield from (one for name in told for one in parts(f"{module}.{name}", getattr(there, name)))
    for hook in vars(hookspecs).values():
        if hasattr(hook, f"{hookspecs.NAME}_spec"):
            yield from parts(f"router.hookspecs.{hook.__name__}", hook)


def parts(name: str, value: Any) -> Iterator[str]:
    """A name, its methods, and their parameters."""
    yield name
    if inspect.isfunction(value):
        yield from (f"{name}({parameter})" for parameter in inspect.signature(value).parameters)
    elif inspect.isclass(value):
        yield from (f"{name}({field})" for field in getattr(value, "__dataclass_fields__", ()))
        for inner, of in vars(value).items():
            if inspect.isfunction(of) and not inner.startswith("_"):
                yield from (one for one in parts(f"{name}.{inner}", of) if not one.endswith("(self)"))


if __name__ == "__main__":
    RELEASED.write_text(json.dumps(surface(), indent=1) + "\n", encoding="utf-8")
