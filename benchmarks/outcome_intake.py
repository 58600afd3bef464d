"""`python -m benchmarks.outcome_intake`: outcomes a second through gRPC into a database, and what kills lose.

The server is a process of its own on the fake engine; one client sends batches on one stream at a rate. With
`--kills N` the server is killed (SIGKILL) N times while it takes outcomes in; after each kill the database is
read: what was acknowledged must be in it. The client sends the rest again under the same keys, and in the end
every outcome must be counted once. Without `--url` it runs on SQLite, and on PostgreSQL where that is there.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from benchmarks import report
from benchmarks.grpc_cost import used
from benchmarks.intake_sender import Sender
from benchmarks.intake_server import METRIC, NAME, IntakeServer, responses
from router.experiments.store.store import ExperimentStore
from tests.experiments.store.postgres import Server, binaries

TARGET = 5000
HEARD_SECONDS = 60.0


def counted(url: str) -> int:
    """Outcomes in the sums of the database."""
    store = ExperimentStore(url)
    try:
        buckets = store.data(NAME, 1).buckets
        return round(sum(float(b.moments[METRIC].sums[0]) for b in buckets if METRIC in b.moments))
    finally:
        store.close()


async def measure(url: str, units: int, batch: int, rate: float, seconds: float) -> dict[str, Any]:
    """One run without a kill."""
    async with IntakeServer(url) as server:
        sender = Sender(await responses(server.address, units), batch)
        watched, here = psutil.Process(server.process.pid), psutil.Process()
        before, before_here, begin = used(watched), used(here), asyncio.get_running_loop().time()
        whole = await sender.send(server.address, seconds, rate)
        took = asyncio.get_running_loop().time() - begin
        spent, spent_here = used(watched) - before, used(here) - before_here
    waits = sorted(sender.waits)
    return {
        "database": url.partition(":")[0],
        "outcomes": sender.acknowledged,
        "outcomes_per_s": round(sender.acknowledged / took),
        "batch": batch,
        "p50_ms": round(1e3 * waits[len(waits) // 2], 1),
        "p99_ms": round(1e3 * waits[int(len(waits) * 0.99)], 1),
        "server_us_each": round(1e6 * spent / sender.acknowledged, 1),
        "client_us_each": round(1e6 * spent_here / sender.acknowledged, 1),
        "lost": sender.acknowledged - counted(url),
        "whole": whole,
    }


async def killed(url: str, units: int, batch: int, rate: float, kills: int, seed: int) -> dict[str, Any]:
    """Kill the server again and again; returns what was sent, acknowledged, lost and counted twice."""
    rng, lost = random.Random(seed), 0
    async with IntakeServer(url) as server:
        sender = Sender(await responses(server.address, units), batch)
    for _ in range(kills):
        async with IntakeServer(url) as server:
            sending = asyncio.ensure_future(sender.send(server.address, 60.0, rate))
            await asyncio.wait_for(sender.heard.wait(), HEARD_SECONDS)
            await asyncio.sleep(rng.uniform(0.0, 0.5))
            await server.kill()
            assert not await sending
        lost += max(0, sender.acknowledged - counted(url))
    at_last = counted(url)
    async with IntakeServer(url) as server:
        whole = await sender.send(server.address, 0.0, 0.0)
    final = counted(url)
    return {
        "database": url.partition(":")[0],
        "kills": kills,
        "outcomes": sender.made,
        "in_doubt": sender.made - at_last,
        "sent_twice": sender.statuses["duplicate"],
        "lost": lost + max(0, sender.made - final),
        "counted_twice": max(0, final - sender.made),
        "whole": whole and not set(sender.statuses) - {"counted", "duplicate"},
    }


@contextmanager
def databases(url: str | None) -> Iterator[list[str]]:
    """URLs of empty databases: the one given, or a file and a PostgreSQL server where there is one."""
    if url:
        yield [url]
        return
    where = binaries()
    with tempfile.TemporaryDirectory() as folder:
        files = [f"sqlite:///{folder}/experiments.db"]
        if where is None:
            yield files
            return
        server = Server(where)
        try:
            yield [*files, server.url()]
        finally:
            server.close()


def main() -> None:
    """Measure or kill, print, and write results with --write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="an empty database; default: SQLite, and PostgreSQL if installed")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=TARGET, help="outcomes a second; 0: as fast as it goes")
    for name, default in (("units", 2000), ("batch", 500), ("kills", 0), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/outcome-intake")
    args = parser.parse_args()
    rows = []
    with databases(args.url) as urls:
        for url in urls:
            if args.kills:
                work = killed(url, args.units, args.batch, args.rate, args.kills, args.seed)
            else:
                work = measure(url, args.units, args.batch, args.rate, args.seconds)
            rows.append(asyncio.run(work))
            print(rows[-1], flush=True)
    if args.write:
        workload = f"one stream, batches of {args.batch}, {args.rate:g} outcomes/s, {args.units} units"
        notes = ["`lost`: acknowledged and not in the sums; `in_doubt`: sent, not counted at the last kill."]
        name = "outcome-intake-kills" if args.kills else "outcome-intake"
        print(report.write(name, workload, rows, notes))


if __name__ == "__main__":
    main()
