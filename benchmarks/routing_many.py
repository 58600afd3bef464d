"""`python -m benchmarks.routing_many`: routing among 10 to 10,000 adapters, and seven beside many.

Adapters are synthetic topics (benchmarks/topics.py), six examples each, without a calibration: the router
that is served, with the plugins that ship, is asked about requests that are worded otherwise. With `--rows`
the seven adapters here keep their calibration while topics come beside them (0, 10, 100, 1,000), and the
labelled requests of FILE are routed. Every count has a process of its own; the state folder is kept between a
cold start and a warm one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.report import write
from benchmarks.topics import Topic, topics
from router.extensions.calibration.rows import DataRow, read_rows
from router.plugins import PluginHost
from router.routing.in_force import RuleInForce
from router.routing.policy import PlainRule
from router.routing.router import Router
from router.types import (
    EVERYTHING,
    AdapterInfo,
    AdapterProfile,
    AdapterRef,
    AdapterState,
    Request,
    RoutingHints,
    Turn,
    Visible,
)

ROOT = Path(__file__).parents[1]
COUNTS = (10, 100, 1000, 10_000)
BESIDE = (0, 10, 100, 1000)
ASKED = 300  # topics that are asked about, four requests each
STRANGE = 600  # requests for nobody
CLASSIFIERS = "keywords,linear,embedding,nearest"


class FixedCatalog:
    """A catalog of adapters that are nowhere else."""

    def __init__(self, profiles: Sequence[AdapterProfile]) -> None:
        self._profiles = {profile.name: profile for profile in profiles}
        self._changed: list[Callable[[], None]] = []

    def why_none(self, visible: object = None) -> str:
        return "no adapter is here"

    def profiles(self) -> tuple[AdapterProfile, ...]:
        """All of them."""
        return tuple(self._profiles.values())

    def resolve(self, name: str, version: str = "", visible: Visible = EVERYTHING) -> AdapterInfo:
        """As though it were ready."""
        return AdapterInfo(ref=AdapterRef(name, "1"), state=AdapterState.READY)

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Who is told of changes."""
        self._changed.append(changed)

    def add(self, profile: AdapterProfile) -> None:
        """One more."""
        self._profiles[profile.name] = profile
        for changed in self._changed:
            changed()


def asking(text: str) -> Request:
    """A request that leaves the choice to the router."""
    return Request("0", turns=(Turn("user", text),), routing=RoutingHints())


async def decisions(router: Router, texts: Sequence[str]) -> tuple[list[str], list[float]]:
    """Where each goes ("" is the base), and how long that took, in seconds."""
    found, times = [], []
    for text in texts:
        began = time.perf_counter()
        decision = await router.route(asking(text))
        times.append(time.perf_counter() - began)
        found.append(decision.adapter.name if decision.adapter else "")
    return found, times


async def among_topics(count: int, keep: Path) -> dict[str, Any]:
    """One start, and what it routes."""
    known = topics(count + 1)
    before = psutil.Process().memory_info().rss
    catalog = FixedCatalog([topic.profile for topic in known[:count]])
    router = Router(
        catalog, PluginHost([ROOT / "plugins"], CLASSIFIERS), rule=RuleInForce(PlainRule()), keep=keep
    )
    began = time.perf_counter()
    await router.start()
    some = known[: min(ASKED, count)]
    (first,) = some[0].asked[:1]
    while (await decisions(router, [first]))[0] != [some[0].profile.name]:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    ready = time.perf_counter() - began
    found, times = await decisions(router, [text for topic in some for text in topic.asked])
    meant = [topic.profile.name for topic in some for _ in topic.asked]
    taught = set((ROOT / "plugins/strangers.txt").read_text().splitlines())
    rows = read_rows(ROOT / "recipes/routing/ood.jsonl", set(), "")
    strange = [row.text for row in rows if " ".join(row.text.split()) not in taught][-STRANGE:]
    away, _ = await decisions(router, strange)
    added = await _added(router, catalog, known[count])
    await router.close()
    routed = [(name, right) for name, right in zip(found, meant, strict=True) if name]
    return {
        "adapters": count,
        "ready_s": ready,
        "coverage": sum(a == b for a, b in routed) / len(meant),
        "errors": sum(a != b for a, b in routed) / max(1, len(routed)),
        "strange_routed": sum(map(bool, away)) / len(strange),
        "route_p50_ms": sorted(times)[len(times) // 2] * 1e3,
        "memory_mb": (psutil.Process().memory_info().rss - before) / 1e6,
        **added,
        "choice_p50_ms": _choice(router, [text for topic in some for text in topic.asked][:200]),
    }


async def _added(router: Router, catalog: FixedCatalog, topic: Topic) -> dict[str, float]:
    """Seconds until one more is routed to, and the longest call meanwhile."""
    began, longest = time.perf_counter(), 0.0
    catalog.add(topic.profile)
    while True:
        (name,), (took,) = await decisions(router, topic.asked[:1])
        longest = max(longest, took)
        if name == topic.profile.name:
            return {"new_after_s": time.perf_counter() - began, "longest_call_ms": longest * 1e3}
        if time.perf_counter() - began > 60:
            return {"new_after_s": float("inf"), "longest_call_ms": longest * 1e3}
        await asyncio.sleep(0.01)


def _choice(router: Router, texts: Sequence[str]) -> float:
    """Milliseconds of `nearest` beside the encoder: requests that it has read already."""
    (nearest,) = (r.classifier for r in router._host.registrations() if r.name == "nearest")
    times = []
    for text in texts:
        nearest.classify_batch([asking(text)])
        began = time.perf_counter()
        nearest.classify_batch([asking(text)])
        times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2] * 1e3


