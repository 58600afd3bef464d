"""Bodies that mean harm: junk, millions of empty entries, none at all."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from types import SimpleNamespace

import psutil
import pytest

from router.server.app import ServerApp
from tests.addresses import free_address
from tests.security.helpers import ROWS
from tests.server.helpers import ROOT, Connect, Start, ask, details, failure, launch

GENERATE = "/router.v1.InferenceService/Generate"


def field(number: int, content: bytes) -> bytes:
    """One field of bytes on the wire."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    """A number on the wire."""
    made = b""
    while value > 127:
        made, value = made + bytes([value & 127 | 128]), value >> 7
    return made + bytes([value])


def empty_messages(size: int) -> bytes:
    """A chat of so many bytes, two for each message."""
    return field(1, field(2, field(1, b"") * (size // 2)))


async def test_junk_is_the_callers_fault_in_fixed_words(stubs: SimpleNamespace) -> None:
    for method in sorted(ROWS):
        seen = set()
        for junk in (b"\xff" * 5, b"\x0a\xff\xff\xff\xff\x0f", b"\x0b" * 200, b"\x07"):
            error = await failure(stubs.channel.stream_stream(method)(iter([junk]), timeout=5))
            seen.add((error.code().name, error.details()))
        if method.endswith("/RecordOutcomes"):  # experiments are off here, so the stream is not read
            assert {code for code, _ in seen} == {"FAILED_PRECONDITION"}
        else:
            said = ("INVALID_ARGUMENT", "request: the bytes are not a message of this method")
            assert seen == {said}, method


@pytest.mark.slow
async def test_millions_of_empty_entries_cost_little_and_neighbours_go_on(
    start_server: Start, connect: Connect
) -> None:
    server = await start_server()
    stubs, neighbour, process = connect(server), connect(server), psutil.Process()
    await stubs.inference.Generate(ask())
    before, longest = process.memory_info().rss, 0.0
    hostile = [
        asyncio.ensure_future(failure(stubs.channel.unary_unary(GENERATE)(empty_messages(size))))
        for size in [(2 << 20) - 64] * 4 + [15 << 20] * 4
    ]
    while not all(call.done() for call in hostile):
        start = time.monotonic()
        assert (await neighbour.inference.Generate(ask(), timeout=10)).text
        longest = max(longest, time.monotonic() - start)
    codes = Counter(error.code().name for error in await asyncio.gather(*hostile))
    assert codes == {"INVALID_ARGUMENT": 4, "RESOURCE_EXHAUSTED": 4}
    assert longest < 2  # 6 s before bodies were read last
    assert process.memory_info().rss - before < 256 << 20  # of which the callers here have 70


async def test_a_refused_call_does_not_tell_whether_its_body_was_right(
    stubs: SimpleNamespace, server: ServerApp
) -> None:
    server.admission.limit = 0
    for body in (b"\xff\xff", b"", ask().SerializeToString()):
        error = await failure(stubs.channel.unary_unary(GENERATE)(body))
        assert details(error)["ErrorInfo"].reason == "QUEUE_FULL"


async def attacked(
    process: Process, program: str, address: str, *more: str
) -> tuple[Counter[str], int, float]:
    """What an attacker saw, the bytes by which the server grew, and its seconds of processor time."""
    seen = psutil.Process(process.pid)
    before, used = seen.memory_info().rss, sum(seen.cpu_times()[:2])
    command = (sys.executable, "-m", "tests.security.attacks", program, address, *more)
    attacker = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=PIPE)
    saying, peak = asyncio.ensure_future(attacker.communicate()), before
    while not saying.done():
        peak = max(peak, seen.memory_info().rss)
        await asyncio.sleep(0.01)
    found = Counter(json.loads(saying.result()[0]))
    return found, peak - before, sum(seen.cpu_times()[:2]) - used


LARGE = ("--set", f"max_body_bytes={16 << 20}")


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize(
    ("program", "more", "settings"),
    [
        ("empty_chats", ("256",), ()),  # 512 MiB; it took 4.1 GB
        pytest.param("empty_chats", ("8", "15"), LARGE, marks=pytest.mark.long),
        ("json_lists", ("64",), ()),
        pytest.param("json_lists", ("8", str(15 << 20)), LARGE, marks=pytest.mark.long),
    ],
    ids=["256 chats of 2 MiB", "8 chats of 15 MiB", "64 times 2 MiB of JSON", "8 times 15 MiB of JSON"],
)
async def test_bodies_of_empty_entries_take_no_more_memory_than_a_few_bodies(
    program: str, more: tuple[str, ...], settings: tuple[str, ...]
) -> None:
    http = free_address()
    process, address = await launch("--http", http, *settings)
    try:
        seen, grown, _ = await attacked(process, program, http if program == "json_lists" else address, *more)
    finally:
        process.kill()
        await process.communicate()
    assert seen["INVALID_ARGUMENT"] + seen["400"] >= int(more[0]) * 3 // 4  # others lost their turn
    assert grown < 256 << 20  # 150 MiB on a machine that does nothing else


@pytest.mark.slow
@pytest.mark.parametrize(
    "entry", ["{}", *(pytest.param(one, marks=pytest.mark.long) for one in ("[]", '""', "0"))]
)
async def test_one_body_of_empty_objects_takes_little_of_a_processor(entry: str) -> None:
    http = free_address()
    process, _ = await launch("--http", http)
    try:
        await attacked(process, "json_lists", http, "1", "1000", entry)  # whatever is done once only
        seen, _, used = await attacked(process, "json_lists", http, "1", str(2 << 20), entry)
    finally:
        process.kill()
        await process.communicate()
    assert seen == {"400": 1}
    assert used < 0.5  # it was minutes
