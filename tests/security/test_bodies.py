"""Bodies that mean harm: junk, millions of empty entries, none at all."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from types import SimpleNamespace

import psutil
import pytest

from router.access.roles import ROLES
from router.server.app import ServerApp
from tests.server.helpers import Connect, Start, ask, details, failure

GENERATE = "/router.v1.InferenceService/Generate"


def field(number: int, content: bytes) -> bytes:
    """One field of bytes on the wire."""
    size, length = len(content), b""
    while True:
        size, part = size >> 7, size & 127
        length += bytes([part | (128 if size else 0)])
        if not size:
            return bytes([number << 3 | 2]) + length + content


def empty_messages(size: int) -> bytes:
    """A chat of so many bytes, two for each message."""
    return field(1, field(2, field(1, b"") * (size // 2)))


@pytest.mark.parametrize("method", sorted(ROLES))
async def test_junk_is_the_callers_fault_in_fixed_words(stubs: SimpleNamespace, method: str) -> None:
    seen = set()
    for junk in (b"\xff" * 5, b"\x0a\xff\xff\xff\xff\x0f", b"\x0b" * 200, b"\x07"):
        error = await failure(stubs.channel.stream_stream(method)(iter([junk]), timeout=5))
        seen.add((error.code().name, error.details()))
    if method.endswith("/RecordOutcomes"):  # experiments are off here, so the stream is not read
        assert {code for code, _ in seen} == {"FAILED_PRECONDITION"}
        return
    assert seen == {("INVALID_ARGUMENT", "request: the bytes are not a message of this method")}


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
    assert process.memory_info().rss - before < 400 << 20  # of which the callers here have 70


async def test_a_refused_call_does_not_tell_whether_its_body_was_right(
    stubs: SimpleNamespace, server: ServerApp
) -> None:
    server.admission.limit = 0
    for body in (b"\xff\xff", b"", ask().SerializeToString()):
        error = await failure(stubs.channel.unary_unary(GENERATE)(body))
        assert details(error)["ErrorInfo"].reason == "QUEUE_FULL"
