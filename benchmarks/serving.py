"""What benchmarks of servers share: servers on one engine, processes asked by lines, servers asked in turn.

`python -m benchmarks.serving PLAN` is the process of a client that asks several servers in turn.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from statistics import harmonic_mean, median
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.answering import NEW_TOKENS, REQUESTS
from router.client import AsyncClient

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
Found = Mapping[str, Mapping[str, Any]]  # of a round, by server: "tokens", "first_token", "routed"


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


# -- servers that are asked in turn


async def throughput(client: AsyncClient, prompts: Sequence[str]) -> float:
    """Tokens a second of so many streams at once."""

    async def one(text: str) -> int:
        events = client.stream(text, adapter="base", max_tokens=NEW_TOKENS, min_tokens=NEW_TOKENS)
        return sum([getattr(event, "tokens", 0) async for event in events])

    began = time.perf_counter()
    tokens = sum(await asyncio.gather(*map(one, prompts)))
    return tokens / (time.perf_counter() - began)


async def first_token(client: AsyncClient, text: str) -> float:
    """Seconds until the only token of an answer."""
    began = time.perf_counter()
    async for event in client.stream(text, adapter="base", max_tokens=1):
        if getattr(event, "tokens", 0):
            return time.perf_counter() - began
    raise RuntimeError("an answer without a token")


async def routed(client: AsyncClient, text: str) -> float:
    """Seconds of a `Route`."""
    began = time.perf_counter()
    await client.route(text)
    return time.perf_counter() - began


async def client_of(plan: Mapping[str, Any]) -> None:
    """The client: a seed in, a round of all servers in an order of its own out.

    `plan`: "servers" by name, each with "target" and what its client brings; "batches" of streams of a round,
    "rest" in seconds after them; numbers of "first_tokens" and of "routes".
    """
    clients = {name: AsyncClient(**{"timeout": 120, **how}) for name, how in plan["servers"].items()}

    async def one_round(seed: int) -> dict[str, dict[str, Any]]:
        rng = random.Random(seed)
        found: dict[str, dict[str, Any]] = {}
        for place, name in enumerate(rng.sample(list(clients), len(clients))):
            seeds = (1000 * seed + 10 * place + batch for batch in range(plan["batches"]))
            found[name] = {
                "tokens": harmonic_mean([await throughput(clients[name], texts(one)) for one in seeds])
            }
            await asyncio.sleep(plan["rest"])
        for what, count in ((first_token, plan["first_tokens"]), (routed, plan["routes"])):
            for i in range(count):
                for place, name in enumerate(rng.sample(list(clients), len(clients))):
                    seconds = await what(clients[name], f"{seed} {i} {place} what is the river's name")
                    found[name].setdefault(what.__name__, []).append(seconds)
        return found

    await answer(one_round)


async def in_turn(
    servers: Mapping[str, Mapping[str, Any]],
    rounds: int,
    first_tokens: int,
    routes: int = 0,
    batches: int = 1,
    rest: float = 0.0,
) -> list[Found]:
    """Rounds of all servers after a first that is thrown away; arguments are those of `client_of`'s plan."""
    plan = {"servers": servers, "batches": batches, "rest": rest, "first_tokens": first_tokens}
    found = []
    async with asked("benchmarks.serving", json.dumps({**plan, "routes": routes})) as ask:
        for seed in range(rounds + 1):
            found.append(await ask(seed))
            print(f"round {seed} of {rounds}", flush=True)
    return found[1:]


def compared(rounds: Sequence[Found], names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each server: medians, and what it adds to the first one in the same rounds."""

    def added(name: str, what: str) -> float:
        pairs = ((one[name][what], one[names[0]][what]) for one in rounds)
        return 1e3 * median(a - b for mine, other in pairs for a, b in zip(mine, other, strict=True))

    rows = []
    for name in names:
        against = median(one[name]["tokens"] / one[names[0]]["tokens"] for one in rounds)
        row = {
            "server": name,
            "tokens/s": median(one[name]["tokens"] for one in rounds),
            "against the first": f"{against:.4f}",
        }
        for what, title in (("first_token", "first token"), ("routed", "Route")):
            if what in rounds[0][name]:
                row[f"{title} ms"] = 1e3 * median(value for one in rounds for value in one[name][what])
                row[f"{title} added ms"] = added(name, what)
        rows.append(row)
    return rows


if __name__ == "__main__":
    asyncio.run(client_of(json.loads(sys.argv[1])))
