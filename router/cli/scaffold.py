"""Files that `lora-router plugins new` writes."""

from __future__ import annotations

import os
import re
from pathlib import Path

from router.cli.errors import MISUSED, CliError

NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")

PLUGIN = '''\
"""Sends requests that say "{word}" to the adapter {adapter}."""

from router import hookimpl
from router.routing import Classifier, Scores


class {klass}(Classifier):
    name = "{name}"

    def classify_batch(self, requests):
        return [Scores({{"{adapter}": 1.0}}) if "{word}" in r.text.lower() else None for r in requests]


@hookimpl
def register_classifiers(register):
    register({klass}(), priority=100, timeout_ms=20)
'''

TEST = """\
from pathlib import Path

from router.plugins import PluginHost
from router.testing import ClassifierContract
from router.types import Request, Turn

PLUGINS = Path(__file__).resolve().parent / "{plugins}"


def load():
    host = PluginHost([PLUGINS], load_plugins="{module}")
    host.refresh()
    (registered,) = host.registrations()
    return registered.classifier


class Test{klass}(ClassifierContract):
    def make(self):
        return load()


def classify(text):
    return load().classify_batch([Request("test", turns=(Turn("user", text),))])[0]


def test_it_votes_for_its_adapter():
    assert classify("Something about {word}, please.").values == {{"{adapter}": 1.0}}


def test_it_declines_what_it_does_not_know():
    assert classify("Good morning.") is None
"""


def write_plugin(name: str, adapter: str, plugins: Path, tests: Path, force: bool) -> tuple[Path, Path]:
    """Write plugins/NAME.py and tests/test_NAME.py; returns both paths."""
    if not NAME.fullmatch(name) or len(name) > 40:
        raise CliError(f"{name!r} is no plugin name: lower-case letters, digits, - and _", MISUSED)
    if plugins.resolve() == tests.resolve():
        raise CliError("the test must not lie in the plugins folder: every file there is loaded", MISUSED)
    module = name.replace("-", "_")
    values = {
        "name": name,
        "module": module,
        "klass": "".join(part.capitalize() for part in module.split("_")),
        "word": module.replace("_", " "),
        "adapter": adapter,
        "plugins": os.path.relpath(plugins.resolve(), tests.resolve()),
    }
    written = (plugins / f"{module}.py", tests / f"test_{module}.py")
    for path in written:
        if path.exists() and not force:
            raise CliError(f"{path} exists already; take another name, or --force to overwrite it")
    for path, template in zip(written, (PLUGIN, TEST), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(template.format(**values), encoding="utf-8")
    return written
