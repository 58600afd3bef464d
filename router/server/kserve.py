"""The Open Inference Protocol, as KServe and Triton speak it: InferenceService with other names and shapes.

Each request of a stream is a call of its own, which takes the way of all calls: it is admitted, counted,
logged and refused alone, and the stream goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from itertools import takewhile
from types import SimpleNamespace
from typing import Any

import grpc

from router import __version__
from router.errors import AdapterNotFound, Draining, Findings, InvalidRequest, RouterError
from router.kserve import open_inference_pb2 as oip
from router.kserve.open_inference_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)
from router.names import AUTO, BASE
from router.ports import AdapterRegistry
from router.server import tensors
from router.server.call import MODEL_INFER, REQUEST_ID_KEY, Call, current_call, request_id_of, send_headers
from router.server.health import Health
from router.server.inference import InferenceService
from router.server.layers import present_chain
from router.server.lifecycle import Lifecycle
from router.types import AdapterRef, AdapterState
from router.v1 import inference_pb2 as pb

NAME = "lora-router"
AT_ONCE = 64  # requests of one stream that are worked on; the next is read when one has ended
Context = grpc.aio.ServicerContext[Any, Any]


def register(
    server: grpc.aio.Server,
    inference: InferenceService,
    registry: AdapterRegistry,
    health: Health,
    lifecycle: Lifecycle,
) -> None:
    """Add the service."""
    service = OpenInference(inference, registry, health, lifecycle)
    add_GRPCInferenceServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]


class OpenInference(GRPCInferenceServiceServicer):
    """GRPCInferenceService. Errors leave as RouterError; the chain maps them."""

    def __init__(
        self, inference: InferenceService, registry: AdapterRegistry, health: Health, lifecycle: Lifecycle
    ) -> None:
        self._inference, self._registry = inference, registry
        self._health, self._lifecycle = health, lifecycle
        # In the form of grpc's own: a coroutine that writes its answer itself.
        self._one = SimpleNamespace(
            request_streaming=False,
            response_streaming=True,
            request_deserializer=oip.ModelInferRequest.FromString,
            response_serializer=None,
            unary_unary=None,
            unary_stream=self._answer,
        )

    async def ServerLive(self, request: oip.ServerLiveRequest, context: Context) -> oip.ServerLiveResponse:
        """What /healthz says."""
        return oip.ServerLiveResponse(live=self._health.alive)

    async def ServerReady(self, request: oip.ServerReadyRequest, context: Context) -> oip.ServerReadyResponse:
        """What /readyz says."""
        return oip.ServerReadyResponse(ready=self._health.ready)

    async def ModelReady(self, request: oip.ModelReadyRequest, context: Context) -> oip.ModelReadyResponse:
        """Whether a request to it would be answered; no for what is not there for the caller."""
        ready = self._health.ready
        if ready:
            try:
                self._resolve(request.name, request.version)
            except RouterError:
                ready = False
        return oip.ModelReadyResponse(ready=ready)

    async def ServerMetadata(
        self, request: oip.ServerMetadataRequest, context: Context
    ) -> oip.ServerMetadataResponse:
        """Name and version."""
        return oip.ServerMetadataResponse(name=NAME, version=__version__, extensions=["parameters"])

    async def ModelMetadata(
        self, request: oip.ModelMetadataRequest, context: Context
    ) -> oip.ModelMetadataResponse:
        """The same tensors for every model."""
        self._resolve(request.name, request.version)
        return oip.ModelMetadataResponse(
            name=request.name,
            versions=self._versions(request.name),
            platform=NAME,
            inputs=[tensors.tensor(tensors.TEXT)],
            outputs=[tensors.tensor(tensors.OUTPUT)],
        )

    async def ModelInfer(self, request: oip.ModelInferRequest, context: Context) -> oip.ModelInferResponse:
        """The whole answer in one message."""
        asked = tensors.asked_of(request)
        if isinstance(asked.message, pb.StreamGenerateRequest):
            found = Findings()
            found.add(tensors.STREAM, "is for ModelStreamInfer: this method answers in one message")
            found.check()
        with in_their_words():
            answer = await self._inference.Generate(asked.message, context)  # type: ignore[arg-type]
        return tensors.whole_message(asked, answer)

    async def ModelStreamInfer(self, requests: Any, context: Context) -> None:
        """A call for each request, side by side; once a drain has begun no more are read."""
        await send_headers(context)
        chain, writing, room = present_chain(), asyncio.Lock(), asyncio.Semaphore(AT_ONCE)
        running: set[asyncio.Task[None]] = set()

        def ended(task: asyncio.Task[None]) -> None:
            running.discard(task)
            room.release()

        problem: RouterError | None = None
        try:
            try:
                async with aclosing(self._until_drain(requests)) as coming:
                    async for request in coming:
                        await room.acquire()
                        carried = Carried(context, request, requests, writing)
                        call = Call(MODEL_INFER, request_id_of([(REQUEST_ID_KEY, request.id)]))
                        task = asyncio.create_task(chain.serve(self._one, call, carried))
                        running.add(task)
                        task.add_done_callback(ended)
            except RouterError as error:  # of the stream itself; those that run are answered first
                problem = error
            if running:
                await asyncio.wait(running)
        finally:
            await left(running)
        if problem is not None:
            raise problem

    async def _until_drain(self, requests: Any) -> AsyncGenerator[oip.ModelInferRequest, None]:
        """The messages. Raises Draining when a drain begins."""
        ending = asyncio.ensure_future(self._lifecycle.ending.wait())
        coming = asyncio.ensure_future(anext(requests, None))
        try:
            while True:
                await asyncio.wait((coming, ending), return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    raise Draining("the server is stopping")
                if (request := coming.result()) is None:
                    return
                yield request
                del request
                coming = asyncio.ensure_future(anext(requests, None))
        finally:
            await left({ending, coming})

    async def _answer(self, request: oip.ModelInferRequest, context: Any) -> None:
        """One request of a stream."""
        asked = tensors.asked_of(request)
        with in_their_words():
            if isinstance(asked.message, pb.StreamGenerateRequest):
                await self._inference.StreamGenerate(asked.message, Parts(context, asked))  # type: ignore[arg-type]
                return
            answer = await self._inference.Generate(asked.message, context)
        message = tensors.whole_message(asked, answer)
        tensors.tell(message, tensors.IS_LAST, True)
        await context.write(message)

    def _resolve(self, name: str, version: str) -> None:
        """Raises AdapterNotFound, or what else stands in the way of a request to that model."""
        if name not in (AUTO, BASE):
            self._registry.resolve(name, version, current_call().client.adapters)
        elif version:
            raise AdapterNotFound(f"{name}/versions/{version}")

    def _versions(self, name: str) -> list[str]:
        """Those that requests may name."""
        of_name = takewhile(lambda info: info.ref.name == name, self._registry.listed(AdapterRef(name, "")))
        return [info.ref.version for info in of_name if info.state is not AdapterState.QUARANTINED]


class Carried:
    """The context of one request of a stream; what is not its own is the stream's."""

    def __init__(
        self, context: Context, request: oip.ModelInferRequest, requests: Any, writing: asyncio.Lock
    ) -> None:
        self._context, self._requests, self._writing = context, requests, writing
        self._request: oip.ModelInferRequest | None = request
        self._id = request.id

    async def read(self) -> Any:
        """The request, as bytes; from now on they count as this call's."""
        request, self._request = self._request, None
        if request is None:
            return grpc.aio.EOF
        self._requests.done(request)
        return request.SerializeToString()

    async def send_initial_metadata(self, headers: Any) -> None:
        """The stream's were sent."""

    async def write(self, message: oip.ModelInferResponse) -> None:
        """An answer or a part of one."""
        await self._send(oip.ModelStreamInferResponse(infer_response=message))

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> None:
        """Tell the error, under the request's id: clients of Triton look for it there."""
        message = oip.ModelStreamInferResponse(error_message=f"{code.name}: {details}")
        message.infer_response.id = self._id
        tensors.tell(message.infer_response, tensors.IS_LAST, True)
        await self._send(message)

    async def _send(self, message: oip.ModelStreamInferResponse) -> None:
        async with self._writing:
            await self._context.write(message)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


