"""The Open Inference Protocol, as KServe and Triton speak it: InferenceService with other names and shapes.

Each request of a stream is a call of its own, which takes the way of all calls: it is admitted, counted,
logged and refused alone, and the stream goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import replace
from itertools import takewhile
from typing import Any

from router import __version__
from router.access.access import Credentials
from router.access.clients import Role
from router.errors import AdapterNotFound, Draining, FieldViolation, InvalidRequest, RouterError
from router.extensions.kserve import tensors
from router.kserve import open_inference_pb2 as oip
from router.kserve.open_inference_pb2_grpc import GRPCInferenceServiceServicer
from router.names import AUTO, BASE
from router.ports import AdapterRegistry
from router.server.admission import PhaseGate
from router.server.call import REQUEST_ID_KEY, Call, Endpoint, request_id_of
from router.server.health import ServerHealth
from router.server.inference import InferenceService
from router.server.interceptors import Interceptors
from router.server.policy import GENERATE, INFER, OBSERVE, PROBE, Policy
from router.server.status import code_of, message_of
from router.types import AdapterRef, AdapterState
from router.v1 import inference_pb2 as pb

NAME = "lora-router"
AT_ONCE = 64  # requests of one stream that are worked on; the next is read when one has ended
MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
ROWS: Mapping[str, Policy] = {
    "/inference.GRPCInferenceService/ServerLive": PROBE,
    "/inference.GRPCInferenceService/ServerReady": PROBE,
    "/inference.GRPCInferenceService/ModelReady": Policy(Role.OBSERVE),
    "/inference.GRPCInferenceService/ServerMetadata": OBSERVE,
    "/inference.GRPCInferenceService/ModelMetadata": OBSERVE,
    MODEL_INFER: GENERATE,
    "/inference.GRPCInferenceService/ModelStreamInfer": replace(
        INFER, admitted=False, watch=True, carries=True
    ),
}


class OpenInference(GRPCInferenceServiceServicer):
    """GRPCInferenceService. Errors leave as RouterError; the interceptors map them."""

    def __init__(
        self,
        interceptors: Interceptors,
        inference: InferenceService,
        registry: AdapterRegistry,
        health: ServerHealth,
        lifecycle: PhaseGate,
    ) -> None:
        self._interceptors, self._inference, self._registry = interceptors, inference, registry
        self._health, self._lifecycle = health, lifecycle
        decode = oip.ModelInferRequest.FromString
        self._one = Endpoint(MODEL_INFER, GENERATE, self._answer, decode, streams=True)

    async def ServerLive(self, request: oip.ServerLiveRequest, call: Call) -> oip.ServerLiveResponse:
        """What /healthz says."""
        return oip.ServerLiveResponse(live=self._health.alive)

    async def ServerReady(self, request: oip.ServerReadyRequest, call: Call) -> oip.ServerReadyResponse:
        """What /readyz says."""
        return oip.ServerReadyResponse(ready=self._health.ready)

    async def ModelReady(self, request: oip.ModelReadyRequest, call: Call) -> oip.ModelReadyResponse:
        """Whether a request to it would be answered; no for what is not there for the caller."""
        ready = self._health.ready
        if ready:
            try:
                self._resolve(request.name, request.version, call)
            except RouterError:
                ready = False
        return oip.ModelReadyResponse(ready=ready)

    async def ServerMetadata(
        self, request: oip.ServerMetadataRequest, call: Call
    ) -> oip.ServerMetadataResponse:
        """Name and version."""
        return oip.ServerMetadataResponse(name=NAME, version=__version__, extensions=["parameters"])

    async def ModelMetadata(self, request: oip.ModelMetadataRequest, call: Call) -> oip.ModelMetadataResponse:
        """The same tensors for every model."""
        self._resolve(request.name, request.version, call)
        return oip.ModelMetadataResponse(
            name=request.name,
            versions=self._versions(request.name),
            platform=NAME,
            inputs=[tensors.tensor(tensors.TEXT)],
            outputs=[tensors.tensor(tensors.OUTPUT)],
        )

    async def ModelInfer(self, request: oip.ModelInferRequest, call: Call) -> oip.ModelInferResponse:
        """The whole answer in one message."""
        parsed = tensors.parse_request(request)
        if isinstance(parsed.message, pb.StreamGenerateRequest):
            text = "is for ModelStreamInfer: this method answers in one message"
            raise InvalidRequest([FieldViolation(tensors.STREAM, text)])
        with in_their_words():
            answer = await self._inference.Generate(parsed.message, call)
        return tensors.whole_message(parsed, answer)

    async def ModelStreamInfer(self, requests: Any, call: Call) -> None:
        """A call for each request, side by side; once a drain has begun no more are read."""
        await call.begin()
        writing, room = asyncio.Lock(), asyncio.Semaphore(AT_ONCE)
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
                        one = CarriedCall(self._one, call, request, requests, writing)
                        task = asyncio.create_task(self._interceptors.serve(self._one, one))
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

    async def _answer(self, request: oip.ModelInferRequest, call: Call) -> None:
        """One request of a stream."""
        parsed = tensors.parse_request(request)
        with in_their_words():
            if isinstance(parsed.message, pb.StreamGenerateRequest):
                await self._inference.stream(parsed.message, call, ResponseParts(call, parsed).write)
                return
            answer = await self._inference.Generate(parsed.message, call)
        message = tensors.whole_message(parsed, answer)
        tensors.tell(message, tensors.IS_LAST, True)
        await call.write(message)

    def _resolve(self, name: str, version: str, call: Call) -> None:
        """Raises AdapterNotFound, or what else stands in the way of a request to that model."""
        if name not in (AUTO, BASE):
            self._registry.resolve(name, version, call.client.adapters)
        elif version:
            raise AdapterNotFound(f"{name}/versions/{version}")

    def _versions(self, name: str) -> list[str]:
        """Those that requests may name."""
        of_name = takewhile(lambda info: info.ref.name == name, self._registry.listed(AdapterRef(name, "")))
        return [info.ref.version for info in of_name if info.state is not AdapterState.QUARANTINED]


class CarriedCall(Call):
    """One request of a stream; what is not its own is the stream's."""

    transport = "grpc"
    __slots__ = ("_id", "_message", "_messages", "_stream", "_writing")

    def __init__(
        self,
        endpoint: Endpoint,
        stream: Call,
        message: oip.ModelInferRequest,
        messages: Any,
        writing: asyncio.Lock,
    ) -> None:
        """`messages` are those of the stream, which counts their memory; `writing` is held for a write."""
        request_id = request_id_of([(REQUEST_ID_KEY, message.id)])
        super().__init__(endpoint, request_id, stream.peer, stream.metadata)
        self._stream, self._messages, self._writing = stream, messages, writing
        self._message: oip.ModelInferRequest | None = message
        self._id = message.id

    def credentials(self) -> Credentials:
        """The stream's."""
        return self._stream.credentials()

    def time_remaining(self) -> float | None:
        """The stream's."""
        return self._stream.time_remaining()

    async def read(self) -> bytes | None:
        """The request; from now on its bytes count as this call's."""
        message, self._message = self._message, None
        if message is None:
            return None
        self._messages.done(message)
        return bytes(message.SerializeToString())

    async def begin(self) -> None:
        """The stream's headers were sent."""

    async def write(self, message: oip.ModelInferResponse) -> None:
        """Send an answer or a part of one."""
        await self._send(oip.ModelStreamInferResponse(infer_response=message))

    async def refuse(self, error: Exception) -> None:
        """Tell the error, under the request's id: clients of Triton look for it there."""
        text = f"{code_of(error)}: {message_of(error)}"
        message = oip.ModelStreamInferResponse(error_message=text)
        message.infer_response.id = self._id
        tensors.tell(message.infer_response, tensors.IS_LAST, True)
        await self._send(message)

    async def _send(self, message: oip.ModelStreamInferResponse) -> None:
        self.writing_since = time.monotonic()
        async with self._writing:
            await self._stream.write(message)
        self.writing_since = 0.0


class ResponseParts:
    """Writes events as parts of an answer."""

    def __init__(self, call: Call, parsed: tensors.ParsedRequest) -> None:
        self._call, self._parsed = call, parsed
        self._started = pb.Started()

    async def write(self, event: pb.StreamGenerateResponse) -> None:
        """Who answers is told with every part, and in the last one why it ended."""
        if event.HasField("started"):
            self._started = event.started
            return
        last = event.HasField("finished")
        text = event.delta.text if not last else None if self._parsed.empty_last else ""
        message = tensors.text_message(self._parsed, text)
        tensors.tell_decision(message, self._started.response_id, self._started.decision)
        if last:
            tensors.tell_end(message, event.finished.reason, event.finished.usage)
        tensors.tell(message, tensors.IS_LAST, last)
        await self._call.write(message)


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
