"""KServe's own client against a server at the address given, as its users call it; prints OK.

Run by test_clients.py in an environment that has kserve and nothing of ours.
"""

import asyncio
import sys

import grpc
from kserve import InferenceGRPCClient, InferInput, InferRequest

QUESTION = "a medical question"


def asking(model: str) -> InferRequest:
    asked = InferInput("text_input", [1], "BYTES", data=[QUESTION.encode()])
    said = {"max_tokens": 40, "temperature": "0.5"}  # it sends no fractions but as text
    return InferRequest(model, [asked], request_id="q1", parameters=said)


async def main() -> None:
    client = InferenceGRPCClient(url=sys.argv[1])
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("medical")
    answer = await client.infer(asking("auto"))
    assert answer.id == "q1", answer
    (output,) = answer.outputs
    assert output.name == "text_output"
    (data,) = output.as_numpy()
    assert (data if isinstance(data, str) else data.decode()).endswith(QUESTION), data
    adapter = answer.parameters["adapter"]
    assert getattr(adapter, "string_param", adapter) == "adapters/medical/versions/1.0.0", answer.parameters
    code = None
    try:
        await client.infer(asking("nobody"))
    except grpc.RpcError as error:
        code = error.code()
    assert code is grpc.StatusCode.NOT_FOUND
    await client.close()


asyncio.run(main())
print("OK")
