"""Server processes for faults: real in all but the base, over folders that outlive them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from router.v1 import adapters_pb2 as pb
from router.v1 import inference_pb2
from router.v1.adapters_pb2_grpc import AdapterServiceStub
from router.v1.experiments_pb2_grpc import ExperimentServiceStub
from router.v1.inference_pb2_grpc import InferenceServiceStub
from tests.addresses import free_address
from tests.registry.tiny import write_adapter

ROOT = Path(__file__).parents[2]
UP_SECONDS = 60.0
VERSIONS = ("1.0.0", "1.1.0")
MEDICAL = "adapters/medical"
CLASSIFIER = """
from router import hookimpl
from router.routing import Classifier, Scores

class Words(Classifier):
    name = "words"
    def classify_batch(self, requests):
        return [Scores({"medical": 1.0}) if "medical" in r.text else None for r in requests]

@hookimpl
def register_classifiers(register):
    register(Words(), timeout_ms=2000)
"""


class Served:
    """One process and its stubs. `log` is what it said so far, `exit_code` None while it runs."""

    def __init__(self, process: Process, log: Path, address: str, http: str) -> None:
        self.process, self._log, self.address, self.http = process, log, address, http
        self.channel = grpc.aio.insecure_channel(address, (("grpc.use_local_subchannel_pool", 1),))
        self.inference = InferenceServiceStub(self.channel)
        self.adapters = AdapterServiceStub(self.channel)
        self.experiments = ExperimentServiceStub(self.channel)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def exit_code(self) -> int | None:
        return self.process.returncode

    async def page(self, path: str, seconds: float = 10.0) -> tuple[int, str]:
        """Status and text of a page beside the metrics; 0 where nobody answers in time."""
        return await asyncio.to_thread(_get, f"http://{self.http}{path}", seconds)

    async def metric(self, name: str) -> float:
        """A sample by its whole name, labels included."""
        lines = (await self.page("/metrics"))[1].splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))

    async def until_page(self, path: str, status: int) -> None:
        """Until a page has that status."""

        async def there() -> bool:
            assert self.exit_code is None, self.log
            return (await self.page(path))[0] == status

        await until(there, UP_SECONDS)

    async def ready(self) -> None:
        """Until /readyz says so; fails with the log if the process ends."""
        await self.until_page("/readyz", 200)

    async def states(self) -> dict[str, str]:
        """State of each version, by its name."""
        listed = await self.adapters.ListAdapters(pb.ListAdaptersRequest())
        return {a.name: pb.Adapter.State.Name(a.state).removeprefix("STATE_") for a in listed.adapters}

    async def default(self) -> str:
        """The default version of medical."""
        found = await self.adapters.GetAdapter(pb.GetAdapterRequest(name=MEDICAL))
        return str(found.adapter.name)

    async def choose(self, version: str) -> None:
        """Make it the default version of medical."""
        name = f"{MEDICAL}/versions/{version}"
        await self.adapters.SetDefaultVersion(pb.SetDefaultVersionRequest(name=name), timeout=20)

    async def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; returns the exit code."""
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), 60)


async def until(there: Callable[[], Awaitable[bool]], seconds: float = 30.0) -> None:
    """Wait for what a look finds; fails after `seconds`."""
    end = time.monotonic() + seconds
    for _ in range(int(seconds / 0.05)):
        if await there():
            return
        if time.monotonic() > end:
            break
        await asyncio.sleep(0.05)
    pytest.fail("waited in vain")


def _get(url: str, seconds: float) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=seconds) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def folders(root: Path) -> Path:
    """Adapter, plugin and state folders; medical has the versions 1.0.0 and 1.1.0, legal has one."""
    root.mkdir(exist_ok=True)
    for version in VERSIONS:
        write_adapter(root / "adapters" / "medical" / version)
    write_adapter(root / "adapters" / "legal")
    (root / "plugins").mkdir()
    (root / "plugins" / "words.py").write_text(CLASSIFIER)
    return root


@asynccontextmanager
async def served(
    root: Path,
    *flags: str,
    before: Sequence[str] = (),
    wait: bool = True,
    stdin: int = DEVNULL,
    **environment: str,
) -> AsyncIterator[Served]:
    """A server over `folders(root)`, ready unless `wait` is False; killed at the end if it still runs.

    `before` is what its command line begins with, such as a tool that runs it.
    """
    address, http = free_address(), free_address()
    command = [*before, sys.executable, "-m", "tests.faults.serve", "serve", "--set=gate=off"]
    command += ["--listen", address, "--metrics-listen", http]
    command += ["--adapters-dir", str(root / "adapters"), "--plugins-dir", str(root / "plugins")]
    # The working tree, for a process whose own folder is another.
    own = {"XDG_STATE_HOME": str(root / "state"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    log = root / f"log-{address.rpartition(':')[2]}"
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *(*command, *flags),
            cwd=root,
            stdin=stdin,
            stdout=DEVNULL,
            stderr=file,
            env={**os.environ, **own, **environment},
        )
    server = Served(process, log, address, http)
    try:
        if wait:
            await server.ready()
        yield server
    finally:
        await server.channel.close()
        if process.returncode is None:
            process.kill()
        await process.wait()


def ask(text: str = "a medical question", **fields: Any) -> inference_pb2.GenerateRequest:
    """A request; `routing` and `sampling` as dicts."""
    return inference_pb2.GenerateRequest(input=inference_pb2.Input(text=text), **fields)


def long_answer(tokens: int, text: str = "a medical question") -> inference_pb2.StreamGenerateRequest:
    """A stream of so many tokens, one a step."""
    sampling = inference_pb2.Sampling(max_tokens=tokens, min_tokens=tokens)
    return inference_pb2.StreamGenerateRequest(input=inference_pb2.Input(text=text), sampling=sampling)


async def unavailable(call: Any) -> str:
    """The reason of a call that must end with UNAVAILABLE."""
    from tests.server.helpers import details, failure

    error = await failure(call)
    assert error.code() is grpc.StatusCode.UNAVAILABLE, error
    return str(details(error)["ErrorInfo"].reason)


async def readiness(server: Served) -> dict[str, Any]:
    """What /readyz says."""
    return dict(json.loads((await server.page("/readyz"))[1]))
