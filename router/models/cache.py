"""Model folders in the user's cache: built once, recorded by their hashes, checked before they are used.

A folder is built aside and moved into place. Its `SHA256SUMS` lists each file in the format of `sha256sum`;
the SHA-256 of that list is the folder's total.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from router.errors import ConfigError, DataLoss
from router.folders import cache_folder

SUMS = "SHA256SUMS"
Sums = Mapping[str, str]
"""SHA-256 in hex by the file's path in the folder."""


@dataclass(frozen=True, slots=True)
class Pins:
    """What the source of this package says a folder must hold; an empty text pins nothing."""

    total: str = ""  # SHA-256 of the folder's SHA256SUMS: every file is known
    weights: str = ""  # `digest_of` the weights: other files depend on versions of libraries


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found."""

    sums: Sums
    problem: str = ""  # empty: the folder is as recorded and as pinned
    recorded: bool = True  # whether the folder has a SHA256SUMS

    @property
    def total(self) -> str:
        """One value for the whole folder: the SHA-256 of the list of its files."""
        return hashlib.sha256(text_of(self.sums).encode()).hexdigest()


def models_dir() -> Path:
    """Where fetched models live: `models` in the user's cache folder for lora-router."""
    return cache_folder() / "models"


def build_once(name: str, build: Callable[[Path], None], pins: Pins) -> Path:
    """The checked cached folder `name`; `build(folder)` fills it if it is absent or damaged.

    A folder is visible under its name only when complete. Of several processes one builds,
    the others wait for it. A damaged folder stays until the new one is complete.
    Raises DataLoss if a damaged folder cannot be made anew or a new one is not what is pinned, and what
    `build` raises.
    """
    final = models_dir() / name
    problem = problem_of(final, pins) if final.is_dir() else ""
    if final.is_dir() and not problem:
        return final
    try:
        models_dir().mkdir(parents=True, exist_ok=True)
        with _locked(models_dir() / f".{name}.lock"):
            if final.is_dir() and not problem_of(final, pins):
                return final  # another process has made it meanwhile
            if problem:
                sys.stderr.write(f"warning: {problem}; making it anew\n")
            _build(final, build, pins)
    except (ConfigError, OSError) as error:
        if problem:
            raise DataLoss(f"{problem}. It could not be made anew: {error}") from error
        raise
    return final


def _build(final: Path, build: Callable[[Path], None], pins: Pins) -> None:
    """Fill a folder aside, record and check it, and move it into place."""
    _remove_leftovers(final.name)
    staging = models_dir() / f".{final.name}.{os.getpid()}.partial"
    staging.mkdir()
    try:
        build(staging)
        (staging / SUMS).write_text(text_of(sums_of(staging)), encoding="utf-8")
        if problem := check(staging, pins).problem:
            raise DataLoss(
                f"{final.name} was made of the pinned wheel, but {problem}: not used; install the "
                "versions of transformers, gguf and torch that requirements.lock names"
            )
        _replace(final, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def problem_of(folder: Path, pins: Pins) -> str:
    """What is wrong with a cached folder; empty if nothing is.

    Every byte is read once in the life of a process, and again when a file has another size, time or inode.
    A folder of an earlier version has no record: it gets one if it is as pinned.
    """
    stamps = _stamps(folder)
    if _accepted.get((folder, pins)) == stamps:
        return ""
    found = check(folder, pins)
    if found.problem:
        return found.problem
    if not found.recorded:
        _record(folder, found.sums)
        stamps = _stamps(folder)
    _accepted[folder, pins] = stamps
    return ""


_Stamps = dict[str, tuple[int, int, int]]
_accepted: dict[tuple[Path, Pins], _Stamps] = {}
"""Folders that this process has checked, with what their files looked like."""


def check(folder: Path, pins: Pins) -> Checked:
    """Read all of a folder and compare it with its record and with what is pinned. Changes nothing."""
    with ThreadPoolExecutor(1) as pool:  # beside the other hash; both leave the interpreter's lock
        weights = pool.submit(_weights_of, folder) if pins.weights else None
        try:
            sums = sums_of(folder)
        except OSError as error:
            return Checked({}, f"{folder} cannot be read: {error}")
    recorded = _read_sums(folder)
    found = Checked(sums, recorded=recorded is not None)
    if recorded is not None and recorded != sums:
        return replace(found, problem=f"{folder} is not as recorded: {_difference(recorded, sums)}")
    if pins.total and found.total != pins.total:
        return replace(found, problem=f"{folder} has total sha256 {found.total}, expected {pins.total}")
    if weights is not None and (digest := weights.result()) != pins.weights:
        return replace(found, problem=f"{folder} has weights with digest {digest}, expected {pins.weights}")
    return found


def sums_of(folder: Path) -> Sums:
    """The SHA-256 of each file below the folder, the record itself left out."""
    sums: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != SUMS:
            with path.open("rb") as opened:
                sums[name] = hashlib.file_digest(opened, "sha256").hexdigest()
    return sums


def text_of(sums: Sums) -> str:
    """As `sha256sum` writes and reads it, in the order of the names."""
    return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))


def _read_sums(folder: Path) -> Sums | None:
    """The record; None where there is none. One that cannot be parsed is an empty record."""
    try:
        text = (folder / SUMS).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    lines = [line.split("  ", 1) for line in text.splitlines()]
    return {parts[1]: parts[0] for parts in lines if len(parts) == 2}


def _weights_of(folder: Path) -> str:
    """The digest of the weights; why there is none where they cannot be read."""
    from router.engine.checkpoint import digest_of, tensors_of

    try:
        return digest_of(tensors_of(folder))
    except Exception as error:  # any header can be damaged in any way
        return f"none ({type(error).__name__}: {error})"


def _difference(recorded: Sums, found: Sums) -> str:
    """The first difference, in words."""
    for name in sorted({*recorded, *found}):
        if name not in found:
            return f"{name} is missing"
        if name not in recorded:
            return f"{name} is not in {SUMS}"
        if recorded[name] != found[name]:
            return f"{name} has sha256 {found[name]}, recorded is {recorded[name]}"
    raise AssertionError("no difference")


def _record(folder: Path, sums: Sums) -> None:
    """Write the record of a folder that has none; a folder that cannot be written stays without one."""
    aside = folder.parent / f".{folder.name}.{os.getpid()}.sums"
    try:
        aside.write_text(text_of(sums), encoding="utf-8")
        aside.replace(folder / SUMS)
    except OSError as error:
        sys.stderr.write(f"warning: {folder} is as pinned, but {SUMS} cannot be written: {error}\n")


def _stamps(folder: Path) -> _Stamps:
    stamps: _Stamps = {}
    for path in sorted(folder.rglob("*")):
        try:
            status = path.stat()
        except OSError:
            continue  # a file that is being replaced; the check reads the folder again
        stamps[path.relative_to(folder).as_posix()] = (status.st_size, status.st_mtime_ns, status.st_ino)
    return stamps


def _replace(final: Path, staging: Path) -> None:
    """Move the new folder into place, and only then remove the old one."""
    old = final.with_name(f".{final.name}.{os.getpid()}.old.partial")
    if final.is_dir():
        final.rename(old)
    staging.rename(final)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_leftovers(name: str) -> None:
    """Folders of builders that were killed: the holder of the lock is the only live one."""
    for partial in models_dir().glob(f".{name}.*.partial"):
        shutil.rmtree(partial, ignore_errors=True)
