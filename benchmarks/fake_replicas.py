"""Replicas on the fake engine, each in a process of its own, reached as `router.replicas` reaches them;
without Ray.

`python -m benchmarks.fake_replicas`: one such process. It prints its door as a line of JSON, and ends with
its standard input.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from router.replicas.wire import Door, Line, Listener

from router import __version__
from router.engine.base import AdapterArtifact, SiteDelta, TensorData
from router.engine.fake import FakeEngine, FakeGeneration
from router.replicas.host import EngineHost
from router.replicas.messages import Batch, Hello, Load, Post


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


class DoorLink:
    """The way to a replica that somebody else has started; several edges may go it."""

    def __init__(self, name: str, door: Door) -> None:
        self.name, self._door, self._line = name, door, Line()

    def start(self) -> Hello:
        """It has started: all fake bases are alike."""
        engine = FakeEngine()
        engine.start()
        hello = Hello(engine.info, __version__)
        engine.close()
        return hello

    def post(self, post: Post) -> None:
        """In place of weights goes how many bytes they have: nobody computes with them."""
        commands = [_light(c) if isinstance(c, Load) else c for c in post.commands]
        self._line.post(replace(post, commands=tuple(commands)))

    async def batches(self, edge: str) -> AsyncGenerator[Batch, None]:
        """One stream of the replica."""
        async with aclosing(self._line.batches(self._door, edge)) as stream:
            async for batch in stream:
                yield batch

    def kill(self) -> None:
        """It is not this edge's to end."""

    def close(self) -> None:
        """It goes on for others."""


def artifact(name: str, size: int) -> AdapterArtifact:
    """An adapter of so many bytes that a fake engine takes."""
    half = TensorData("F32", (1, size // 8), memoryview(bytes(size // 2)))
    return AdapterArtifact(name, "1", f"digest of {name}", {"all": SiteDelta(half, half, 1.0)})


def _light(load: Load) -> Load:
    weights = load.weights
    if not isinstance(weights, AdapterArtifact):
        raise TypeError("weights that are not an adapter")
    size = sum(len(site.a.data) + len(site.b.data) for site in weights.sites.values())
    return replace(load, weights=f"{size} {weights.name}")


async def _fetch(weights: object) -> AdapterArtifact:
    size, _, name = str(weights).partition(" ")
    return artifact(name, int(size))


def encoded(door: Door) -> list[Any]:
    """For a line of JSON."""
    return [door.host, door.port, door.secret.hex()]


def decoded(said: Sequence[Any]) -> Door:
    """The same again."""
    host, port, secret = said
    return Door(str(host), int(port), bytes.fromhex(secret))


@contextmanager
def replicas(number: int, kind: Kind, cpus: Sequence[int] = ()) -> Iterator[list[subprocess.Popen[str]]]:
    """So many processes, pinned to `cpus` where there are some; they end with the block. See `door_of`."""
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


def door_of(process: subprocess.Popen[str]) -> Door:
    """Where it listens; waits until it does."""
    assert process.stdout is not None
    return decoded(json.loads(process.stdout.readline()))


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.wait()
    process.stdout.close()


def pin(cpus: Sequence[int]) -> None:
    """This process runs there alone, if it is said."""
    if cpus:
        os.sched_setaffinity(0, cpus)


async def serve(kind: Kind) -> None:
    """Until the end of standard input."""
    host = EngineHost(Steps(kind), _fetch)
    listener = Listener(host)
    await asyncio.to_thread(host.start)
    print(json.dumps(encoded(await listener.open("127.0.0.1"))), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await listener.close()
    host.close()


def main() -> None:
    """One replica."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpus", type=int, nargs="*", default=[])
    for name, default in ((n, getattr(Kind(), n)) for n in Kind.__dataclass_fields__):
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    said = vars(parser.parse_args())
    pin(said.pop("cpus"))
    asyncio.run(serve(Kind(**said)))


if __name__ == "__main__":
    main()
