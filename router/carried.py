"""The adapters and plugins that come with lora-router: in the wheel, or beside the package in a checkout."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

PACKAGE = Path(__file__).parent


def carried(name: str) -> tuple[Path, ...]:
    """The carried folder of `name`, which is adapters or plugins; empty if there is none."""
    inside = PACKAGE / "_data" / name
    beside = PACKAGE.parent / name
    if inside.is_dir():
        return (inside,)
    return (beside,) if (PACKAGE.parent / "pyproject.toml").is_file() and beside.is_dir() else ()


def is_carried(folder: Path, name: str) -> bool:
    """Whether `folder` is the carried folder of `name`, by whatever path."""
    real = os.path.realpath(folder)
    return any(os.path.realpath(one) == real for one in carried(name))


def own(folders: Iterable[Path], name: str) -> tuple[Path, ...]:
    """The folders that are not carried."""
    return tuple(folder for folder in folders if not is_carried(folder, name))
