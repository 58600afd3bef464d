"""Bodies over HTTP: every list of every model is bounded, errors are few, other types are refused unread."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from router.errors import MOST_FINDINGS, InvalidRequest
from router.extensions.console.site import MOST_FIELDS, count_form
from router.extensions.ofrep import flags
from router.extensions.openai import fields, requests, routes
from router.server.bodies import json_decoder
from router.server.grpc_adapter import status_of
from tests.server.http_helpers import Http, StartWeb, asking

SIZE = (2 << 20) - 64
SECONDS = 0.25  # of processor time; the defect took minutes
CHAT = "/v1/chat/completions"
MODELS: Mapping[type[fields.JsonModel], Callable[[bytes], Any]] = {
    requests.ChatCompletion: lambda body: fields.parsed(requests.ChatCompletion, body),
    requests.Completion: lambda body: fields.parsed(requests.Completion, body),
    routes.Feedback: routes.parsed_feedback,
}
GOOD: Mapping[type[fields.JsonModel], dict[str, Any]] = {
    requests.ChatCompletion: asking(),
    requests.Completion: {"prompt": "x"},
    routes.Feedback: {"response_id": "x", "metric": "m", "value": 1},
}
SMALL: tuple[bytes, ...] = (b"{}", b"[]", b'""', b"0", b"null")
Place = tuple[str, ...]


def parts(kind: Any) -> Iterator[Any]:
    """The types that an annotation is made of, itself first."""
    yield kind
    if get_origin(kind) in (Union, UnionType, Annotated):
        for inner in get_args(kind):
            yield from parts(inner)


def lists(model: type[BaseModel], within: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every list and map below a model, by its place; `[]` stands for an entry of a list."""
    for name, field in model.model_fields.items():
        place = (*within, field.alias or name)
        for kind in parts(field.annotation):
            if get_origin(kind) in (list, dict):
                yield place, get_origin(kind)
                for inner in parts(get_args(kind)[0]):
                    if isinstance(inner, type) and issubclass(inner, BaseModel):
                        yield from lists(inner, (*place, "[]"))
            elif isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from lists(kind, place)


LISTS = {
    f"{model.__name__}: {'.'.join(place)} of {entry.decode()}": (model, place, kind, entry)
    for model in MODELS
    for place, kind in lists(model)
    for entry in SMALL
}


def around(place: Place, content: bytes) -> bytes:
    """JSON with the content at that place."""
    for name in reversed(place):
        content = b"[%s]" % content if name == "[]" else b"{%s:%s}" % (json.dumps(name).encode(), content)
    return content


def body_of(model: type[fields.JsonModel], place: Place, content: bytes) -> bytes:
    """A body that is right but for what is at that place."""
    rest = {name: value for name, value in GOOD[model].items() if name != place[0]}
    first = around(place, content)
    return (json.dumps(rest).encode()[:-1] + b"," + first[1:]) if rest else first


def filled(kind: Any, entry: bytes, count: int) -> bytes:
    """So many entries."""
    if kind is list:
        return b"[%s]" % b",".join([entry] * count)
    return b"{%s}" % b",".join(b'"%d":%s' % (number, entry) for number in range(count))


def refused(decode: Callable[[bytes], Any], body: bytes) -> InvalidRequest | None:
    """The error of a body, if any, which costs little to find and to tell."""
    begin, found = time.thread_time(), None
    try:
        json_decoder(decode)(body)
    except InvalidRequest as error:
        found = error
        status_of(error, "id")
    assert time.thread_time() - begin < SECONDS
    assert found is None or len(found.violations) <= MOST_FINDINGS + 1
    return found


def test_the_lists_of_the_models_are_found() -> None:
    found = {name.partition(" of ")[0] for name in LISTS}
    assert {"ChatCompletion: messages", "ChatCompletion: messages.[].content"} <= found
    assert {"Completion: prompt", "Completion: metadata", "Completion: routing.mixture"} <= found


