"""Every method of the server, once: what is sent, and how the answer is read.

`Client` and `AsyncClient` make their methods of these functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from inspect import Parameter, signature
from typing import Any, Generic, TypeVar, Unpack

from router.client import messages
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
from router.v1 import adapters_pb2, feedback_pb2, fleet_pb2

T = TypeVar("T", covariant=True)


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A call of `method` of a service, with a message or an iterator of messages. `read` makes a value of
    each message of the answer."""

    method: str
    request: Any
    options: Mapping[str, Any]
    read: Callable[[Any], T]


F = TypeVar("F", bound=Callable[..., Any])


def named_as(make: Callable[..., Any]) -> Callable[[F], F]:
    """Give a method the name, the docstring and the parameters of the function that makes its call."""

    def named(method: F) -> F:
        found, own = signature(make), Parameter("self", Parameter.POSITIONAL_OR_KEYWORD)
        method.__name__, method.__doc__ = make.__name__, make.__doc__
        method.__signature__ = found.replace(parameters=[own, *found.parameters.values()])  # type: ignore[attr-defined]
        return method

    return named


# -- inference


def generate(prompt: Prompt, **options: Unpack[GenerateOptions]) -> Call[Answer]:
    """The whole answer in one message."""
    return Call("Generate", messages.generate_request(prompt, options), options, partial(read, Answer))


def stream(prompt: Prompt, **options: Unpack[GenerateOptions]) -> Call[Iterable[Event]]:
    """Started, then Delta as text becomes certain, then Finished. Leaving the loop cancels the call."""
    return Call("StreamGenerate", messages.stream_request(prompt, options), options, messages.to_events)


def route(prompt: Prompt, **options: Unpack[RouteOptions]) -> Call[Decision]:
    """Where the request would go, with every vote; generates nothing."""
    request = messages.route_request(prompt, options)
    return Call("Route", request, options, lambda answer: read(Decision, answer.decision))


def count_tokens(prompt: Prompt, **options: Unpack[RouteOptions]) -> Call[TokenCount]:
    """Prompt tokens under the template of the adapter it would get."""
    return Call("CountTokens", messages.count_request(prompt, options), options, partial(read, TokenCount))


# -- adapters


def list_adapters(
    *, domain: str = "", task: str = "", page_size: int = 200, **options: Unpack[CallOptions]
) -> Call[Iterable[Adapter]]:
    """Every version, all pages, by name and version; quarantined ones with their reason."""
    request = adapters_pb2.ListAdaptersRequest(domain=domain, task=task, page_size=page_size)
    return Call("ListAdapters", request, options, lambda page: map(messages.to_adapter, page.adapters))


def plugins(**options: Unpack[CallOptions]) -> Call[tuple[Plugin, ...]]:
    """The plugins whose classifiers choose among the adapters, broken ones with their reason."""
    request = adapters_pb2.ListPluginsRequest()
    return Call("ListPlugins", request, options, lambda found: tuple(read(Plugin, p) for p in found.plugins))


def get(name: str, **options: Unpack[CallOptions]) -> Call[Adapter]:
    """One version."""
    request = adapters_pb2.GetAdapterRequest(name=messages.resource_name(name))
    return Call("GetAdapter", request, options, messages.adapter_of)


def load(name: str, *, pinned: bool | None = None, **options: Unpack[CallOptions]) -> Call[Adapter]:
    """Bring it into memory; returns when it is READY. `pinned` None leaves the pin as it is."""
    request = adapters_pb2.LoadAdapterRequest(name=messages.resource_name(name), pinned=pinned)
    return Call("LoadAdapter", request, options, messages.adapter_of)


def unload(name: str, **options: Unpack[CallOptions]) -> Call[Unloaded]:
    """Drop it from memory once its last request ended."""
    request = adapters_pb2.UnloadAdapterRequest(name=messages.resource_name(name))
    return Call("UnloadAdapter", request, options, messages.to_unloaded)


def set_default(
    name: str, *, etag: str = "", force: bool = False, reason: str = "", **options: Unpack[CallOptions]
) -> Call[DefaultChange]:
    """Make NAME@VERSION the version that requests for NAME get; `force` overrules the gate."""
    request = adapters_pb2.SetDefaultVersionRequest(
        name=messages.resource_name(name), etag=etag, force=force, reason=reason
    )
    return Call("SetDefaultVersion", request, options, messages.to_default_change)


def reset_default(name: str, **options: Unpack[CallOptions]) -> Call[DefaultChange]:
    """Take back what `set_default` chose for NAME: the rule decides again."""
    request = adapters_pb2.ResetDefaultVersionRequest(name=messages.resource_name(name))
    return Call("ResetDefaultVersion", request, options, messages.to_default_change)


def watch(**options: Unpack[CallOptions]) -> Call[Iterable[AdapterEvent]]:
    """The present set as ADDED, then every change, until the loop is left. No deadline unless given."""
    options.setdefault("timeout", None)
    request = adapters_pb2.WatchAdaptersRequest()
    return Call("WatchAdapters", request, options, lambda event: [messages.to_adapter_event(event)])


# -- feedback


def record_feedback(
    response_id: str, verdict: str = "", **options: Unpack[FeedbackOptions]
) -> Call[FeedbackRecorded]:
    """An answer is `good` or `bad`, or should have been `corrected="..."`. Replaces earlier feedback."""
    request = messages.feedback_request(response_id, verdict, options)
    return Call("RecordFeedback", request, options, messages.to_recorded)


def list_feedback(
    adapter: str, *, since: float = 0, **options: Unpack[CallOptions]
) -> Call[Iterable[Feedback]]:
    """Feedback on an adapter (NAME or `base`) that came at `since` (unix seconds) or later, the oldest
    first. A page is read when the loop comes to it."""
    request = messages.feedback_page_request(adapter, since)
    return Call("ListFeedback", request, options, lambda page: map(messages.to_feedback, page.feedback))


def delete_feedback(
    *, unit: str = "", unit_hash: str = "", tenant: str = "", **options: Unpack[CallOptions]
) -> Call[int]:
    """Delete all feedback of a unit, of a tenant, or of a unit of a tenant; returns how many entries."""
    request = feedback_pb2.DeleteFeedbackRequest(unit=unit, unit_hash=unit_hash, tenant=tenant)
    return Call("DeleteFeedback", request, options, lambda answer: int(answer.deleted))


# -- replicas


def list_replicas(**options: Unpack[CallOptions]) -> Call[tuple[Replica, ...]]:
    """All."""
    request = fleet_pb2.ListReplicasRequest()
    return Call("ListReplicas", request, options, lambda a: tuple(read(Replica, one) for one in a.replicas))


def drain(name: str, **options: Unpack[CallOptions]) -> Call[None]:
    """Have one end when it has finished; what started it starts it again."""
    return Call("DrainReplica", fleet_pb2.DrainReplicaRequest(name=name), options, lambda _: None)
