"""The client for threads."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, Unpack

import grpc

from router.client import messages
from router.client.channel import (
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT,
    Secured,
    SyncCaller,
    channel_credentials,
    channel_options,
    of_experiments,
)
from router.client.values import (
    Adapter,
    Answer,
    CallOptions,
    DefaultChange,
    Event,
    FeedbackOptions,
    FeedbackRecorded,
    GenerateOptions,
    Plugin,
    Prompt,
    Replica,
    RouteOptions,
    TokenCount,
    Unloaded,
)
from router.conversion import read
from router.feedback.model import Feedback
from router.types import AdapterEvent, Decision
from router.v1 import (
    adapters_pb2,
    adapters_pb2_grpc,
    feedback_pb2,
    feedback_pb2_grpc,
    fleet_pb2,
    fleet_pb2_grpc,
    inference_pb2_grpc,
)

if TYPE_CHECKING:
    from router.extensions.experiments.client import Experiments


class Client:
    """Talks to one server. Thread-safe; close it or use it in a `with`.

    Example:
        with Client("127.0.0.1:50051") as client:
            answer = client.generate("Translate to French: cheese", max_tokens=20)
            print(answer.decision.adapter, answer.text)
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        **secured: Unpack[Secured],
    ) -> None:
        credentials, options = channel_credentials(target, secured), channel_options(target)
        if credentials is None:
            self._channel = grpc.insecure_channel(target, options=options)
        else:
            self._channel = grpc.secure_channel(target, credentials, options=options)
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._caller = SyncCaller(timeout, secured.get("token", ""))
        self.adapters = Adapters(self._channel, self._caller)
        self.feedback = Feedbacks(self._channel, self._caller)
        self.replicas = Replicas(self._channel, self._caller)

    @cached_property
    def experiments(self) -> Experiments:
        """Experiments. Raises ModuleNotFoundError where they are not installed."""
        made: Experiments = of_experiments("Experiments")(self._channel, self._caller)
        return made

    def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Answer:
        """The whole answer in one message."""
        request = messages.generate_request(prompt, options)
        return read(Answer, self._caller.unary(self._stub.Generate, request, options))

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Iterator[Event]:
        """Started, then Delta as text becomes certain, then Finished. Leaving the loop cancels the call."""
        return self._events(messages.stream_request(prompt, options), options)

    def _events(self, request: Any, options: GenerateOptions) -> Iterator[Event]:
        for message in self._caller.stream(self._stub.StreamGenerate, request, options):
            if event := messages.to_event(message):
                yield event

    def route(self, prompt: Prompt, **options: Unpack[RouteOptions]) -> Decision:
        """Where the request would go, with every vote; generates nothing."""
        request = messages.route_request(prompt, options)
        return read(Decision, self._caller.unary(self._stub.Route, request, options).decision)

    def count_tokens(self, prompt: Prompt, **options: Unpack[RouteOptions]) -> TokenCount:
        """Prompt tokens under the template of the adapter it would get."""
        request = messages.count_request(prompt, options)
        return read(TokenCount, self._caller.unary(self._stub.CountTokens, request, options))

    def close(self) -> None:
        """Close the connection; running calls are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Adapters:
    """`client.adapters`. Names are NAME (the default version), NAME@VERSION or resource names."""

    def __init__(self, channel: grpc.Channel, caller: SyncCaller) -> None:
        self._stub = adapters_pb2_grpc.AdapterServiceStub(channel)  # type: ignore[no-untyped-call]
        self._caller = caller

    def list(
        self, *, domain: str = "", task: str = "", page_size: int = 200, **options: Unpack[CallOptions]
    ) -> tuple[Adapter, ...]:
        """Every version, all pages, by name and version; quarantined ones with their reason."""
        found: tuple[Adapter, ...] = ()
        token = ""
        while True:
            request = adapters_pb2.ListAdaptersRequest(
                domain=domain, task=task, page_size=page_size, page_token=token
            )
            page = self._caller.unary(self._stub.ListAdapters, request, options)
            found += tuple(messages.to_adapter(a) for a in page.adapters)
            if not (token := page.next_page_token):
                return found

    def plugins(self, **options: Unpack[CallOptions]) -> tuple[Plugin, ...]:
        """The plugins whose classifiers choose among the adapters, broken ones with their reason."""
        answer = self._caller.unary(self._stub.ListPlugins, adapters_pb2.ListPluginsRequest(), options)
        return tuple(read(Plugin, one) for one in answer.plugins)

    def get(self, name: str, **options: Unpack[CallOptions]) -> Adapter:
        """One version."""
        request = adapters_pb2.GetAdapterRequest(name=messages.resource_name(name))
        return messages.to_adapter(self._caller.unary(self._stub.GetAdapter, request, options).adapter)

    def load(self, name: str, *, pinned: bool | None = None, **options: Unpack[CallOptions]) -> Adapter:
        """Bring it into memory; returns when it is READY. `pinned` None leaves the pin as it is."""
        request = adapters_pb2.LoadAdapterRequest(name=messages.resource_name(name), pinned=pinned)
        return messages.to_adapter(self._caller.unary(self._stub.LoadAdapter, request, options).adapter)

    def unload(self, name: str, **options: Unpack[CallOptions]) -> Unloaded:
        """Drop it from memory once its last request ended."""
        request = adapters_pb2.UnloadAdapterRequest(name=messages.resource_name(name))
        return messages.to_unloaded(self._caller.unary(self._stub.UnloadAdapter, request, options))

    def set_default(
        self,
        name: str,
        *,
        etag: str = "",
        force: bool = False,
        reason: str = "",
        **options: Unpack[CallOptions],
    ) -> DefaultChange:
        """Make NAME@VERSION the version that requests for NAME get; `force` overrules the gate."""
        request = adapters_pb2.SetDefaultVersionRequest(
            name=messages.resource_name(name), etag=etag, force=force, reason=reason
        )
        answer = self._caller.unary(self._stub.SetDefaultVersion, request, options)
        return messages.to_default_change(answer)

    def reset_default(self, name: str, **options: Unpack[CallOptions]) -> DefaultChange:
        """Take back what `set_default` chose for NAME: the rule decides again."""
        request = adapters_pb2.ResetDefaultVersionRequest(name=messages.resource_name(name))
        answer = self._caller.unary(self._stub.ResetDefaultVersion, request, options)
        return messages.to_default_change(answer)

    def watch(self, **options: Unpack[CallOptions]) -> Iterator[AdapterEvent]:
        """The present set as ADDED, then every change, until the loop is left. No deadline unless given."""
        options.setdefault("timeout", None)
        request = adapters_pb2.WatchAdaptersRequest()
        for message in self._caller.stream(self._stub.WatchAdapters, request, options):
            yield messages.to_adapter_event(message)


class Feedbacks:
    """`client.feedback`: what users think of answers."""

    def __init__(self, channel: grpc.Channel, caller: SyncCaller) -> None:
        self._stub = feedback_pb2_grpc.FeedbackServiceStub(channel)  # type: ignore[no-untyped-call]
        self._caller = caller

    def record(
        self, response_id: str, verdict: str = "", **options: Unpack[FeedbackOptions]
    ) -> FeedbackRecorded:
        """An answer is `good` or `bad`, or should have been `corrected="..."`. Replaces earlier feedback."""
        request = messages.feedback_request(response_id, verdict, options)
        return messages.to_recorded(self._caller.unary(self._stub.RecordFeedback, request, options))

    def list(self, adapter: str, *, since: float = 0, **options: Unpack[CallOptions]) -> Iterator[Feedback]:
        """Feedback on an adapter (NAME or `base`) that came at `since` (unix seconds) or later, the oldest
        first. A page is read when the loop comes to it."""
        token = ""
        while True:
            request = messages.feedback_page_request(adapter, since, token)
            page = self._caller.unary(self._stub.ListFeedback, request, options)
            yield from map(messages.to_feedback, page.feedback)
            if not (token := page.next_page_token):
                return

    def delete(
        self, *, unit: str = "", unit_hash: str = "", tenant: str = "", **options: Unpack[CallOptions]
    ) -> int:
        """Delete all feedback of a unit, of a tenant, or of a unit of a tenant; returns how many entries."""
        request = feedback_pb2.DeleteFeedbackRequest(unit=unit, unit_hash=unit_hash, tenant=tenant)
        deleted: int = self._caller.unary(self._stub.DeleteFeedback, request, options).deleted
        return deleted


class Replicas:
    """`client.replicas`. A server without replicas answers FAILED_PRECONDITION."""

    def __init__(self, channel: grpc.Channel, caller: SyncCaller) -> None:
        self._stub = fleet_pb2_grpc.FleetServiceStub(channel)  # type: ignore[no-untyped-call]
        self._caller = caller

    def list(self, **options: Unpack[CallOptions]) -> tuple[Replica, ...]:
        """All."""
        answer = self._caller.unary(self._stub.ListReplicas, fleet_pb2.ListReplicasRequest(), options)
        return tuple(read(Replica, one) for one in answer.replicas)

    def drain(self, name: str, **options: Unpack[CallOptions]) -> None:
        """Have one end when it has finished; what started it starts it again."""
        self._caller.unary(self._stub.DrainReplica, fleet_pb2.DrainReplicaRequest(name=name), options)
