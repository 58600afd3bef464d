"""Files that are on the disk when a call returns: of the state that survives a restart."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside `path` and rename, so that a reader or a crash sees the old or the new file, whole.

    The new one is on the disk when this returns. Raises OSError; the old file is then there still, unless
    the disk failed after the rename. Blocks: not for the event loop.
    """
    _make(path.parent)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    _sync(path.parent)


def append(path: Path, line: str) -> None:
    """Add a line; it is on the disk when this returns. Raises OSError. Blocks: not for the event loop."""
    _make(path.parent)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
        file.flush()
        os.fsync(file.fileno())
    _sync(path.parent)


def _make(folder: Path) -> None:
    """The folder and those above it, each entered in the one above on the disk too."""
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that does not sync folders
            raise
    finally:
        os.close(handle)
