"""`python -m benchmarks.trace_cost`: what traces and metrics by OTLP cost, on the real base.

Servers on one engine and one event loop are asked in turn from another process: one that sends nothing, one
that sends every call to a collector in a third process, and one more that sends nothing. Beside that,
processor time of all that one request's trace takes, which noise does not reach.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from asyncio.subprocess import PIPE
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import harmonic_mean, median
from typing import Any

from benchmarks import report
from benchmarks.check_cost import HOST, ask, first_token, nothing, throughput
from benchmarks.grpc_stream import texts
from benchmarks.prompts import NEW_TOKENS, REQUESTS
from router.client import AsyncClient
from router.config import Settings
from router.engine.torch_engine import TorchEngine
from router.plugins import Hooks, PluginHost
from router.plugins.tables import read_tables
from router.registry.registry import Registry
from router.routing.router import Router
from router.server.app import ServerApp
from router.server.call import ENCODE, LEASE, ROUTE, Call, CallPhase
from router.server.policy import GENERATE
from router.types import Decision, Reason, Request, Sampling, Turn, Usage, Vote

OFF, ON, AGAIN = "nothing sent", "traces and metrics", "nothing sent, once more"
BATCHES = 3  # of so many requests at once, in a round of each server
FIRST_TOKENS = 30
DELAY = "200"  # ms: spans are sent in the round that they are of, 25 times as often as without it
REST = 0.6  # seconds after a round, for the last of them
TRIES = 3000
TARGET = "target: 1 % of throughput"


# -- The collector's process.


async def collect() -> None:
    """Take everything and look at nothing, so that what is measured is the server."""
    import grpc

    class Taking(grpc.GenericRpcHandler):
        def service(self, handler_call_details: Any) -> Any:
            async def take(request: bytes, context: Any) -> bytes:
                return b""

            return grpc.unary_unary_rpc_method_handler(take)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Taking(),))
    print(server.add_insecure_port(f"{HOST}:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


# -- The client's process.


async def client(arms: Mapping[str, str]) -> None:
    """A seed as a line on standard input, a line of JSON with what was measured back."""
    clients = {name: AsyncClient(target, timeout=120) for name, target in arms.items()}
    while line := await asyncio.to_thread(sys.stdin.readline):
        seed, found = int(line), {}  # type: int, dict[str, dict[str, Any]]
        rng = random.Random(seed)
        for place, name in enumerate(rng.sample(list(arms), len(arms))):
            seeds = (1000 * seed + 10 * place + batch for batch in range(BATCHES))
            rates = [await throughput(clients[name], texts(one)) for one in seeds]
            found[name] = {"tokens": harmonic_mean(rates)}
            await asyncio.sleep(REST)
        for i in range(FIRST_TOKENS):
            for place, name in enumerate(rng.sample(list(arms), len(arms))):
                seconds = await first_token(clients[name], f"{seed} {i} {place} what is the river's name")
                found[name].setdefault("first_token", []).append(seconds)
        print(json.dumps(found), flush=True)


# -- What starts it all.


async def measure(rounds: int, threads: int) -> list[dict[str, dict[str, Any]]]:
    """All servers on one engine and one event loop; the first round is thrown away."""
    me = [sys.executable, "-m", "benchmarks.trace_cost"]
    collector = await asyncio.create_subprocess_exec(*me, "--collector", stdout=PIPE)
    assert collector.stdout is not None
    endpoint = f"http://{HOST}:{int(await collector.stdout.readline())}"
    os.environ["OTEL_BSP_SCHEDULE_DELAY"] = DELAY
    engine = TorchEngine(Settings(threads=threads))
    await asyncio.to_thread(engine.start)
    with tempfile.TemporaryDirectory() as place:
        registry = Registry(engine, [Path(place) / "adapters"])
        router = Router(registry, PluginHost([]))
        await registry.start()
        await router.start()
        arms, apps = {}, []
        for name in (OFF, ON, AGAIN):
            given = {"otel.endpoint": endpoint} if name == ON else {}
            settings = Settings(listen=f"{HOST}:0", metrics_listen="")
            hooks = Hooks(PluginHost([], tables=read_tables(Path(), {}, given), built_in=True))
            app = ServerApp(settings, engine, registry, router, nothing, hooks=hooks)
            await app.start()
            await app.ready.wait()
            arms[name] = app.address
            apps.append(app)
        asking = await asyncio.create_subprocess_exec(
            *me, "--client", json.dumps(arms), stdin=PIPE, stdout=PIPE, limit=2**24
        )
        found = []
        for seed in range(rounds + 1):
            found.append(await ask(asking, seed))
            print(f"round {seed} of {rounds}", flush=True)
        sent = [app.metrics.telemetry_sent.labels("traces")._value.get() for app in apps]
        print("spans that arrived:", *sent)
        asking.kill()
        await asking.wait()
        for app in apps:
            await app.stop()
        await router.close()
        await registry.close()
    collector.kill()
    await collector.wait()
    return found[1:]


def summary(rounds: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each server: medians, and what it adds to the first in the same rounds."""

    def against(name: str) -> float:
        return median(one[name]["tokens"] / one[OFF]["tokens"] for one in rounds)

    def added(name: str) -> float:
        both = ((one[name]["first_token"], one[OFF]["first_token"]) for one in rounds)
        return median(a - b for mine, other in both for a, b in zip(mine, other, strict=True))

    return [
        {
            "server": name,
            "tokens/s": median(one[name]["tokens"] for one in rounds),
            "against nothing sent": f"{against(name):.4f}",
            "first token ms": median(s for one in rounds for s in one[name]["first_token"]) * 1000,
            "added ms": added(name) * 1000,
        }
        for name in (OFF, ON, AGAIN)
    ]


