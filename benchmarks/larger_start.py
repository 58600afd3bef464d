"""How long `lora-router serve` takes from its exec to SERVING, and the memory that it holds then."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contestants import Died, environment
from router.cli.demo import free_address
from router.client import Client

SERVING_SECONDS = 180.0  # a start that takes longer has failed
SAMPLE_SECONDS = 0.05
BLOCK = 1 << 24
FRESH = 0.5  # at least this part of a file that was put out of the page cache is read from the disk


@dataclass(frozen=True, slots=True)
class Reading:
    """A file read once. `disk`: bytes of it that came from the disk."""

    seconds: float
    disk: int


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds from exec to SERVING, and to the first token of a request after that; memory in bytes.

    `resident` counts pages of mapped files, `anonymous` does not; both at SERVING. The peaks are of the time
    before.
    """

    seconds: float
    first_token: float
    resident: int
    anonymous: int
    peak: int
    peak_anonymous: int


def forget(file: Path) -> None:
    """Put the file out of the page cache. Pages that a process has mapped stay."""
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(file: Path) -> Reading:
    """Read the whole file into one block again and again."""
    block = bytearray(BLOCK)
    before, begin = _from_disk(), time.perf_counter()
    with file.open("rb", buffering=0) as opened:
        while opened.readinto(block):
            pass
    return Reading(time.perf_counter() - begin, _from_disk() - before)


def start(base: Path, *flags: str) -> Start:
    """One start, as a user would start it on this base. Raises Died."""
    with tempfile.TemporaryDirectory() as held:
        folder = Path(held)
        (folder / "adapters").mkdir()
        address = free_address()
        command = [sys.executable, "-m", "router.cli", "serve", "--model", str(base), *flags]
        command += ["--adapters-dir", "adapters", "--listen", address]
        command += ["--http-listen", free_address(), "--metrics-listen", free_address()]
        with (folder / "log").open("w+b") as log, _child(command, folder, log.fileno()) as (child, begin):
            watch = Watch(child.pid)
            try:
                _wait(child, address, folder / "log")
                seconds = time.perf_counter() - begin
            finally:
                watch.end()
            now = memory(child.pid)
            asked = time.perf_counter()
            with Client(address) as client:
                client.generate("one two three", adapter="base", max_tokens=1)
            first = time.perf_counter() - asked
    peak = max(watch.anonymous, now["RssAnon"])
    return Start(seconds, first, now["VmRSS"], now["RssAnon"], now["VmHWM"], peak)


class Watch:
    """The most anonymous memory that a process holds, looked at many times a second."""

    def __init__(self, pid: int) -> None:
        self.anonymous = 0
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Look no longer."""
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            with suppress(OSError, KeyError):  # it has ended
                self.anonymous = max(self.anonymous, memory(self._pid)["RssAnon"])


def memory(pid: int) -> dict[str, int]:
    """VmRSS, VmHWM, RssAnon and others of a process, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    pairs = [line.split() for line in lines if line.endswith(" kB")]
    return {name.rstrip(":"): int(count) << 10 for name, count, _ in pairs}


@contextmanager
def _child(command: list[str], folder: Path, log: int) -> Iterator[tuple[subprocess.Popen[str], float]]:
    """The process and when it began; it and its children are ended at the end of the block."""
    begin = time.perf_counter()
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=log,
        cwd=folder,
        env=environment({"PYTHONPATH": str(Path(__file__).parents[1])}),
        text=True,
        start_new_session=True,
    )
    try:
        yield child, begin
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


def _wait(child: subprocess.Popen[str], address: str, log: Path) -> None:
    """Until it prints what it serves, which it does when health has become SERVING."""
    assert child.stdout is not None
    limit = time.monotonic() + SERVING_SECONDS
    printed = ""
    while f"gRPC {address}" not in " ".join(printed.split()):
        left = limit - time.monotonic()
        line = ""
        if left > 0 and select.select([child.stdout], [], [], left)[0]:
            line = os.read(child.stdout.fileno(), 1 << 16).decode()
        if not line:
            last = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise Died(f"lora-router serve did not get ready. Its last lines of standard error:\n{last}")
        printed += line


def _from_disk() -> int:
    """Bytes that this process has had read from a disk."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])
