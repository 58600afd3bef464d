"""What benchmarks of servers share: servers on one engine, and processes that are asked by lines."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.answering import REQUESTS

if TYPE_CHECKING:
    from router.engine.base import Engine
    from router.registry.registry import Registry
    from router.routing.router import Router
    from router.server.app import ServerApp

HOST = "127.0.0.1"
WORDS = [
    "river",
    "stone",
    "market",
    "window",
    "letter",
    "garden",
    "winter",
    "paper",
    "signal",
    "engine",
    "copper",
    "border",
    "lemon",
    "history",
]
Ask = Callable[[Any], Awaitable[Any]]


def texts(seed: int) -> list[str]:
    """Prompts of about 90 tokens, all different from the first word on."""
    rng = random.Random(seed)
    return [f"{seed} {i} " + " ".join(rng.choices(WORDS, k=82)) for i in range(REQUESTS)]


def used(process: psutil.Process) -> float:
    """Processor seconds so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


# -- servers


@asynccontextmanager
async def parts(engine: Engine, folder: Path | None = None) -> AsyncIterator[tuple[Registry, Router]]:
    """Starts the engine; a registry of `folder` (default: an empty one), a router without classifiers."""
    from router.plugins import PluginHost
    from router.registry.registry import Registry
    from router.routing.router import Router

    with tempfile.TemporaryDirectory() as empty:
        registry = Registry(engine, [folder or Path(empty)])
        router = Router(registry, PluginHost([], load_plugins=""))
        await asyncio.to_thread(engine.start)
        await registry.start()
        await router.start()
        try:
            yield registry, router
        finally:
            await router.close()
            await registry.close()


async def nothing() -> None:
    """The startup of a server whose parts run already."""


@asynccontextmanager
async def served(*apps: ServerApp) -> AsyncIterator[None]:
    """Servers that are ready, until the block ends."""
    for app in apps:
        await app.start()
        await app.ready.wait()
    try:
        yield
    finally:
        for app in apps:
            await app.stop()


@contextmanager
def fake(step: float, *flags: str) -> Iterator[tuple[psutil.Process, str]]:
    """A process that serves a fake engine with steps of so many seconds; yields it and its address."""
    command = (sys.executable, "-m", "tests.server.serve_fake", "--step", str(step), *flags)
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert child.stdout is not None
        yield psutil.Process(child.pid), child.stdout.readline().strip()
    finally:
        child.kill()
        child.communicate()


@contextmanager
def real() -> Iterator[tuple[psutil.Process, str]]:
    """The same on the real base, as `lora-router serve` serves it."""
    from tests.serving import serving

    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder), "--set=threads=0") as (child, address),
    ):
        yield psutil.Process(child.pid), address


# -- processes that are asked


@asynccontextmanager
async def asked(module: str, *arguments: str) -> AsyncIterator[Ask]:
    """A process of `python -m MODULE` that answers each line of JSON with one."""
    command = (sys.executable, "-m", module, *arguments)
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, limit=2**24)

    async def ask(work: Any) -> Any:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(work).encode() + b"\n")
        return json.loads(await process.stdout.readline())

    try:
        yield ask
    finally:
        process.kill()
        await process.wait()


async def answer(work: Ask) -> None:
    """The side of such a process: until its input ends."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await work(json.loads(line))), flush=True)
