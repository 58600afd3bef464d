"""What is served over HTTP: each request is a call of the chain, like one that came by gRPC."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from router import optional
from router.config import Settings
from router.errors import (
    AdapterNotFound,
    ExperimentNotFound,
    FailedPrecondition,
)
from router.ports import UNIT_MISSING, AdapterRegistry, Place, ServedExperiments
from router.server.bodies import SMALL
from router.server.call import Call, current_call, request_id_of, send_headers
from router.server.decoding import json_decoder
from router.server.inference import InferenceService
from router.server.layers import Chain
from router.server.sending import Outgoing
from router.v1 import inference_pb2 as pb
from router.web import feedback, ofrep, openai
from router.web.exchange import ErrorBody, Exchange, Receive, Scope, Send, until_gone
from router.web.hosts import KnownHosts

STREAM = "/router.v1.InferenceService/StreamGenerate"
MODELS = "/openai.v1/ListModels"
FLAG, FLAGS = "/ofrep.v1/EvaluateFlag", "/ofrep.v1/EvaluateFlags"
UNIT = "x-user-id"  # who is served, where a proxy in between drops `user`
Answering = Callable[[Any, Any], Awaitable[None]]


class Endpoint:
    """An ASGI application: one method of the chain. `decode` makes what `answer` gets of a body, `error_body`
    says what is wrong with it."""

    def __init__(
        self,
        chain: Chain,
        method: str,
        most: int,
        decode: Callable[[bytes], Any],
        answer: Answering,
        error_body: ErrorBody = openai.error_json,
    ) -> None:
        self._chain, self._method, self._most, self._error_body = chain, method, most, error_body
        # In the form of grpc's own: a coroutine that writes its answer itself.
        self._handler = SimpleNamespace(
            request_streaming=False,
            response_streaming=True,
            request_deserializer=json_decoder(decode),
            response_serializer=None,
            unary_unary=None,
            unary_stream=answer,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        exchange = Exchange(scope, receive, send, self._most, self._error_body)
        call = Call(self._method, request_id_of(exchange.invocation_metadata()), route=route_of(scope))
        await until_gone(self._chain.serve(self._handler, call, exchange), exchange)
        await exchange.finish()


class Completions:
    """Chat and plain completions, whole and streamed."""

    def __init__(self, inference: InferenceService, kind: type[openai.Asked]) -> None:
        self._inference, self._kind = inference, kind

    def decode(self, body: bytes) -> openai.Asked:
        """Of bytes; raises InvalidRequest."""
        return openai.parsed(self._kind, body)

    async def answer(self, asked: openai.Asked, context: Any) -> None:
        """Generate, and write the answer in OpenAI's form."""
        message, written = openai.generate_message(asked, context.header(UNIT)), openai.Answer(asked)
        if asked.stream:
            context.stream()
            events = Events(context, written)
            await self._inference.StreamGenerate(openai.stream_message(message), events)  # type: ignore[arg-type]
        else:
            response = await self._inference.Generate(message, context)
            await send_headers(context)
            await context.write(written.whole(response))


class Events:
    """A context whose messages leave as server-sent events."""

    def __init__(self, context: Outgoing, answer: openai.Answer) -> None:
        self._context, self._answer = context, answer

    async def write(self, message: pb.StreamGenerateResponse) -> None:
        """One or more events."""
        await self._context.write(self._answer.event(message))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def route_of(scope: Scope) -> str:
    """Method and path, with the names of parameters where those are."""
    path = str(scope["path"])
    for name, value in scope.get("path_params", {}).items():
        path = path.removesuffix(str(value)) + "{" + name + "}"
    return f"{scope['method']} {path}"


class Feedback:
    """Outcomes and corrections, taken in by `methods`, the handlers of gRPC."""

    def __init__(self, methods: Mapping[str, Any]) -> None:
        self._methods = methods

    async def answer(self, said: feedback.Feedback, context: Any) -> None:
        """Say what became of it."""
        method, message = feedback.message_of(said)
        # Which of the two it is shows in the body alone: both need the same role and have the same bounds.
        current_call().method = method
        kept = await self._methods[method].unary_unary(message, context)
        await send_headers(context)
        await context.write(json.dumps(feedback.answer_json(said, kept)).encode())


