"""Triton's own client against a server at the address given, as its users call it; prints OK.

Run by test_clients.py in an environment that has tritonclient[grpc] and nothing of ours.
"""

import queue
import sys

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

QUESTION = "a medical question"


def tensors(text: str) -> list[triton.InferInput]:
    asked = triton.InferInput("text_input", [1], "BYTES")
    asked.set_data_from_numpy(np.array([text.encode()], dtype=np.object_))
    return [asked]


def text_of(result: triton.InferResult) -> str:
    (data,) = result.as_numpy("text_output")
    return data.decode()


def refusal(call, *arguments, **options) -> str:
    try:
        call(*arguments, **options)
    except InferenceServerException as error:
        return str(error.status())
    raise AssertionError("it was not refused")


def told(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("auto")
    assert client.is_model_ready("medical", "1.0.0")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata().name == "lora-router"
    found = client.get_model_metadata("medical", as_json=True)
    assert found["versions"] == ["1.0.0"], found
    assert found["inputs"] == [{"name": "text_input", "datatype": "BYTES", "shape": ["1"]}], found
    assert refusal(client.get_model_metadata, "nobody") == "StatusCode.NOT_FOUND"
    assert refusal(client.get_model_repository_index) == "StatusCode.UNIMPLEMENTED"


def whole(client: triton.InferenceServerClient) -> str:
    outputs = [triton.InferRequestedOutput("text_output")]
    said = {"max_tokens": 40, "temperature": 0.0, "seed": 3, "stop": "\n"}
    result = client.infer("auto", tensors(QUESTION), outputs=outputs, request_id="q1", parameters=said)
    response = result.get_response()
    assert response.id == "q1"
    assert response.parameters["adapter"].string_param == "adapters/medical/versions/1.0.0", response
    assert response.parameters["reason"].string_param == "classified"
    assert refusal(client.infer, "nobody", tensors("x")) == "StatusCode.NOT_FOUND"
    assert refusal(client.infer, "auto", tensors("x"), priority=3) == "StatusCode.INVALID_ARGUMENT"
    late = {"parameters": {"max_tokens": 4000, "min_tokens": 4000}, "client_timeout": 0.3}
    assert refusal(client.infer, "auto", tensors("x"), **late) == "StatusCode.DEADLINE_EXCEEDED"
    return text_of(result)


def streamed(client: triton.InferenceServerClient, empty_last: bool) -> str:
    got: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: got.put((result, error)))
    client.async_stream_infer(
        "auto",
        tensors(QUESTION),
        request_id="q2",
        enable_empty_final_response=empty_last,
        parameters={"stream": True, "max_tokens": 40},
    )
    parts = []
    while True:
        result, error = got.get(timeout=30)
        assert error is None, error
        response = result.get_response()
        last = response.parameters["triton_final_response"].bool_param
        if last and empty_last:
            assert result.as_numpy("text_output") is None
            break
        parts.append(text_of(result))
        if last:
            break
    assert len(parts) > 2, parts
    client.async_stream_infer("nobody", tensors("x"))
    result, error = got.get(timeout=30)
    assert result is None
    assert error.message().startswith("NOT_FOUND: "), error
    client.stop_stream()
    return "".join(parts)


with triton.InferenceServerClient(sys.argv[1]) as one:
    told(one)
    text = whole(one)
    assert text.endswith(QUESTION), text
    assert streamed(one, empty_last=False) == text
    assert streamed(one, empty_last=True) == text
print("OK")
