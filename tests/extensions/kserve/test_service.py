"""The Open Inference Protocol on the generated stubs: answers, streams, refusals, who sees which models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from router import __version__
from router.access.clients import Role, hash_of, new_token
from router.engine.fake import FakeEngine
from router.errors import InvalidRequest
from router.extensions.kserve import tensors
from router.extensions.kserve.service import ROWS as KSERVE
from router.kserve import open_inference_pb2 as oip
from router.kserve.open_inference_pb2_grpc import GRPCInferenceServiceStub
from router.server.app import ServerApp
from tests.fuzz.doors import good_infer
from tests.security.helpers import ROWS, bearer, write_clients
from tests.server.helpers import Start, details, failure, settled, until

Stub = Callable[[ServerApp], Any]
QUESTION = "one two three"


@pytest.fixture
async def stub() -> AsyncIterator[Stub]:
    """A stub on a channel of its own."""
    channels: list[grpc.aio.Channel] = []

    def connect(app: ServerApp) -> Any:
        channels.append(grpc.aio.insecure_channel(app.address))
        return GRPCInferenceServiceStub(channels[-1])  # type: ignore[no-untyped-call]

    yield connect
    for channel in channels:
        await channel.close()


@pytest.fixture
async def served(start_server: Start, stub: Stub) -> Any:
    """A stub to a server with the adapters medical and legal."""
    return stub(await start_server(**{"kserve.enabled": True}))


def raw(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(4, "little") + data


def asking(text: str = QUESTION, model: str = "auto", is_raw: bool = False, **said: Any) -> Any:
    """A request; parameters by name."""
    request = oip.ModelInferRequest(model_name=model, id=said.pop("id", "7"))
    tensor = request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    if is_raw:
        request.raw_input_contents.append(raw(text))
    else:
        tensor.contents.bytes_contents.append(text.encode())
    kinds = {str: "string_param", bool: "bool_param", int: "int64_param", float: "double_param"}
    for name, value in said.items():
        setattr(request.parameters[name], kinds[type(value)], value)
    return request


def told(message: oip.ModelInferResponse) -> dict[str, Any]:
    """Its parameters."""
    return {
        name: getattr(value, value.WhichOneof("parameter_choice") or "")
        for name, value in message.parameters.items()
    }


def text_of(message: oip.ModelInferResponse) -> str:
    (output,) = message.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("text_output", "BYTES", [1])
    if message.raw_output_contents:
        (data,) = message.raw_output_contents
        assert int.from_bytes(data[:4], "little") == len(data) - 4
        return data[4:].decode()
    (data,) = output.contents.bytes_contents
    return data.decode()


async def streamed(stub: Any, *requests: Any, **options: Any) -> list[Any]:
    return [message async for message in stub.ModelStreamInfer(iter(requests), **options)]


async def refused(stub: Any, request: Any) -> dict[str, str]:
    """The bad fields that an answer names."""
    error = await failure(stub.ModelInfer(request))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    return {v.field: v.description for v in details(error)["BadRequest"].field_violations}


# -- Answers


@pytest.mark.parametrize("is_raw", [False, True])
@pytest.mark.parametrize(
    ("model", "adapter", "reason", "version"),
    [
        ("medical", "adapters/medical/versions/1.0.0", "explicit", "1.0.0"),
        ("base", "", "explicit", ""),
        ("auto", "adapters/legal/versions/2.0.0", "classified", ""),
    ],
)
async def test_a_whole_answer(
    served: Any, model: str, adapter: str, reason: str, version: str, is_raw: bool
) -> None:
    answer = await served.ModelInfer(asking("a legal question", model, is_raw, max_tokens=40))
    assert (answer.model_name, answer.model_version, answer.id) == (model, version, "7")
    assert text_of(answer).endswith("a legal question")
    assert bool(answer.raw_output_contents) is is_raw
    said = told(answer)
    assert (said["adapter"], said["reason"], said["finish_reason"]) == (adapter, reason, "stop")
    assert 0 < said["confidence"] <= 1
    assert len(said["response_id"]) == 32
    assert said["completion_tokens"] > 0


async def test_a_version(served: Any) -> None:
    request = asking(model="legal")
    request.model_version = "2.0.0"
    assert (await served.ModelInfer(request)).model_version == "2.0.0"
    request.model_version = "9"
    assert (await failure(served.ModelInfer(request))).code() is grpc.StatusCode.NOT_FOUND


async def test_parameters_are_those_of_sampling(served: Any) -> None:
    answer = await served.ModelInfer(
        asking(max_tokens=1, temperature=0.5, top_p=0.9, seed=3, stop="x", unit="u")
    )
    assert told(answer)["completion_tokens"] == 1
    assert told(answer)["finish_reason"] == "length"


async def test_sampling_as_clients_of_tritons_backend_say_it(served: Any) -> None:
    request = asking()
    tensor = request.inputs.add(name="sampling_parameters", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(b'{"max_tokens": "1", "temperature": 0, "stop": ["a", "b"]}')
    tensor = request.inputs.add(name="stream", datatype="BOOL", shape=[1])
    tensor.contents.bool_contents.append(False)
    assert told(await served.ModelInfer(request))["completion_tokens"] == 1


async def test_outputs_that_are_asked_for(served: Any) -> None:
    request = asking()
    request.outputs.add(name="text_output")
    assert text_of(await served.ModelInfer(request))
    request.outputs.add(name="logits")
    assert set(await refused(served, request)) == {"outputs[1]"}


# -- Streams


async def test_a_stream_says_the_same_as_a_whole_answer(served: Any) -> None:
    whole = await served.ModelInfer(asking(model="medical", is_raw=True))
    events = await streamed(served, asking(model="medical", is_raw=True, stream=True))
    assert [event.error_message for event in events] == [""] * len(events)
    parts = [event.infer_response for event in events]
    assert "".join(map(text_of, parts)) == text_of(whole)
    assert [told(part)["triton_final_response"] for part in parts] == [False] * (len(parts) - 1) + [True]
    assert {part.id for part in parts} == {"7"}
    assert {part.model_version for part in parts} == {"1.0.0"}
    assert told(parts[-1])["finish_reason"] == "stop"
    assert len({told(part)["response_id"] for part in parts}) == 1
    assert len(parts) > 2


async def test_the_last_part_is_empty_where_that_is_asked_for(served: Any) -> None:
    events = await streamed(served, asking(stream=True, triton_enable_empty_final_response=True))
    last = events[-1].infer_response
    assert (len(last.outputs), len(last.raw_output_contents)) == (0, 0)
    assert told(last)["triton_final_response"] is True


async def test_requests_of_a_stream_are_answered_side_by_side_and_one_that_fails_hurts_no_other(
    served: Any,
) -> None:
    requests = (
        asking("a medical question", id="a", stream=True, max_tokens=30),
        asking("a legal question", id="b"),
        asking(model="nobody", id="c"),
        asking(id="d", max_tokens=0),
    )
    events = await streamed(served, *requests)
    failed = {event.infer_response.id: event.error_message for event in events if event.error_message}
    assert failed.keys() == {"c", "d"}
    assert failed["c"].startswith("NOT_FOUND: ")
    assert failed["d"].startswith("INVALID_ARGUMENT: parameters[max_tokens]")
    assert all(not event.infer_response.outputs for event in events if event.error_message)
    texts = {
        name: "".join(
            text_of(e.infer_response) for e in events if e.infer_response.id == name and not e.error_message
        )
        for name in "ab"
    }
    assert texts["a"].endswith("a medical question")
    assert texts["b"].endswith("a legal question")


async def test_a_stream_goes_on_while_nothing_is_asked(served: Any) -> None:
    call = served.ModelStreamInfer()
    for name in ("x", "y"):
        await call.write(asking(id=name))
        answer = await call.read()
        assert answer.infer_response.id == name
        assert told(answer.infer_response)["triton_final_response"] is True
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_who_leaves_a_stream_takes_its_requests_along(start_server: Start, stub: Stub) -> None:
    server = await start_server(FakeEngine(step_seconds=0.01), **{"kserve.enabled": True})
    call = stub(server).ModelStreamInfer()
    for name in "abc":
        await call.write(asking(id=name, stream=True, max_tokens=500, min_tokens=500))
    await call.read()
    await until(lambda: server.admission.in_flight == 3)
    call.cancel()
    await until(lambda: server.admission.in_flight == 0)
    assert await settled(server)


async def test_more_requests_than_places_on_one_stream(start_server: Start, stub: Stub) -> None:
    engine = FakeEngine(step_seconds=0.01)
    server = await start_server(engine, max_running=1, max_queue=1, **{"kserve.enabled": True})
    requests = [asking(id=name, max_tokens=20, min_tokens=20) for name in "abcd"]
    events = await streamed(stub(server), *requests)
    assert sum(event.error_message.startswith("UNAVAILABLE: ") for event in events) == 2
    assert sum(not event.error_message for event in events) == 2


# -- What is wrong


async def test_tensors_that_are_wrong(served: Any) -> None:
    for change, field in [
        (lambda r: r.inputs[0].shape.append(2), "inputs[0].shape"),
        (lambda r: r.inputs[0].shape.pop(), "inputs[0].shape"),
        (lambda r: setattr(r.inputs[0], "datatype", "FP32"), "inputs[0].datatype"),
        (lambda r: setattr(r.inputs[0], "name", "INPUT0"), "inputs[0].name"),
        (lambda r: r.inputs.append(r.inputs[0]), "inputs[1].name"),
        (lambda r: r.inputs[0].contents.bytes_contents.append(b"b"), "inputs[0].contents"),
        (lambda r: r.inputs[0].contents.int_contents.append(1), "inputs[0].contents"),
        (lambda r: r.inputs[0].ClearField("contents"), "inputs[0].contents"),
        (lambda r: r.raw_input_contents.append(raw("x")), "inputs[0].contents"),
        (lambda r: r.raw_input_contents.extend([raw("x"), raw("y")]), "raw_input_contents"),
        (lambda r: r.ClearField("inputs"), "inputs"),
        (lambda r: setattr(r, "model_name", ""), "model_name"),
        (lambda r: setattr(r, "model_name", "a/b"), "model_name"),
        (lambda r: setattr(r, "model_name", "medical/versions/1.0.0"), "model_name"),
        (lambda r: setattr(r, "model_version", "1"), "model_version"),
        (lambda r: r.inputs[0].contents.bytes_contents.__setitem__(0, b"\xff"), "text_input"),
        (lambda r: r.inputs[0].contents.bytes_contents.__setitem__(0, b""), "text_input"),
        (lambda r: r.inputs[0].parameters["shared_memory_region"].SetInParent(), "inputs[0].parameters"),
    ]:
        request = asking()
        change(request)
        assert field in await refused(served, request)


async def test_raw_contents_that_are_wrong(served: Any) -> None:
    for data in [b"", b"abc", raw("ab")[:-1], raw("ab") + b"x", raw("a") + raw("b")]:
        request = asking(is_raw=True)
        request.raw_input_contents[0] = data
        assert "inputs[0].contents" in await refused(served, request)


async def test_parameters_that_are_wrong(served: Any) -> None:
    for name, value, field in [
        ("max_tokens", 1.5, "parameters[max_tokens]"),
        ("max_tokens", True, "parameters[max_tokens]"),
        ("max_tokens", 1 << 40, "parameters[max_tokens]"),
        ("max_tokens", -1, "parameters[max_tokens]"),
        ("temperature", float("nan"), "parameters[temperature]"),
        ("temperature", 9.0, "parameters[temperature]"),
        ("temperature", "hot", "parameters[temperature]"),
        ("stop", 1, "parameters[stop]"),
        ("unit", 1, "parameters[unit]"),
        ("stream", 1, "parameters[stream]"),
        ("stream", True, "stream"),
        ("priority", 3, "parameters[priority]"),
    ]:
        assert set(await refused(served, asking(**{name: value}))) == {field}


async def test_sampling_that_is_wrong(served: Any) -> None:
    for said in [b"", b"[]", b"[" * 100_000, b'{"stop": {"a": 1}}', b'{"nope": 1}', b'{"unit": "\\ud800"}']:
        request = asking()
        tensor = request.inputs.add(name="sampling_parameters", datatype="BYTES", shape=[1, 1])
        tensor.contents.bytes_contents.append(said)
        assert len(await refused(served, request)) == 1


async def test_an_unknown_model(served: Any) -> None:
    error = await failure(served.ModelInfer(asking(model="nobody")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert details(error)["ErrorInfo"].reason == "ADAPTER_NOT_FOUND"


# -- Server and models


async def test_metadata_and_readiness(served: Any) -> None:
    server = await served.ServerMetadata(oip.ServerMetadataRequest())
    assert (server.name, server.version) == ("lora-router", __version__)
    model = await served.ModelMetadata(oip.ModelMetadataRequest(name="legal"))
    assert (model.name, list(model.versions)) == ("legal", ["2.0.0"])
    assert [(t.name, t.datatype, list(t.shape)) for t in model.inputs] == [("text_input", "BYTES", [1])]
    assert [t.name for t in model.outputs] == ["text_output"]
    assert list((await served.ModelMetadata(oip.ModelMetadataRequest(name="auto"))).versions) == []
    for name, version in (("nobody", ""), ("legal", "9"), ("base", "1")):
        missing = served.ModelMetadata(oip.ModelMetadataRequest(name=name, version=version))
        assert (await failure(missing)).code() is grpc.StatusCode.NOT_FOUND
    assert (await served.ServerLive(oip.ServerLiveRequest())).live
    assert (await served.ServerReady(oip.ServerReadyRequest())).ready
    ready = {
        name: (await served.ModelReady(oip.ModelReadyRequest(name=name))).ready
        for name in ("auto", "base", "medical", "nobody")
    }
    assert ready == {"auto": True, "base": True, "medical": True, "nobody": False}


async def test_it_lives_and_is_not_ready_while_the_base_is_loading(start_server: Start, stub: Stub) -> None:
    go = asyncio.Event()

    async def startup() -> None:
        await go.wait()

    server = await start_server(startup=startup, wait=False, **{"kserve.enabled": True})
    served = stub(server)
    assert (await served.ServerLive(oip.ServerLiveRequest())).live
    assert not (await served.ServerReady(oip.ServerReadyRequest())).ready
    assert not (await served.ModelReady(oip.ModelReadyRequest(name="auto"))).ready
    assert (await failure(served.ModelInfer(asking()))).code() is grpc.StatusCode.UNAVAILABLE
    go.set()
    await server.ready.wait()
    assert (await served.ServerReady(oip.ServerReadyRequest())).ready


async def test_it_is_off_unless_asked_for(start_server: Start, stub: Stub) -> None:
    served = stub(await start_server())
    assert (await failure(served.ModelInfer(asking()))).code() is grpc.StatusCode.UNIMPLEMENTED
    assert (await failure(served.ServerLive(oip.ServerLiveRequest()))).code() is grpc.StatusCode.UNIMPLEMENTED


# -- The layers


def test_every_method_has_a_role_and_a_policy() -> None:
    (service,) = oip.DESCRIPTOR.services_by_name.values()
    methods = {f"/{service.full_name}/{method.name}" for method in service.methods}
    assert methods == set(KSERVE)
    assert not methods & set(ROWS)
    for method in methods:
        infers = KSERVE[method].role is Role.INFER
        assert KSERVE[method].gated is infers or "Metadata" in method
        assert (KSERVE[method].max_body == 0) is infers


async def test_roles(start_server: Start, stub: Stub, tmp_path: Path) -> None:
    clients = write_clients(tmp_path)
    served = stub(await start_server(clients=clients.path, **{"kserve.enabled": True}))
    infer, observe = bearer(clients.infer), bearer(clients.observe)
    assert (await served.ServerReady(oip.ServerReadyRequest())).ready
    assert (await failure(served.ModelInfer(asking()))).code() is grpc.StatusCode.UNAUTHENTICATED
    nobody = served.ModelStreamInfer(iter([asking()]))
    assert (await failure(nobody)).code() is grpc.StatusCode.UNAUTHENTICATED
    for call in (
        served.ModelInfer(asking(), metadata=observe),
        served.ModelStreamInfer(iter([asking()]), metadata=observe),
        served.ModelMetadata(oip.ModelMetadataRequest(name="auto"), metadata=infer),
        served.ModelReady(oip.ModelReadyRequest(name="auto"), metadata=infer),
    ):
        assert (await failure(call)).code() is grpc.StatusCode.PERMISSION_DENIED
    assert text_of(await served.ModelInfer(asking(), metadata=infer))
    (event,) = await streamed(served, asking(), metadata=infer)
    assert text_of(event.infer_response)
    assert (await served.ModelReady(oip.ModelReadyRequest(name="auto"), metadata=observe)).ready


async def test_quotas_count_the_requests_of_a_stream_and_not_the_stream(
    start_server: Start, stub: Stub, tmp_path: Path
) -> None:
    clients = write_clients(tmp_path, more="requests_per_minute = 2\nmax_concurrent = 1")
    served = stub(await start_server(clients=clients.path, **{"kserve.enabled": True}))
    call = served.ModelStreamInfer(metadata=bearer(clients.infer))
    got = []
    for name in "abc":
        await call.write(asking(id=name))
        got.append((await call.read()).error_message.partition(":")[0])
    assert got == ["", "", "RESOURCE_EXHAUSTED"]
    call.cancel()


async def test_two_tenants_do_not_see_each_others_models(
    start_server: Start, stub: Stub, tmp_path: Path
) -> None:
    tokens, lines = {}, []
    for name in ("medical", "legal"):
        (folder := tmp_path / name).mkdir()
        clients = write_clients(folder, [name], f'tenant = "{name}"', **{name: ("infer", "observe")})
        tokens[name] = bearer(getattr(clients, name))
        lines += [clients.path.read_text(), f'[[tenant]]\nid = "{name}"\n']
    path = tmp_path / "clients.toml"
    path.write_text("".join(sorted(lines, reverse=True)))
    served = stub(await start_server(clients=path, **{"kserve.enabled": True}))
    for mine, other in (("medical", "legal"), ("legal", "medical")):
        metadata = tokens[mine]
        assert text_of(await served.ModelInfer(asking(model=mine), metadata=metadata))
        hidden = await failure(served.ModelInfer(asking(model=other), metadata=metadata))
        missing = await failure(served.ModelInfer(asking(model="nobody"), metadata=metadata))
        assert hidden.code() is missing.code() is grpc.StatusCode.NOT_FOUND
        assert str(hidden.details()).replace(other, "nobody") == missing.details()
        (event,) = await streamed(served, asking(model=other), metadata=metadata)
        assert event.error_message.startswith("NOT_FOUND: ")
        assert (await served.ModelReady(oip.ModelReadyRequest(name=mine), metadata=metadata)).ready
        assert not (await served.ModelReady(oip.ModelReadyRequest(name=other), metadata=metadata)).ready
        unseen = served.ModelMetadata(oip.ModelMetadataRequest(name=other), metadata=metadata)
        assert (await failure(unseen)).code() is grpc.StatusCode.NOT_FOUND
        routed = await served.ModelInfer(asking(f"a {other} question"), metadata=metadata)
        assert told(routed)["adapter"] == ""


async def test_a_drain_lets_what_runs_end_and_ends_streams(start_server: Start, stub: Stub) -> None:
    server = await start_server(FakeEngine(step_seconds=0.005), drain_seconds=5.0, **{"kserve.enabled": True})
    served = stub(server)
    idle, busy = served.ModelStreamInfer(), served.ModelStreamInfer()
    await idle.write(asking())
    await idle.read()
    await busy.write(asking(stream=True, max_tokens=100, min_tokens=100))
    await busy.read()
    stopping = asyncio.create_task(server.stop())
    await until(lambda: server.lifecycle.ending.is_set())
    assert await idle.code() is grpc.StatusCode.UNAVAILABLE
    assert not busy.done()
    got = await busy.read()
    while not told(got.infer_response)["triton_final_response"]:
        got = await busy.read()
    assert told(got.infer_response)["completion_tokens"] == 100
    assert await busy.code() is grpc.StatusCode.UNAVAILABLE
    await stopping


async def test_requests_of_a_stream_are_made_by_whom_the_stream_is(
    start_server: Start, tmp_path: Path
) -> None:
    path, token = tmp_path / "clients.toml", new_token("billing")
    rights = f'token_sha256 = ["{hash_of(token)}"]\nroles = ["infer"]\nadapters = ["*"]'
    path.write_text(f'[[client]]\nid = "billing"\n{rights}\n')
    server = await start_server(clients=path, **{"kserve.enabled": True})
    async with grpc.aio.insecure_channel(server.address) as channel:
        served = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        (event,) = await streamed(served, asking(), metadata=(("authorization", f"Bearer {token}"),))
        assert text_of(event.infer_response)
        assert (await failure(served.ModelStreamInfer(iter([asking()])))).code().name == "UNAUTHENTICATED"


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        (b'{"stop":[%s""]}' % (b'"",' * 20_000), "at most 16384 fields"),
        (b"[" * 5000, "must be an object of JSON"),
        (b'{"grammar":"%s"}' % (b"x" * tensors.MAX_PARAMETER_BYTES), "at most 524288 bytes"),
    ],
    ids=["entries", "nesting", "bytes"],
)
def test_parameters_in_json_are_counted_before_they_are_parsed(parameters: bytes, text: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        tensors.parse_request(good_infer(parameters))
