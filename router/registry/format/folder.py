"""Reading files of an adapter folder so that nothing outside the folder can be reached.

The folder is opened once; every file is opened relative to it, must be a regular file and is never reached
through a symbolic link (O_NOFOLLOW). Files are read, not memory-mapped: a mapped file that is truncated
kills the process, one that is overwritten changes weights in silence.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from router.registry.format import limits
from router.registry.format.codes import Code

BLOCK_BYTES = 512  # unit of st_blocks
HASH_BYTES = 1 << 20


class FolderError(Exception):
    """A folder or file cannot be used; carries a code and a message for a finding."""

    def __init__(self, code: Code, message: str, where: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.where = code, message, where


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in the folder and what kind of thing it is, links not followed."""

    name: str
    mode: int
    size: int
    mtime_ns: int
    inode: int

    @property
    def is_file(self) -> bool:
        """A regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_folder(self) -> bool:
        """A directory."""
        return stat.S_ISDIR(self.mode)


class OpenFile:
    """A regular file, open for reading."""

    def __init__(self, descriptor: int, name: str) -> None:
        self.descriptor, self.name = descriptor, name
        self.stat = os.fstat(descriptor)

    @property
    def size(self) -> int:
        """Size in bytes when it was opened."""
        return self.stat.st_size

    def head(self, length: int) -> bytes:
        """The first `length` bytes, or fewer if the file is shorter."""
        try:
            return os.pread(self.descriptor, length, 0)
        except OSError as error:
            raise FolderError(Code.FILE_UNREADABLE, f"cannot be read: {_reason(error)}", self.name) from None

    def read(self) -> memoryview:
        """The whole file, read once. Raises FolderError if its size is not what it was when opened."""
        view = memoryview(bytearray(self.size))
        try:
            done = 0
            while done < len(view) and (count := os.preadv(self.descriptor, [view[done:]], done)):
                done += count
            more = os.pread(self.descriptor, 1, len(view))
        except OSError as error:
            raise FolderError(Code.FILE_UNREADABLE, f"cannot be read: {_reason(error)}", self.name) from None
        if done < len(view) or more:
            raise FolderError(Code.FILE_CHANGED, "changed while it was read", self.name)
        return view.toreadonly()

    def sha256(self) -> str:
        """Digest of its contents in hex, read in blocks."""
        digest, at = hashlib.sha256(), 0
        try:
            while block := os.pread(self.descriptor, HASH_BYTES, at):
                digest.update(block)
                at += len(block)
        except OSError as error:
            raise FolderError(Code.FILE_UNREADABLE, f"cannot be read: {_reason(error)}", self.name) from None
        return digest.hexdigest()

    def is_sparse(self) -> bool:
        """Whether parts were never written: fewer blocks than bytes, and a hole (not just compression)."""
        if self.stat.st_blocks * BLOCK_BYTES >= self.size:
            return False
        return os.lseek(self.descriptor, 0, os.SEEK_HOLE) < self.size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


class Folder:
    """An open adapter folder. Use as a context manager. All methods raise FolderError only."""

    def __init__(self, descriptor: int, name: str) -> None:
        self.descriptor, self.name = descriptor, name

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the folder at `path`; its last component must not be a symbolic link."""
        try:
            return cls(os.open(path, _FOLDER_FLAGS), path.name)
        except (OSError, ValueError) as error:
            message = (
                "is a symbolic link" if os.path.islink(path) else f"not a readable folder: {_reason(error)}"
            )
            raise FolderError(Code.FOLDER_UNREADABLE, message) from None

    def subfolder(self, name: str) -> Folder:
        """Open a folder directly below."""
        try:
            return Folder(os.open(name, _FOLDER_FLAGS, dir_fd=self.descriptor), name)
        except OSError as error:
            raise FolderError(Code.FOLDER_UNREADABLE, _reason(error), name) from None

    def entries(self) -> dict[str, Entry]:
        """Everything in it by name, links not followed; what vanishes meanwhile is left out."""
        try:
            names = os.listdir(self.descriptor)
        except OSError as error:
            raise FolderError(Code.FOLDER_UNREADABLE, _reason(error)) from None
        if len(names) > limits.FOLDER_ENTRIES:
            message = f"holds {len(names)} entries, at most {limits.FOLDER_ENTRIES} are allowed"
            raise FolderError(Code.FOLDER_UNREADABLE, message)
        found = (self.entry(name) for name in sorted(names))
        return {entry.name: entry for entry in found if entry is not None}

    def entry(self, name: str) -> Entry | None:
        """One entry, None if there is no such name."""
        try:
            at = os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except OSError:
            return None
        return Entry(name, at.st_mode, at.st_size, at.st_mtime_ns, at.st_ino)

    def file(self, name: str) -> OpenFile:
        """Open a regular file directly in the folder."""
        entry = self.entry(name)
        if entry is not None and not entry.is_file:
            kind = (
                "a symbolic link; copy the file itself" if stat.S_ISLNK(entry.mode) else "not a regular file"
            )
            raise FolderError(Code.FILE_NOT_REGULAR, f"is {kind}", name)
        try:
            opened = OpenFile(os.open(name, _FILE_FLAGS, dir_fd=self.descriptor), name)
        except OSError as error:
            raise FolderError(Code.FILE_UNREADABLE, f"cannot be read: {_reason(error)}", name) from None
        if not stat.S_ISREG(opened.stat.st_mode):
            os.close(opened.descriptor)
            raise FolderError(Code.FILE_NOT_REGULAR, "is not a regular file", name)
        return opened

    def read(self, name: str, most: int) -> bytes:
        """A whole small file of at most `most` bytes."""
        with self.file(name) as opened:
            if opened.size > most:
                message = f"has {opened.size} bytes, at most {most} are allowed"
                raise FolderError(Code.FILE_TOO_LARGE, message, name)
            return bytes(opened.read())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # NONBLOCK: a FIFO must not hang us


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror or "unknown error") if isinstance(error, OSError) else "bad path"
