"""`python -m benchmarks.edge_calls`: how many calls a second an edge takes, and what each costs it.

An edge is a real server in a process of its own; its replicas are processes with fake engines that cost
nothing, as those of the setting `replicas`. Clients are processes, too; with two edges they balance
by themselves (gRPC's `round_robin`). More and more callers ask, until calls a second grow no more. Who runs
on which core is said: where there are no cores for all, processor seconds a call tell what a core of an
edge could take.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import psutil

from benchmarks import report
from benchmarks.fake_replicas import Kind, address_of, link_to, pin, replicas
from benchmarks.serving import HOST, answer, nothing, parts, served, used
from router.config import Settings
from router.engine.fake import FakeEngine
from router.replicas.engine import FleetEngine
from router.replicas.membership import FixedMembership
from router.server.app import ServerApp
from router.v1 import inference_pb2 as pb
from router.v1.inference_pb2_grpc import InferenceServiceStub

UNARY, STREAM = "unary", "streaming"
TOKENS = {UNARY: 8, STREAM: 64}  # of an answer
STEP = 0.002  # seconds of the fake engines
WARM = 1.0
ROWS, QUEUE = 64, 4096  # of each replica: nothing is refused
BALANCED = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})


@dataclass(frozen=True, slots=True)
class Cores:
    """Who runs where."""

    edges: tuple[tuple[int, ...], ...]
    others: tuple[int, ...]  # clients and replicas

    @classmethod
    def of(cls, usable: Sequence[int], edges: int) -> Cores:
        """A core for each edge if three are left for others or there is one edge; else edges share the
        first."""
        if len(usable) < 2:
            return cls((tuple(usable),) * edges, tuple(usable))
        own = edges if len(usable) >= edges + 3 else 1
        return cls(tuple((usable[i % own],) for i in range(edges)), tuple(usable[own:]))

    def __str__(self) -> str:
        edges = "; ".join(f"edge {i} on core {', '.join(map(str, c))}" for i, c in enumerate(self.edges))
        return f"{edges}; clients and replicas on {', '.join(map(str, self.others))}"


class Edge:
    """A process that serves."""

    def __init__(self, addresses: list[str], cpus: Sequence[int]) -> None:
        command = [sys.executable, "-m", "benchmarks.edge_calls", "--edge", *addresses]
        command += ["--cpus", *map(str, cpus)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        self._watched = psutil.Process(self._process.pid)

    def used(self) -> float:
        """Processor seconds so far."""
        return used(self._watched)

    def memory(self) -> float:
        """Resident megabytes."""
        return float(self._watched.memory_info().rss) / 1e6

    def close(self) -> None:
        """It ends."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


async def serve(addresses: Sequence[str], cpus: Sequence[int]) -> None:
    """An edge's process: a server over replicas that run already, until the end of standard input."""
    pin(cpus)
    links = [link_to(str(i), address) for i, address in enumerate(addresses)]
    engine = FleetEngine(FixedMembership(links), FakeEngine, max_running=ROWS, max_queue=QUEUE)
    settings = Settings(listen=f"{HOST}:0", metrics_listen="", max_running=ROWS * len(links))
    async with parts(engine) as (registry, router):
        app = ServerApp(settings, engine, registry, router, nothing)
        async with served(app):
            print(app.address, flush=True)
            await asyncio.to_thread(sys.stdin.read)


async def call(stub: Any, way: str) -> int:
    """One; returns its tokens."""
    tokens = TOKENS[way]
    said: dict[str, Any] = {
        "input": pb.Input(text="one two three"),
        "sampling": pb.Sampling(max_tokens=tokens, min_tokens=tokens),
    }
    if way == UNARY:
        answer = await stub.Generate(pb.GenerateRequest(**said))
        return int(answer.usage.completion_tokens)
    return sum([event.delta.tokens async for event in stub.StreamGenerate(pb.StreamGenerateRequest(**said))])


