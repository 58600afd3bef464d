"""What is left of the answers when five times as many are asked for as the server can give.

python -m benchmarks.overload [--real] [--times 5] [--seconds 20] [--tokens 16] [--deadline 2] [--step 0.02]

A closed loop finds the peak: so many callers that each wait for their answer. Then callers ask at `times` the
peak, whatever comes back (an open loop, arrivals by chance). An answer counts if it is there within its
deadline. Callers are processes of their own; health is asked 20 times a second beside them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.report import quantile, write
from benchmarks.serving import fake, real
from router.v1 import inference_pb2 as pb
from router.v1.inference_pb2_grpc import InferenceServiceStub

CALLERS = (8, 16, 32, 64, 128)  # of the closed loop
PROCESSES = 2
SETTLING = 0.25  # of a run: what was asked then is not counted
REST = 0.1  # seconds that a caller of the closed loop waits after a refusal
CHANNELS = 8  # of a process: how many connections' worth of callers there are
NOTES = (
    "goodput: answers that were there within their deadline; the last row is the open loop",
    f"what was asked in the first {SETTLING:.0%} of a row is not counted",
)
PROMPT = "Say what a contract is, in plain words."


@dataclass
class Seen:
    """What callers saw, in seconds; `counted` is how long they were watched."""

    good: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    late: int = 0
    other: int = 0
    counted: float = 0.0

    def add(self, more: Seen) -> None:
        """Of another process, at the same time."""
        self.good += more.good
        self.refused += more.refused
        self.late, self.other = self.late + more.late, self.other + more.other
        self.counted = max(self.counted, more.counted)

    @property
    def goodput(self) -> float:
        """Answers in time, a second."""
        return len(self.good) / self.counted


async def ask(stub: InferenceServiceStub, options: argparse.Namespace, seen: Seen | None) -> bool:
    """One request, and whether it was answered in time; `seen`: None while the server settles."""
    sampling = pb.Sampling(max_tokens=options.tokens, min_tokens=options.tokens)
    request = pb.GenerateRequest(input=pb.Input(text=PROMPT), sampling=sampling)
    began, kept = time.monotonic(), seen or Seen()
    try:
        await stub.Generate(request, timeout=options.deadline)
        kept.good.append(time.monotonic() - began)
        return True
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            kept.refused.append(time.monotonic() - began)
        elif error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            kept.late += 1
        else:
            kept.other += 1
    return False


async def closed(stubs: Sequence[InferenceServiceStub], options: argparse.Namespace) -> Seen:
    """Callers that wait for their answers."""
    seen, began = Seen(), time.monotonic()
    counting, end = began + SETTLING * options.seconds, began + options.seconds

    async def caller(number: int) -> None:
        while (now := time.monotonic()) < end:
            if not await ask(stubs[number % len(stubs)], options, seen if now >= counting else None):
                await asyncio.sleep(REST)

    await asyncio.gather(*(caller(number) for number in range(options.callers)))
    seen.counted = end - counting
    return seen


async def opened(stubs: Sequence[InferenceServiceStub], options: argparse.Namespace) -> Seen:
    """Callers that come at `rate` a second."""
    seen, chance, began = Seen(), random.Random(options.seed), time.monotonic()
    counting, end, due = began + SETTLING * options.seconds, began + options.seconds, began
    calls: set[asyncio.Task[bool]] = set()
    while (due := due + chance.expovariate(options.rate)) < end:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        stub = stubs[chance.randrange(len(stubs))]
        calls.add(asyncio.create_task(ask(stub, options, seen if due >= counting else None)))
    await asyncio.gather(*calls)
    seen.counted = end - counting
    return seen


async def client(options: argparse.Namespace) -> Seen:
    """A process of callers."""
    local = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
    channels = [grpc.aio.insecure_channel(options.client, options=local) for _ in range(CHANNELS)]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))
    stubs = [InferenceServiceStub(channel) for channel in channels]
    seen = await (opened if options.rate else closed)(stubs, options)
    await asyncio.gather(*(channel.close() for channel in channels))
    return seen


async def health(address: str, ended: asyncio.Event) -> list[float]:
    """Seconds that each answer took, asked 20 times a second; 5 s without one is an error."""
    took: list[float] = []
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def check() -> None:
            began = time.monotonic()
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
            took.append(time.monotonic() - began)

        checks = []
        while not ended.is_set():
            checks.append(asyncio.create_task(check()))
            await asyncio.sleep(0.05)
        await asyncio.gather(*checks)
    return took


async def phase(address: str, options: argparse.Namespace, callers: int, rate: float) -> dict[str, Any]:
    """All processes of callers together, and health beside them; a row of the table."""
    flags = [f"--{name}={getattr(options, name)}" for name in ("seconds", "tokens", "deadline")]
    flags += [f"--client={address}", f"--rate={rate / PROCESSES}", f"--callers={callers // PROCESSES}"]
    ended = asyncio.Event()
    asking = asyncio.create_task(health(address, ended))
    clients = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.overload", *flags, f"--seed={seed}"), stdout=subprocess.PIPE
        )
        for seed in range(PROCESSES)
    ]
    seen = Seen()
    for out, _ in await asyncio.gather(*(process.communicate() for process in clients)):
        seen.add(Seen(**json.loads(out)))
    ended.set()
    checks = await asking
    return {
        "asked": f"{rate:.0f}/s" if rate else f"{callers} callers",
        "goodput/s": seen.goodput,
        "p50 s": quantile(seen.good, 0.5),
        "p99 s": quantile(seen.good, 0.99),
        "refused/s": len(seen.refused) / seen.counted,
        "refused p50 ms": 1000 * quantile(seen.refused, 0.5),
        "refused p99 ms": 1000 * quantile(seen.refused, 0.99),
        "late/s": seen.late / seen.counted,
        "other": seen.other,
        "health p99 ms": 1000 * quantile(checks, 0.99),
        "health max ms": 1000 * quantile(checks, 1),
    }


async def measure(address: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows: the sweep, then the overload, with its part of the peak."""
    async with grpc.aio.insecure_channel(address) as channel:  # what is made at the first request is made
        for _ in range(3):
            request = pb.GenerateRequest(input=pb.Input(text=PROMPT), sampling=pb.Sampling(max_tokens=4))
            await InferenceServiceStub(channel).Generate(request, timeout=60, wait_for_ready=True)
    rows = [await phase(address, options, callers, 0.0) for callers in options.sweep]
    peak = max(row["goodput/s"] for row in rows)
    rows.append(await phase(address, options, 0, options.times * peak))
    return [{**row, "of the peak": f"{row['goodput/s'] / peak:.0%}"} for row in rows]


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--real", action="store_true", help="the real base in place of the fake engine")
    parser.add_argument("--sweep", type=int, nargs="+", default=CALLERS)
    for name, default in (("times", 5.0), ("seconds", 20.0), ("deadline", 2.0), ("step", 0.02)):
        parser.add_argument(f"--{name}", type=float, default=default)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--client", default="", help=argparse.SUPPRESS)  # the address, in a client process
    for name, kind in (("rate", float), ("callers", int), ("seed", int)):
        parser.add_argument(f"--{name}", type=kind, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure and write, or be a process of callers."""
    options = parsed()
    if options.client:
        print(json.dumps(asdict(asyncio.run(client(options)))))
        return
    engine = "the real base" if options.real else f"the fake engine, {options.step:g} s a step"
    with real() if options.real else fake(options.step) as (_, address):
        rows = asyncio.run(measure(address, options))
    what = f"On {engine}; {options.tokens} tokens an answer, deadline {options.deadline:g} s"
    name = "overload-real" if options.real else "overload"
    print(write(name, f"{what}, {options.seconds:g} s a row.", rows, NOTES, page="load"))


if __name__ == "__main__":
    main()
