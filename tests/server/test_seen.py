"""Every request, by any door and however it ends, is one log record, one span and one count."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from router.errors import Overloaded
from router.kserve import open_inference_pb2 as oip
from router.server.app import ServerApp
from router.server.call import Call, Trace
from tests.security.helpers import bearer, write_clients
from tests.server.helpers import Connect, Start, ask, messages, stream, until
from tests.server.http_helpers import Http, asking

CHAT, GENERATE = "/v1/chat/completions", "router.v1.InferenceService/Generate"
STREAM, INFER = "router.v1.InferenceService/StreamGenerate", "inference.GRPCInferenceService/ModelInfer"
FLAGS = "/ofrep/v1/evaluate/flags"
FIELDS = ("transport", "route", "status", "code", "model", "adapter", "field", "tenant")


class Spans:
    """Traces every call, and keeps which ended."""

    endpoint = "here"

    def __init__(self) -> None:
        self.ended_calls: list[Call] = []

    def begin(self, metadata: Any) -> Trace:
        return Trace("4b" * 16, "00" * 8)

    def ended(self, call: Call, code: str, reason: str) -> None:
        self.ended_calls.append(call)


class Watched:
    """A server with clients, by all doors; what it has written and counted of each request."""

    def __init__(
        self, server: ServerApp, stubs: SimpleNamespace, client: Any, token: str, caplog: Any, fakes: Any
    ) -> None:
        self.server, self.stubs, self.client, self.fakes = server, stubs, client, fakes
        self.mine = bearer(token)
        self.headers = dict(self.mine)
        self.spans: Spans = server.tracing  # type: ignore[assignment]
        self._caplog = caplog

    async def of(self, asked: Awaitable[Any]) -> tuple[Any, ...]:
        """The one record of what `asked` sends; it has a span and a count, too."""
        self._caplog.clear()
        self.spans.ended_calls.clear()
        before = self._counted()
        with suppress(grpc.aio.AioRpcError):
            await asked
        await until(lambda: len(self._lines()) > 0)
        await asyncio.sleep(0)
        (line,) = self._lines()
        assert (len(self.spans.ended_calls), self._counted() - before) == (1, 1), line
        assert line["request_id"]
        return tuple(line.get(key, "") for key in FIELDS)

    def _lines(self) -> list[dict[str, Any]]:
        records = self._caplog.records
        return [record.fields for record in records if record.name == "router.server.access"]

    def _counted(self) -> float:
        return sum(
            sample.value
            for metric in (self.server.metrics.call_seconds, self.server.metrics.http_seconds)
            for family in metric.collect()
            for sample in family.samples
            if sample.name.endswith("_count")
        )

    async def post(self, path: str, body: Any, **more: Any) -> Any:
        answer = await self.client.post(path, json=body, **({"headers": self.headers} | more))
        assert answer.headers["x-request-id"]
        return answer


@pytest.fixture
async def at(
    start_server: Start,
    connect: Connect,
    http: Http,
    fakes: SimpleNamespace,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> Watched:
    caplog.set_level(logging.INFO, "router.server.access")
    more = '[[tenant]]\nid = "acme"\ntokens_per_minute = 1000'
    clients = write_clients(tmp_path, one=("infer",))
    clients.path.write_text(clients.path.read_text().replace('id = "', 'tenant = "acme"\nid = "') + more)
    server = await start_server(
        **vars(fakes),
        http_listen="127.0.0.1:0",
        clients=clients.path,
        before=traced,
        **{"kserve.enabled": True},
    )
    return Watched(server, connect(server), http(server), clients.one, caplog, fakes)


def kserve(at: Watched, model: str = "medical", text: str = "one two") -> Any:
    """A request in the Open Inference Protocol."""
    request = oip.ModelInferRequest(model_name=model)
    request.inputs.add(name="text_input", datatype="BYTES", shape=[1]).contents.bytes_contents.append(
        text.encode()
    )
    call = at.stubs.channel.unary_unary(
        f"/{INFER}", request_serializer=lambda one: one.SerializeToString(), response_deserializer=bytes
    )
    return call(request, metadata=at.mine)


async def test_answers_and_refused_input(at: Watched) -> None:
    """Whole, streamed, a bad field, an unknown model, no token, a quota: by each door."""
    inference, mine = at.stubs.inference, at.mine
    named = {"routing": {"adapter": "adapters/medical"}}
    unknown = {"routing": {"adapter": "adapters/nope"}}
    bad = {"sampling": {"temperature": -1.0}}
    large = {"sampling": {"max_tokens": 2000}}
    acme = "acme"
    rows: list[tuple[Callable[[], Awaitable[Any]], tuple[Any, ...]]] = [
        # gRPC
        (
            lambda: inference.Generate(ask("medical"), metadata=mine),
            ("grpc", GENERATE, 0, "OK", "auto", "medical", "", acme),
        ),
        (
            lambda: messages(inference.StreamGenerate(stream(**named), metadata=mine)),
            ("grpc", STREAM, 0, "OK", "medical", "medical", "", acme),
        ),
        (
            lambda: inference.Generate(ask(**named, **bad), metadata=mine),
            ("grpc", GENERATE, 3, "INVALID_ARGUMENT", "medical", "", "sampling.temperature", acme),
        ),
        (
            lambda: inference.Generate(ask(**unknown), metadata=mine),
            ("grpc", GENERATE, 5, "NOT_FOUND", "nope", "", "", acme),
        ),
        (
            lambda: inference.Generate(ask(**named)),
            ("grpc", GENERATE, 16, "UNAUTHENTICATED", "", "", "", ""),
        ),
        (
            lambda: inference.Generate(ask(**named, **large), metadata=mine),
            ("grpc", GENERATE, 8, "RESOURCE_EXHAUSTED", "medical", "medical", "", acme),
        ),
        (
            lambda: at.stubs.channel.unary_unary("/made.up/Method")(b""),
            ("grpc", "", 12, "UNIMPLEMENTED", "", "", "", ""),
        ),
        # OpenAI's API
        (
            lambda: at.post(CHAT, asking("medical")),
            ("http", CHAT, 200, "OK", "auto", "medical", "", acme),
        ),
        (
            lambda: at.post(CHAT, asking(model="medical@1.0.0", stream=True)),
            ("http", CHAT, 200, "OK", "medical@1.0.0", "medical", "", acme),
        ),
        (
            lambda: at.post(CHAT, asking(model="medical", temperature="hot")),
            ("http", CHAT, 400, "INVALID_ARGUMENT", "medical", "", "temperature", acme),
        ),
        (
            lambda: at.post(CHAT, asking(model="nope")),
            ("http", CHAT, 404, "NOT_FOUND", "nope", "", "", acme),
        ),
        (
            lambda: at.post(CHAT, asking(model="medical"), headers={}),
            ("http", CHAT, 401, "UNAUTHENTICATED", "", "", "", ""),
        ),
        (
            lambda: at.post(CHAT, asking(model="medical", max_tokens=2000)),
            ("http", CHAT, 429, "RESOURCE_EXHAUSTED", "medical", "medical", "", acme),
        ),
        (
            lambda: at.post(CHAT, asking("x" * 3_000_000)),
            ("http", CHAT, 413, "RESOURCE_EXHAUSTED", "", "", "", acme),
        ),
        # The Open Inference Protocol
        (lambda: kserve(at), ("grpc", INFER, 0, "OK", "medical", "medical", "", acme)),
        (
            lambda: kserve(at, "no/name"),
            ("grpc", INFER, 3, "INVALID_ARGUMENT", "no/name", "", "model_name", acme),
        ),
        # OFREP
        (
            lambda: at.post(f"{FLAGS}/tone", {"context": 7}),
            ("http", f"{FLAGS}/{{key}}", 400, "INVALID_ARGUMENT", "", "", "context", acme),
        ),
        # What is not served
        (lambda: at.post("/v1/nothing", {}), ("http", "", 404, "NOT_FOUND", "", "", "", "")),
        (lambda: at.post("/v1/models", {}), ("http", "", 405, "UNIMPLEMENTED", "", "", "", "")),
    ]
    seen = [(expected, await at.of(asked())) for asked, expected in rows]
    assert [found for _, found in seen] == [expected for expected, _ in seen]


async def streamed(at: Watched, text: str) -> None:
    """All of a stream by gRPC. A task that is cancelled just as the call has begun does not end the call:
    grpcio leaves that to the collection of garbage."""
    call = at.stubs.inference.StreamGenerate(stream(text), metadata=at.mine)
    try:
        await messages(call)
    finally:
        call.cancel()


Door = Callable[[Watched, str], Awaitable[Any]]
DOORS: dict[str, tuple[Door, str, str]] = {
    "gRPC": (lambda at, text: at.stubs.inference.Generate(ask(text), metadata=at.mine), "grpc", GENERATE),
    "gRPC stream": (streamed, "grpc", STREAM),
    "HTTP": (lambda at, text: at.post(CHAT, asking(text)), "http", CHAT),
    "HTTP stream": (lambda at, text: at.post(CHAT, asking(text, stream=True)), "http", CHAT),
    "KServe": (lambda at, text: kserve(at, "auto", text), "grpc", INFER),
}


@pytest.mark.parametrize("door", DOORS)
async def test_ends_that_are_no_fault_of_the_input(
    at: Watched, door: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An overload, a deadline, a client that leaves."""
    open_door, transport, route = DOORS[door]
    begun = "stream" in door  # its headers are sent, so that a later end changes nothing of them
    http_of = {"UNAVAILABLE": 503, "DEADLINE_EXCEEDED": 504, "CANCELLED": 499}

    def row(code: str, adapter: str, late: bool) -> tuple[Any, ...]:
        status = http_of[code] if transport == "http" else getattr(grpc.StatusCode, code).value[0]
        if transport == "http" and begun and late:
            status = 200
        return (transport, route, status, code, "auto", adapter, "", "acme")

    at.fakes.router.error = Overloaded("full", bound="engine")
    assert await at.of(open_door(at, "medical")) == row("UNAVAILABLE", "", late=False)
    at.fakes.router.error = None
    at.fakes.engine.hold()
    monkeypatch.setattr(at.server.interceptors, "_max_deadline", 1.0)
    assert await at.of(open_door(at, "medical")) == row("DEADLINE_EXCEEDED", "medical", late=True)
    monkeypatch.undo()

    async def left() -> None:
        asked = asyncio.ensure_future(open_door(at, "medical"))
        await until(lambda: at.server.admission.in_flight == 1 and at.fakes.engine.status().waiting > 0)
        asked.cancel()
        await asyncio.wait((asked,))

    assert await at.of(left()) == row("CANCELLED", "medical", late=True)
    at.fakes.engine.resume()


