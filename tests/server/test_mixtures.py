"""Mixtures through the server: what is refused, who answers, and where it shows."""

from __future__ import annotations

import asyncio
import logging
import math
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import generate_latest

from router.client import AsyncClient, ClientError
from router.engine.base import digest_of_mixture
from router.engine.fake import FakeEngine
from router.errors import InvalidRequest
from router.server.requests import RequestLimits, generate_request
from router.types import (
    AdapterInfo,
    AdapterRef,
    AdapterState,
    MixturePart,
    PromptTemplate,
    Sampling,
)
from router.v1 import inference_pb2 as pb
from tests.fakes import FakeRegistry, FakeRouter, adapter
from tests.server.helpers import Connect, Start, ask, details, failure, messages, settled, stream

HALVES = {"adapters/medical": 0.7, "adapters/legal/versions/2.0.0": 0.3}
NAMES = ["adapters/medical/versions/1.0.0", "adapters/legal/versions/2.0.0"]


def routing(parts: dict[str, float] | None = None, **more: Any) -> pb.Routing:
    named = (pb.MixturePart(adapter=n, weight=w) for n, w in (parts or HALVES).items())
    return pb.Routing(mixture=named, **more)


# -- What a request may say.


def said(message: pb.Routing) -> tuple[tuple[str, float], ...]:
    request = pb.GenerateRequest(input=pb.Input(text="hi"), routing=message)
    return generate_request(request, "id", RequestLimits(100, 50)).routing.mixture


def test_weights_are_thousandths() -> None:
    assert said(routing()) == tuple(HALVES.items())
    assert said(routing({"adapters/a": 0.33333, "adapters/b": -10, "adapters/c": -0.0001})) == (
        ("adapters/a", 0.333),
        ("adapters/b", -10.0),
        ("adapters/c", 0.0),
    )
    assert math.copysign(1, said(routing({"adapters/a": 1, "adapters/b": -0.0}))[1][1]) == 1
    assert said(pb.Routing(adapter="adapters/medical")) == ()


FIVE = {f"adapters/{letter}": 0.2 for letter in "abcde"}


