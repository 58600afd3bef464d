"""A plugins folder to write into."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from router.plugins.loader import load_file

HEADER = """
from router import hookimpl
from router.routing import Classifier, Scores
"""
SHOUT = (
    HEADER
    + """
class Shout(Classifier):
    name = "shout"
    def classify_batch(self, requests):
        return [Scores({"legal": 1.0}) if r.text.isupper() else None for r in requests]

@hookimpl
def register_classifiers(register):
    register(Shout(), priority=100, timeout_ms=20)
"""
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "plugins"
    path.mkdir()
    return path


@pytest.fixture
def shout() -> str:
    """The plugin of the documentation."""
    return SHOUT


@pytest.fixture
def write(folder: Path) -> Callable[[str, str], Path]:
    """Write a plugin file: the documentation's, or `body` below the imports it needs."""

    def write(name: str, body: str = SHOUT) -> Path:
        path = folder / name
        path.write_text(body if body.startswith(HEADER) else HEADER + textwrap.dedent(body))
        return path

    return write


@pytest.fixture(scope="session")
def first_party() -> Callable[[str], ModuleType]:
    """A module of the plugins folder, loaded by path as the host does."""
    root = Path(__file__).parents[2] / "plugins"

    def load(name: str) -> ModuleType:
        module = load_file(root / f"{name}.py").module
        return sys.modules[module]

    return load
