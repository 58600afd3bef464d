"""What comes with lora-router: built-in modules, adapters and plugins. Nothing of them is imported."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
EXTENSIONS = PACKAGE / "extensions"


def built_in_modules() -> dict[str, Path]:
    """Names of the modules in `extensions`, and their files."""
    files = {path.stem: path for path in EXTENSIONS.glob("*.py")}
    folders = {path.parent.name: path for path in EXTENSIONS.glob("*/__init__.py")}
    found = {**files, **folders}
    return {f"router.extensions.{name}": found[name] for name in sorted(found) if name[0] != "_"}


def name_of(module: str) -> str:
    """Return the name of the plugin.

    >>> name_of("router.extensions.otel")
    'otel'
    """
    return module.rpartition(".")[2]


# -- adapters and plugins in folders: in a checkout those of a user lie beside them


def built_in_folders(name: str) -> tuple[Path, ...]:
    """Where the built-in adapters, plugins or recipes of `name` are: inside the package, or beside it in a
    checkout; empty if they were left out.
    """
    inside = PACKAGE / "_data" / name
    if inside.is_dir():
        return (inside,)
    beside = PACKAGE.parent / name
    return (beside,) if (PACKAGE.parent / "pyproject.toml").is_file() and beside.is_dir() else ()


def is_built_in_folder(folder: Path, name: str) -> bool:
    """Whether `folder` is one of `built_in_folders(name)`, by whatever path."""
    real = os.path.realpath(folder)
    return any(os.path.realpath(one) == real for one in built_in_folders(name))


def is_built_in(path: Path, name: str) -> bool:
    """Whether lora-router ships this folder of an adapter, or file of a plugin, in the folder `name`."""
    return f"{name}/{path.name}" in _shipped() and is_built_in_folder(path.parent, name)


@cache
def _shipped() -> frozenset[str]:
    """`adapters/medical`, `plugins/examples.py` and the like, of the files that hatch_build.py packs."""
    lines = (Path(__file__).parent / "shipped.txt").read_text(encoding="utf-8").splitlines()
    return frozenset("/".join(line.split("/")[:2]) for line in lines)
