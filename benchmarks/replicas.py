"""`python -m benchmarks.replicas`: what the way to a replica costs, and what a second replica brings.

Fake engines with a fixed step time, so that only the way differs: in this process, one replica by Ray, two
replicas by Ray. Closed loops of clients keep all rows busy; then single requests measure the first token. The
machine must be quiet and have a core for the edge and one for each replica. Ray listens on all interfaces
(with a token): `unshare --map-root-user --net sh -c 'ip link set lo up; python -m ...'` keeps it inside.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from statistics import median, quantiles
from typing import Any

from benchmarks import report
from router.engine.base import Delta, Engine, Finished, Job, Prompt
from router.engine.fake import FakeEngine
from router.replicas.engine import FleetEngine
from router.replicas.ray_link import RayCluster
from router.types import SamplingParams

ROWS, QUEUE, TOKENS = 16, 64, 64
HERE, ONE, TWO = "in this process", "one replica", "two replicas"


@asynccontextmanager
async def started(way: str, step_seconds: float) -> AsyncIterator[Engine]:
    """ROWS rows an engine, with processes of its own; all ends with the block."""
    fake = partial(FakeEngine, step_seconds=step_seconds, max_running=ROWS, max_queue=QUEUE)
    if way == HERE:
        engine: Engine = fake()
        engine.start()
        yield engine
        engine.close()
        return
    cluster = RayCluster(fake, store_bytes=128 << 20)
    links = [cluster.link(str(i)) for i in range(1 if way == ONE else 2)]
    engine = FleetEngine(links, FakeEngine, max_running=ROWS, max_queue=QUEUE, stow=cluster.stow)
    try:
        await asyncio.to_thread(engine.start)
        yield engine
    finally:
        await asyncio.to_thread(engine.close)
        await asyncio.to_thread(cluster.disconnect)


async def one(engine: Engine, tokens: int) -> tuple[int, float]:
    """Tokens that came and seconds to the first."""
    params = SamplingParams(max_tokens=tokens, min_tokens=2 * tokens)  # which it has not place for
    job = Job("r", engine.encode(Prompt(raw="one two three")), params)
    began, first, count = time.perf_counter(), 0.0, 0
    async for event in engine.submit(job):
        if isinstance(event, Delta):
            first = first or time.perf_counter() - began
            count += event.tokens
        elif isinstance(event, Finished) and event.reason.value != "length":
            raise SystemExit(f"an answer ended with {event.reason}")
    return count, first


async def throughput(engine: Engine, clients: int, seconds: float) -> float:
    """Tokens a second while `clients` ask one after the other."""
    end = time.perf_counter() + seconds
    total = 0

    async def client() -> None:
        nonlocal total
        while time.perf_counter() < end:
            count, _ = await one(engine, TOKENS)
            total += count

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return total / (time.perf_counter() - began)


async def first_tokens(engine: Engine, times: int) -> list[float]:
    """Milliseconds, each alone."""
    return [1000 * (await one(engine, 1))[1] for _ in range(times)]


async def measure(engine: Engine, way: str, seconds: float, requests: int) -> dict[str, Any]:
    """One round of a way."""
    busy = ROWS * (2 if way == TWO else 1)
    rate = await throughput(engine, busy, seconds)
    return {"rate": rate, "first": await first_tokens(engine, requests)}


async def main(arguments: argparse.Namespace) -> None:
    """All ways in turn, `rounds` times, each with a process tree of its own."""
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in arguments.ways}
    for _ in range(arguments.rounds):
        for way in arguments.ways:
            async with started(way, arguments.step) as engine:
                await throughput(engine, ROWS, 1.0)  # connections, imports
                found[way].append(await measure(engine, way, arguments.seconds, arguments.requests))
    rows = [row(way, rounds, found.get(HERE, rounds)) for way, rounds in found.items()]
    print(report.table(rows))
    if arguments.write:
        workload = (
            f"{ROWS} rows an engine, {1000 * arguments.step:g} ms a step, answers of {TOKENS} tokens; closed "
            f"loops of as many clients as rows for {arguments.seconds:g} s, then {arguments.requests} "
            f"requests one by one; medians of {arguments.rounds} interleaved rounds"
        )
        notes = [f"usable cores: {len(os.sched_getaffinity(0))}; the edge and each replica want one each"]
        print(report.write("replicas", workload, rows, notes))


def row(way: str, rounds: list[dict[str, Any]], here: list[dict[str, Any]]) -> dict[str, Any]:
    """A line of the table."""
    first = [value for r in rounds for value in r["first"]]
    rate = median(r["rate"] for r in rounds)
    return {
        "engine": way,
        "tokens/s": rate,
        "of in-process": rate / median(r["rate"] for r in here),
        "first token p50 ms": median(first),
        "p99 ms": quantiles(first, n=100)[98],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", type=float, default=0.004, help="seconds of a step")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=[HERE, ONE, TWO], choices=[HERE, ONE, TWO])
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/results")
    asyncio.run(main(parser.parse_args()))
