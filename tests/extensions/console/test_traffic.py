"""Requests counted in rings: outcomes, percentiles, adapters, and bounds of memory."""

from __future__ import annotations

import random
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from router.extensions.console.traffic import (
    LATELY,
    MOST_ADAPTERS,
    MOST_REASONS,
    RANGES,
    REST,
    UNROUTED,
    Outcome,
    Times,
    Traffic,
    outcome_of,
)
from tests.server.http_helpers import asking


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 10_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def ended(
    traffic: Traffic, code: str = "OK", reason: str = "", seconds: float = 0.1, adapter: str = "medical"
) -> None:
    """A request has ended so."""
    decision = SimpleNamespace(answered_by=(adapter, "1.0.0")) if adapter else None
    usage = SimpleNamespace(completion_tokens=10, time_to_first_token=seconds / 2) if code == "OK" else None
    votes = [
        SimpleNamespace(classifier="linear", error=""),
        SimpleNamespace(classifier="probe", error="deadline"),
    ]
    call: Any = SimpleNamespace(
        started=time.monotonic() - seconds, usage=usage, decision=decision, votes=votes if adapter else []
    )
    traffic.ended(call, code, reason)


def test_percentiles_are_right_to_within_their_error() -> None:
    draw = random.Random(7)
    values = [draw.lognormvariate(-1, 1.2) for _ in range(5000)]
    one, two = Times(), Times()
    for place, value in enumerate(values):
        (one if place % 3 else two).add(Times.bucket(value))
    one.merge(two)
    values.sort()
    for share in (0.5, 0.95, 0.99):
        exact = values[int(share * (len(values) - 1))]
        assert one.percentile(share) == pytest.approx(exact, rel=0.027)


def test_too_few_times_have_no_percentile() -> None:
    times = Times()
    for _ in range(19):
        times.add(Times.bucket(0.2))
    assert times.percentile(0.5) == pytest.approx(0.2, rel=0.03)
    assert times.percentile(0.95) is None


def test_outcomes_are_apart() -> None:
    assert outcome_of("OK", "") is Outcome.ANSWERED
    assert outcome_of("CANCELLED", "") is Outcome.CANCELLED
    refusals = (("INVALID_ARGUMENT", "PROMPT_TOO_LONG"), ("UNAVAILABLE", "QUEUE_FULL"), ("NOT_FOUND", ""))
    assert {outcome_of(*one) for one in refusals} == {Outcome.REFUSED}
    failures = (("INTERNAL", "ENGINE_FAILED"), ("UNAVAILABLE", "STORE_DOWN"), ("DEADLINE_EXCEEDED", ""))
    assert {outcome_of(*one) for one in failures} == {Outcome.FAILED}


def test_ranges_forget_what_is_older(clock: Clock) -> None:
    traffic = Traffic(clock)
    ended(traffic)
    lately = traffic.total(LATELY)
    assert (lately.votes["probe"], lately.lost["probe"], lately.lost["linear"]) == (1, 1, 0)
    clock.now += 1800
    ended(traffic, "INVALID_ARGUMENT", "PROMPT_TOO_LONG", adapter="")
    lately, day = traffic.total(LATELY), traffic.total(RANGES["24h"])
    assert (lately.requests, lately.outcomes[Outcome.ANSWERED], lately.tokens) == (1, 0, 0)
    assert (day.requests, day.tokens, day.first.count) == (2, 10, 1)
    assert lately.reasons == {Outcome.REFUSED: {"PROMPT_TOO_LONG": 1}}
    assert set(traffic.versions(RANGES["24h"])) == {("medical", "1.0.0"), UNROUTED}
    assert sum(traffic.spark(RANGES["1h"], ("medical", "1.0.0"))) == 1


def test_slots_before_the_start_are_unknown(clock: Clock) -> None:
    traffic = Traffic(clock)
    clock.now += 25
    ended(traffic)
    slots = traffic.slots(LATELY)
    assert [slot is None for slot in slots[-4:]] == [True, False, False, False]
    assert slots[-1] is not None
    assert slots[-1].requests == 1


def test_shares_are_of_what_is_visible(clock: Clock) -> None:
    traffic = Traffic(clock)
    for adapter in ("medical", "medical", "medical", "legal", ""):
        ended(traffic, adapter=adapter)
    assert traffic.shares(300, lambda _: True) == {("medical", "1.0.0"): 0.75, ("legal", "1.0.0"): 0.25}
    assert traffic.shares(300, lambda name: name == "legal") == {("legal", "1.0.0"): 1.0}


def test_memory_is_bounded(clock: Clock) -> None:
    traffic = Traffic(clock)
    for number in range(200):
        ended(traffic, "INTERNAL", f"REASON_{number}", adapter=f"adapter-{number}")
    counts = traffic.versions(LATELY)
    assert len(counts) == MOST_ADAPTERS + 1
    assert counts[REST].requests == 200 - MOST_ADAPTERS
    assert len(traffic.total(LATELY).reasons[Outcome.FAILED]) == MOST_REASONS + 1
    cells = sum(one.slots * 2 + one.adapter_slots * MOST_ADAPTERS for one in RANGES.values())
    full = Times()
    full.add(0)
    assert cells * (sys.getsizeof(full.buckets) + 600) < 10e6


async def test_it_counts_what_the_server_does(opened: SimpleNamespace) -> None:
    for _ in range(2):
        answer = await opened.http.post("/v1/chat/completions", json=asking(model="medical", max_tokens=4))
        assert answer.status_code == 200
    for _ in range(3):
        gone = await opened.http.post("/v1/chat/completions", json=asking(model="nobody"))
        assert gone.status_code == 404
    page = (await opened.http.get("/console")).text
    assert "3 of 5 requests (60.0 %) were refused in the last 15 minutes: ADAPTER_NOT_FOUND 3." in page
    assert "healthy" not in page
    assert 'title="of 5 answers at least"' in page  # two have no median
