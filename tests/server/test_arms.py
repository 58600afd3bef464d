"""Who stands in for an arm; a watched generation: the same events, one begin and one end."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from router.engine.base import Delta, Finished
from router.engine.fake import FakeEngine
from router.errors import (
    AdapterNotFound,
    DataLoss,
    EngineFailed,
    InvalidRequest,
    PromptTooLong,
    ResourceExhausted,
    Unavailable,
)
from router.ports import End
from router.server import arms
from router.server.arms import Choices, Resting, Watched
from router.types import AdapterRef, Decision, FinishReason, Reason, Usage
from tests.fakes import FakeRegistry, adapter

NEW, OLD, GONE = AdapterRef("medical", "1.1.0"), AdapterRef("medical", "1.0.0"), AdapterRef("medical", "0")

USAGE = Usage(completion_tokens=2, total_time=1.0)
STOP = Finished(FinishReason.STOP, USAGE)


class Given:
    """A generation that gives these events."""

    def __init__(self, *events: Delta | Finished | Exception) -> None:
        self.events, self.cancelled = events, False

    async def __aiter__(self):
        for event in self.events:
            if isinstance(event, Exception):
                raise event
            yield event

    def cancel(self) -> None:
        self.cancelled = True


class Seen:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.began_times, self.ends = 0, []

    def began(self) -> None:
        self.began_times += 1

    def ended(self, end: End) -> None:
        self.ends.append(end)


async def watch(*events, error=None, stopped="", take=100) -> tuple[Seen, list]:
    seen, got = Seen(), []
    watched = Watched(Given(*events), [seen])
    try:
        async for event in watched:
            got.append(event)
            if len(got) == take:
                break
    except EngineFailed as raised:
        error = raised
    watched.end(error, stopped)
    return seen, got


async def test_a_whole_answer():
    events = (Delta("one"), Delta(" two"), STOP)
    seen, got = await watch(*events)
    assert tuple(got) == events
    assert seen.began_times == 1
    assert seen.ends == [End(FinishReason.STOP, "one two", USAGE)]


async def test_an_answer_of_one_token_without_text_has_begun():
    seen, _ = await watch(STOP)
    assert seen.began_times == 1


@pytest.mark.parametrize("reason", [FinishReason.CANCELLED, FinishReason.DEADLINE])
async def test_what_ends_in_the_queue_never_began(reason):
    seen, _ = await watch(Finished(reason), error=Unavailable("over"))
    assert seen.began_times == 0
    (end,) = seen.ends
    assert (end.reason, end.error, end.cancelled) == (None, "UNAVAILABLE", False)


async def test_a_step_that_fails_before_the_first_token_was_its_own():
    seen, _ = await watch(EngineFailed("boom"))
    assert seen.began_times == 1
    assert [end.error for end in seen.ends] == ["ENGINE_FAILED"]


async def test_a_user_who_leaves():
    seen, _ = await watch(Delta("one"), Delta(" two"), STOP, error=asyncio.CancelledError(), take=2)
    (end,) = seen.ends
    assert (end.reason, end.text, end.error, end.cancelled) == (None, "one two", "", True)
    assert end.usage.completion_tokens == 2
    assert 0 <= end.usage.time_to_first_token <= end.usage.total_time


async def test_a_server_that_stops_is_no_user_who_leaves():
    seen, _ = await watch(Delta("one"), error=asyncio.CancelledError(), stopped="DRAINING", take=1)
    (end,) = seen.ends
    assert (end.error, end.cancelled) == ("DRAINING", False)


async def test_whoever_leaves_after_the_end_has_the_answer():
    seen, _ = await watch(Delta("one"), STOP, error=asyncio.CancelledError())
    assert seen.ends == [End(FinishReason.STOP, "one", USAGE)]


async def test_a_watcher_that_raises_costs_nobody_anything(caplog):
    class Broken(Seen):
        def began(self) -> None:
            raise RuntimeError("broken")

        def ended(self, end: End) -> None:
            raise RuntimeError("broken")

    seen = Seen()
    watched = Watched(Given(Delta("one"), STOP), [Broken(), seen])
    assert [event async for event in watched] == [Delta("one"), STOP]
    watched.end(None)
    assert (seen.began_times, len(seen.ends)) == (1, 1)
    assert caplog.text.count("a watcher failed") == 2


def test_cancelling_reaches_the_engine():
    given = Given()
    Watched(given, []).cancel()
    assert given.cancelled


def choices(*versions: AdapterRef | None, routed: AdapterRef | None = OLD, resting: Resting | None = None):
    registry = FakeRegistry(FakeEngine(), [adapter("medical"), adapter("medical", "1.1.0")])
    assignment = SimpleNamespace(versions=versions) if versions else None
    return Choices(Decision(routed, Reason.CLASSIFIED), assignment, registry, resting or Resting())


def tried(found: Choices, error: Exception) -> list[AdapterRef | None]:
    """Who was chosen where none can answer; the last error is raised again."""
    seen = []

    def try_each() -> None:
        for decision in found:
            seen.append(decision.adapter)
            found.failed(error)

    with pytest.raises(type(error)) as caught:
        try_each()
    assert caught.value is error
    return seen


@pytest.mark.parametrize(
    ("versions", "routed", "order"),
    [
        ((), OLD, [OLD]),
        ((), None, [None]),
        ((NEW, OLD), OLD, [NEW, OLD]),
        ((NEW, OLD), NEW, [NEW, OLD]),
        ((NEW, None), OLD, [NEW, None, OLD]),
        ((GONE, NEW, GONE), None, [NEW, None]),
    ],
)
def test_the_arm_then_control_then_the_one_routed_to(versions, routed, order):
    assert tried(choices(*versions, routed=routed), DataLoss("damaged")) == order


def test_a_choice_is_placed_with_what_the_registry_says():
    new, base = choices(NEW, None, routed=NEW)
    assert (new.adapter, base.adapter, base.digest, base.domain) == (NEW, None, "", "")
    (first, *_) = choices(NEW)
    assert (first.adapter, first.digest, first.domain) == (NEW, adapter("medical", "1.1.0").digest, "medical")


@pytest.mark.parametrize("error", [Unavailable("later"), InvalidRequest([]), EngineFailed("x")])
def test_what_no_other_could_do_better_is_raised_at_once(error):
    assert tried(choices(NEW, OLD), error) == [NEW]


@pytest.mark.parametrize(
    ("error", "rests"),
    [
        (DataLoss("damaged"), True),
        (AdapterNotFound("x"), True),
        (PromptTooLong(8, 9), False),
        (ResourceExhausted("x"), False),
    ],
    ids=lambda value: getattr(value, "reason", value),
)
def test_only_a_fault_of_its_own_lets_a_version_rest(error, rests, monkeypatch):
    resting = Resting()
    first = choices(NEW, OLD, resting=resting)
    assert next(iter(first)).adapter == NEW
    first.failed(error)
    assert first.degraded == error.reason
    again = choices(NEW, OLD, resting=resting)
    assert next(iter(again)).adapter == (OLD if rests else NEW)
    assert again.degraded == (error.reason if rests else "")
    monkeypatch.setattr(arms, "REST_SECONDS", 0.0)
    resting = Resting()
    resting.add(NEW, error)
    assert next(iter(choices(NEW, OLD, resting=resting))).adapter == NEW


def test_the_last_is_tried_though_it_rests_and_a_rest_is_not_made_longer(monkeypatch):
    resting = Resting()
    resting.add(OLD, first := DataLoss("first"))
    resting.add(OLD, DataLoss("second"))
    resting.add(None, DataLoss("the base"))
    assert resting.error(OLD) is first
    assert resting.error(None) is None
    assert next(iter(choices(OLD, resting=resting))).adapter == OLD


def test_the_last_one_that_is_gone_says_so():
    with pytest.raises(AdapterNotFound):
        list(choices(NEW, GONE, routed=NEW))
