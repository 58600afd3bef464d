"""What gRPC streaming costs: processor time a token, server and client apart, without a model.

python -m benchmarks.grpc_cost [--streams 16] [--tokens 300] [--rate 600] [--interval 1]

A server on the fake engine makes `rate` tokens/s over all streams; what the same costs it without gRPC is not
taken off, so the figure is an upper bound.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from asyncio.subprocess import PIPE

import grpc
import psutil

from router.v1 import inference_pb2 as pb
from router.v1.inference_pb2_grpc import InferenceServiceStub


def request(tokens: int) -> pb.StreamGenerateRequest:
    """An answer of so many tokens."""
    return pb.StreamGenerateRequest(
        input=pb.Input(text="one two three"), sampling=pb.Sampling(max_tokens=tokens, min_tokens=tokens)
    )


async def tokens_of(stub: InferenceServiceStub, tokens: int) -> int:
    """Stream one answer; returns the tokens that came."""
    return sum([event.delta.tokens async for event in stub.StreamGenerate(request(tokens))])


def used(process: psutil.Process) -> float:
    """Processor seconds so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


async def measure(options: argparse.Namespace) -> str:
    """One run; returns the line to print."""
    command = [sys.executable, "-m", "tests.server.serve_fake", "--step", str(options.streams / options.rate)]
    environment = {**os.environ, "LORA_ROUTER_STREAM_INTERVAL": str(options.interval)}
    server = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, env=environment)
    address = (await server.stdout.readline()).decode().strip() if server.stdout else ""
    watched, here = psutil.Process(server.pid), psutil.Process()
    async with grpc.aio.insecure_channel(address) as channel:
        stub = InferenceServiceStub(channel)
        await tokens_of(stub, 4)
        start, server_start, client_start = time.monotonic(), used(watched), used(here)
        streams = [tokens_of(stub, options.tokens) for _ in range(options.streams)]
        tokens = sum(await asyncio.gather(*streams))
        seconds = time.monotonic() - start
        server_used, client_used = used(watched) - server_start, used(here) - client_start
    server.terminate()
    await server.communicate()
    share = 100 / seconds / (os.cpu_count() or 1)
    return (
        f"{tokens} tokens at {tokens / seconds:.0f}/s, {options.streams} streams, every {options.interval}: "
        f"server {server_used / tokens * 1e6:.0f} us a token ({server_used * share:.1f} % of this machine), "
        f"client {client_used / tokens * 1e6:.0f} us ({client_used * share:.1f} %)"
    )


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("streams", 16), ("tokens", 300), ("rate", 600), ("interval", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    print(asyncio.run(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
