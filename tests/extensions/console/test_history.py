"""Samples, rates and quantiles: read off the metrics, as PromQL would."""

from __future__ import annotations

import math
from types import SimpleNamespace

from prometheus_client import CollectorRegistry, Histogram

from router.extensions.console.history import (
    KEPT,
    Sample,
    SampleHistory,
    VersionCounts,
    buckets_of,
    quantile,
    row,
    since,
    summed,
)
from router.extensions.console.site import ConsoleContext
from tests.server.http_helpers import asking


def sample(time: float, requests: float, errors: float = 0, running: int = 0) -> Sample:
    counts = {("medical", "1.0.0"): VersionCounts(requests, errors, 10 * requests)}
    return Sample(time, counts, (), (), running, 0, 0.25, 0, 1e6)


def test_rates_are_differences() -> None:
    found = row(sample(10, 100, 1), sample(20, 150, 3, running=7))
    assert (found["requests"], found["errors"], found["tokens"]) == (5.0, 0.2, 50.0)
    assert (found["running"], found["cache"], found["first_p50"]) == (7, 0.25, None)


def test_quantiles_are_those_of_promql() -> None:
    ends = (0.1, 0.5, 1.0, math.inf)
    assert quantile(tuple(zip(ends, (0, 10, 10, 10), strict=True)), 0.5) == 0.3
    assert quantile(tuple(zip(ends, (10, 10, 10, 10), strict=True)), 0.9) == 0.09
    assert quantile(tuple(zip(ends, (0, 0, 0, 10), strict=True)), 0.5) == 1.0  # the highest end that is one
    assert quantile(tuple(zip(ends, (0, 0, 0, 0), strict=True)), 0.5) is None
    assert quantile((), 0.5) is None


def test_what_came_in_between() -> None:
    before, after = ((0.1, 3.0), (math.inf, 4.0)), ((0.1, 5.0), (math.inf, 9.0))
    assert since(before, after) == ((0.1, 2.0), (math.inf, 5.0))
    assert since((), after) == after
    assert summed([before, after]) == ((0.1, 8.0), (math.inf, 13.0))
    assert summed([]) == ()


def test_buckets_of_a_histogram_are_by_version() -> None:
    metric = Histogram("h", "h", ("adapter", "version"), buckets=(1, 2), registry=CollectorRegistry())
    metric.labels("medical", "1.0.0").observe(1.5)
    assert buckets_of(metric) == {("medical", "1.0.0"): ((1.0, 0.0), (2.0, 1.0), (math.inf, 1.0))}


def test_a_ring_of_a_quarter_of_an_hour() -> None:
    history = SampleHistory(SimpleNamespace(engine=None, metrics=None))  # type: ignore[arg-type]
    assert history.over(60) is None
    assert set(history.series()["time"]) == set()
    for step in range(1000):
        history.samples.append(sample(5.0 * step, 2 * step))
    assert history.samples[-1].time - history.samples[0].time <= KEPT
    pair = history.over(60)
    assert pair is not None
    assert pair[1].time - pair[0].time == 60
    assert len(history.series()["time"]) == len(history.samples) - 1
    assert history.series(after=history.samples[-3].time)["requests"] == [0.4, 0.4]


async def test_it_counts_what_the_server_does(opened: SimpleNamespace) -> None:
    for _ in range(2):
        answer = await opened.http.post("/v1/chat/completions", json=asking(model="medical", max_tokens=4))
        assert answer.status_code == 200
    gone = await opened.http.post("/v1/chat/completions", json=asking(model="nobody"))
    assert gone.status_code == 404
    history = SampleHistory(ConsoleContext.of(opened.server, opened.server.recent))
    await history.look()
    last = history.samples[-1]
    assert last.by_version["medical", "1.0.0"].requests == 2
    assert (last.requests, last.errors) == (
        3,
        0,
    )  # a request for an unknown adapter is no fault of the server
    assert last.resident_bytes > 1e6
    assert last.first_token[-1][1] == 2
