"""What strangers and broken edges send to a replica over gRPC: it costs them their call, and nobody else."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import grpc
import pytest

from router.engine.base import Finished
from router.engine.fake import FakeEngine
from router.errors import InvalidRequest
from router.replicas import host
from router.replicas.host import CALLS, MOST_CONNECTIONS, MOST_EDGES, OPTIONS
from router.replicas.link import Security
from router.replicas.messages import MOST_REQUEST, error_of, finished_of, load, submit
from router.types import Constraint, FinishReason
from router.v1 import engine_pb2 as pb
from tests.engine.contract import until
from tests.engine.test_contract import fake_adapter
from tests.replicas.conftest import job
from tests.replicas.served import ServedLink

WINDOW = 256 << 10  # bytes: what a call may have on its way before anybody reads it, and what frames add
METHODS = "/router.v1.EngineService/"
UNKNOWN = b"\xfa\x3f\x80\x80\x80\x1e"  # tag and length of 60 MiB in a field that no message has
SECRET = Security("secret")


@pytest.fixture
def replica() -> Iterator[ServedLink]:
    link = ServedLink("0", partial(FakeEngine, step_seconds=0.001, max_queue=8), SECRET)
    link.start()
    yield link
    link.kill()


@pytest.fixture
async def channel(replica: ServedLink) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(replica.address, OPTIONS) as channel:
        yield channel


class Stream:
    """The stream of an edge, message by message."""

    def __init__(self, channel: grpc.aio.Channel, edge: str = "edge") -> None:
        self.call = channel.stream_stream(
            METHODS + "Attach",
            request_serializer=pb.AttachRequest.SerializeToString,
            response_deserializer=pb.AttachResponse.FromString,
        )(metadata=SECRET.metadata)
        self.edge = edge
        self.events: dict[int, list[pb.EngineEvent]] = {}

    async def send(self, **commands: pb.EngineCommand) -> None:
        """Commands by key, `k1=...`; the first message begins the stream."""
        message, self.edge = pb.AttachRequest(edge=self.edge), ""
        for name, command in commands.items():
            command.key = int(name[1:])
            message.commands.append(command)
        await self.call.write(message)

    async def last(self, key: int) -> pb.EngineEvent:
        """The last event of a key."""
        async with asyncio.timeout(20):
            while not any(event.WhichOneof("what") != "delta" for event in self.events.get(key, [])):
                for event in (await self.call.read()).events:
                    self.events.setdefault(event.key, []).append(event)
        return self.events[key][-1]


class Meter:
    """A port that counts what the replica takes of what comes there."""

    def __init__(self, far: str) -> None:
        self.address, self.taken = "", 0
        self._far, self._open = far, list[asyncio.StreamWriter]()

    async def __aenter__(self) -> Meter:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._open:
            writer.transport.abort()
        await until(lambda: not self._open)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._far.split(":"))
        self._open += writer, far_writer
        with suppress(OSError):
            await asyncio.gather(self._copy(reader, far_writer, 1), self._copy(far_reader, writer, 0))
        self._open.clear()

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, counts: int) -> None:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
            self.taken += counts * len(data)


async def flood(address: str, method: str, metadata: Any) -> tuple[grpc.StatusCode, int]:
    """Send a message of 60 MiB: how the call ends, and how many bytes the replica took."""
    async with Meter(address) as meter:
        channel = grpc.aio.insecure_channel(meter.address, (("grpc.max_send_message_length", -1),))
        async with channel:
            call = channel.stream_stream(METHODS + method)(metadata=metadata)
            with suppress(grpc.RpcError, asyncio.InvalidStateError):  # `code` says it
                await call.write(UNKNOWN + bytes(60 << 20))
            code = await call.code()
        return code, meter.taken


@pytest.mark.parametrize("method", ["Hello", "Attach"])
@pytest.mark.parametrize("known", [True, False])
async def test_a_large_message_is_refused_before_it_is_read(
    replica: ServedLink, method: str, known: bool
) -> None:
    code, taken = await flood(replica.address, method, SECRET.metadata if known else ())
    refused = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.INTERNAL}  # see `test_link`
    assert code in ({grpc.StatusCode.RESOURCE_EXHAUSTED} if known else refused)
    assert taken < WINDOW


async def test_a_stranger_is_refused_before_a_message_is_there(channel: grpc.aio.Channel) -> None:
    call = channel.stream_stream(METHODS + "Attach")()
    assert await call.code() is grpc.StatusCode.UNAUTHENTICATED


def test_streams_connections_and_messages_are_bounded() -> None:
    """What strangers can have a replica keep is the product of these: 64 MiB."""
    said = dict(OPTIONS)
    assert said["grpc.max_receive_message_length"] == MOST_REQUEST == 1 << 20
    assert said["grpc.max_concurrent_streams"] == CALLS
    assert said["grpc.max_allowed_incoming_connections"] == MOST_CONNECTIONS
    assert said["grpc.http2.bdp_probe"] == 0  # with it a call could send megabytes ahead
    assert MOST_CONNECTIONS * CALLS * (64 << 10) <= 64 << 20


async def test_a_stream_without_a_first_message_is_told_what_is_missing(channel: grpc.aio.Channel) -> None:
    stream = Stream(channel)
    await stream.call.done_writing()
    assert await stream.call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "ended before its first message" in await stream.call.details()


@pytest.mark.parametrize("edge", ["", "e" * 2000])
async def test_an_edge_says_who_it_is(channel: grpc.aio.Channel, edge: str) -> None:
    stream = Stream(channel, edge)
    await stream.send()
    assert await stream.call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await stream.call.details() == "edge: must be a name of 1 to 1024 characters"


async def test_no_more_edges_than_it_has_places_for(
    channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MOST_EDGES >= 16
    monkeypatch.setattr(host, "MOST_EDGES", 1)
    first, second = Stream(channel, "first"), Stream(channel, "second")
    await first.send(k1=submit(job()))
    await first.last(1)
    await second.send()
    assert await second.call.code() is grpc.StatusCode.UNAVAILABLE
    assert "serves 1 edges already" in await second.call.details()


Spoil = Callable[[Any], object]
BAD: dict[str, Spoil] = {
    "share": lambda m: m.ClearField("share"),
    "share of nothing": lambda m: setattr(m, "share", math.nan),
    "tokens": lambda m: m.tokens.append(256),
    "input": lambda m: m.ClearField("tokens") or m.ClearField("shared"),
    "adapter": lambda m: setattr(m.adapter, "digest", "../../etc"),
    "request_id": lambda m: setattr(m, "request_id", "r" * 2000),
    "tenant": lambda m: setattr(m, "tenant", "t" * 2000),
    "shared": lambda m: setattr(m, "shared", 1 << 30),
    "seconds_left": lambda m: setattr(m, "seconds_left", math.nan),
    "labels.temperature": lambda m: setattr(m.labels, "temperature", 0),
    "sampling.max_tokens": lambda m: m.sampling.ClearField("max_tokens"),
    "sampling.min_tokens": lambda m: setattr(m.sampling, "min_tokens", 1 << 31),
    "sampling.temperature": lambda m: setattr(m.sampling, "temperature", -1),
    "sampling.top_p": lambda m: m.sampling.ClearField("top_p"),
    "sampling.top_k": lambda m: setattr(m.sampling, "top_k", 1 << 31),
    "sampling.min_p": lambda m: setattr(m.sampling, "min_p", math.nan),
    "sampling.repetition_penalty": lambda m: setattr(m.sampling, "repetition_penalty", math.inf),
    "sampling.frequency_penalty": lambda m: setattr(m.sampling, "frequency_penalty", 3),
    "sampling.presence_penalty": lambda m: setattr(m.sampling, "presence_penalty", -3),
    "sampling.seed": lambda m: setattr(m.sampling, "seed", (1 << 64) - 1),
    "sampling.logprobs": lambda m: setattr(m.sampling, "logprobs", 1000),
    "sampling.stop": lambda m: m.sampling.stop.append(""),
    "sampling.logit_bias": lambda m: m.sampling.logit_bias.update({3: math.nan}),
    "constraint.kind": lambda m: setattr(m.sampling.constraint, "kind", "from_prompt"),
}


@pytest.mark.parametrize("field", BAD)
async def test_a_bad_submit_fails_alone(channel: grpc.aio.Channel, field: str) -> None:
    command = submit(job(constraint=Constraint("choices", choices=("a", "b")), min_tokens=1))
    BAD[field](command.submit)
    stream = Stream(channel)
    await stream.send(k1=submit(job(min_tokens=40)), k2=command, k3=submit(job()))
    error = error_of((await stream.last(2)).error)
    assert isinstance(error, InvalidRequest)
    assert error.violations[0].field == field.partition(" of ")[0]
    for key in (1, 3):
        assert finished_of((await stream.last(key)).finished).reason is FinishReason.STOP


async def test_all_that_is_bad_is_named_at_once(channel: grpc.aio.Channel) -> None:
    stream = Stream(channel)
    await stream.send(k1=pb.EngineCommand(submit=pb.EngineCommand.Submit(tokens=[1])))
    error = error_of((await stream.last(1)).error)
    assert isinstance(error, InvalidRequest)
    fields = {violation.field for violation in error.violations}
    assert {"share", "sampling.max_tokens", "sampling.top_p", "sampling.repetition_penalty"} <= fields


async def test_commands_of_an_edge_are_bounded_and_have_keys_of_their_own(
    channel: grpc.aio.Channel, replica: ServedLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "MOST_COMMANDS", 2)
    stream = Stream(channel)
    long = job(min_tokens=1500, max_tokens=1500)
    await stream.send(k1=submit(long), k2=submit(long), k3=submit(long))
    assert (await stream.last(3)).error.kind == "Overloaded"
    await stream.send(k1=submit(job()))
    assert error_of((await stream.last(1)).error).message.startswith("key: 1 is that of a command under way")


async def test_an_edge_that_does_not_read_loses_its_stream(
    replica: ServedLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "MOST_EVENTS", 100)
    assert replica.host is not None
    unread = replica.host.open("unread")  # whose batches nobody takes
    for key in range(101):
        unread.generated(key, Finished(FinishReason.STOP))
    await until(lambda: bool(unread.ended))
    assert unread.ended == "this edge left 100 events unread"


async def test_a_digest_that_is_not_the_folders_is_not_believed(channel: grpc.aio.Channel) -> None:
    one, two = fake_adapter("one"), fake_adapter("two")
    stream = Stream(channel)
    false, relative, mixed, absent = (pb.EngineCommand(load=load(one)) for _ in range(4))
    false.load.digest = two.digest
    relative.load.digest = "ab" * 32
    relative.load.folder = "one"
    mixed.load.digest = "cd" * 32
    mixed.load.parts.add(digest=two.digest, weight=1)
    absent.load.digest = "ef" * 32
    absent.load.folder = "/nowhere/one"
    await stream.send(k1=false, k2=relative, k3=mixed, k4=absent, k5=pb.EngineCommand(load=load(one)))
    expected = {
        1: ("Unavailable", "is another one at this replica than at the edge"),
        2: ("InvalidRequest", "must be an absolute path"),
        3: ("InvalidRequest", "not those of a mixture with this digest"),
        4: ("Unavailable", "/nowhere/one"),
    }
    for key, (kind, words) in expected.items():
        error = (await stream.last(key)).error
        assert error.kind == kind
        assert words in error.message
    assert (await stream.last(5)).size == 8
