"""A request is one line of the log whatever stands in it, and no secret ever is in one."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor

from router.client import Client
from router.server.logs import logging_to
from router.v1 import adapters_pb2, experiments_pb2, inference_pb2
from tests.security.helpers import bearer, write_clients
from tests.server.helpers import Connect, Start, ask, failure, messages

NASTY = "a\nb\r\nevent=forged\x1b[31m\x85\u2028\u202e{%s}\x07"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def nasty(message: Any, depth: int = 0) -> Any:
    """The message with every string field, at every depth, set to text that would break a line."""
    for field in message.DESCRIPTOR.fields:
        value, inner = getattr(message, field.name), field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            if inner.fields_by_name["key"].cpp_type == FieldDescriptor.CPPTYPE_STRING:
                value[NASTY] = NASTY
        elif inner is not None and not inner.full_name.startswith("google.") and depth < 5:
            nasty(value.add() if field.is_repeated else value, depth + 1)
        elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            if field.is_repeated:
                value.append(NASTY)
            else:
                setattr(message, field.name, NASTY)
    return message


async def ended(call: Any) -> None:
    """However it ends."""
    with suppress(grpc.aio.AioRpcError):
        await (messages(call) if hasattr(call, "__aiter__") else call)


def calls(stubs: Any, metadata: Any) -> Iterator[Any]:
    """One of each method that is logged, each string in it nasty."""
    for module, stub in (
        (inference_pb2, stubs.inference),
        (adapters_pb2, stubs.adapters),
        (experiments_pb2, stubs.experiments),
    ):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                request = getattr(module, method.input_type.name)
                if not method.client_streaming and method.name != "WatchAdapters":
                    yield getattr(stub, method.name)(nasty(request()), metadata=metadata, timeout=20)


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
async def test_each_request_is_one_line(
    start_server: Start, connect: Connect, kind: type[io.StringIO]
) -> None:
    stream, made = kind(), 0
    with logging_to("debug", stream):  # a terminal shows requests at that level only
        stubs = connect(await start_server())
        before = stream.getvalue().count("\n")
        for call in calls(stubs, (("x-request-id", "forged id"),)):
            await ended(call)
            made += 1
        labelled = ask(NASTY, labels={"team": NASTY[:60]}, routing={"unit": NASTY})
        assert (await stubs.inference.Generate(labelled)).text
    lines = [
        line for line in stream.getvalue().split("\n")[before:] if "request" in line and "method" in line
    ]
    assert len(lines) == made + 1
    assert made > 15
    assert all(line.isprintable() for line in lines)
    assert not any(line.startswith("b") for line in stream.getvalue().splitlines())
    if kind is io.StringIO:
        assert {json.loads(line)["event"] for line in lines} == {"request"}


async def test_no_secret_is_in_log_or_answer(
    start_server: Start, connect: Connect, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clients = write_clients(tmp_path, billing=("infer",))
    secret = clients.billing.split("_", 2)[2]  # which may have one itself
    stream = io.StringIO()
    with logging_to("debug", stream):
        server = await start_server(clients=clients.path)
        stubs = connect(server)
        assert (await stubs.inference.Generate(ask("hi"), metadata=bearer(clients.billing))).text
        told = []
        for wrong in (
            clients.billing + "x",
            clients.billing[:-1],
            clients.billing.replace("billing", "search"),
        ):
            error = await failure(stubs.inference.Generate(ask("hi"), metadata=bearer(wrong)))
            told.append(error.details() + repr(error.trailing_metadata()))
        error = await failure(
            stubs.adapters.GetAdapter(
                adapters_pb2.GetAdapterRequest(name="x"), metadata=bearer(clients.billing)
            )
        )
        told.append(error.details() + repr(error.trailing_metadata()))
    for text in (stream.getvalue(), caplog.text, *told):
        assert secret[:20] not in text
        assert clients.path.read_text().split('token_sha256 = ["')[1][:20] not in text


def test_a_client_shows_no_token() -> None:
    with Client("127.0.0.1:1", token="lrk_a_secretsecret") as client:
        assert "secretsecret" not in repr(client) + repr(vars(client))


def test_the_settings_secret_is_stars() -> None:
    from router.config import Settings

    settings = Settings(replica_secret="verysecret")  # type: ignore[arg-type]
    logging.getLogger("router.test").info("%r", settings)
    assert "verysecret" not in repr(settings) + str(settings) + settings.model_dump_json()
