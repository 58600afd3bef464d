"""Overview: what is wrong now, then requests, times and adapters over a range, and what runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import ProcessCollector

from router import __version__
from router.access.clients import Role
from router.extensions.console.charts import Chart, ChartLine, Value, chart, spark
from router.extensions.console.checks import BAD, check
from router.extensions.console.rendering import count, seconds
from router.extensions.console.site import Console, Entry, Page, Visit
from router.extensions.console.traffic import (
    LATELY,
    RANGES,
    REST,
    UNROUTED,
    AdapterCount,
    Outcome,
    Range,
    Times,
    TrafficCount,
    Version,
    needed,
)
from router.quantities import counted
from router.server.admission import ServerPhase
from router.server.policy import Policy

OVERVIEW = Policy(Role.OBSERVE)
WHILE = 300.0  # seconds that shares of traffic on other pages are of
MOST_ADAPTERS = 10
TONES = {Outcome.ANSWERED: "ok", Outcome.REFUSED: "warn", Outcome.FAILED: "bad", Outcome.CANCELLED: "calm"}
PERCENTILES = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
TOO_FEW = "too few"
PROCESS = ProcessCollector(registry=None)


async def show(visit: Visit) -> dict[str, Any]:
    """The page."""
    context = visit.console.context
    loading = context.health.phase is ServerPhase.LOADING
    return {
        **await live(visit),
        **await traffic(visit),
        "base": None if loading else context.engine.info,
        "version": __version__,
        "settings": visit.console.settings,
    }


async def live(visit: Visit) -> dict[str, Any]:
    """What changes while one looks: problems, and numbers of the range."""
    console, context = visit.console, visit.console.context
    everything, of = visit.client.adapters.everything, range_of(visit)
    found = check(visit)
    return {
        "range": of,
        "ranges": tuple(RANGES.values()),
        "state": state_of(context.health.reasons, [one.tone for one in found.problems]),
        "now": time.time(),
        "uptime": time.time() - context.started,
        "found": found,
        "everything": everything,
        "status": context.engine.status(),
        "resident": resident() if everything else 0.0,
        **(numbers(console, of) if everything else {}),
    }


def state_of(reasons: Sequence[str], tones: Sequence[str]) -> tuple[str, str]:
    """The server in one word, and its tone."""
    if reasons:
        return "not ready", BAD
    if BAD in tones:
        return "serving, with problems", BAD
    if "warn" in tones:
        return "serving, with warnings", "warn"
    return "healthy", "ok"


def numbers(console: Console, of: Range) -> dict[str, Any]:
    """Of all requests of the range."""
    total, span = console.traffic.total(of), console.traffic.counted(of)
    return {
        "total": total,
        "span": span,
        "since": time.time() - span,
        "outcomes": [
            {
                "name": one.value,
                "tone": TONES[one],
                "count": total.outcomes[one],
                "share": share_of(total, one),
            }
            for one in Outcome
        ],
        "a_minute": 60 * total.requests / span,
        "tokens_a_second": total.tokens / span,
        "times": [
            time_row("Time to first token", total.first),
            time_row("Time to whole answer", total.times),
        ],
    }


def share_of(of: AdapterCount, outcome: Outcome) -> float | None:
    """The share of an outcome; None without requests."""
    return of.outcomes[outcome] / of.requests if of.requests else None


@dataclass(frozen=True, slots=True)
class TimeRow:
    """Percentiles of a time in words, and of how many answers."""

    name: str
    percentiles: Sequence[tuple[str, str, str]]  # name, value, and why there is none
    count: int


def time_row(name: str, times: Times) -> TimeRow:
    """A line of the table of times."""
    found = [(title, *time_shown(times, share)) for share, title in PERCENTILES]
    return TimeRow(name, found, times.count)


def time_shown(times: Times, share: float) -> tuple[str, str]:
    """A percentile, or that there are too few, and how many it needs."""
    value = times.percentile(share)
    if value is not None:
        return seconds(value), ""
    return ("–", "") if not times.count else (TOO_FEW, f"of {needed(share)} answers at least")


async def traffic(visit: Visit) -> dict[str, Any]:
    """Charts, and the adapters with most requests."""
    of = range_of(visit)
    return {
        "range": of,
        "charts": charts(visit.console, of) if visit.client.adapters.everything else [],
        **adapters(visit, of),
    }


def range_of(visit: Visit) -> Range:
    """The range that the address names."""
    return RANGES.get(visit.query.get("range", ""), LATELY)


def charts(console: Console, of: Range) -> list[Chart]:
    """Requests by outcome, times, and the engine's queue."""
    slots, begins = console.traffic.slots(of), f"{of.title} ago"
    minutes = console.traffic.minutes(of)
    requests = [
        ChartLine(
            one.value,
            TONES[one],
            [
                None if slot is None or not long else slot.outcomes[one] / long
                for slot, long in zip(slots, minutes, strict=True)
            ],
            count(sum(slot.outcomes[one] for slot in slots if slot is not None)),
        )
        for one in Outcome
    ]
    engine = [
        ChartLine(name, tone, values, f"highest {count(max((v or 0.0 for v in values), default=0.0))}")
        for name, tone, values in (
            ("running", "one", gauge(slots, lambda slot: slot.running)),
            ("waiting", "two", gauge(slots, lambda slot: slot.waiting)),
        )
    ]
    return [
        chart("Requests a minute", requests, rate, begins),
        chart("Time to whole answer", percentiles(slots, lambda slot: slot.times), seconds, begins),
        chart("Time to first token", percentiles(slots, lambda slot: slot.first), seconds, begins),
        chart("Requests in the engine", engine, rate, begins),
    ]


