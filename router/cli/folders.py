"""Where adapters and plugins are looked for: as said, else ./NAME, else those carried in the wheel."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from router.errors import ConfigError

PACKAGE = Path(str(files("router")))


def folders(said: Sequence[Path], name: str) -> tuple[Path, ...]:
    """`name` is adapters or plugins. Raises ConfigError for a folder that was said and is not there."""
    for folder in said:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder; create it, or leave out --{name}-dir for ./{name}")
    if said:
        return tuple(said)
    local = Path(name)
    return (local,) if local.is_dir() else carried(name)


def carried(name: str) -> tuple[Path, ...]:
    """The folder in the wheel; in a checkout the one beside the package."""
    inside = PACKAGE / "_data" / name
    beside = PACKAGE.parent / name
    if inside.is_dir():
        return (inside,)
    return (beside,) if (PACKAGE.parent / "pyproject.toml").is_file() and beside.is_dir() else ()
