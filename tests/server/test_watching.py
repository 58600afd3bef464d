"""A watched generation: the same events, one begin and one end."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from router.engine.base import Delta, Finished, batches
from router.errors import EngineFailed, Unavailable
from router.ports import End
from router.server.pipeline import Watched
from router.types import FinishReason, Usage

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
        async with aclosing(batches(watched, 1)) as each:
            async for batch in each:
                got.extend(batch)
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
    assert [event async for batch in batches(watched, 1) for event in batch] == [Delta("one"), STOP]
    watched.end(None)
    assert (seen.began_times, len(seen.ends)) == (1, 1)
    assert caplog.text.count("a watcher failed") == 2


def test_cancelling_reaches_the_engine():
    given = Given()
    Watched(given, []).cancel()
    assert given.cancelled
