"""How many requests of a burst are refused for their deadline, and how many of these would have been in time.

python -m benchmarks.bursts [--real] [--bursts 20] [--tokens 16] [--deadline 1.5] [--step 0.02]

Each burst is sent at once on one connection to an idle server. Before and after it comes the same burst
without deadlines. All requests are alike and are answered in the order of arrival: so as many of the refused
would have been in time as both of these had answered by the deadline beyond the number that was let in.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from typing import Any

import grpc

from benchmarks.overload import PROMPT, at, fake, real
from benchmarks.report import write
from router.v1 import inference_pb2 as pb
from router.v1.inference_pb2_grpc import InferenceServiceStub

SIZES = (150, 250)
REST_SECONDS = 1.0  # between two bursts
LONGEST = 600.0  # seconds, as good as no deadline
ANSWERED, REFUSED, LATE = "answered", "refused", "late"


async def ask(stub: InferenceServiceStub, tokens: int, deadline: float) -> tuple[str, float]:
    """How one request ended, and after how many seconds."""
    sampling = pb.Sampling(max_tokens=tokens, min_tokens=tokens)
    request = pb.GenerateRequest(input=pb.Input(text=PROMPT), sampling=sampling)
    began, ended = time.monotonic(), ANSWERED
    try:
        await stub.Generate(request, timeout=deadline)
    except grpc.aio.AioRpcError as error:
        ended = {
            grpc.StatusCode.UNAVAILABLE: REFUSED,
            grpc.StatusCode.DEADLINE_EXCEEDED: LATE,
        }.get(error.code(), error.code().name)
    return ended, time.monotonic() - began


async def burst(address: str, number: int, tokens: int, deadline: float) -> list[tuple[str, float]]:
    """So many at once on a connection; how each ended, in the order of sending."""
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        await channel.channel_ready()
        stub = InferenceServiceStub(channel)
        ended = await asyncio.gather(*(ask(stub, tokens, deadline) for _ in range(number)))
    await asyncio.sleep(REST_SECONDS)
    return ended


def in_time(ended: list[tuple[str, float]], deadline: float) -> int:
    """How many were answered by then."""
    return sum(kind == ANSWERED and took <= deadline for kind, took in ended)


async def measure(address: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each size."""
    rows = []
    await burst(address, 4, options.tokens, LONGEST)  # what is made at the first request is made
    for number in SIZES:
        kinds: Counter[str] = Counter()
        wrong, without, took, refusals = 0, 0, list[float](), list[float]()
        free = await burst(address, number, options.tokens, LONGEST)
        for _ in range(options.bursts):
            before = in_time(free, options.deadline)
            held = await burst(address, number, options.tokens, options.deadline)
            free = await burst(address, number, options.tokens, LONGEST)
            possible = min(before, in_time(free, options.deadline))
            ended = Counter(kind for kind, _ in held)
            wrong += min(ended[REFUSED], max(0, possible - ended[ANSWERED] - ended[LATE]))
            kinds += ended
            without += possible
            took.append(max(seconds for _, seconds in free))
            refusals += [seconds for kind, seconds in held if kind == REFUSED]
        rows.append(
            {
                "burst of": number,
                "bursts": options.bursts,
                "all done s": at(took, 0.5),
                "in time without the rule": without,
                "answered": kinds.pop(ANSWERED, 0),
                "late": kinds.pop(LATE, 0),
                "refused": kinds.pop(REFUSED, 0),
                "refused after s": at(refusals, 0.5),
                "would be in time": wrong,
                "other": sum(kinds.values()),
            }
        )
    return rows


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--real", action="store_true", help="the real base in place of the fake engine")
    for name, default in (("bursts", 20), ("tokens", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, seconds in (("deadline", 1.5), ("step", 0.02)):
        parser.add_argument(f"--{name}", type=float, default=seconds)
    options = parser.parse_args()
    with real() if options.real else fake(options.step) as address:
        rows = asyncio.run(measure(address, options))
    engine = "the real base" if options.real else f"the fake engine, {options.step:g} s a step"
    what = f"On {engine}; {options.tokens} tokens an answer, deadline {options.deadline:g} s."
    notes = [
        "each burst is sent at once on one connection; before and after it the same one without deadlines",
        "would be in time: answers by the deadline in both bursts without deadlines, beyond those let in",
    ]
    print(write("bursts-real" if options.real else "bursts", what, rows, notes))


if __name__ == "__main__":
    main()
