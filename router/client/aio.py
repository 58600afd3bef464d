"""The client for asyncio: the same methods, awaited."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, Unpack

import grpc.aio

from router.client import messages
from router.client.channel import (
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT,
    AsyncCaller,
    Secured,
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
    from router.extensions.experiments.client import AsyncExperiments


class AsyncClient:
    """Talks to one server from one event loop; close it or use it in an `async with`.

    A stream that may be left early belongs in `contextlib.aclosing`, which cancels the call at once.
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
            self._channel = grpc.aio.insecure_channel(target, options=options)
        else:
            self._channel = grpc.aio.secure_channel(target, credentials, options=options)
        self._stub: Any = inference_pb2_grpc.InferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._caller = AsyncCaller(timeout, secured.get("token", ""))
        self.adapters = AsyncAdapters(self._channel, self._caller)
        self.feedback = AsyncFeedbacks(self._channel, self._caller)
        self.replicas = AsyncReplicas(self._channel, self._caller)

    @cached_property
    def experiments(self) -> AsyncExperiments:
        """Experiments. Raises ModuleNotFoundError where they are not installed."""
        made: AsyncExperiments = of_experiments("AsyncExperiments")(self._channel, self._caller)
        return made

    async def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Answer:
        """The whole answer in one message."""
        request = messages.generate_request(prompt, options)
        return read(Answer, await self._caller.unary(self._stub.Generate, request, options))

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> AsyncIterator[Event]:
        """Started, then Delta as text becomes certain, then Finished."""
        return self._events(messages.stream_request(prompt, options), options)

    async def _events(self, request: Any, options: GenerateOptions) -> AsyncIterator[Event]:
        received: Any = self._caller.stream(self._stub.StreamGenerate, request, options)
        async with aclosing(received):
            async for message in received:
                if event := messages.to_event(message):
                    yield event

    async def route(self, prompt: Prompt, **options: Unpack[RouteOptions]) -> Decision:
        """Where the request would go, with every vote; generates nothing."""
        request = messages.route_request(prompt, options)
        answer = await self._caller.unary(self._stub.Route, request, options)
        return read(Decision, answer.decision)

    async def count_tokens(self, prompt: Prompt, **options: Unpack[RouteOptions]) -> TokenCount:
        """Prompt tokens under the template of the adapter it would get."""
        request = messages.count_request(prompt, options)
        return read(TokenCount, await self._caller.unary(self._stub.CountTokens, request, options))

    async def close(self) -> None:
        """Close the connection; running calls are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AsyncAdapters:
    """`client.adapters`. Names are NAME (the default version), NAME@VERSION or resource names."""

    def __init__(self, channel: grpc.aio.Channel, caller: AsyncCaller) -> None:
        self._stub: Any = adapters_pb2_grpc.AdapterServiceStub(channel)  # type: ignore[no-untyped-call]
        self._caller = caller

    async def list(
        self, *, domain: str = "", task: str = "", page_size: int = 200, **options: Unpack[CallOptions]
    ) -> tuple[Adapter, ...]:
        """Every version, all pages, by name and version; quarantined ones with their reason."""
        found: tuple[Adapter, ...] = ()
        token = ""
        while True:
            request = adapters_pb2.ListAdaptersRequest(
                domain=domain, task=task, page_size=page_size, page_token=token
            )
            page = await self._caller.unary(self._stub.ListAdapters, request, options)
            found += tuple(messages.to_adapter(a) for a in page.adapters)
            if not (token := page.next_page_token):
                return found

    async def plugins(self, **options: Unpack[CallOptions]) -> tuple[Plugin, ...]:
        """The plugins whose classifiers choose among the adapters, broken ones with their reason."""
        answer = await self._caller.unary(self._stub.ListPlugins, adapters_pb2.ListPluginsRequest(), options)
        return tuple(read(Plugin, one) for one in answer.plugins)

    async def get(self, name: str, **options: Unpack[CallOptions]) -> Adapter:
        """One version."""
        request = adapters_pb2.GetAdapterRequest(name=messages.resource_name(name))
        answer = await self._caller.unary(self._stub.GetAdapter, request, options)
        return messages.to_adapter(answer.adapter)

    async def load(self, name: str, *, pinned: bool | None = None, **options: Unpack[CallOptions]) -> Adapter:
        """Bring it into memory; returns when it is READY. `pinned` None leaves the pin as it is."""
        request = adapters_pb2.LoadAdapterRequest(name=messages.resource_name(name), pinned=pinned)
        answer = await self._caller.unary(self._stub.LoadAdapter, request, options)
        return messages.to_adapter(answer.adapter)

    async def unload(self, name: str, **options: Unpack[CallOptions]) -> Unloaded:
        """Drop it from memory once its last request ended."""
        request = adapters_pb2.UnloadAdapterRequest(name=messages.resource_name(name))
        return messages.to_unloaded(await self._caller.unary(self._stub.UnloadAdapter, request, options))

    async def set_default(
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
        answer = await self._caller.unary(self._stub.SetDefaultVersion, request, options)
        return messages.to_default_change(answer)

    async def reset_default(self, name: str, **options: Unpack[CallOptions]) -> DefaultChange:
        """Take back what `set_default` chose for NAME: the rule decides again."""
        request = adapters_pb2.ResetDefaultVersionRequest(name=messages.resource_name(name))
        answer = await self._caller.unary(self._stub.ResetDefaultVersion, request, options)
        return messages.to_default_change(answer)

    async def watch(self, **options: Unpack[CallOptions]) -> AsyncIterator[AdapterEvent]:
        """The present set as ADDED, then every change, until it is closed. No deadline unless given."""
        options.setdefault("timeout", None)
        request = adapters_pb2.WatchAdaptersRequest()
        received: Any = self._caller.stream(self._stub.WatchAdapters, request, options)
        async with aclosing(received):
            async for message in received:
                yield messages.to_adapter_event(message)


class AsyncFeedbacks:
    """`client.feedback`, awaited; `list` is an asynchronous iterator."""

    def __init__(self, channel: grpc.aio.Channel, caller: AsyncCaller) -> None:
        self._stub: Any = feedback_pb2_grpc.FeedbackServiceStub(channel)  # type: ignore[no-untyped-call]
        self._caller = caller

    async def record(
        self, response_id: str, verdict: str = "", **options: Unpack[FeedbackOptions]
    ) -> FeedbackRecorded:
        """An answer is `good` or `bad`, or should have been `corrected="..."`. Replaces earlier feedback."""
        request = messages.feedback_request(response_id, verdict, options)
        return messages.to_recorded(await self._caller.unary(self._stub.RecordFeedback, request, options))

    async def list(
        self, adapter: str, *, since: float = 0, **options: Unpack[CallOptions]
    ) -> AsyncIterator[Feedback]:
        """Feedback on an adapter (NAME or `base`) that came at `since` (unix seconds) or later, the oldest
        first. A page is read when the loop comes to it."""
        token = ""
        while True:
            request = messages.feedback_page_request(adapter, since, token)
            page = await self._caller.unary(self._stub.ListFeedback, request, options)
            for message in page.feedback:
                yield messages.to_feedback(message)
            if not (token := page.next_page_token):
                return

    async def delete(
        self, *, unit: str = "", unit_hash: str = "", tenant: str = "", **options: Unpack[CallOptions]
    ) -> int:
        """Delete all feedback of a unit, of a tenant, or of a unit of a tenant; returns how many entries."""
        request = feedback_pb2.DeleteFeedbackRequest(unit=unit, unit_hash=unit_hash, tenant=tenant)
        deleted: int = (await self._caller.unary(self._stub.DeleteFeedback, request, options)).deleted
        return deleted


class AsyncReplicas:
    """`client.replicas`, awaited."""

    def __init__(self, channel: grpc.aio.Channel, caller: AsyncCaller) -> None:
        self._stub: Any = fleet_pb2_grpc.FleetServiceStub(channel)  # type: ignore[no-untyped-call]
        self._caller = caller

    async def list(self, **options: Unpack[CallOptions]) -> tuple[Replica, ...]:
        """All."""
        answer = await self._caller.unary(self._stub.ListReplicas, fleet_pb2.ListReplicasRequest(), options)
        return tuple(read(Replica, one) for one in answer.replicas)

    async def drain(self, name: str, **options: Unpack[CallOptions]) -> None:
        """Have one end when it has finished; what started it starts it again."""
        await self._caller.unary(self._stub.DrainReplica, fleet_pb2.DrainReplicaRequest(name=name), options)
