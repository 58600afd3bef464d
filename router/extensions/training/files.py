"""Writing files and folders so that a crash or a full disk never leaves half of one."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from safetensors import SafetensorError

from router.errors import FailedPrecondition, ResourceExhausted


def has_pictures() -> bool:
    """Whether pictures can be drawn: the extra `pictures` is matplotlib."""
    return find_spec("matplotlib") is not None


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn a full disk into an error that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not _is_full(error):
            raise
        message = (
            f"the disk is full: {path} was not written; free some space, then run again (training goes on "
            "with --resume)"
        )
        raise ResourceExhausted(message) from error


def _is_full(error: OSError | SafetensorError) -> bool:
    """safetensors tells the system's error number only in its text."""
    full = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError):
        return error.errno in full
    return any(f"(os error {number})" in str(error) for number in full)


def write_file(path: Path, data: bytes) -> None:
    """Replace `path` in one step. Raises ResourceExhausted when the disk is full; the old file stays."""
    part = path.with_name(f".{path.name}.part")
    with explained(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def new_folder(target: Path, marker: str) -> Iterator[Path]:
    """A hidden folder beside `target` that takes its place when the block ends without an error.

    An existing `target` is replaced only if it holds a file named `marker`, or nothing.
    """
    if target.exists() and any(target.iterdir()) and not (target / marker).is_file():
        raise FailedPrecondition(f"{target} is there and holds no {marker}: choose another --output")
    part, old = (target.with_name(f".{target.name}.{suffix}") for suffix in ("part", "old"))
    with explained(target):
        for leftover in (part, old):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            part.mkdir(parents=True)
            yield part
            if target.exists():
                target.rename(old)
            part.rename(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