async def beside_seven(count: int, rows: Sequence[DataRow], calibration: str) -> dict[str, Any]:
    """The adapters here with their calibration, and so many topics beside them."""
    from router.cli.settings import load_settings, rule_of
    from router.extensions.calibration.commands.local import read_profiles, resident_base

    said = {"adapters_dir": (ROOT / "adapters",), "calibration": calibration}
    settings = load_settings(said)
    catalog = FixedCatalog([*read_profiles([ROOT / "adapters"]), *(topic.profile for topic in topics(count))])
    with ExitStack() as stack:
        base = stack.enter_context(resident_base(settings))
        rule = rule_of(settings)
        router = Router(catalog, PluginHost([ROOT / "plugins"]), rule=rule, base_for=lambda timeout: base)
        await router.start()
        await router._executors.wait_for_fits(600)
        while not all(executor.ready for executor in router._executors.in_order()):  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        found, _ = await decisions(router, [row.text for row in rows])
        status = router.rule.status
        await router.close()
    routed = [(name, row.label) for name, row in zip(found, rows, strict=True) if name]
    meant = sum(bool(row.label) for row in rows)
    return {
        "others": count,
        "calibration": status,
        "coverage": sum(bool(label) and not name.startswith("topic-") for name, label in routed) / meant,
        "errors": sum(a != b for a, b in routed) / max(1, len(routed)),
        "to_others": sum(name.startswith("topic-") for name, _ in routed),
    }


def _child(*args: object) -> dict[str, Any]:
    """One measurement in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.routing_many", *map(str, args)]
    made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    found: dict[str, Any] = json.loads(made.stdout.splitlines()[-1])
    print(found, file=sys.stderr)
    return found


def main() -> None:
    """Measure and write benchmarks/results/routing-many.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="*", default=COUNTS)
    parser.add_argument("--rows", type=Path, help="labelled requests for the seven adapters here")
    parser.add_argument("--calibration", default="auto")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--keep", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        if args.rows:
            rows = read_rows(args.rows, {p.name for p in _seven()})
            print(json.dumps(asyncio.run(beside_seven(args.one, rows, args.calibration))))
        else:
            print(json.dumps(asyncio.run(among_topics(args.one, args.keep))))
        return
    table = []
    for count in args.counts:
        with tempfile.TemporaryDirectory() as keep:
            cold = _child("--one", count, "--keep", keep)
            warm = _child("--one", count, "--keep", keep)
        table.append({**warm, "cold_start_s": cold["ready_s"]})
    tables = {}
    if args.rows:
        beside = [_child("--one", n, "--rows", args.rows, "--calibration", args.calibration) for n in BESIDE]
        tables = {f"The seven, on {args.rows.name}, with others beside them": beside}
    notes = [
        "`ready_s`: from the start with what an earlier one kept, to the first request that is routed right; "
        "`cold_start_s`: with nothing kept, where all examples are encoded.",
        "`choice_p50_ms`: `nearest` beside the encoder; `route_p50_ms`: a decision with the encoder.",
        "`longest_call_ms`: of calls one after the other, until a new adapter is routed to.",
        "Strange requests are the last of recipes/routing/ood.jsonl that are not in plugins/strangers.txt.",
    ]
    workload = f"Topics of six examples and three words; {4 * ASKED} requests in other words."
    print(write("routing-many", workload, table, notes, tables=tables))


def _seven() -> tuple[AdapterProfile, ...]:
    from router.extensions.calibration.commands.local import read_profiles

    return read_profiles([ROOT / "adapters"])


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
