"""What a neighbour feels of attacks by network, and what they leave in the server's memory.

python -m benchmarks.floods [--part 1.0] [--only NAME ...]

Each attack is a process of its own against a new server on the fake engine. The neighbour asks `Route` 100
times a second, whatever comes back (an open loop), before the attack and while it lasts, and some seconds
more. `ambiguous` is on the real base, and the neighbour's answers have 24 tokens, one after the other.
All of it takes about seven minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from benchmarks.report import quantile, write
from benchmarks.serving import HOST, fake, real, used
from router.v1 import inference_pb2 as pb
from router.v1.inference_pb2_grpc import InferenceServiceStub
from tests.security.attacks.floods import FRAMINGS

EVERY = 0.01  # seconds between two calls of the neighbour
BEFORE, AFTER = 2.0, 2.0  # seconds
CALL_SECONDS = 10.0


@dataclass(frozen=True)
class Attack:
    """A program of tests/security/attacks, how many of what, and its further arguments."""

    name: str
    program: str
    number: int
    more: tuple[str, ...] = ()
    at: str = "grpc"  # or http, or metrics
    settings: tuple[str, ...] = ()


LARGE = (f"max_body_bytes={16 << 20}",)
ATTACKS = (
    Attack("half-open calls, 1 connection", "half_open", 5_000),
    Attack("half-open calls, 20 connections", "half_open", 5_000, ("20",)),
    Attack("half-open calls, 500 connections", "half_open", 5_000, ("500",)),
    Attack("silent connections", "silent", 1_000),
    Attack("idle connections", "idle", 1_000),
    Attack("idle connections, more than there may be", "idle", 3_000),
    Attack("rapid resets, 1 connection", "rapid_resets", 100_000),
    Attack("rapid resets, 20 connections", "rapid_resets", 100_000, ("20",)),
    Attack("answers not read", "slow_readers", 1_000, ("4",)),
    Attack("answers read byte by byte", "tiny_windows", 200),
    Attack("bodies byte by byte", "slow_writers", 1_000, ("4",)),
    Attack("20 kB of metadata", "metadata", 1_000),
    Attack("100 kB of metadata", "metadata", 1_000, ("100000",)),
    Attack("pings", "pings", 100_000),
    Attack("settings", "setting_frames", 100_000),
    Attack("a header block without end", "continuations", 20_000),
    Attack("frames of no byte", "empty_frames", 100_000),
    Attack("messages of no byte", "empty_messages", 100_000),
    Attack("messages that become 60 MB", "bomb", 100),
    Attack("prompts of 2 MB", "long_prompts", 400),
    Attack("constraints that take long to compile", "constraints", 1_000),
    Attack("health watches", "watches", 5_000, ("50", "health")),
    Attack("adapter watches", "watches", 5_000, ("50", "adapters")),
    Attack("reflection streams", "watches", 5_000, ("50", "reflection")),
    Attack("scrapes at once", "scrapes", 2_000, at="metrics"),
    Attack("slow HTTP", "slow_http", 2_000, at="metrics"),
    *(Attack(f"1 MB of {kind}", "framings", 64, (kind,), at="http") for kind in FRAMINGS),
    *(
        Attack(f"1 MB of {kind} to the metrics", "framings", 64, (kind,), at="metrics")
        for kind in ("chunks", "many_headers", "pipelined")
    ),
    Attack("2 MiB of empty objects over HTTP", "json_lists", 1, at="http"),
    Attack("64 times 2 MiB of empty objects", "json_lists", 64, at="http"),
    Attack("64 KiB of empty objects", "json_lists", 100, (str(64 << 10),), at="http"),
    Attack("text/plain from another origin", "json_lists", 64, (str(2 << 20), "{}", "text/plain"), at="http"),
    Attack("2 MiB of empty messages", "empty_chats", 256),
    Attack("15 MiB of empty messages", "empty_chats", 8, ("15",), settings=LARGE),
    Attack("15 MiB of empty objects", "json_lists", 8, (str(15 << 20),), at="http", settings=LARGE),
)


@dataclass
class Felt:
    """A neighbour's calls: seconds each took, by when it was made, and those that failed by code."""

    took: list[tuple[float, float]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    silent: float = 0.0  # the longest time that /healthz took, while `attacked`
    hung_up: int = 0  # connections for /healthz that the server ended without an answer
    attacked: bool = False

    def at(self, part: float, since: float, until: float) -> float:
        """A quantile in milliseconds of the calls made in that time."""
        return 1000 * quantile([took for made, took in self.took if since <= made < until], part)


async def neighbour(address: str, ended: asyncio.Event, felt: Felt) -> None:
    """Asks where a request would go, again and again; a failure counts as CALL_SECONDS."""
    calls: set[asyncio.Task[None]] = set()
    async with grpc.aio.insecure_channel(address) as channel:
        stub = InferenceServiceStub(channel)
        request = pb.RouteRequest(input=pb.Input(text="one two three"))

        async def call(due: float) -> None:
            try:
                await stub.Route(request, timeout=CALL_SECONDS)
                felt.took.append((due, time.monotonic() - due))
            except grpc.aio.AioRpcError as error:
                felt.failed.append(error.code().name)
                felt.took.append((due, CALL_SECONDS))

        due = time.monotonic()
        while not ended.is_set():
            calls.add(asyncio.create_task(call(due)))
            due += EVERY
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        await asyncio.gather(*calls)


async def probe(address: str, ended: asyncio.Event, felt: Felt) -> None:
    """Asks for /healthz, again and again, one after the other."""
    while not ended.is_set():
        begin = time.monotonic()
        reader, writer = await asyncio.open_connection(*address.split(":"))
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        try:
            await reader.read()
        except ConnectionResetError:  # one more than there may be
            felt.hung_up += 1
        writer.close()
        if felt.attacked:
            felt.silent = max(felt.silent, time.monotonic() - begin)
        await asyncio.sleep(EVERY)


METRICS, HTTP = f"{HOST}:9474", f"{HOST}:9475"


async def shed(address: str) -> str:
    """What the server counted, by bound."""
    reader, writer = await asyncio.open_connection(*address.split(":"))
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    text = (await asyncio.wait_for(reader.read(), 20)).decode()
    writer.close()
    found = re.findall(r'^lora_router_shed_total{bound="(\w+)"} (\d+)', text, re.MULTILINE)
    return ", ".join(f"{bound} {number}" for bound, number in found if int(number))


async def measured(attack: Attack, part: float) -> dict[str, Any]:
    """A row of the table."""
    number = max(1, int(attack.number * part))
    settings = (part for one in attack.settings for part in ("--set", one))
    with fake(0.01, "--metrics", METRICS, "--http", HTTP, *settings) as (process, address):
        at = {"grpc": address, "http": HTTP, "metrics": METRICS}
        felt, ended = Felt(), asyncio.Event()
        asking = asyncio.create_task(neighbour(at["grpc"], ended, felt))
        probing = asyncio.create_task(probe(at["metrics"], ended, felt))
        await asyncio.sleep(BEFORE)
        memory, began = process.memory_info().rss, time.monotonic()
        felt.attacked = True
        attacking = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.security.attacks", attack.program, at[attack.at]),
            *(str(number), *attack.more),
            stdout=subprocess.PIPE,
        )
        saying = asyncio.ensure_future(attacking.communicate())
        peak = memory
        while not saying.done():
            peak = max(peak, process.memory_info().rss)
            await asyncio.sleep(0.05)
        over = time.monotonic()
        await asyncio.sleep(AFTER)
        ended.set()
        await asyncio.gather(asking, probing)
        seen = json.loads(saying.result()[0])
        counted = await shed(at["metrics"])
    return {
        "attack": attack.name,
        "number": number,
        "seconds": over - began,
        "p50 ms": felt.at(0.5, began, over),
        "p99": felt.at(0.99, began, over),
        "most": felt.at(1, began, over),
        "/healthz most": 1000 * felt.silent,
        "/healthz hung up": felt.hung_up,
        "failed": len(felt.failed),
        "peak +MB": (peak - memory) / 2**20,
        "attacker saw": ", ".join(f"{what} {count}" for what, count in seen.items()) or "nothing",
        "server counted": counted or "nothing",
    }