class Flags:
    """Experiments as flags (OFREP): which arm a unit would get. A question, and no exposure."""

    def __init__(self, chain: Chain, experiments: ServedExperiments | None) -> None:
        self._chain, self._experiments = chain, experiments

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer for the flag of the path, or for all."""
        key = scope["path_params"].get("key", "")
        method, answer = (FLAG, self.one) if key else (FLAGS, self.all)
        error_body = partial(ofrep.error_json, key)
        await Endpoint(self._chain, method, SMALL, ofrep.parsed, answer, error_body)(scope, receive, send)

    async def one(self, asked: ofrep.Asked, context: Any) -> None:
        """The flag of the path."""
        key = context.path_parameter("key")
        place = next((place for place in self._places(asked) if place.experiment == key), None)
        if place is None:
            raise ExperimentNotFound(key)
        if place.outside == UNIT_MISSING:
            raise ofrep.missing(place.label)
        await self._write(ofrep.flag_json(place), context)

    async def all(self, asked: ofrep.Asked, context: Any) -> None:
        """Every flag that the client sees."""
        if not asked.unit:
            raise ofrep.missing()
        flags = [ofrep.flag_json(place) for place in self._places(asked)]
        await self._write({"flags": flags}, context)

    def _places(self, asked: ofrep.Asked) -> Sequence[Place]:
        if self._experiments is None:
            raise FailedPrecondition(optional.why_absent())
        client = current_call().client
        return self._experiments.places(ofrep.request_of(asked, client.adapters, client.experiments))

    async def _write(self, body: Mapping[str, Any], context: Any) -> None:
        await send_headers(context)
        await context.write(json.dumps(body).encode())


class Models:
    """What can be named as a model."""

    def __init__(self, registry: AdapterRegistry) -> None:
        self._registry = registry

    async def answer(self, _: Any, context: Any) -> None:
        """All that the client sees, or the one that the path names."""
        visible = current_call().client.adapters
        found = openai.models_json(info for info in self._registry.listed() if info.ref.name in visible)
        wanted = context.path_parameter("model")
        body: Mapping[str, Any] = found
        if wanted:
            named = {entry["id"]: entry for entry in found["data"]}
            if wanted not in named:
                raise AdapterNotFound(wanted)
            body = named[wanted]
        await send_headers(context)
        await context.write(json.dumps(body).encode())


def application(
    chain: Chain,
    inference: InferenceService,
    registry: AdapterRegistry,
    experiments: ServedExperiments | None,
    settings: Settings,
    methods: Mapping[str, Any],
    more: Sequence[BaseRoute] = (),
) -> Starlette:
    """The ASGI application of a server; `more` is served beside the API."""
    most = settings.max_body_bytes
    chat = Completions(inference, openai.ChatCompletion)
    plain = Completions(inference, openai.Completion)
    models = Endpoint(chain, MODELS, 0, lambda body: None, Models(registry).answer)
    told = Endpoint(
        chain,
        feedback.OUTCOME,
        SMALL,
        feedback.parsed,
        Feedback(methods).answer,
        feedback.error_json,
    )
    flags = Flags(chain, experiments)
    routes = [
        Route(
            "/v1/chat/completions", Endpoint(chain, STREAM, most, chat.decode, chat.answer), methods=["POST"]
        ),
        Route("/v1/completions", Endpoint(chain, STREAM, most, plain.decode, plain.answer), methods=["POST"]),
        Route("/v1/feedback", told, methods=["POST"]),
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{model:path}", models, methods=["GET"]),
        Route("/ofrep/v1/evaluate/flags", flags, methods=["POST"]),
        Route("/ofrep/v1/evaluate/flags/{key}", flags, methods=["POST"]),
        *more,
    ]
    guard = Middleware(KnownHosts, settings=settings)
    return Starlette(routes=routes, middleware=[guard], exception_handlers={404: _refused, 405: _refused})


async def _refused(request: Request, error: Any) -> JSONResponse:
    reason = "NOT_FOUND" if error.status_code == 404 else "METHOD_NOT_ALLOWED"
    text = f"{request.method} {request.url.path} is not served here; docs/http.md says what is"
    body = openai.error_json(error.status_code, reason, text[:300], "")
    return JSONResponse(body, error.status_code, headers=dict(error.headers or {}))
