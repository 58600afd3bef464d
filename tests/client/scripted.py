"""A real gRPC server on a free port whose answers are scripted, for tests of clients."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from router.v1 import (
    adapters_pb2,
    adapters_pb2_grpc,
    experiments_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
)

DECISION = inference_pb2.Decision(
    adapter="adapters/medical/versions/1.2.0",
    digest="ab" * 32,
    domain="medical",
    confidence=0.93,
    classifier="examples",
    reason=inference_pb2.DECISION_REASON_CLASSIFIED,
    threshold=0.5,
    votes=[
        inference_pb2.Vote(classifier="words", declined=True),
        inference_pb2.Vote(classifier="examples", scores={"medical": 0.93, "legal": 0.04}, evidence="icd"),
    ],
    route_latency=Duration(nanos=400_000),
)
USAGE = inference_pb2.Usage(
    prompt_tokens=87,
    cached_tokens=64,
    completion_tokens=2,
    time_to_first_token=Duration(nanos=120_000_000),
    total_time=Duration(seconds=1, nanos=500_000_000),
)


def refuse(context, code, message, *details):
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        status.details.append(Any())
        status.details[-1].Pack(detail)
    context.abort_with_status(rpc_status.to_status(status))


def error_info(reason, **metadata):
    return error_details_pb2.ErrorInfo(reason=reason, domain="lora-router", metadata=metadata)


@dataclass
class Scripted(inference_pb2_grpc.InferenceServiceServicer):
    """Answers every call; `refusals` calls are refused first, `hang` streams wait for cancellation."""

    refusals: int = 0
    break_after_first_delta: bool = False
    hang: bool = False
    requests: list = field(default_factory=list)
    metadata: list = field(default_factory=list)
    remaining: list = field(default_factory=list)
    entered: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def _enter(self, request, context):
        self.requests.append(request)
        self.entered.set()
        self.metadata.append(dict(context.invocation_metadata()))
        self.remaining.append(context.time_remaining())
        if self.refusals:
            self.refusals -= 1
            refuse(context, grpc.StatusCode.UNAVAILABLE, "the queue is full", error_info("QUEUE_FULL"))
        if getattr(request, "routing", None) is not None and request.routing.adapter == "adapters/nobody":
            info = error_info("ADAPTER_NOT_FOUND", resource="nobody")
            refuse(context, grpc.StatusCode.NOT_FOUND, "adapter 'nobody' not found", info)

    def Generate(self, request, context):
        self._enter(request, context)
        if request.sampling.temperature < 0:
            violation = error_details_pb2.BadRequest.FieldViolation(
                field="sampling.temperature", description="must be in [0, 2]"
            )
            bad = error_details_pb2.BadRequest(field_violations=[violation])
            refuse(
                context,
                grpc.StatusCode.INVALID_ARGUMENT,
                "sampling.temperature: must be in [0, 2]",
                error_info("INVALID_REQUEST"),
                bad,
                error_details_pb2.RetryInfo(retry_delay=Duration(seconds=2)),
            )
        top = [inference_pb2.TokenLogprob.Alternative(token="B", token_id=8, logprob=-2.5)]
        return inference_pb2.GenerateResponse(
            response_id=dict(context.invocation_metadata())["x-request-id"],
            text="Chapter I",
            finish_reason=inference_pb2.FINISH_REASON_STOP,
            usage=USAGE,
            decision=DECISION,
            logprobs=[inference_pb2.TokenLogprob(token="A", token_id=7, logprob=-0.5, top=top)],
        )

    def StreamGenerate(self, request, context):
        if self.hang:
            context.add_callback(self.cancelled.set)
        self._enter(request, context)
        event = inference_pb2.StreamGenerateResponse
        yield event(started=inference_pb2.Started(response_id="r-1", decision=DECISION))
        yield event(delta=inference_pb2.Delta(text="Chapter", tokens=1))
        if self.hang:
            self.cancelled.wait(20)
            return
        if self.break_after_first_delta:
            refuse(context, grpc.StatusCode.UNAVAILABLE, "engine lost", error_info("UNAVAILABLE"))
        yield event(delta=inference_pb2.Delta(text=" I", tokens=1))
        yield event(finished=inference_pb2.Finished(reason=inference_pb2.FINISH_REASON_LENGTH, usage=USAGE))

    def Route(self, request, context):
        self._enter(request, context)
        return inference_pb2.RouteResponse(decision=DECISION)

    def CountTokens(self, request, context):
        self._enter(request, context)
        return inference_pb2.CountTokensResponse(prompt_tokens=87, context_length=2048, decision=DECISION)


def adapter(name, version="1.0.0", **fields):
    fields = {"state": adapters_pb2.Adapter.STATE_READY, "etag": "e1"} | fields
    return adapters_pb2.Adapter(name=f"adapters/{name}/versions/{version}", version=version, **fields)


@dataclass
class ScriptedAdapters(adapters_pb2_grpc.AdapterServiceServicer):
    """Five adapters in pages of two; remembers every request."""

    requests: list = field(default_factory=list)

    def ListAdapters(self, request, context):
        self.requests.append(request)
        start = int(request.page_token or 0)
        names = ["code", "legal", "medical", "qa", "translation"]
        page = [adapter(name) for name in names[start : start + 2]]
        following = str(start + 2) if start + 2 < len(names) else ""
        return adapters_pb2.ListAdaptersResponse(adapters=page, next_page_token=following)

    def ListPlugins(self, request, context):
        self.requests.append(request)
        words = adapters_pb2.Plugin.Classifier(
            name="words", priority=10, timeout_ms=20, state="failed", breaker="closed", problem="no examples"
        )
        kept = adapters_pb2.Plugin(
            name="words", source="file", file="words.py", enabled=True, built_in=True, classifiers=[words]
        )
        broken = adapters_pb2.Plugin(
            name="new", source="file", file="new.py", enabled=True, error="SyntaxError: invalid (new.py:1)"
        )
        return adapters_pb2.ListPluginsResponse(plugins=[kept, broken])

    def GetAdapter(self, request, context):
        self.requests.append(request)
        broken = adapter(
            "legal",
            state=adapters_pb2.Adapter.STATE_QUARANTINED,
            error="lora_B of q_proj is all zero",
            invocation_tokens=[1, 520],
        )
        return adapters_pb2.GetAdapterResponse(adapter=broken)

    def LoadAdapter(self, request, context):
        self.requests.append(request)
        return adapters_pb2.LoadAdapterResponse(adapter=adapter("medical", pinned=request.pinned))

    def UnloadAdapter(self, request, context):
        self.requests.append(request)
        return adapters_pb2.UnloadAdapterResponse(adapter=adapter("medical"), freed_bytes=4096)

    def SetDefaultVersion(self, request, context):
        self.requests.append(request)
        return adapters_pb2.SetDefaultVersionResponse(
            adapter=adapter("medical", "1.0.0", default=True), previous="adapters/medical/versions/1.2.0"
        )

    def ResetDefaultVersion(self, request, context):
        self.requests.append(request)
        return adapters_pb2.ResetDefaultVersionResponse(
            adapter=adapter("medical", "1.2.0", default=True), previous="adapters/medical/versions/1.0.0"
        )

    def WatchAdapters(self, request, context):
        self.requests.append(request)
        kinds = adapters_pb2.WatchAdaptersResponse
        yield kinds(kind=kinds.KIND_ADDED, adapter=adapter("medical"))
        yield kinds(kind=kinds.KIND_REMOVED, adapter=adapter("legal"))


@contextmanager
def serving(inference, adapters, experiments=None):
    """Yields HOST:PORT."""
    server = grpc.server(ThreadPoolExecutor(max_workers=4))
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(inference, server)
    adapters_pb2_grpc.add_AdapterServiceServicer_to_server(adapters, server)
    if experiments is not None:
        experiments_pb2_grpc.add_ExperimentServiceServicer_to_server(experiments, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait(5)
