"""`python -m benchmarks.grpc_stream`: the same work in-process, through gRPC and over HTTP, interleaved.

One engine. In-process, its event loop reads the generations; else a client in a process of its own reads 16
concurrent streams from a server on the same engine and event loop, by gRPC or as OpenAI's server-sent events.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.answering import NEW_TOKENS, REQUESTS
from benchmarks.serving import answer, asked, nothing, parts, served, texts
from benchmarks.workload import run_jobs
from router.config import Settings
from router.engine.base import Job, Prompt
from router.engine.fake import FakeEngine
from router.engine.torch_engine import TorchEngine
from router.plugins import Hooks, PluginHost
from router.server.app import ServerApp
from router.types import SamplingParams

HERE, GRPC, HTTP = "in-process", "through gRPC", "over HTTP, server-sent events"
FAKE_STEP = 0.004  # seconds: 4,000 tokens a second of 16 streams, if nothing else took time


async def client(grpc_address: str, http_address: str) -> None:
    """The client's process: a way and prompts in, tokens a second out."""
    import grpc

    from router.v1.inference_pb2_grpc import InferenceServiceStub

    async with grpc.aio.insecure_channel(grpc_address) as channel:
        ways = {GRPC: partial(by_grpc, InferenceServiceStub(channel)), HTTP: partial(by_http, http_address)}

        async def one_round(work: tuple[str, list[str]]) -> float:
            way, prompts = work
            begin = time.perf_counter()
            tokens = sum(await asyncio.gather(*map(ways[way], prompts)))
            return tokens / (time.perf_counter() - begin)

        await answer(one_round)


async def by_grpc(stub: Any, text: str) -> int:
    """The tokens of one stream."""
    from router.v1 import inference_pb2 as pb

    sampling = pb.Sampling(max_tokens=NEW_TOKENS, min_tokens=NEW_TOKENS)
    request = pb.StreamGenerateRequest(input=pb.Input(raw_prompt=text), sampling=sampling)
    last = None
    async for event in stub.StreamGenerate(request):
        last = event
    return int(last.finished.usage.completion_tokens) if last else 0


async def by_http(address: str, text: str) -> int:
    """The same; without a library, so that the client costs as little as it can."""
    host, _, port = address.rpartition(":")
    body = json.dumps(
        {
            "model": "base",
            "prompt": text,
            "max_tokens": NEW_TOKENS,
            "min_tokens": NEW_TOKENS,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    tokens = 0
    while not (line := await reader.readline()).startswith(b"data: [DONE]"):
        if line.startswith(b"data: "):
            tokens = (json.loads(line[6:]).get("usage") or {}).get("completion_tokens", tokens)
    writer.close()
    return tokens


async def in_process(engine: Any, prompts: Sequence[str]) -> float:
    """Tokens a second without a server between."""
    params = SamplingParams(max_tokens=NEW_TOKENS, min_tokens=NEW_TOKENS)
    jobs = [Job(str(i), engine.encode(Prompt(raw=text)), params) for i, text in enumerate(prompts)]
    seconds, tokens = await run_jobs(engine, jobs)
    return tokens / seconds


async def measure(rounds: int, fake: bool) -> dict[str, list[float]]:
    """All ways in turn."""
    settings = Settings(listen="127.0.0.1:0", http_listen="127.0.0.1:0", metrics_listen="")
    engine: Any = FakeEngine(step_seconds=FAKE_STEP) if fake else TorchEngine(settings)
    speeds: dict[str, list[float]] = {HERE: [], GRPC: [], HTTP: []}
    hooks = Hooks(PluginHost([], built_in=True))
    async with parts(engine) as (registry, router):
        app = ServerApp(settings, engine, registry, router, nothing, hooks=hooks)
        async with (
            served(app),
            asked("benchmarks.grpc_stream", "--client", app.address, app.http_address) as ask,
        ):
            for run in range(rounds + 1):
                found = {HERE: await in_process(engine, texts(3 * run))}
                for at, way in enumerate((GRPC, HTTP) if run % 2 else (HTTP, GRPC), 1):
                    found[way] = await ask((way, texts(3 * run + at)))
                for way, speed in found.items() if run else ():
                    speeds[way].append(speed)
    return speeds


def main() -> None:
    """Measure and write results; with --client, be the client."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--fake", action="store_true", help=f"an engine whose steps take {FAKE_STEP * 1000:g} ms"
    )
    parser.add_argument("--client", nargs=2, metavar="ADDRESS", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client:
        asyncio.run(client(*args.client))
        return
    speeds = asyncio.run(measure(args.rounds, args.fake))

    def ratio(one: str, other: str) -> float:
        return median(a / b for a, b in zip(speeds[one], speeds[other], strict=True))

    rows = [{"arm": k, "tokens/s": median(v), "min": min(v), "max": max(v)} for k, v in speeds.items()]
    print(report.table(rows))
    workload = (
        f"{REQUESTS} concurrent requests to the base, about 90 prompt and {NEW_TOKENS} new tokens each, "
        "greedy; server and engine in one process, the client in another; median of "
        f"{args.rounds} interleaved rounds."
        + (f" No real engine: a step of all requests takes {FAKE_STEP * 1000:g} ms." if args.fake else "")
    )
    notes = [
        f"gRPC / in-process {ratio(GRPC, HERE):.2f} (target 0.95)",
        f"HTTP / gRPC {ratio(HTTP, GRPC):.2f} (target 0.9)",
    ]
    name = "grpc-stream-fake" if args.fake else "grpc-stream"
    print(report.write(name, workload, rows, notes, page="scale"))


if __name__ == "__main__":
    main()