def gauge(slots: Sequence[TrafficCount | None], read: Callable[[TrafficCount], int]) -> list[Value]:
    """A number of each slot."""
    return [None if slot is None else float(read(slot)) for slot in slots]


def rate(value: float) -> str:
    """A number at an axis.

    >>> rate(2000.0), rate(0.5)
    ('2,000', '0.5')
    """
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


def percentiles(
    slots: Sequence[TrafficCount | None], read: Callable[[TrafficCount], Times]
) -> list[ChartLine]:
    """Lines of percentiles. Slots are put together until most groups have enough for them."""
    groups: list[Times] = []
    for size in (1, 3, 6):
        groups = [merged(slots[at : at + size], read) for at in range(0, len(slots), size)]
        filled = [one for one in groups if one.count]
        if 2 * sum(one.count >= needed(0.95) for one in filled) >= len(filled):
            break
    whole = Times()
    for one in groups:
        whole.merge(one)
    tones = {"p50": "one", "p95": "two", "p99": "four"}
    return [
        ChartLine(title, tones[title], [one.percentile(share) for one in groups], time_shown(whole, share)[0])
        for share, title in PERCENTILES
    ]


def merged(slots: Sequence[TrafficCount | None], read: Callable[[TrafficCount], Times]) -> Times:
    """The times of several slots."""
    found = Times()
    for slot in slots:
        if slot is not None:
            found.merge(read(slot))
    return found


def adapters(visit: Visit, of: Range) -> dict[str, Any]:
    """The adapters with most requests of those that the client may see, and all others in a line."""
    console, visible = visit.console, visit.client.adapters
    counts = console.traffic.versions(of)
    own = {who: one for who, one in counts.items() if who[0] in visible and who not in (REST, UNROUTED)}
    order = sorted(own, key=lambda who: (-own[who].requests, who))
    total = sum(one.requests for one in (counts if visible.everything else own).values())
    rows = [adapter_row(who, own[who], total, console, of) for who in order[:MOST_ADAPTERS]]
    rest = AdapterCount()
    for who in (*order[MOST_ADAPTERS:], *([REST] if visible.everything and REST in counts else [])):
        rest.merge(counts[who])
    if rest.requests:
        rows.append(row("all others", rest, total))
    if visible.everything and UNROUTED in counts:
        rows.append(row("not routed", counts[UNROUTED], total))
    return {"rows": rows, "counted": counted(total, "request")}


def adapter_row(who: Version, one: AdapterCount, total: int, console: Console, of: Range) -> dict[str, Any]:
    """A line of the table."""
    points = console.traffic.spark(of, who)
    line = {"spark": spark(points), "spark_label": f"requests over {of.title}, highest {max(points):.0f}"}
    return {**row(who[0], one, total), "version": who[1], **line}


def row(name: str, one: AdapterCount, total: int) -> dict[str, Any]:
    """What lines have in common."""
    p95, why = time_shown(one.times, 0.95)
    return {
        "name": name,
        "version": "",
        "requests": one.requests,
        "share": one.requests / total if total else 0.0,
        "failed": share_of(one, Outcome.FAILED),
        "refused": share_of(one, Outcome.REFUSED),
        "p95": p95,
        "why": why,
        "tokens": one.tokens,
        "spark": "",
    }


def resident() -> float:
    """Bytes of memory of this process; 0 where the system does not say."""
    found = (one.value for family in PROCESS.collect() for one in family.samples if "resident" in one.name)
    return next(found, 0.0)


ENTRIES: tuple[Entry, ...] = (
    Page("", OVERVIEW, show, "overview.html", "Overview", nav="Overview"),
    Page("/overview/live", OVERVIEW, live, "overview_live.html"),
    Page("/overview/traffic", OVERVIEW, traffic, "overview_traffic.html"),
)