STREAMS, ANSWERS, NEIGHBOUR_TOKENS = 8, 40, 24


async def beside_grammars() -> dict[str, Any]:
    """An answer beside streams of an ambiguous grammar and alone, in turn, and what health said meanwhile."""
    tokens = pb.Sampling(max_tokens=NEIGHBOUR_TOKENS, min_tokens=NEIGHBOUR_TOKENS)
    request = pb.GenerateRequest(input=pb.Input(text="Tell me of the sea."), sampling=tokens)
    with real() as (process, address):
        async with grpc.aio.insecure_channel(address) as channel:
            stub, health = InferenceServiceStub(channel), HealthStub(channel)
            not_serving = 0

            async def answers() -> list[float]:
                nonlocal not_serving
                took = []
                for _ in range(ANSWERS):
                    begin = time.monotonic()
                    await stub.Generate(request, timeout=60)
                    took.append(time.monotonic() - begin)
                    said = await health.Check(HealthCheckRequest(), timeout=CALL_SECONDS)
                    not_serving += said.status != HealthCheckResponse.SERVING
                return took

            await answers()
            alone = await answers()
            arguments = ("ambiguous", address, str(STREAMS), str(2 * NEIGHBOUR_TOKENS))
            attacking = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.security.attacks", *arguments), stdout=subprocess.PIPE
            )
            await asyncio.sleep(BEFORE)
            spent, begin = used(process), time.monotonic()
            beside = await answers()
            spent = (used(process) - spent) / (time.monotonic() - begin)
            ended = json.loads((await attacking.communicate())[0])
            alone += await answers()
    middle, least = quantile(beside, 0.5), quantile(alone, 0.5)
    return {
        "streams": STREAMS,
        "alone ms": 1000 * least,
        "beside ms": 1000 * middle,
        "ratio": middle / least,
        "worst ratio": max(beside) / least,
        "not SERVING": not_serving,
        "cores used": spent,
        "attacker saw": ", ".join(f"{what} {count}" for what, count in ended.items()),
    }


