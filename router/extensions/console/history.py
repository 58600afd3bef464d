"""What happened lately: numbers of the last minutes, and changes of adapters since the server started.

Numbers are read from the metrics every few seconds and kept in a ring. Changes are of state, default or pin.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

from prometheus_client import Histogram, ProcessCollector

from router.types import AdapterEvent, AdapterEventKind, AdapterInfo, AdapterRef, AdapterState

if TYPE_CHECKING:
    from router.engine.base import EngineStatus
    from router.extensions.console.site import ConsoleContext


log = logging.getLogger(__name__)
EVERY = 5.0  # seconds between two samples
KEPT = 15 * 60.0  # seconds
CALM = 20  # a sample takes at most one part in so many of the time, however many adapters there are
Buckets = tuple[tuple[float, float], ...]  # upper end, and how many are at most so much
Who = tuple[str, str]  # adapter and version, as the metrics name them
EMPTY: Buckets = ()


@dataclass(frozen=True, slots=True)
class VersionCounts:
    """Of one version, since the server started."""

    requests: float = 0
    errors: float = 0
    tokens: float = 0
    first_token: Buckets = EMPTY


@dataclass(frozen=True, slots=True)
class Sample:
    """What was so at one moment."""

    time: float  # unix seconds
    by_version: Mapping[Who, VersionCounts]
    first_token: Buckets
    per_token: Buckets
    running: int
    waiting: int
    cache: float  # share of the KV cache in use
    adapter_bytes: int
    resident_bytes: float  # of the process

    @property
    def requests(self) -> float:
        """Of all versions."""
        return sum(counts.requests for counts in self.by_version.values())

    @property
    def errors(self) -> float:
        """Of all versions."""
        return sum(counts.errors for counts in self.by_version.values())

    @property
    def tokens(self) -> float:
        """Of all versions."""
        return sum(counts.tokens for counts in self.by_version.values())


class SampleHistory:
    """The samples of the last quarter of an hour. Lives on the event loop; reads the counters in a thread."""

    def __init__(self, context: ConsoleContext) -> None:
        self._context = context
        self._process = ProcessCollector(registry=None)
        self.samples: deque[Sample] = deque(maxlen=round(KEPT / EVERY) + 1)

    async def follow(self) -> None:
        """Take samples for ever."""
        while True:
            began = time.monotonic()
            try:
                await self.look()
            except Exception:  # a console that cannot draw stops no server
                log.exception("the console's numbers were not taken")
            await asyncio.sleep(max(EVERY, CALM * (time.monotonic() - began)))

    async def look(self) -> None:
        """Take one sample."""
        status = self._context.engine.status()
        self.samples.append(await asyncio.to_thread(self._sample, status))

    def over(self, seconds: float) -> tuple[Sample, Sample] | None:
        """The last sample, and the one that is so much older, or the oldest; None before there are two."""
        if len(self.samples) < 2:
            return None
        last = self.samples[-1]
        first = next(one for one in self.samples if one.time >= last.time - seconds - EVERY / 2)
        return (first, last) if first is not last else (self.samples[-2], last)

    def series(self, after: float = 0.0) -> dict[str, list[float | None]]:
        """Columns for charts: of every sample later than `after` (unix seconds)."""
        rows = [row(one, two) for one, two in pairwise(self.samples) if two.time > after]
        return {name: [one[name] for one in rows] for name in COLUMNS}

    def _sample(self, status: EngineStatus) -> Sample:
        metrics = self._context.metrics
        by_version = counts_of(metrics)
        memory = [s.value for m in self._process.collect() for s in m.samples if "resident" in s.name]
        used = 1 - status.cache_blocks_free / status.cache_blocks if status.cache_blocks else 0.0
        return Sample(
            time.time(),
            by_version,
            summed(counts.first_token for counts in by_version.values()),
            summed(buckets_of(metrics.per_token).values()),
            status.running,
            status.waiting,
            used,
            status.host_bytes,
            memory[0] if memory else 0.0,
        )


COLUMNS = (
    "time",
    "requests",
    "errors",
    "tokens",
    "first_p50",
    "first_p95",
    "token_p50",
    "token_p95",
    "running",
    "waiting",
    "cache",
    "adapter_bytes",
    "resident_bytes",
)


def row(one: Sample, two: Sample) -> dict[str, float | None]:
    """What happened between two samples: rates a second, quantiles in seconds, and what is at the second."""
    seconds = max(two.time - one.time, 0.001)
    first, token = since(one.first_token, two.first_token), since(one.per_token, two.per_token)
    return {
        "time": round(two.time, 1),
        "requests": round((two.requests - one.requests) / seconds, 3),
        "errors": round((two.errors - one.errors) / seconds, 3),
        "tokens": round((two.tokens - one.tokens) / seconds, 1),
        "first_p50": quantile(first, 0.5),
        "first_p95": quantile(first, 0.95),
        "token_p50": quantile(token, 0.5),
        "token_p95": quantile(token, 0.95),
        "running": two.running,
        "waiting": two.waiting,
        "cache": round(two.cache, 4),
        "adapter_bytes": two.adapter_bytes,
        "resident_bytes": two.resident_bytes,
    }


def counts_of(metrics: Any) -> dict[Who, VersionCounts]:
    """By version, of all that have answered."""
    requests: dict[Who, float] = {}
    errors: dict[Who, float] = {}
    tokens: dict[Who, float] = {}
    for labels, value in samples_of(metrics.requests, "_total"):
        who = (labels["adapter"], labels["version"])
        requests[who] = requests.get(who, 0) + value
        if labels["code"] not in CALLERS:
            errors[who] = errors.get(who, 0) + value
    for labels, value in samples_of(metrics.completion_tokens, "_total"):
        tokens[labels["adapter"], labels["version"]] = value
    first = buckets_of(metrics.first_token)
    return {
        who: VersionCounts(requests[who], errors.get(who, 0), tokens.get(who, 0), first.get(who, EMPTY))
        for who in requests
    }


# Ends that say nothing against the server: it did its work, or the caller went away or sent a bad request.
CALLERS = frozenset(
    {
        "OK",
        "CANCELLED",
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "FAILED_PRECONDITION",
        "UNAUTHENTICATED",
        "PERMISSION_DENIED",
    }
)


def samples_of(metric: Any, ending: str) -> Iterable[tuple[Mapping[str, str], float]]:
    """Labels and value of the samples whose name ends so."""
    for family in metric.collect():
        for sample in family.samples:
            if sample.name.endswith(ending):
                yield sample.labels, sample.value


def buckets_of(metric: Histogram) -> dict[Who, Buckets]:
    """By version."""
    found: dict[Who, list[tuple[float, float]]] = {}
    for labels, value in samples_of(metric, "_bucket"):
        found.setdefault((labels["adapter"], labels["version"]), []).append((float(labels["le"]), value))
    return {who: tuple(pairs) for who, pairs in found.items()}


def summed(several: Iterable[Buckets]) -> Buckets:
    """Of histograms with the same buckets."""
    columns = list(filter(None, several))  # who never gave a token has none
    if not columns:
        return EMPTY
    return tuple((pairs[0][0], sum(value for _, value in pairs)) for pairs in zip(*columns, strict=True))


def since(before: Buckets, after: Buckets) -> Buckets:
    """What came in between."""
    if not before:
        return after
    return tuple((end, now - then) for (end, now), (_, then) in zip(after, before, strict=True))


def quantile(buckets: Sequence[tuple[float, float]], share: float) -> float | None:
    """As PromQL's histogram_quantile: by a straight line inside a bucket; None where nothing was counted.

    >>> quantile(((0.1, 2), (0.2, 4), (float("inf"), 4)), 0.5)
    0.1
    >>> quantile(((0.1, 0), (0.2, 4), (float("inf"), 4)), 0.5)
    0.15
    """
    if not buckets or not buckets[-1][1]:
        return None
    wanted, low, below = share * buckets[-1][1], 0.0, 0.0
    for end, count in buckets:
        if count >= wanted:
            if end == float("inf"):
                return low
            return round(low + (end - low) * ((wanted - below) / (count - below) if count > below else 0), 5)
        low, below = end, count
    return low


MOST = 1000
Seen = tuple[AdapterState, bool, bool]


@dataclass(frozen=True, slots=True)
class VersionChange:
    """What happened to a version."""

    time: float  # unix seconds
    ref: AdapterRef
    what: str
    more: str = ""  # why


class Events:
    """Follows the registry; lives on the event loop."""

    def __init__(self, context: ConsoleContext) -> None:
        self._context = context
        self._changes: deque[VersionChange] = deque(maxlen=MOST)
        self._seen: dict[AdapterRef, Seen] = {}

    def __iter__(self) -> Iterator[VersionChange]:
        """The newest first."""
        return reversed(self._changes)

    async def follow(self) -> None:
        """For ever, once there is something to follow."""
        await self._context.ready.wait()
        for info in self._context.registry.listed():
            self._seen[info.ref] = seen(info)
        async with aclosing(cast(Any, self._context.registry.watch())) as events:
            async for event in events:
                self.note(event)

    def note(self, event: AdapterEvent) -> None:
        """Keep what is new in it."""
        info, ref = event.adapter, event.adapter.ref
        if event.kind is AdapterEventKind.REMOVED:
            self._seen.pop(ref, None)
            self._changes.append(VersionChange(event.time, ref, "removed from disk"))
            return
        before = self._seen.get(ref)
        self._seen[ref] = seen(info)
        if before is None:
            self._changes.append(VersionChange(event.time, ref, "appeared", info.error))
            return
        for what, more in differences(before, info):
            self._changes.append(VersionChange(event.time, ref, what, more))


def seen(info: AdapterInfo) -> Seen:
    """What is compared."""
    return info.state, info.default, info.pinned


def differences(before: Seen, info: AdapterInfo) -> Iterator[tuple[str, str]]:
    """In words, and why."""
    state, default, pinned = before
    if info.state is not state and info.state is not AdapterState.LOADING:
        yield info.state.value, info.error
    if info.default is not default:
        yield "became the default" if info.default else "is the default no more", ""
    if info.pinned is not pinned:
        yield "pinned" if info.pinned else "unpinned", ""