@pytest.mark.parametrize(
    ("message", "field", "words"),
    [
        (routing(FIVE), "routing.mixture", "at most 4 parts, got 5"),
        (routing(adapter="adapters/legal"), "routing.mixture", "leave out adapter, domain and task"),
        (routing(domain="legal"), "routing.mixture", "leave out adapter"),
        (routing(task="qa"), "routing.mixture", "leave out adapter"),
        (routing({"adapters/a": 0.0, "adapters/b": 0.0004}), "routing.mixture", "a weight that is not 0"),
        (routing({"adapters/a": math.nan}), "routing.mixture[0].weight", "a finite number"),
        (routing({"adapters/a": 1, "adapters/b": math.inf}), "routing.mixture[1].weight", "a finite number"),
        (routing({"adapters/a": 10.001}), "routing.mixture[0].weight", "in [-10, 10], got 10.001"),
        (routing({"adapters/a": -1e300}), "routing.mixture[0].weight", "in [-10, 10]"),
        (routing({"medical": 1}), "routing.mixture[0].adapter", "adapters/NAME or"),
        (routing({"": 1}), "routing.mixture[0].adapter", "adapters/NAME or"),
        (routing({"base": 1}), "routing.mixture[0].adapter", "must not be the base"),
        (routing({"adapters/base": 1}), "routing.mixture[0].adapter", "must not be the base"),
        (routing({"adapters/base/versions/1": 1}), "routing.mixture[0].adapter", "must not be the base"),
    ],
)
def test_what_is_refused_is_named(message: pb.Routing, field: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        said(message)
    assert words in {v.field: v.description for v in caught.value.violations}[field]


# -- Who answers.


@pytest.fixture
async def at(start_server: Start, connect: Connect) -> SimpleNamespace:
    """A server with medical, two versions of legal, and one of a large rank."""
    engine = FakeEngine()
    large = adapter("large", rank=60)
    infos = [adapter("medical", rank=8), adapter("legal", "1.0.0"), adapter("legal", "2.0.0"), large]
    registry = FakeRegistry(engine, infos)
    server = await start_server(engine=engine, registry=registry, router=FakeRouter(registry))
    return SimpleNamespace(server=server, engine=engine, registry=registry, **vars(connect(server)))


def mixture_digest(at: SimpleNamespace, *parts: tuple[str, str, float]) -> str:
    infos = at.registry.infos
    return digest_of_mixture(
        (infos[AdapterRef(name, version)].digest, weight) for name, version, weight in parts
    )


async def test_the_decision_names_all_parts(at: SimpleNamespace) -> None:
    call = at.inference.Generate(ask("one two", routing=routing()))
    answer = await call
    decision = answer.decision
    digest = mixture_digest(at, ("medical", "1.0.0", 0.7), ("legal", "2.0.0", 0.3))
    assert [(p.adapter, p.weight) for p in decision.mixture] == list(zip(NAMES, (0.7, 0.3), strict=True))
    assert (decision.adapter, decision.digest, decision.domain) == ("", digest, "")
    assert decision.reason == pb.DECISION_REASON_EXPLICIT
    assert answer.text == f"[{digest[:8]}] one two"
    assert at.engine.jobs[-1].adapter == digest
    header = dict(await call.initial_metadata())["x-router-adapter"]
    assert header == f"{NAMES[0]};weight=0.7, {NAMES[1]};weight=0.3"
    started, *_ = await messages(at.inference.StreamGenerate(stream("one two", routing=routing())))
    assert started.started.decision.mixture == decision.mixture
    assert await settled(at.server)


async def test_route_and_count_tell_the_same(at: SimpleNamespace) -> None:
    at.registry.prompts["medical"] = PromptTemplate("You are a doctor.", "Q: {prompt}")
    given = pb.Input(text="Am I ill?")
    routed = await at.inference.Route(pb.RouteRequest(input=given, routing=routing()))
    assert [p.adapter for p in routed.decision.mixture] == NAMES
    counted = await at.inference.CountTokens(pb.CountTokensRequest(input=given, routing=routing()))
    assert [p.adapter for p in counted.decision.mixture] == NAMES
    assert counted.prompt_tokens == len("You are a doctor.\nQ: Am I ill?")  # the first one's prompt
    turned = routing(dict(reversed(HALVES.items())))
    other = await at.inference.CountTokens(pb.CountTokensRequest(input=given, routing=turned))
    assert other.prompt_tokens == len("Am I ill?")
    assert other.decision.digest != counted.decision.digest


async def test_the_first_ones_sampling_is_the_default(at: SimpleNamespace) -> None:
    at.registry.generation["medical"] = Sampling(max_tokens=3)
    assert (await at.inference.Generate(ask("a b c d e", routing=routing()))).usage.completion_tokens == 3


async def test_one_that_weighs_one_is_the_adapter_itself(at: SimpleNamespace) -> None:
    alone = await at.inference.Generate(ask("hi", routing=routing({"adapters/medical": 1.0})))
    named = await at.inference.Generate(ask("hi", routing={"adapter": "adapters/medical"}))
    assert (alone.text, alone.decision.adapter, alone.decision.digest, len(alone.decision.mixture)) == (
        named.text,
        NAMES[0],
        named.decision.digest,
        0,
    )


@pytest.mark.parametrize(
    ("parts", "code", "reason"),
    [
        ({"adapters/medical": 1, "adapters/ghost": 1}, "NOT_FOUND", "ADAPTER_NOT_FOUND"),
        ({"adapters/medical": 1, "adapters/legal/versions/9": 1}, "NOT_FOUND", "ADAPTER_NOT_FOUND"),
        ({"adapters/medical": 0.5, NAMES[0]: 0.5}, "INVALID_ARGUMENT", "INVALID_REQUEST"),
        ({"adapters/medical": 0.5, "adapters/large": 0.5}, "FAILED_PRECONDITION", "FAILED_PRECONDITION"),
    ],
)
async def test_every_method_refuses_the_same(
    at: SimpleNamespace, parts: dict[str, float], code: str, reason: str
) -> None:
    asked, given = routing(parts), pb.Input(text="hi")
    for call in (
        at.inference.Generate(ask("hi", routing=asked)),
        at.inference.StreamGenerate(stream("hi", routing=asked)),
        at.inference.Route(pb.RouteRequest(input=given, routing=asked)),
        at.inference.CountTokens(pb.CountTokensRequest(input=given, routing=asked)),
    ):
        refused = await failure(call)
        assert (refused.code().name, details(refused)["ErrorInfo"].reason) == (code, reason)
    assert await settled(at.server)


async def test_a_quarantined_part_is_told(at: SimpleNamespace) -> None:
    ref = AdapterRef("legal", "2.0.0")
    at.registry.put(AdapterInfo(ref, AdapterState.QUARANTINED, error="its weights are NaN"))
    refused = await failure(at.inference.Generate(ask("hi", routing=routing())))
    assert (refused.code().name, refused.details()) == ("FAILED_PRECONDITION", "its weights are NaN")


async def test_mixtures_adapters_and_the_base_are_answered_side_by_side(at: SimpleNamespace) -> None:
    asked = [
        routing(),
        {"adapter": "adapters/medical"},
        {"adapter": "base"},
        routing({"adapters/legal": 2.0}),
    ]
    answers = await asyncio.gather(
        *(at.inference.Generate(ask(f"q{i}", routing=r)) for i, r in enumerate(asked))
    )
    assert len({answer.text.split()[0] for answer in answers}) == 4
    assert [answer.text.split()[1] for answer in answers] == ["q0", "q1", "q2", "q3"]


# -- Where it shows.


async def test_logs_and_metrics_count_it_as_a_mixture(
    at: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "router.server.access"):
        for weight in (0.1, 0.2, 0.3):
            await at.inference.Generate(ask("hi", routing=routing({**HALVES, "adapters/medical": weight})))
        await settled(at.server)
    line = next(r.fields for r in caplog.records if getattr(r, "fields", {}).get("method") == "Generate")
    assert (line["adapter"], line["version"], line["reason"]) == ("mixture", "", "explicit")
    assert line["mixture"] == ["medical@1.0.0=0.1", "legal@2.0.0=0.3"]
    at.server.look()
    page = generate_latest(at.server.metrics.registry).decode()
    assert "lora_router_mixtures 3.0\n" in page
    counted = [text for text in page.splitlines() if text.startswith("lora_router_requests_total")]
    assert counted == ['lora_router_requests_total{adapter="mixture",code="OK",version=""} 3.0']


async def test_clients_name_it_and_read_it(at: SimpleNamespace) -> None:
    async with AsyncClient(at.server.address) as client:
        answer = await client.generate("hi", mixture={"medical": 0.7, "legal@2.0.0": 0.3})
        medical, legal = AdapterRef("medical", "1.0.0"), AdapterRef("legal", "2.0.0")
        parts = (MixturePart(medical, 0.7), MixturePart(legal, 0.3))
        assert answer.decision.mixture == parts
        assert answer.decision.adapter is None
        assert (await client.route("hi", mixture={"legal@1.0.0": 2.0})).mixture[0].weight == 2.0
        with pytest.raises(ClientError, match=r"routing\.mixture\[0\]\.weight"):
            await client.generate("hi", mixture={"medical": 11.0, "legal": 1.0})