class Parts:
    """A context whose events leave as parts of an answer."""

    def __init__(self, context: Any, asked: tensors.Asked) -> None:
        self._context, self._asked = context, asked
        self._started = pb.Started()

    async def write(self, event: pb.StreamGenerateResponse) -> None:
        """Who answers is told with every part, and in the last one why it ended."""
        if event.HasField("started"):
            self._started = event.started
            return
        last = event.HasField("finished")
        text = event.delta.text if not last else None if self._asked.empty_last else ""
        message = tensors.text_message(self._asked, text)
        tensors.tell_decision(message, self._started.response_id, self._started.decision)
        if last:
            tensors.tell_end(message, event.finished.reason, event.finished.usage)
        tensors.tell(message, tensors.IS_LAST, last)
        await self._context.write(message)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


@contextmanager
def in_their_words() -> Iterator[None]:
    """Errors of fields with the names of this protocol."""
    try:
        yield
    except InvalidRequest as error:
        raise tensors.in_their_words(error) from None


async def left(tasks: set[asyncio.Task[Any]] | set[asyncio.Future[Any]]) -> None:
    """Cancel what runs of them, and wait until it has gone."""
    running = [task for task in tasks if not task.done()]
    for task in running:
        task.cancel()
    if running:
        await asyncio.wait(running)
