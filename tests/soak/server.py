"""The server of a soak and the processes that call it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.addresses import free_address
from tests.soak.world import ROOT, World, environment

CACHE_TOKENS = 4096
START_SECONDS = 300.0  # the real base's native operations may have to be compiled


@dataclass(frozen=True, slots=True)
class Server:
    """A process that serves a world, and those that call it, which end with it."""

    process: subprocess.Popen[bytes]
    address: str
    metrics: str
    callers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def scrape(self) -> str:
        """The page of metrics. Raises OSError."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=30) as page:
            return str(page.read().decode())

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def serving(world: World, *fake: str) -> Iterator[Server]:
    """A server of that world, once it is ready; `fake` are flags of `serve` on that engine."""
    address, metrics = free_address(), free_address()
    program = ["tests.soak.serve", *(["--engine", "real"] if world.real else fake), "serve"]
    said = ["gate=off", "load_plugins=phrases", "calibration=", "log_level=warning"]
    if world.real:  # a cache that is full, and so in memory, before anybody looks at memory
        said.append(f"cache_tokens={CACHE_TOKENS}")
    flags = [
        *("--listen", address, "--metrics-listen", metrics, "--clients", "clients.toml"),
        *("--set=audit=audit.jsonl", "--adapters-dir", "adapters", "--plugins-dir", "plugins"),
        *(word for one in said for word in ("--set", one)),
    ]
    with (world.folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *program, *flags],
            stdout=log,
            stderr=log,
            cwd=world.folder,
            env=environment(world.folder),
        )
        server = Server(process, address, metrics)
        try:
            _until_ready(process, metrics, world.folder / "server.log")
            yield server
        finally:
            for one in (*server.callers, process):
                one.kill()
                one.wait()


def _until_ready(process: subprocess.Popen[bytes], metrics: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"http://{metrics}/readyz", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not come up: {log.read_text()[-2000:]}") from None
        time.sleep(0.1)


@dataclass
class Callers:
    """A process of `tests.soak.traffic`; the rest is as it told last."""

    process: subprocess.Popen[bytes]
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    _ready: threading.Event = field(default_factory=threading.Event)
    _reader: threading.Thread | None = None

    @classmethod
    def begin(cls, world: World, server: Server, *flags: Any) -> Callers:
        """Start it, and wait until it calls. Raises RuntimeError where it does not come to that."""
        engine = ("--engine", "real" if world.real else "fake")
        program = [sys.executable, "-m", "tests.soak.traffic", str(world.folder), server.address]
        process = subprocess.Popen(
            [*program, *engine, *map(str, flags)],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment(world.folder),
        )
        server.callers.append(process)
        made = cls(process)
        made._reader = threading.Thread(target=made._read, daemon=True)
        made._reader.start()
        made._ready.wait()
        if process.poll() is not None:
            made.join(0)
        return made

    def end(self) -> None:
        """SIGTERM, and wait for what it tells last. Raises RuntimeError where it failed."""
        self.process.send_signal(signal.SIGTERM)
        self.join(300)

    def join(self, seconds: float) -> None:
        """Wait for its own end. Raises RuntimeError where it failed, TimeoutExpired."""
        code = self.process.wait(seconds)
        if self._reader is not None:
            self._reader.join()
        if code:
            raise RuntimeError(f"the callers ended with {code}")

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                told = json.loads(line)
                self.counts, self.problems = Counter(told["counts"]), told["problems"]
                self.reasons = Counter(told["reasons"])
                self._ready.set()
        self._ready.set()  # it has ended


def together(callers: Sequence[Callers]) -> tuple[Counter[str], list[str]]:
    """What several processes tell."""
    counts: Counter[str] = Counter()
    for one in callers:
        counts.update(one.counts)
    return counts, [problem for one in callers for problem in one.problems]


KINDS = ("ok", "refused", "unknown", "retried", "wrong", "error")


def rows(counts: Counter[str]) -> list[dict[str, Any]]:
    """A table of calls by kind and by what became of them."""
    kinds = sorted({key.rpartition(" ")[0] for key in counts})
    return [{"call": kind, **{end: counts[f"{kind} {end}"] for end in KINDS}} for kind in kinds]


def bad(counts: Counter[str]) -> int:
    """Calls that should not have ended as they did."""
    return sum(
        number for key, number in counts.items() if key.rpartition(" ")[2] in ("wrong", "error", "unknown")
    )