@pytest.mark.parametrize("name", LISTS)
def test_no_list_of_a_model_is_read_beyond_its_maximum(name: str) -> None:
    model, place, kind, entry = LISTS[name]
    for size in (SIZE, 60_000, 20_000):
        body = body_of(model, place, filled(kind, entry, size // (len(entry) + (1 if kind is list else 10))))
        error = refused(MODELS[model], body)
        assert error is not None or place[-1] == "schema"  # an object of any values, which is bounded as text


@pytest.mark.parametrize(
    "decode", [*MODELS.values(), flags.parse_context], ids=[*(m.__name__ for m in MODELS), "OFREP"]
)
@pytest.mark.parametrize("entry", SMALL)
def test_values_that_no_model_has_are_bounded_too(decode: Callable[[bytes], Any], entry: bytes) -> None:
    for kind in (list, dict):
        content = filled(kind, entry, SIZE // (len(entry) + 10))
        for body in (b'{"zz":%s}' % content, content, b'{"context":%s}' % content, b'{"tools":%s}' % content):
            assert refused(decode, body) is not None


def test_of_many_errors_some_are_named_and_the_others_counted() -> None:
    turns = [{"role": "nobody", "content": 1}] * 100
    error = refused(MODELS[requests.ChatCompletion], json.dumps({"messages": turns}).encode())
    assert error is not None
    assert [v.field for v in error.violations[:2]] == ["messages[0].role", "messages[0].content"]
    assert error.violations[-1].description == f"and {200 - MOST_FINDINGS} more"


def test_errors_without_number_are_not_built() -> None:
    class Many(fields.JsonModel):
        numbers: list[int]

    error = refused(lambda body: fields.parsed(Many, body), b'{"numbers":[%s]}' % b",".join([b"[]"] * 5000))
    assert error is not None
    assert error.message == "body: has 5000 errors, too many to name them"


def test_a_form_has_so_many_fields() -> None:
    assert count_form(b"&".join([b"a=b"] * MOST_FIELDS)) == MOST_FIELDS
    with pytest.raises(InvalidRequest, match=f"at most {MOST_FIELDS}"):
        count_form(b"&" * SIZE)


@pytest.mark.alone
async def test_a_neighbour_is_served_beside_a_body_of_empty_objects(start_web: StartWeb, http: Http) -> None:
    client = http(await start_web())
    body = body_of(requests.ChatCompletion, ("messages",), filled(list, SMALL[0], SIZE // 6))
    hostile = asyncio.ensure_future(
        client.post(CHAT, content=body, headers={"content-type": "application/json"})
    )
    assert (await client.get("/v1/models")).status_code == 200
    assert not hostile.done()
    answer = await hostile
    assert answer.status_code == 400
    assert len(answer.content) < 8192


FOREIGN = "https://elsewhere.example"


async def test_another_type_is_refused_unread(start_web: StartWeb) -> None:
    paths = (CHAT, "/v1/completions", "/v1/feedback", "/ofrep/v1/evaluate/flags")
    types = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "")
    server = await start_web()
    host, _, port = server.http_address.rpartition(":")
    for path, origin, content_type in product(paths, ("", FOREIGN), types):
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n"
        head += f"Content-Type: {content_type}\r\n" if content_type else ""
        head += f"Origin: {origin}\r\n" if origin else ""
        writer.write(head.encode() + b"\r\n")  # not a byte of the body is sent
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 3)
        assert answer.startswith(b"HTTP/1.1 415"), (path, origin, content_type)
        assert b"access-control" not in answer.lower()
        writer.close()


async def test_a_form_of_another_origin_is_refused_unread(start_web: StartWeb) -> None:
    server = await start_web(**{"console.enabled": True})
    host, _, port = server.http_address.rpartition(":")
    kinds: dict[str, Literal[403, 415]] = {"application/x-www-form-urlencoded": 403, "text/plain": 415}
    for kind, status in kinds.items():
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"POST /console/adapters/load HTTP/1.1\r\nHost: {server.http_address}\r\nOrigin: {FOREIGN}\r\n"
            f"Content-Type: {kind}\r\nContent-Length: 100\r\n\r\n".encode()
        )
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 3)
        assert answer.startswith(b"HTTP/1.1 %d" % status)
        writer.close()
