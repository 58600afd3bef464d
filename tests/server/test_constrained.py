"""Constraints through the protocol: who says what wins, what is refused and how, on the fake engine."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from router.engine.constrained import compiler as grammars
from router.engine.fake import FakeEngine
from router.server.app import ServerApp
from router.types import Constraint, Sampling
from router.v1 import inference_pb2 as pb
from tests.fakes import FakeRegistry, FakeRouter, adapter
from tests.security.helpers import bearer, write_clients
from tests.server.helpers import Connect, Start, ask, details, failure, stream

pytestmark = pytest.mark.slow

SCHEMA = json.dumps({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]})
CHOICES = {"choices": {"values": ["Neoplasms", "Injuries"]}}


@pytest.mark.parametrize(
    ("sampling", "fits"),
    [
        (CHOICES, lambda text: text in ("Neoplasms", "Injuries")),
        ({"regex": "[0-9]{3}-[A-Z]"}, lambda text: len(text) == 5 and text[3] == "-"),
        ({"json_schema": SCHEMA}, lambda text: isinstance(json.loads(text)["ok"], bool)),
        ({"grammar": 'start: WORD "!"\nWORD: "b" | "c"'}, lambda text: text in ("b!", "c!")),
        ({"quote": "b c"}, lambda text: text in ("b", "c", "b c")),
    ],
)
async def test_the_kinds(sampling: dict[str, Any], fits: Any, stubs: SimpleNamespace) -> None:
    reply = await stubs.inference.Generate(ask("hello", sampling=sampling))
    assert fits(reply.text), reply.text
    assert reply.finish_reason == pb.FINISH_REASON_STOP
    events = [event async for event in stubs.inference.StreamGenerate(stream("hello", sampling=sampling))]
    assert "".join(event.delta.text for event in events) == reply.text


@pytest.fixture
async def served(server: ServerApp) -> ServerApp:
    registry: Any = server.registry
    registry.generation["medical"] = Sampling(constraint=Constraint("choices", choices=("only",)))
    return server


@pytest.mark.parametrize(
    ("sampling", "text"),
    [
        ({}, "only"),
        ({"choices": {"values": ["mine"]}}, "mine"),
        ({"regex": "x"}, "x"),
        ({"unconstrained": True}, "] a medical question"),
        ({"unconstrained": False}, "only"),
        ({"max_tokens": 7}, "only"),
    ],
)
async def test_a_request_overrides_the_adapter(
    sampling: dict[str, Any], text: str, served: ServerApp, stubs: SimpleNamespace
) -> None:
    reply = await stubs.inference.Generate(ask("a medical question", sampling=sampling))
    assert reply.text.endswith(text)
    assert (reply.text == text) is not sampling.get("unconstrained", False)


async def test_what_is_wrong_is_said_of_its_field(stubs: SimpleNamespace) -> None:
    for sampling, field, said in [
        ({"json_schema": "{"}, "sampling.json_schema", "is not JSON"),
        ({"json_schema": '{"$ref": "https://x/y"}'}, "sampling.json_schema", "never read"),
        ({"json_schema": '{"not": {}}'}, "sampling.json_schema", "'not' is not supported, at $.not"),
        ({"regex": "a("}, "sampling.regex", "unclosed group, at character 1"),
        ({"regex": "a?" * 1025}, "sampling.regex", "is too complex: it has more than 1024 of"),
        ({"regex": ""}, "sampling.regex", "must not be empty"),
        ({"grammar": "start: foo"}, "sampling.grammar", 'line 1, column 8: unknown name: "foo"'),
        ({"choices": {}}, "sampling.choices.values", "1 to 1024 entries"),
        ({"choices": {"values": ["a", "a"]}}, "sampling.choices.values[1]", "same as entry 0"),
        ({"json_schema": "x" * 70000}, "sampling.json_schema", "at most 65536 bytes"),
    ]:
        for refused in (
            await failure(stubs.inference.Generate(ask(sampling=sampling))),
            await failure(stubs.inference.StreamGenerate(stream(sampling=sampling))),
        ):
            assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
            (violation,) = details(refused)["BadRequest"].field_violations
            assert violation.field == field
            assert said in violation.description


async def test_a_template_reads_the_last_user_turn(served: ServerApp, stubs: SimpleNamespace) -> None:
    registry: Any = served.registry
    passage, asked = "medical\nPassage: b\nQuestion: what?", {"from_prompt": "quote"}
    assert (await stubs.inference.Generate(ask(passage, sampling=asked))).text == "b"
    refused = await failure(stubs.inference.Generate(ask("a medical question", sampling=asked)))
    (violation,) = details(refused)["BadRequest"].field_violations
    assert violation.field == "sampling.from_prompt"
    assert "no line begins with one of Passage:" in violation.description
    registry.generation["medical"] = Sampling(constraint=Constraint("from_prompt", "quote"))
    assert (await stubs.inference.Generate(ask(passage))).text == "b"
    assert (await stubs.inference.Generate(ask("a medical question"))).text.endswith("a medical question")


async def test_an_engine_that_cannot_says_so(start_server: Start, connect: Connect) -> None:
    server = await start_server(engine=FakeEngine(unconstrained="its tokens are no bytes"))
    stubs = connect(server)
    refused = await failure(stubs.inference.Generate(ask(sampling=CHOICES)))
    assert refused.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "its tokens are no bytes" in refused.details()
    assert (await stubs.inference.Generate(ask("free"))).text.endswith("free")


async def test_one_that_is_cut_ends_with_its_length(stubs: SimpleNamespace) -> None:
    reply = await stubs.inference.Generate(ask(sampling={"regex": "[0-9]{20}", "max_tokens": 3}))
    assert (reply.text, reply.finish_reason) == ("000", pb.FINISH_REASON_LENGTH)


async def test_a_constraint_is_compiled_for_each_tenant_and_an_adapters_own_once(
    start_server: Start, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the time of a first call would tell whether another tenant sent the same constraint."""
    engine, begun = FakeEngine(), list[str]()
    compiled = grammars._compiled

    def counted(base: Any, constraint: Constraint) -> Any:
        begun.append(constraint.choices[0])
        return compiled(base, constraint)

    monkeypatch.setattr(grammars, "_compiled", counted)
    registry = FakeRegistry(engine, [adapter("medical")])
    registry.generation["medical"] = Sampling(constraint=Constraint("choices", choices=("own",)))
    clients = write_clients(tmp_path, one=("infer",), other=("infer",))
    server = await start_server(
        engine=engine, registry=registry, router=FakeRouter(registry), clients=clients.path
    )
    stubs = connect(server)
    for token in (clients.one, clients.other, clients.one, clients.other):
        for sampling, text in (({"choices": {"values": ["mine"]}}, "mine"), ({}, "own")):
            asked = ask("a medical question", sampling=sampling)
            reply = await stubs.inference.Generate(asked, metadata=bearer(token))
            assert reply.text == text
    assert sorted(begun) == ["mine", "mine", "own"]
