"""Replicas as child processes of the edge, on its machine.

A child gets its settings and a secret through its standard input, tells its address by the first line of its
standard output, and ends when its standard input has ended and no edge is attached, so it never outlives the
edge.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from router.errors import ConfigError
from router.replicas.link import START_SECONDS, Link, LinkLost, Security
from router.v1 import engine_pb2 as pb

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "router.cli", "replica", "--child")
HELLO_SECONDS = 20.0  # of a child that has announced its address
CLOSE_SECONDS = 1.0  # a server gives its engine 2, and the end of a killed process takes time, too
GPUS = Path("/proc/driver/nvidia/gpus")


class Child:
    """One process. Nothing of it is left after `end`."""

    def __init__(
        self,
        engine: str,
        settings: Mapping[str, Any],
        *,
        environment: Mapping[str, str] | None = None,
        fake: Mapping[str, Any] | None = None,
        listen: str = "127.0.0.1:0",
        secret: str | None = None,
    ) -> None:
        """`settings` are values of `router.config.Settings`, of which none is a secret; `fake` are options of
        a fake engine. Without `secret` it gets one of its own.
        """
        self.secret = secrets.token_hex(32) if secret is None else secret
        start = {
            "engine": engine,
            "settings": {**settings, "listen": listen, "metrics_listen": ""},
            "secret": self.secret,
            "fake": dict(fake or {}),
        }
        self.process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
            start_new_session=True,  # signals of a terminal are for the edge, which drains first
        )
        with suppress(BrokenPipeError):  # it ended at once, which `address` finds
            self._stdin.write(json.dumps(start, default=str).encode() + b"\n")
            self._stdin.flush()

    def address(self, seconds: float = START_SECONDS) -> str:
        """Where it listens; blocks until its base is loaded.

        Raises LinkLost, or ConfigError with the reason that it gives.
        """
        end, line = time.monotonic() + seconds, b""
        output, poll = self._stdout.fileno(), select.poll()
        poll.register(output, select.POLLIN)
        while not line.endswith(b"\n"):
            if not poll.poll(1000 * max(0.0, end - time.monotonic())):
                self.kill()
                raise LinkLost(f"it has not started within {seconds:g} s")
            try:
                piece = os.read(output, 65536)
            except OSError:  # `end` was called meanwhile
                raise LinkLost("it was ended while it started") from None
            if not piece:
                code = self.end()
                raise LinkLost(f"its process ended with exit code {code} before it had started")
            line += piece
        found = json.loads(line)
        if "error" in found:
            self.end()
            raise ConfigError(found["error"])
        return str(found["address"])

    @property
    def runs(self) -> bool:
        """Whether the process is there."""
        return self.process.poll() is None

    def kill(self) -> None:
        """End it at once, and what it started; blocks."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.end()

    def end(self) -> int:
        """End it; returns the exit code; blocks."""
        with suppress(BrokenPipeError):
            self._stdin.close()
        try:
            self.process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._stdout.close()
        return self.process.returncode

    @property
    def _stdin(self) -> Any:
        return self.process.stdin

    @property
    def _stdout(self) -> Any:
        return self.process.stdout


class ChildLink(Link):
    """The way to a child, which `start` makes where there is none."""

    def __init__(
        self,
        name: str,
        engine: str,
        settings: Mapping[str, Any],
        start_seconds: float = START_SECONDS,
        **more: Any,
    ) -> None:
        """`more` are options of `Child`."""
        super().__init__(name, "", Security(), HELLO_SECONDS)
        self._engine, self._settings, self._seconds, self._more = engine, settings, start_seconds, more
        self._lock = threading.Lock()
        self._closed = False
        self.child: Child | None = None

    def start(self) -> pb.HelloResponse:
        """The child that is there, or a new one."""
        with self._lock:
            if self._closed:
                raise LinkLost("the edge ends")
            if self.child is not None and not self.child.runs:
                self.child.end()
                self.child = None
            if self.child is None:
                self.child = Child(self._engine, self._settings, **self._more)
                child = self.child
            else:
                return super().start()
        try:
            self.address = child.address(self._seconds)
        except (LinkLost, ConfigError):
            self.child = None
            raise
        self._security = Security(child.secret)
        return super().start()

    def kill(self) -> None:
        """Its process ends at once, whatever it does."""
        child, self.child = self.child, None
        if child is not None:
            child.kill()

    def close(self) -> None:
        """Its process ends, and no other follows."""
        self._closed = True
        child, self.child = self.child, None
        if child is not None:
            child.end()


def devices(environment: Mapping[str, str] | None = None, folder: Path = GPUS) -> Sequence[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none where there are none."""
    named = (os.environ if environment is None else environment).get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    return [str(number) for number in range(len(list(folder.iterdir())))] if folder.is_dir() else []
