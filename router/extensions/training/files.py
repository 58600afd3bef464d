"""Writing files and folders so that a crash or a full disk never leaves half of one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from router.errors import FailedPrecondition, ResourceExhausted
from router.registry.state import write_atomically
from router.sources.transfer import FULL


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
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(f"(os error {number})" in str(error) for number in FULL)


def write_file(path: Path, data: bytes) -> None:
    """Replace `path` in one step. Raises ResourceExhausted when the disk is full; the old file stays."""
    with explained(path):
        write_atomically(path, data)


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