def traced(app: ServerApp) -> None:
    """Before it starts."""
    app.tracing = Spans()


async def sent(address: str, data: bytes) -> bytes:
    """What a server answers to these bytes until it hangs up."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    answer = await reader.read()
    writer.close()
    return answer


async def test_what_is_no_request_of_this_server(
    start_web: Start,
    connect: Connect,
    http: Http,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A page that has its own name point here; a body that does not come; a slash."""
    caplog.set_level(logging.INFO, "router.server.access")
    monkeypatch.setattr("router.server.app.BODY_SECONDS", 0.1)
    server = await start_web(before=traced, http_origins=("https://app.example",))
    at = Watched(server, connect(server), http(server), "", caplog, None)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    slow = head + b"Content-Length: 9\r\n\r\n{"
    preflight = {"origin": "https://app.example", "access-control-request-method": "POST"}
    answers: list[bytes] = []

    async def raw(data: bytes) -> None:
        answers.append(await sent(server.http_address, data))

    rows: list[tuple[Callable[[], Awaitable[Any]], tuple[Any, ...]]] = [
        (
            lambda: at.client.get("/v1/models", headers={"host": "evil.example"}),
            ("http", "", 403, "PERMISSION_DENIED", "", "", "", ""),
        ),
        (lambda: raw(slow), ("http", CHAT, 408, "DEADLINE_EXCEEDED", "", "", "", "")),
        (
            lambda: at.client.options("/v1/models", headers=preflight),
            ("http", "", 200, "OK", "", "", "", ""),
        ),
        (lambda: at.client.get("/v1/models/"), ("http", "/v1/models", 200, "OK", "", "", "", "")),
    ]
    assert [await at.of(asked()) for asked, _ in rows] == [expected for _, expected in rows]
    assert [answer.split()[1] for answer in answers] == [b"408"]
    assert all(b"\r\nx-request-id: " in answer for answer in answers)
    counted = server.metrics.registry.get_sample_value
    ended = {"adapter": "other", "version": "other"}
    assert counted("lora_router_requests_total", {**ended, "code": "CANCELLED"}) == 1  # it pages nobody


async def test_a_flood_of_what_is_not_served_is_no_flood_of_lines(
    start_web: Start, http: Http, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("router.server.interceptors.LINES_PER_SECOND", 0)
    caplog.set_level(logging.INFO, "router.server.access")
    client = http(await start_web())
    for number in range(12):
        assert (await client.get(f"/made-up-{number}")).status_code == 404
    assert not [record for record in caplog.records if record.name == "router.server.access"]