async def client(addresses: Sequence[str], cpus: Sequence[int]) -> None:
    """A process of callers: a line in (way, callers, seconds), a line out."""
    pin(cpus)
    options = (("grpc.service_config", BALANCED), ("grpc.use_local_subchannel_pool", 1))
    async with grpc.aio.insecure_channel("ipv4:" + ",".join(addresses), options=options) as channel:
        stub = InferenceServiceStub(channel)

        async def one_round(work: tuple[str, int, float]) -> dict[str, float]:
            way, callers, seconds = work
            times: list[float] = []
            began = time.perf_counter()

            async def caller() -> int:
                came = 0
                while (asked := time.perf_counter()) < began + seconds:
                    came += await call(stub, way)
                    times.append(time.perf_counter() - asked)
                return came

            tokens = sum(await asyncio.gather(*(caller() for _ in range(callers))))
            took, cuts = time.perf_counter() - began, sorted(times)
            said = {"calls": len(times), "tokens": tokens, "seconds": took}
            return said | {"p50": cuts[len(cuts) // 2], "p99": cuts[len(cuts) * 99 // 100]}

        await answer(one_round)


@contextmanager
def clients(
    number: int, addresses: Sequence[str], cpus: Sequence[int]
) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes of callers; they end with the block."""
    command = [sys.executable, "-m", "benchmarks.edge_calls", "--client", *addresses]
    command += ["--cpus", *map(str, cpus)]
    made = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(number)
    ]
    try:
        yield made
    finally:
        for process in made:
            process.communicate()


def round_of(
    processes: Sequence[subprocess.Popen[str]], edges: Sequence[Edge], way: str, callers: int, seconds: float
) -> dict[str, float]:
    """So many callers in each process, all at once."""
    before = [edge.used() for edge in edges]
    began = time.perf_counter()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(json.dumps([way, callers, seconds]) + "\n")
        process.stdin.flush()
    said = [json.loads(process.stdout.readline()) for process in processes if process.stdout is not None]
    took = time.perf_counter() - began
    spent = sum(edge.used() for edge in edges) - sum(before)
    calls, tokens = sum(s["calls"] for s in said), sum(s["tokens"] for s in said)
    return {
        "calls/s": sum(s["calls"] / s["seconds"] for s in said),
        "p50 ms": 1e3 * max(s["p50"] for s in said),
        "p99 ms": 1e3 * max(s["p99"] for s in said),
        "edge ms a call": 1e3 * spent / calls,
        "tokens a call": tokens / calls,
        "edge, cores": spent / took,
    }


def measure(number: int, args: argparse.Namespace) -> tuple[list[dict[str, Any]], Cores, float]:
    """So many edges over the same replicas."""
    cores = Cores.of(sorted(os.sched_getaffinity(0)), number)
    rows: list[dict[str, Any]] = []
    kind = Kind(STEP, 0.0, 0.0, 0.0, ROWS, QUEUE)
    with ExitStack() as stack:
        started = stack.enter_context(replicas(args.replicas, kind, cores.others))
        addresses = [address_of(process) for process in started]
        edges = []
        for cpus in cores.edges:
            edges.append(Edge(addresses, cpus))
            stack.callback(edges[-1].close)
        asking = stack.enter_context(clients(args.clients, [e.address for e in edges], cores.others))
        for way in (UNARY, STREAM):
            round_of(asking, edges, way, 4, WARM)
            for callers in args.callers:
                found = round_of(asking, edges, way, max(1, callers // args.clients), args.seconds)
                rows.append({"edges": number, "calls": way, "callers": callers, **found})
                print(rows[-1], flush=True)
        memory = edges[0].memory()
    return rows, cores, memory


def a_core(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What a core of an edge takes, from processor seconds where it was busiest: calls, and streamed
    tokens."""
    busiest = {way: max((r for r in rows if r["calls"] == way), key=lambda r: r["calls/s"]) for way in TOKENS}
    unary, stream = busiest[UNARY], busiest[STREAM]
    more = stream["edge ms a call"] - unary["edge ms a call"]
    token = max(0.0, more) / (stream["tokens a call"] - unary["tokens a call"])
    return {
        "edge ms a call": unary["edge ms a call"],
        "unary calls a second": 1e3 / unary["edge ms a call"],
        "streams a second": 1e3 / stream["edge ms a call"],
        "edge us a streamed token": 1e3 * token,
        "streamed tokens a second": stream["tokens a call"] * 1e3 / stream["edge ms a call"],
    }


def main() -> None:
    """One edge, then two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edges", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument(
        "--clients", type=int, default=max(1, len(os.sched_getaffinity(0)) - 2), help="processes"
    )
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--seconds", type=float, default=8.0, help="of each number of callers")
    parser.add_argument("--write", action="store_true")
    for name in ("client", "edge"):
        parser.add_argument(f"--{name}", nargs="+", metavar="ADDRESS", help=argparse.SUPPRESS)
    parser.add_argument("--cpus", type=int, nargs="*", default=[], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client:
        asyncio.run(client(args.client, args.cpus))
        return
    if args.edge:
        asyncio.run(serve(args.edge, args.cpus))
        return
    rows, cored, notes = [], [], []
    for number in args.edges:
        found, cores, memory = measure(number, args)
        rows += found
        cored.append({"edges": number, **a_core(found)})
        notes.append(f"with {number}: {cores}; {memory:.0f} MB resident in an edge")
    print(report.table(rows), report.table(cored), *notes, sep="\n\n")
    if args.write:
        workload = (
            f"Calls to the base, answers of {TOKENS[UNARY]} (unary) and {TOKENS[STREAM]} tokens "
            f"(streaming), no routing; {args.replicas} replicas with fake engines of {1e3 * STEP:g} ms a "
            f"step; {args.clients} processes of clients; {args.seconds:g} s for each number of callers."
        )
        notes += [
            "`edge ms a call` and `edge, cores`: processor time of all edges together",
            "edges that share a core cannot take more calls than one: then what counts is that a call costs "
            "no more",
        ]
        title = "What one core of an edge takes, by processor time"
        print(report.write("edge-calls", workload, rows, notes, tables={title: cored}, page="scale"))


if __name__ == "__main__":
    main()
