"""Routes of OpenAI's API: completions, models, and feedback on answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from router.access.clients import Role
from router.errors import AdapterNotFound
from router.extensions.openai import feedback, messages
from router.ports import AdapterRegistry
from router.server.call import Endpoint
from router.server.http import HttpCall, Reply, Route
from router.server.inference import InferenceService
from router.server.policy import GENERATE, OBSERVE, RECORD, Policy
from router.v1 import inference_pb2 as pb

UNIT = "x-user-id"  # who is served, where a proxy in between drops `user`
LIST = replace(OBSERVE, role=Role.INFER)
ROWS: Mapping[str, Policy] = {
    "POST /v1/chat/completions": GENERATE,
    "POST /v1/completions": GENERATE,
    "POST /v1/feedback": RECORD,
    "GET /v1/models": LIST,
    "GET /v1/models/{model}": LIST,
}


def routes(
    inference: InferenceService, registry: AdapterRegistry, endpoints: Mapping[str, Endpoint]
) -> Sequence[Route]:
    """All of them; `endpoints` are the methods of gRPC services."""
    complete = partial(completion, inference)
    chat, plain = (partial(messages.parsed, kind) for kind in (messages.ChatCompletion, messages.Completion))
    listed = partial(models, registry)
    told = partial(take_feedback, endpoints)
    errors = messages.error_json
    return (
        Route("POST", "/v1/chat/completions", complete, chat, errors),
        Route("POST", "/v1/completions", complete, plain, errors),
        Route("POST", "/v1/feedback", told, feedback.parsed, feedback.error_json),
        Route("GET", "/v1/models", listed, error_json=errors),
        Route("GET", "/v1/models/{model:path}", listed, error_json=errors),
    )


async def completion(
    inference: InferenceService, asked: messages.CompletionBody, call: HttpCall
) -> Reply | None:
    """A chat or plain completion, whole or streamed."""
    message, written = messages.generate_message(asked, call.header(UNIT)), messages.AnswerWriter(asked)
    if not asked.stream:
        return Reply(written.whole(await inference.Generate(message, call)))

    async def write(event: pb.StreamGenerateResponse) -> None:
        await call.write(written.event(event))

    await inference.stream(messages.stream_message(message), call, write)
    return None


async def take_feedback(
    endpoints: Mapping[str, Endpoint], said: feedback.Feedback, call: HttpCall
) -> Mapping[str, Any]:
    """Say what became of an outcome or a correction."""
    method, message = feedback.message_of(said)
    return feedback.answer_json(said, await endpoints[method].answer(message, call))


async def models(registry: AdapterRegistry, _: None, call: HttpCall) -> Mapping[str, Any]:
    """What can be named as a model: all that the client sees, or the one that the path names."""
    visible = call.client.adapters
    found = messages.models_json(info for info in registry.listed() if info.ref.name in visible)
    wanted = call.path_parameter("model")
    if not wanted:
        return found
    named: Mapping[str, Mapping[str, Any]] = {entry["id"]: entry for entry in found["data"]}
    if wanted not in named:
        raise AdapterNotFound(wanted)
    return named[wanted]
