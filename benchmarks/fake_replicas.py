"""Replicas on the fake engine, each in a process of its own, reached as `router.replicas` reaches them;
without Ray.

`python -m benchmarks.fake_replicas`: one such process. It prints its address, and ends with its standard
input.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from router.engine.base import AdapterArtifact
from router.engine.fake import FakeEngine, FakeGeneration
from router.registry.format.artifact import FolderRules, read_artifact
from router.replicas.host import EngineHost, engine_server
from router.replicas.link import Link, Security

HOST_BYTES = 2048 << 20  # of adapters


@dataclass(frozen=True, slots=True)
class Kind:
    """What a fake replica is like: seconds and numbers, as FakeEngine has them."""

    step_seconds: float = 0.02
    row_seconds: float = 0.0  # more for each answer in a step
    adapter_seconds: float = 0.0  # and for each adapter among them
    load_seconds: float = 0.051
    max_running: int = 32
    max_queue: int = 256


class Steps(FakeEngine):
    """A fake engine whose steps take longer the more is in them."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        super().__init__(
            load_seconds=kind.load_seconds, max_running=kind.max_running, max_queue=kind.max_queue
        )

    @property
    def step_seconds(self) -> float:
        """Of the step that is to come."""
        kind = self._kind
        rows = [row for row in (*self._running, *self._waiting) if isinstance(row, FakeGeneration)]
        adapters = {row.job.adapter for row in rows[: kind.max_running]}
        rows_seconds = kind.row_seconds * min(len(rows), kind.max_running)
        return kind.step_seconds + rows_seconds + kind.adapter_seconds * len(adapters)

    @step_seconds.setter
    def step_seconds(self, seconds: float) -> None:
        """What the fake engine would have without."""


def link_to(name: str, address: str) -> Link:
    """The way to a replica that somebody else has started; several edges may use it."""
    return Link(name, address, Security(), 30.0)


def read(folder: Path) -> AdapterArtifact:
    """The adapter in a folder; its matrices are compared with no base."""
    return read_artifact(folder, FolderRules(None))[0]


@contextmanager
def replicas(number: int, kind: Kind, cpus: Sequence[int] = ()) -> Iterator[list[subprocess.Popen[str]]]:
    """So many processes, pinned to `cpus` where there are some; they end with the block. See `address_of`."""
    command = [sys.executable, "-m", "benchmarks.fake_replicas", "--cpus", *map(str, cpus)]
    for name in Kind.__dataclass_fields__:
        command += [f"--{name.replace('_', '-')}", str(getattr(kind, name))]
    with ExitStack() as stack:
        started = []
        for _ in range(number):
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.callback(_end, process)
            started.append(process)
        yield started


def address_of(process: subprocess.Popen[str]) -> str:
    """Where it listens; waits until it does."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.wait()
    process.stdout.close()


def pin(cpus: Sequence[int]) -> None:
    """Pin this process to `cpus`, if there are some."""
    if cpus:
        os.sched_setaffinity(0, cpus)


@asynccontextmanager
async def served(kind: Kind) -> AsyncIterator[str]:
    """A replica in this process; gives its address."""
    host, server = EngineHost(Steps(kind), read, HOST_BYTES), engine_server("")
    host.register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await asyncio.to_thread(host.start)
    host.loaded.set()
    yield f"127.0.0.1:{port}"
    await server.stop(0)
    host.close()


async def serve(kind: Kind) -> None:
    """Until the end of standard input."""
    async with served(kind) as address:
        print(address, flush=True)
        await asyncio.to_thread(sys.stdin.read)


def main() -> None:
    """One replica."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpus", type=int, nargs="*", default=[])
    for name, default in ((n, getattr(Kind(), n)) for n in Kind.__dataclass_fields__):
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    arguments = vars(parser.parse_args())
    pin(arguments.pop("cpus"))
    asyncio.run(serve(Kind(**arguments)))


if __name__ == "__main__":
    main()
