"""Routes of OpenAI's Responses API. No response is kept, so that none can be read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from router.access.clients import Role
from router.errors import NotFound
from router.extensions.openai import errors, requests, responses
from router.extensions.openai.responses import in_response_words, parsed_response
from router.extensions.openai.responses_answers import ResponseWriter
from router.server.http import HttpCall, Reply, Route
from router.server.inference import InferenceService
from router.server.policy import GENERATE, OBSERVE, Policy
from router.v1 import inference_pb2 as pb

UNIT = "x-user-id"  # who is served, where a proxy in between drops `user`
NOT_KEPT = ": no response is kept here, so send the whole conversation in `input` of a new request"
KEPT = replace(OBSERVE, role=Role.INFER)
VERBS = ("GET", "POST", "DELETE")
ROWS: Mapping[str, Policy] = {
    "POST /v1/responses": GENERATE,
    **{f"{verb} /v1/responses/{{response}}": KEPT for verb in VERBS},
}


class ResponseCall(HttpCall):
    """A call whose stream ends with an event of the Responses API, also after an error."""

    writer: ResponseWriter  # of a stream, before it begins

    def failure(self, status: int, reason: str, message: str, field: str) -> bytes:
        """The last event of a stream that ends with an error."""
        return self.writer.failure(status, reason, message, field)


def routes(inference: InferenceService) -> Sequence[Route]:
    """All of them."""
    answer = partial(respond, inference)
    return (
        Route("POST", "/v1/responses", answer, parsed_response, errors.error_json, call=ResponseCall),
        *(
            Route(verb, "/v1/responses/{response:path}", not_kept, error_json=errors.error_json)
            for verb in VERBS
        ),
    )


async def respond(
    inference: InferenceService,
    body: tuple[responses.ResponseBody, requests.ChatCompletion],
    call: ResponseCall,
) -> Reply | None:
    """A response, whole or streamed."""
    asked, chat = body
    unit = call.header(UNIT)
    writer = ResponseWriter(asked)

    async def write(event: pb.StreamGenerateResponse) -> None:
        await call.write(writer.event(event))

    with in_response_words(asked), errors.in_their_words(chat, unit):
        message = requests.generate_message(chat, unit)
        if not asked.stream:
            return Reply(writer.whole(await inference.Generate(message, call)))
        call.writer = writer
        await inference.stream(requests.stream_message(message), call, write)
    return None


async def not_kept(_: None, call: HttpCall) -> Mapping[str, Any]:
    """Raises NotFound: whatever is asked of a response."""
    raise NotFound("response", call.path_parameter("response")[:80], NOT_KEPT)
