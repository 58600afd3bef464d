"""Values as messages and back: no field is lost on the way, and none of a message is forgotten."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.client.messages import to_adapter, to_adapter_event, to_events, to_feedback
from router.client.values import Adapter, Answer, Delta, Event, Finished, Plugin, Replica, Started, TokenCount
from router.conversion import NAMES, duration, fill, read, seconds_of, timestamp, unix_seconds
from router.extensions.feedback.service import feedback_message
from router.feedback.model import Feedback
from router.types import AdapterEventKind, AdapterState, Decision, FinishReason, Reason, Usage, VoteError
from router.v1 import adapters_pb2, fleet_pb2
from router.v1 import inference_pb2 as pb
from tests.values import any_of

NOT_SENT: dict[type, dict[str, Any]] = {
    Adapter: {"since": 0.0, "folder": ""},
    Decision: {"secret": False, "undecided": 0},
}
"""Fields that stay with the server."""


def sent(value: Any) -> Any:
    """A value without what stays with the server, in every part of it."""
    if isinstance(value, Answer | Started | TokenCount):
        return replace(value, decision=sent(value.decision))
    return replace(value, **NOT_SENT.get(type(value), {}))


def carried(message: Message) -> Any:
    """As it comes to the other side."""
    return type(message).FromString(message.SerializeToString())


PAIRS: list[tuple[type, type[Message]]] = [
    (Answer, pb.GenerateResponse),
    (Decision, pb.Decision),
    (Finished, pb.Finished),
    (Plugin, adapters_pb2.Plugin),
    (Started, pb.Started),
    (TokenCount, pb.CountTokensResponse),
    (Usage, pb.Usage),
]
thorough = settings(deadline=None, max_examples=50, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize(("kind", "message"), PAIRS, ids=lambda one: one.__name__)
@thorough
@given(st.data())
def test_every_field_survives_both_ways(kind: type, message: type[Message], data: st.DataObject) -> None:
    made = sent(data.draw(any_of(kind)))
    assert read(kind, carried(fill(message(), made))) == made


@pytest.mark.parametrize(("kind", "message"), PAIRS, ids=lambda one: one.__name__)
def test_every_field_of_a_message_is_one_of_the_value(kind: type, message: type[Message]) -> None:
    known = {name for f in fields(kind) for name in (*NAMES.get(f.name, ()), f.name)}
    assert set(message.DESCRIPTOR.fields_by_name) <= known


@thorough
@given(any_of(Delta) | any_of(Started).map(sent) | any_of(Finished))
def test_an_event_survives_both_ways(made: Event) -> None:
    message = pb.StreamGenerateResponse()
    fill(getattr(message, type(made).__name__.lower()), made).SetInParent()
    assert to_events(carried(message)) == (made,)


@thorough
@given(any_of(Adapter))
def test_an_adapter_survives_both_ways(made: Adapter) -> None:
    version = made.ref.version
    made = replace(sent(made), override=made.override and replace(made.override, version=version))
    assert to_adapter(carried(fill(adapters_pb2.Adapter(version=version), made))) == made


@thorough
@given(any_of(Replica), st.sampled_from(["starting", "serving", "lost", "draining"]))
def test_a_replica_survives_both_ways(made: Replica, state: str) -> None:
    made = replace(made, state=state)
    assert read(Replica, carried(fill(fleet_pb2.Replica(), made))) == made


TURNS = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text()), max_size=3).map(
    tuple
)


@thorough
@given(any_of(Feedback), TURNS | st.tuples(st.tuples(st.just("raw"), st.text())))
def test_feedback_survives_both_ways(made: Feedback, messages: tuple[tuple[str, str], ...]) -> None:
    made = replace(made, messages=messages)
    assert to_feedback(carried(feedback_message(made))) == made
    assert to_feedback(carried(feedback_message(replace(made, adapter="base", version="")))).adapter == "base"


def test_what_a_newer_server_says_is_what_says_the_least() -> None:
    assert read(Answer, pb.GenerateResponse(finish_reason=99)).finish_reason is FinishReason.ERROR
    assert read(Decision, pb.Decision(reason=99, continuity="forked")).reason is Reason.FALLBACK
    assert read(Decision, pb.Decision(continuity="forked")).continuity == ""
    vote = read(Decision, pb.Decision(votes=[pb.Vote(error="tired")])).votes[0]
    assert vote.error is VoteError.OTHER
    found = to_adapter(adapters_pb2.Adapter(name="adapters/a/versions/1", state=99))
    assert found.state is AdapterState.DISCOVERED
    event = adapters_pb2.WatchAdaptersResponse(kind=99, time=timestamp(1.5))
    event.adapter.name = "adapters/a/versions/1"
    assert to_adapter_event(event).kind is AdapterEventKind.CHANGED
    assert to_events(pb.StreamGenerateResponse()) == ()


@pytest.mark.parametrize("seconds", [0.0, 1.5, -1.5, 1e-9, 86_400.25])
def test_times(seconds: float) -> None:
    assert seconds_of(duration(seconds)) == seconds
    assert unix_seconds(timestamp(seconds)) == seconds
    assert duration(-1.5) == Duration(seconds=-1, nanos=-500_000_000)