# -- One request's trace, without a request.


def ended_call() -> Call:
    """One that ended well, with three votes."""
    call = Call("/router.v1.InferenceService/Generate", "r", GENERATE, response_id="0a" * 16)
    call.request = Request("r", (Turn("user", "words"),), sampling=Sampling(max_tokens=NEW_TOKENS))
    call.decision = Decision(None, Reason.ABSTAINED, threshold=0.5, latency=0.002)
    call.usage = Usage(90, 0, NEW_TOKENS, 0.001, 0.05, 1.0)
    call.finish, now = "length", time.monotonic()
    call.phases.seen = [CallPhase(name, now, now) for name in (ROUTE, LEASE, ENCODE)]
    call.phases.submitted = now
    call.votes = [Vote(name, {"medical": 0.5}, latency=0.001) for name in ("keywords", "linear", "probe")]
    return call


def of_one_request() -> list[dict[str, Any]]:
    """Microseconds of processor time: what the event loop does, and what the thread that sends does."""
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    from router.extensions.otel import opened
    from router.extensions.otel.spans import ended
    from router.server.metrics import ServerMetrics

    os.environ["OTEL_METRICS_EXPORTER"] = "none"
    telemetry = opened(f"http://{HOST}:1", ServerMetrics(), lambda: None)
    del os.environ["OTEL_METRICS_EXPORTER"]
    assert telemetry is not None
    caller = [("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")]
    calls = [ended_call() for _ in range(TRIES)]
    kept, began = [], time.process_time()
    for call in calls:
        call.trace = telemetry.begin(caller)
        if call.trace is not None:
            kept.append(ended(call, call.trace.origin, "OK", ""))
    on_loop = time.process_time() - began
    began = time.process_time()
    for start in range(0, TRIES, 64):
        encode_spans(telemetry._maker.spans(kept[start : start + 64])).SerializeToString()
    in_thread = time.process_time() - began
    asyncio.run(telemetry.close(1.0))
    return [
        {"of one request": "on the event loop", "us": on_loop / TRIES * 1e6},
        {"of one request": "in the thread that sends", "us": in_thread / TRIES * 1e6},
    ]


def main() -> None:
    """Measure and write results; with --client and --collector, be that."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--client", metavar="ARMS", help=argparse.SUPPRESS)
    parser.add_argument("--collector", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--only-processor", action="store_true", help="no servers, nothing is written")
    args = parser.parse_args()
    if args.collector:
        asyncio.run(collect())
        return
    if args.client:
        asyncio.run(client(json.loads(args.client)))
        return
    alone = of_one_request()
    print(report.table(alone))
    if args.only_processor:
        return
    rows = summary(asyncio.run(measure(args.rounds, args.threads)))
    print(report.table(rows))
    workload = (
        f"The default base without adapters. Throughput: {BATCHES} times {REQUESTS} streams, about 90 "
        f"prompt and {NEW_TOKENS} new tokens each, the servers in turn; first token: one request at a time, "
        f"{FIRST_TOKENS} a round. {args.rounds} rounds. Every call is traced, sent within {DELAY} ms. Three "
        "servers on one engine in one process, client and collector in others; one server works at a time."
    )
    more = {"tables": {"Processor time": alone}}
    print("written to", report.write("trace-cost", workload, rows, [TARGET], **more))


if __name__ == "__main__":
    main()
