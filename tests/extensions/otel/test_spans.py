"""A call as a trace: who is whose parent, what spans say, and what they never say."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest

from router.errors import Overloaded
from router.extensions.otel.spans import of_exposure
from router.kserve import open_inference_pb2 as oip
from router.kserve.open_inference_pb2_grpc import GRPCInferenceServiceStub
from router.ports import Exposed
from router.server.call import Call, current_call
from router.types import Decision, Reason
from tests.extensions.otel.collector import Collector, until
from tests.extensions.otel.conftest import StartTraced
from tests.server.helpers import Connect, ask, failure, long_stream, messages, stream
from tests.server.http_helpers import Http, asking
from tests.server.http_helpers import connect as openai_client

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = (("traceparent", f"00-{TRACE}-{SPAN}-01"), ("tracestate", "vendor=1"))
PARTS = ["route", "lease", "encode", "queue", "prefill", "decode"]


async def test_a_request_is_a_tree_in_its_caller_s_trace(
    traced: StartTraced, connect: Connect, collector: Collector
) -> None:
    stubs = connect(await traced())
    answer = await stubs.inference.Generate(
        ask("medical zebra", sampling={"max_tokens": 5, "temperature": 0.5, "seed": 3, "stop": ["gnu"]}),
        metadata=PARENT,
    )
    root, parts = await collector.tree("chat auto")
    assert (root.trace, root.parent, root.state, root.kind) == (TRACE, SPAN, "vendor=1", "SERVER")
    assert root.status == "UNSET"
    said = {
        "rpc.system.name": "grpc",
        "rpc.method": "router.v1.InferenceService/Generate",
        "rpc.response.status_code": "OK",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "lora_router",
        "gen_ai.request.model": "auto",
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 3,
        "gen_ai.response.model": "medical@1.0.0",
        "gen_ai.response.id": answer.response_id,
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": answer.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": answer.usage.completion_tokens,
        "lora_router.adapter.name": "medical",
        "lora_router.decision.reason": "classified",
        "lora_router.decision.classifier": "words",
    }
    assert {key: root.attributes.get(key) for key in said} == said
    assert list(parts) == PARTS
    assert all(root.start <= part.start <= part.end <= root.end for part in parts.values())
    assert all(one.end <= next_.start + 1000 for one, next_ in pairwise(parts.values()))
    ((event, vote),) = parts["route"].events
    assert (event, vote["lora_router.classifier.name"]) == ("lora_router.classifier", "words")
    assert vote["lora_router.classifier.verdict"] == "scored"
    assert vote["lora_router.classifier.seconds"] > 0
    assert collector.resource["service.name"] == "lora-router"
    assert not {"zebra", "gnu"} & set(repr(collector.spans).replace("'", " ").split())
    assert "zebra" not in repr(collector.spans)


async def test_a_stream_over_http(traced: StartTraced, collector: Collector) -> None:
    server = await traced(http_listen="127.0.0.1:0")
    async with openai_client(server) as client:
        headers = dict(PARENT)
        body = asking("zebra", model="medical", stream=True)
        events = await client.chat.completions.create(**body, extra_headers=headers)
        assert [event async for event in events]
    root, parts = await collector.tree("chat medical")
    assert (root.trace, root.parent) == (TRACE, SPAN)
    assert root.attributes["http.request.method"] == "POST"
    assert root.attributes["http.route"] == "/v1/chat/completions"
    assert [key for key in root.attributes if key.startswith("rpc.")] == []
    assert list(parts) == PARTS
    assert root.attributes["url.scheme"] == "http"
    async with openai_client(server) as client:
        await client.models.retrieve("medical@1.0.0")
    root, parts = await collector.tree("GET /v1/models/{model}")
    assert parts == {}


async def test_refusals_over_http_have_their_status_and_are_no_fault_of_the_server(
    traced: StartTraced, http: Http, collector: Collector
) -> None:
    client = http(await traced(http_listen="127.0.0.1:0"))
    bad = asking(model="medical", temperature=-1)
    await client.post("/v1/chat/completions", json=bad, headers=dict(PARENT))
    root, _ = await collector.tree("chat")
    said = {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 400,
        "url.scheme": "http",
        "gen_ai.request.model": "medical",
        "error.type": "INVALID_REQUEST",
        "lora_router.field": "temperature",
    }
    assert {key: root.attributes.get(key) for key in said} == said
    assert (root.trace, root.status) == (TRACE, "UNSET")
    await client.patch("/v1/models")
    root, _ = await collector.tree("PATCH")
    assert (root.attributes["http.response.status_code"], root.status) == (405, "UNSET")
    assert (root.attributes["url.path"], root.attributes.get("http.route")) == ("/v1/models", None)


async def test_requests_of_a_kserve_stream_are_spans_of_their_own(
    traced: StartTraced, connect: Connect, collector: Collector
) -> None:
    stub = GRPCInferenceServiceStub(connect(await traced(**{"kserve.enabled": True})).channel)  # type: ignore[no-untyped-call]
    requests = []
    for number in range(2):
        requests.append(oip.ModelInferRequest(model_name="medical", id=str(number)))
        tensor = requests[-1].inputs.add(name="text_input", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(b"zebra")
    assert [message async for message in stub.ModelStreamInfer(iter(requests), metadata=PARENT)]
    await until(lambda: len([span for span in collector.spans if span.kind == "SERVER"]) == 2)
    roots = [span for span in collector.spans if span.kind == "SERVER"]
    assert {(root.name, root.trace, root.parent) for root in roots} == {("chat medical", TRACE, SPAN)}
    assert {root.attributes["rpc.method"] for root in roots} == {"inference.GRPCInferenceService/ModelInfer"}
    assert {root.attributes["lora_router.request_id"] for root in roots} == {"0", "1"}


async def test_errors_have_our_reason(
    traced: StartTraced, connect: Connect, collector: Collector, fakes: SimpleNamespace
) -> None:
    stubs = connect(await traced())
    await failure(stubs.inference.Generate(ask(routing={"adapter": "adapters/unknown"})))
    root, parts = await collector.tree("chat")
    assert root.attributes["error.type"] == "ADAPTER_NOT_FOUND"
    assert root.attributes["gen_ai.request.model"] == "unknown"
    assert root.status == "UNSET"  # by the conventions: the caller's fault, not the server's
    assert parts["route"].attributes == {"error.type": "ADAPTER_NOT_FOUND"}
    collector.spans.clear()
    fakes.router.error = Overloaded("full", bound="engine")
    await failure(stubs.inference.Generate(ask()))
    root, _ = await collector.tree("chat")
    assert (root.status, root.problem) == ("ERROR", "QUEUE_FULL")
    assert root.attributes["rpc.response.status_code"] == "UNAVAILABLE"


async def test_a_cancelled_stream_ends_where_it_was_left(
    traced: StartTraced, connect: Connect, collector: Collector, fakes: SimpleNamespace
) -> None:
    stubs = connect(await traced())
    call = stubs.inference.StreamGenerate(long_stream())
    async for message in call:
        if message.WhichOneof("event") == "delta":
            break
    call.cancel()
    root, parts = await collector.tree("chat auto")
    assert root.attributes["error.type"] == "CANCELLED"
    assert root.status == "UNSET"
    assert root.attributes["gen_ai.usage.output_tokens"] >= 1
    assert "gen_ai.usage.input_tokens" not in root.attributes  # the engine did not tell
    assert parts["prefill"].attributes == {"lora_router.includes_queue": True}
    assert parts["decode"].attributes == {"error.type": "CANCELLED"}
    collector.spans.clear()
    fakes.engine.hold()
    call = stubs.inference.StreamGenerate(stream())
    await call.initial_metadata()
    call.cancel()
    _, parts = await collector.tree("chat auto")
    fakes.engine.resume()
    assert parts["queue"].attributes["lora_router.includes_prefill"] is True
    assert not {"prefill", "decode"} & set(parts)


async def test_what_is_no_generation_is_a_call_and_health_is_none(
    traced: StartTraced, connect: Connect, collector: Collector
) -> None:
    stubs = connect(await traced())
    await stubs.channel.unary_unary("/grpc.health.v1.Health/Check")(b"")
    await messages(stubs.inference.StreamGenerate(stream(sampling={"max_tokens": 1, "min_tokens": 1})))
    await collector.tree("chat auto")
    assert {span.name for span in collector.spans if span.kind == "SERVER"} == {"chat auto"}


@pytest.mark.parametrize(
    "headers",
    [
        [("traceparent", "what?")],
        [("traceparent", f"00-{'0' * 32}-{SPAN}-01")],
        [("traceparent", f"00-{TRACE}-{SPAN}-01" + "-x" * 4000)],
        [("tracestate", "a=b")],
        [PARENT[0], ("tracestate", "a=1" + " " * 4000 + "b")],
        [PARENT[0], ("tracestate", "a=1" + " " * 400 + "b")],
    ],
    ids=["words", "zeros", "too long", "state alone", "state too long", "state that is none"],
)
async def test_what_callers_make_of_the_headers_is_their_own_loss(
    traced: StartTraced,
    connect: Connect,
    collector: Collector,
    caplog: pytest.LogCaptureFixture,
    headers: list[tuple[str, str]],
) -> None:
    await connect(await traced()).inference.Generate(ask(), metadata=headers)
    root, parts = await collector.tree("chat auto")
    assert root.parent == (SPAN if headers[0] == PARENT[0] else "")
    assert root.state == ""
    assert len(parts) == 5  # the base needs no lease
    warnings = [record.name for record in caplog.records if record.levelname == "WARNING"]
    assert [name for name in warnings if name.startswith(("opentelemetry.trace", "router.server"))] == []


@pytest.mark.parametrize("how", ["caller", "sampler"])
async def test_what_is_not_sampled_is_not_recorded(
    traced: StartTraced, connect: Connect, collector: Collector, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "sampler":
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    server = await traced()
    stubs = connect(server)
    await stubs.inference.Generate(ask(), metadata=[("traceparent", f"00-{TRACE}-{SPAN}-00")])
    await server.stop()
    assert collector.spans == []
    assert collector.metrics  # which do not depend on it


async def test_headers_and_names_of_the_environment(
    traced: StartTraced, connect: Connect, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "answers")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    stubs = connect(await traced(**{"otel.endpoint": "env"}))
    await stubs.inference.Generate(ask())
    await collector.tree("chat auto")
    assert collector.resource["service.name"] == "answers"
    assert collector.resource["deployment.environment.name"] == "test"
    assert collector.headers["authorization"] == "Bearer x"


def test_an_exposure_in_the_names_of_feature_flags() -> None:
    one = Exposed("tone", 2, "new", "5e" * 16, 1.0)
    assert of_exposure(one) == {
        "feature_flag.key": "tone",
        "feature_flag.provider.name": "lora_router",
        "feature_flag.result.variant": "new",
        "feature_flag.result.reason": "split",
        "feature_flag.context.id": "5e" * 16,
        "feature_flag.version": "2",
    }
    other = of_exposure(replace(one, degraded="NOT_SAVED"))
    assert (other["feature_flag.result.reason"], other["error.type"]) == ("error", "NOT_SAVED")


async def test_exposures_are_events_of_the_request(
    traced: StartTraced, connect: Connect, collector: Collector, fakes: SimpleNamespace
) -> None:
    server = await traced()

    async def route(request: object) -> Decision:
        call: Call = current_call()
        call.answer.exposures.append(Exposed("tone", 1, "new", "5e" * 16, 1_700_000_000.0))
        return Decision(None, Reason.ABSTAINED, experiment="tone", arm="new")

    fakes.router.route = route
    await connect(server).inference.Generate(ask())
    root, _ = await collector.tree("chat auto")
    ((name, said),) = root.events
    assert (name, said["feature_flag.key"]) == ("feature_flag.evaluation", "tone")
    assert root.attributes["lora_router.experiment.arm"] == "new"
