"""A place inside the adapters folder that no server looks into, on the disk of the final one: a whole folder
is moved out of it by one rename, and what is not whole stays for the next attempt.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from router.errors import AlreadyExists, Unavailable

PREFIX = ".add-"
FILES, TREE, OLD, LOCK = "being-added", "tree", "old", "lock"
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux
KEPT_SECONDS = 7 * 86_400.0  # of what was begun and never ended


@dataclass(frozen=True, slots=True)
class Staging:
    """The place of one adapter of one source; its holder is alone there."""

    folder: Path

    @property
    def files(self) -> Path:
        """Where the files come in."""
        return self.folder / FILES

    def publish(self, target: Path, *, replace: bool = False) -> None:
        """Make the files the folder `target`; with `replace` in place of the one that is there.

        Readers see what was there or all of this. Raises AlreadyExists if somebody else was faster.
        """
        _sync(self.files)
        if not replace:
            self._move_in(target)
        elif not _exchange(self.files, target):
            self._replace(target)

    def _replace(self, target: Path) -> None:
        """By two renames, where the system cannot exchange folders."""
        old = self.folder / OLD
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        try:
            self._move_in(target)
        except BaseException:
            old.rename(target)
            raise

    def _move_in(self, target: Path) -> None:
        parent = target.parent
        try:
            if not os.path.lexists(parent):
                self._move_in_new(target)
            else:
                self.files.rename(target)
            _sync_folder(parent)
            _sync_folder(parent.parent)
        except OSError as error:
            if os.path.lexists(target):
                raise AlreadyExists(f"{target} is there already") from error
            raise

    def _move_in_new(self, target: Path) -> None:
        """A name that is new comes in with its version by one rename."""
        tree = self.folder / TREE
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir()
        inside = self.files.rename(tree / target.name)
        try:
            tree.rename(target.parent)
        except OSError:
            if not target.parent.is_dir():
                inside.rename(self.files)
                raise
            inside.rename(target)  # somebody else added another version just now

    def drop(self) -> None:
        """Forget what came."""
        gone = self.folder.with_name(f"{self.folder.name}-{os.getpid()}")  # free for the next who comes
        self.folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def staged(adapters: Path, key: str) -> Iterator[Staging]:
    """The place for `key`, with what came before. Raises Unavailable while another process has it."""
    made = not adapters.exists()
    adapters.mkdir(parents=True, exist_ok=True)
    try:
        with _place(adapters, key) as place:
            yield place
    finally:
        if made and not any(adapters.iterdir()):
            adapters.rmdir()  # an empty one would be served instead of the adapters of the package


@contextmanager
def _place(adapters: Path, key: str) -> Iterator[Staging]:
    _forget_old(adapters)
    folder = adapters / f"{PREFIX}{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
    (folder / FILES).mkdir(parents=True, exist_ok=True)
    with _alone(folder) as alone:
        if not alone:
            raise Unavailable("the same adapter is being added by another process: wait for it")
        os.utime(folder)
        yield Staging(folder)


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _forget_old(adapters: Path) -> None:
    for folder in adapters.glob(f"{PREFIX}*"):
        try:
            old = time.time() - folder.stat().st_mtime > KEPT_SECONDS
        except FileNotFoundError:
            continue
        with _alone(folder) if old else nullcontext(False) as alone:
            if alone:
                shutil.rmtree(folder, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Each takes the other's place, in one step; False where that cannot be had."""
    call = getattr(ctypes.CDLL(None), "renameat2", None)
    if call is None:
        return False
    done = bool(call(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0)
    if done:
        _sync_folder(other.parent)
    return done


def _sync(folder: Path) -> None:
    """What is seen after a rename is whole after a power cut, too."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
