"""Model folders in the user's cache: built once, aside, then moved into place."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs


def models_dir() -> Path:
    """Where fetched models live: `models` in the user's cache folder for lora-router."""
    return Path(platformdirs.user_cache_dir("lora-router")) / "models"


def build_once(name: str, build: Callable[[Path], None]) -> Path:
    """The cached folder `name`; `build(folder)` fills it if it is not there.

    A folder is visible under its name only when complete. Of several processes one builds,
    the others wait for it.
    """
    final = models_dir() / name
    if final.is_dir():
        return final
    models_dir().mkdir(parents=True, exist_ok=True)
    with _locked(models_dir() / f".{name}.lock"):
        if final.is_dir():
            return final
        _remove_leftovers(name)
        staging = models_dir() / f".{name}.{os.getpid()}.partial"
        staging.mkdir()
        try:
            build(staging)
            staging.rename(final)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return final


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_leftovers(name: str) -> None:
    """Folders of builders that were killed: whoever holds the lock is the only live one."""
    for partial in models_dir().glob(f".{name}.*.partial"):
        shutil.rmtree(partial, ignore_errors=True)