async def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All attacks, one after the other."""
    rows = []
    for attack in chosen(options.only):
        rows.append(await measured(attack, options.part))
        print(rows[-1], file=sys.stderr)
    return rows


def chosen(names: Sequence[str]) -> list[Attack]:
    """Those of these programs; all where none is named."""
    return [attack for attack in ATTACKS if not names or attack.program in names]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--part", type=float, default=1.0, help="of the numbers of each attack")
    parser.add_argument("--only", nargs="+", default=(), help="programs of tests/security/attacks")
    options = parser.parse_args()
    grammars = not options.only or "ambiguous" in options.only
    rows = asyncio.run(run(options))
    tables = {}
    if grammars:
        title = (
            f"An answer of {NEIGHBOUR_TOKENS} tokens beside streams of an ambiguous grammar, on the real base"
        )
        tables = {title: [asyncio.run(beside_grammars())]}
    what = f"The fake engine; a neighbour asks Route {1 / EVERY:.0f} times a second beside each attack."
    notes = [
        "times of the neighbour from the attacker's start, which includes its imports, to its end",
        f"a call that failed counts as {CALL_SECONDS:g} s",
        "what the library refuses (metadata, pings, sizes, connections) is not counted by the server",
    ]
    print(write("floods", what, rows, notes, tables, page="load"))


if __name__ == "__main__":
    main()
