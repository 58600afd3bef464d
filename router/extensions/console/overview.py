"""Overview: traffic, latency, queue and memory, live, and what runs."""

from __future__ import annotations

import time
from typing import Any

from router import __version__
from router.access.clients import Role
from router.errors import PermissionDenied
from router.extensions.console.history import Sample, SampleHistory, VersionCounts, quantile, row, since
from router.extensions.console.rendering import seconds as in_seconds
from router.extensions.console.site import Entry, Page, PageReply, Visit, data
from router.server.admission import ServerPhase
from router.server.metrics import FIRST_TOKEN, PER_TOKEN
from router.server.policy import Policy
from router.server.status import redacted

OVERVIEW = Policy(Role.OBSERVE)
NOW, WHILE = 60.0, 300.0  # seconds: what tiles are about, and the table by adapter
MOST_ROWS = 50


async def show(visit: Visit) -> dict[str, Any]:
    """The page."""
    context = visit.console.context
    loading = context.health.phase is ServerPhase.LOADING
    return {
        **await live(visit),
        "base": None if loading else context.engine.info,
        "version": __version__,
        "settings": visit.console.settings,
    }


async def live(visit: Visit) -> dict[str, Any]:
    """What changes while one looks."""
    console, context = visit.console, visit.console.context
    history, status, routing = console.history, context.engine.status(), context.routing()
    classifiers = sorted(routing.classifiers, key=lambda one: (one.state == "off", one.priority, one.name))
    # What does not fit or failed may name adapters, which are not for everybody; nor is what others ask.
    everything = visit.client.adapters.everything
    whole = everything or routing.calibration in ("", "fitted")
    return {
        "phase": context.health.phase.name.lower(),
        "reasons": context.health.reasons,
        "degraded": context.health.degraded,
        "uptime": time.time() - context.started,
        "everything": everything,
        "status": status,
        "last": history.samples[-1] if history.samples else None,
        "now": rates(history, NOW),
        "minutes": round(WHILE / 60),
        "by_version": by_version(visit, history),
        "calibration": routing.calibration if whole else "stale",
        "classifiers": [(one, redacted(one.problem) if everything else "") for one in classifiers],
        "problems": [redacted(problem) for problem in routing.problems] if everything else [],
    }


async def series(visit: Visit) -> PageReply:
    """Columns for the charts, of samples later than `after`. Raises PermissionDenied for who may not know of
    the whole server."""
    if not visit.client.adapters.everything:
        raise PermissionDenied("numbers of the whole server are for clients that may know of all adapters")
    try:
        after = float(visit.query.get("after", "0"))
    except ValueError:
        after = 0.0
    return data(visit.console.history.series(after))


def rates(history: SampleHistory, seconds: float) -> dict[str, float | str | None] | None:
    """Rates, and quantiles in words, of the last seconds; None before there are two samples."""
    pair = history.over(seconds)
    if pair is None:
        return None
    found = row(*pair)
    return found | {name: bounded(found[name], top) for name, top in TOPS.items()}


FIRST_TOP, TOKEN_TOP = FIRST_TOKEN[-1], PER_TOKEN[-1]
TOPS = {"first_p50": FIRST_TOP, "first_p95": FIRST_TOP, "token_p50": TOKEN_TOP, "token_p95": TOKEN_TOP}


def bounded(value: float | None, top: float) -> str:
    """A quantile; beyond the last bucket's end nothing is known but that."""
    return f"over {in_seconds(top)}" if value is not None and value >= top else in_seconds(value)


def by_version(visit: Visit, history: SampleHistory) -> list[dict[str, Any]]:
    """Who answered in the last minutes, the busiest first; without those that the client may not
    know of."""
    pair = history.over(WHILE)
    if pair is None:
        return []
    visible, rows = visit.client.adapters, []
    for who, counts in pair[1].by_version.items():
        rows.append(version_row(who, pair[0].by_version.get(who, VersionCounts()), counts, pair))
    shown = [one for one in rows if one["requests"] and one["name"] in visible]
    total = sum(one["requests"] for one in shown)
    for one in shown:
        one["share"] = one["requests"] / total
    return sorted(shown, key=lambda one: -one["requests"])[:MOST_ROWS]


def version_row(
    who: tuple[str, str], before: VersionCounts, after: VersionCounts, pair: tuple[Sample, Sample]
) -> dict[str, Any]:
    """A line of the table."""
    seconds = max(pair[1].time - pair[0].time, 0.001)
    first = since(before.first_token, after.first_token)
    return {
        "name": who[0],
        "version": who[1],
        "requests": after.requests - before.requests,
        "rate": (after.requests - before.requests) / seconds,
        "errors": after.errors - before.errors,
        "tokens": (after.tokens - before.tokens) / seconds,
        "p50": bounded(quantile(first, 0.5), FIRST_TOP),
        "p95": bounded(quantile(first, 0.95), FIRST_TOP),
    }


ENTRIES: tuple[Entry, ...] = (
    Page("", OVERVIEW, show, "overview.html", "Overview", nav="Overview"),
    Page("/overview/live", OVERVIEW, live, "overview_live.html"),
    Page("/overview/series", OVERVIEW, series),
)
