"""A server as a subprocess on a free port of this machine, for the demonstration."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from router.cli.errors import CliError

START_SECONDS = 300.0
STOP_SECONDS = 40.0
LOG_LINES = 20


class DemoServer:
    """The running server: `address` for calls, `metric` for its numbers."""

    def __init__(self, process: subprocess.Popen[bytes], address: str, metrics: str, log: IO[bytes]) -> None:
        self.process, self.address, self.metrics, self._log = process, address, metrics, log

    def failure(self, text: str) -> CliError:
        """An error to raise, after the last lines that the server wrote were shown."""
        lines = Path(self._log.name).read_text(encoding="utf-8", errors="replace").splitlines()
        print("\n".join(lines[-LOG_LINES:]), file=sys.stderr)
        return CliError(f"{text}; its last lines are above")

    def metric(self, name: str) -> float:
        """One number without labels from its metrics."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{self.metrics}/metrics", timeout=5) as answer:
            found = re.search(rf"^{name} (\S+)$", answer.read().decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    def wait_until_serving(self) -> None:
        """Ask its health until it serves."""
        import grpc
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        from router.client.channel import channel_options

        end = time.monotonic() + START_SECONDS
        with grpc.insecure_channel(self.address, options=channel_options(self.address)) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            while time.monotonic() < end:
                if self.process.poll() is not None:
                    raise self.failure(f"the server ended with code {self.process.returncode}")
                try:
                    if check(health_pb2.HealthCheckRequest(), timeout=2).status == 1:
                        return
                except grpc.RpcError:
                    pass  # not listening yet
                time.sleep(0.1)
        raise self.failure(f"the server did not serve within {START_SECONDS:.0f} s")

    def stop(self) -> None:
        """SIGTERM, and the exit code must be 0."""
        self.process.terminate()
        try:
            code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise self.failure(f"the server did not stop within {STOP_SECONDS:.0f} s") from None
        if code != 0:
            raise self.failure(f"the server ended with code {code}")


def free_address() -> str:
    """A port of this machine that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@contextmanager
def demo_server(arguments: Sequence[str] = ()) -> Iterator[DemoServer]:
    """`lora-router serve` with its output in a temporary file; killed if it is still there at the end."""
    address, metrics = free_address(), free_address()
    command = [sys.executable, "-m", "router.cli", "serve", "--listen", address, "--metrics-listen", metrics]
    with tempfile.NamedTemporaryFile(prefix="lora-router-demo-", suffix=".log") as log:
        process = subprocess.Popen(
            [*command, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            yield DemoServer(process, address, metrics, log)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
