"""`python -m benchmarks.trace_cost`: what traces and metrics by OTLP cost, on the real base.

Servers on one engine and one event loop are asked in turn from another process: one that sends nothing, one
that sends every call to a collector in a third process, and one more that sends nothing. Beside that,
processor time of all that one request's trace takes, which noise does not reach.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from asyncio.subprocess import PIPE
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.answering import NEW_TOKENS, REQUESTS
from benchmarks.serving import HOST, Found, compared, in_turn, nothing, parts, served
from router.config import Settings
from router.engine.torch_engine import TorchEngine
from router.plugins import Hooks, PluginHost
from router.plugins.tables import read_tables
from router.server.app import ServerApp
from router.server.call import ENCODE, LEASE, ROUTE, Call, CallPhase
from router.server.policy import GENERATE
from router.types import Decision, Reason, Request, Sampling, Turn, Usage, Vote

OFF, ON, AGAIN = "nothing sent", "traces and metrics", "nothing sent, once more"
NAMES = (OFF, ON, AGAIN)
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


# -- The servers.


async def measure(rounds: int, threads: int) -> list[Found]:
    """All servers on one engine and one event loop."""
    me = (sys.executable, "-m", "benchmarks.trace_cost", "--collector")
    collector = await asyncio.create_subprocess_exec(*me, stdout=PIPE)
    assert collector.stdout is not None
    endpoint = f"http://{HOST}:{int(await collector.stdout.readline())}"
    os.environ["OTEL_BSP_SCHEDULE_DELAY"] = DELAY
    engine = TorchEngine(Settings(threads=threads))
    async with parts(engine) as (registry, router), AsyncExitStack() as stack:
        apps = {}
        for name in NAMES:
            given = {"otel.endpoint": endpoint} if name == ON else {}
            hooks = Hooks(PluginHost([], tables=read_tables(Path(), {}, given), built_in=True))
            settings = Settings(listen=f"{HOST}:0", metrics_listen="")
            apps[name] = ServerApp(settings, engine, registry, router, nothing, hooks=hooks)
            await stack.enter_async_context(served(apps[name]))
        servers = {name: {"target": app.address} for name, app in apps.items()}
        found = await in_turn(servers, rounds, FIRST_TOKENS, batches=BATCHES, rest=REST)
        sent = [app.metrics.telemetry_sent.labels("traces")._value.get() for app in apps.values()]
        print("spans that arrived:", *sent)
    collector.kill()
    await collector.wait()
    return found


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
    """Measure and write results; with --collector, be that."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--collector", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--only-processor", action="store_true", help="no servers, nothing is written")
    args = parser.parse_args()
    if args.collector:
        asyncio.run(collect())
        return
    alone = of_one_request()
    print(report.table(alone))
    if args.only_processor:
        return
    rows = compared(asyncio.run(measure(args.rounds, args.threads)), NAMES)
    print(report.table(rows))
    workload = (
        f"The default base without adapters. Throughput: {BATCHES} times {REQUESTS} streams, about 90 "
        f"prompt and {NEW_TOKENS} new tokens each, the servers in turn; first token: one request at a time, "
        f"{FIRST_TOKENS} a round. {args.rounds} rounds. Every call is traced, sent within {DELAY} ms. Three "
        "servers on one engine in one process, client and collector in others; one server works at a time."
    )
    tables = {"Processor time": alone}
    print("written to", report.write("trace-cost", workload, rows, [TARGET], tables))


if __name__ == "__main__":
    main()
