"""`python -m benchmarks.replicas`: what the way to a replica costs, and what a second replica brings.

Fake engines with a fixed step time, so that only the way differs: in this process, one replica, one replica
with TLS and certificates on both sides, two replicas. A step takes its time whatever the event loop of its
process does, as on a device. Closed loops of clients keep all rows busy; then single requests measure the
first token; then 128 streams of 100 tokens a second go through one edge to one replica with mTLS. The machine
must be quiet and have a core for the edge and one for each replica.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import report
from router.engine.base import Delta, Engine, Finished, Job, Prompt
from router.engine.fake import FakeEngine
from router.replicas.children import Child
from router.replicas.engine import FleetEngine
from router.replicas.link import Link, Security
from router.replicas.membership import FixedMembership
from router.types import SamplingParams

ROWS, QUEUE, TOKENS = 16, 64, 64
HERE, ONE, MUTUAL, TWO = "in this process", "one replica", "one replica, mTLS", "two replicas"
WAYS = [HERE, ONE, MUTUAL, TWO]
STREAMS, STREAM_STEP, STREAM_TOKENS = 128, 0.01, 1000  # of the last table


@asynccontextmanager
async def started(way: str, step_seconds: float, rows: int = ROWS) -> AsyncIterator[Engine]:
    """`rows` rows an engine, with processes of its own; all ends with the block."""
    if way == HERE:
        engine: Engine = FakeEngine(step_seconds=step_seconds, max_running=rows, max_queue=QUEUE)
        engine.start()
        yield engine
        engine.close()
        return
    with ExitStack() as stack:
        files = certificates(Path(stack.enter_context(TemporaryDirectory()))) if way == MUTUAL else None
        links = [
            stack.enter_context(replica(str(i), step_seconds, rows, files))
            for i in range(2 if way == TWO else 1)
        ]
        engine = FleetEngine(FixedMembership(links), FakeEngine, max_running=rows, max_queue=QUEUE)
        await asyncio.to_thread(engine.start)
        yield engine
        await asyncio.to_thread(engine.close)


@contextmanager
def replica(name: str, step_seconds: float, rows: int, files: Path | None) -> Iterator[Link]:
    """`lora-router replica` on the fake engine; with certificates where there are `files`."""
    own: dict[str, Any] = {
        "max_running": rows,
        "max_queue": QUEUE,
        "stall_seconds": 10.0,
        "drain_seconds": 0.0,
    }
    names = {"tls_cert": "cert.pem", "tls_key": "key.pem", "tls_client_ca": "ca.pem"}
    own |= {setting: files and str(files / name) for setting, name in names.items()}
    own |= {"drain_seconds": 0.0, "log_level": "error"}
    child = Child("fake", own, fake={"step_seconds": step_seconds})
    try:
        paths = [] if files is None else [files / file for file in ("ca.pem", "cert.pem", "key.pem")]
        yield Link(name, child.address(), Security(child.secret, *paths))
    finally:
        child.end()


def certificates(folder: Path) -> Path:
    """A CA, and one certificate that both sides show."""
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    made = authority.issue_cert("127.0.0.1")
    made.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    return folder


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


async def streams() -> dict[str, Any]:
    """STREAMS at a time through one edge, as fast as engines of STREAM_STEP a step make them."""
    async with started(MUTUAL, STREAM_STEP, STREAMS) as engine:
        await throughput(engine, ROWS, 1.0)
        used, began = time.process_time(), time.perf_counter()
        found = await asyncio.gather(*(one(engine, STREAM_TOKENS) for _ in range(STREAMS)))
        seconds, used = time.perf_counter() - began, time.process_time() - used
    tokens = sum(count for count, _ in found)
    return {
        "streams": STREAMS,
        "tokens/s": tokens / seconds,
        "of the engines' own": tokens / seconds * STREAM_STEP / STREAMS,
        "edge, CPU ms per 1,000 tokens": 1e6 * used / tokens,
    }


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
    many = [await streams()]
    print(report.table(many))
    if arguments.write:
        workload = (
            f"{ROWS} rows an engine, {1000 * arguments.step:g} ms a step, answers of {TOKENS} tokens; closed "
            f"loops of as many clients as rows for {arguments.seconds:g} s, then {arguments.requests} "
            f"requests one by one; medians of {arguments.rounds} interleaved rounds"
        )
        notes = [f"usable cores: {len(os.sched_getaffinity(0))}; the edge and each replica want one each"]
        title = (
            f"{STREAMS} streams through one edge to one replica with mTLS, {1000 * STREAM_STEP:g} ms a step"
        )
        print(report.write("replicas", workload, rows, notes, tables={title: many}, page="scale"))


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
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/results")
    asyncio.run(main(parser.parse_args()))
