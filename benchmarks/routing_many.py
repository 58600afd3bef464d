"""`python -m benchmarks.routing_many`: routing among 10 to 10,000 adapters, and seven beside many.

Adapters are synthetic topics, six examples each, without a calibration: the router that is served, with the
plugins that ship, is asked about requests that are worded otherwise. A topic has three words of its own,
whole words of the base's vocabulary; with 10,000 topics every word belongs to several. With `--rows`
the seven adapters here keep their calibration while topics come beside them (0, 10, 100, 1,000), and the
labelled requests of FILE are routed. Every count has a process of its own; the state folder is kept between a
cold start and a warm one.

With `--memory`: what the vectors of up to 100,000 adapters take, and a look at them, without texts: to encode
the examples of so many takes half an hour, and changes neither memory nor the time of a look.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from transformers import AutoTokenizer

from benchmarks.report import write
from router.classifiers.nearest import Neighbours, principal
from router.extensions.calibration.rows import DataRow, read_rows
from router.models import DEFAULT_BASE, resolve_model
from router.models.encoder import SIZE
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
SIZES = (10_000, 30_000, 100_000)  # of vectors alone
PARTS, LOOKS, NEAR = 3, 200, 16  # of a vector; of a measurement; adapters of an answer
BESIDE = (0, 10, 100, 1000)
ASKED = 300  # topics that are asked about, four requests each
STRANGE = 600  # requests for nobody
CLASSIFIERS = "keywords,linear,embedding,nearest"
SEED = 20261127
LEAST_LETTERS = 4
LEARN = (
    "My {b} breaks when I use {a}, please help with {c}",
    "How do I set up {a} for a new {c}?",
    "The {c} shows an error after the {b} was changed",
    "Explain the difference between {a} and {b}",
    "Write a note to the team about {b} and {c}",
    "What does {a} cost for one {c} a year?",
)
ASK = (
    "Can somebody look at our {c}? Since yesterday {a} and {b} do not work together",
    "I need a short guide to {b}, with {a} in mind",
    "Which {a} fits a {b} with {c}?",
    "Tell me what to check first when {c} fails because of {a}",
)


@dataclass(frozen=True, slots=True)
class Topic:
    """A specialist, and requests that are meant for it."""

    profile: AdapterProfile
    asked: tuple[str, ...]


def topics(count: int, seed: int = SEED) -> list[Topic]:
    """The first `count` of them; the same for every count."""
    drawn, vocabulary = random.Random(seed), words()
    return [_topic(f"topic-{i:05d}", drawn.sample(vocabulary, 3)) for i in range(count)]


def _topic(name: str, own: Sequence[str]) -> Topic:
    a, b, c = own
    profile = AdapterProfile(
        name=name,
        version="1",
        domain=name,
        description=f"{a}, {b} and {c}",
        examples=tuple(text.format(a=a, b=b, c=c) for text in LEARN),
    )
    return Topic(profile, tuple(text.format(a=a, b=b, c=c) for text in ASK))


@cache
def words() -> list[str]:
    """Whole words of letters only, in order."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(DEFAULT_BASE), local_files_only=True)
    found = {token[1:] for token in tokenizer.get_vocab() if token.startswith("Ġ")}
    return sorted(w for w in found if len(w) >= LEAST_LETTERS and w.isascii() and w.isalpha() and w.islower())


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


def index_of(adapters: int) -> dict[str, Any]:
    """Fill an index of `nearest` with random vectors, look at it, add one more."""
    draw = np.random.default_rng(1)

    def rows(count: int) -> Any:
        found = draw.standard_normal((count, PARTS * SIZE), np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    space = Neighbours(principal(rows(2000)))
    asked, before = rows(LOOKS), psutil.Process().memory_info().rss
    began = time.perf_counter()
    for number in range(adapters):
        space.put(f"adapter-{number}", rows(len(LEARN)))
    filled = time.perf_counter() - began
    memory = psutil.Process().memory_info().rss - before
    times = []
    for vector in asked:
        began = time.perf_counter()
        space.near(vector, NEAR)
        times.append(time.perf_counter() - began)
    began = time.perf_counter()
    space.put("one more", rows(len(LEARN)))
    return {
        "adapters": adapters,
        "memory MB": memory / 1e6,
        "KB an adapter": memory / adapters / 1e3,
        "a look p50 ms": 1e3 * sorted(times)[LOOKS // 2],
        "a look p99 ms": 1e3 * sorted(times)[LOOKS * 99 // 100],
        "one more, ms": 1e3 * (time.perf_counter() - began),
        "all of them, s": filled,
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
    parser.add_argument("--counts", type=int, nargs="*")
    parser.add_argument("--memory", action="store_true", help="vectors alone, of up to 100,000 adapters")
    parser.add_argument("--rows", type=Path, help="labelled requests for the seven adapters here")
    parser.add_argument("--calibration", default="auto")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--keep", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        if args.memory:
            print(json.dumps(index_of(args.one)))
        elif args.rows:
            rows = read_rows(args.rows, {p.name for p in _seven()})
            print(json.dumps(asyncio.run(beside_seven(args.one, rows, args.calibration))))
        else:
            print(json.dumps(asyncio.run(among_topics(args.one, args.keep))))
        return
    if args.memory:
        table = [_child("--one", count, "--memory") for count in args.counts or SIZES]
        workload = f"{len(LEARN)} examples an adapter, vectors of {PARTS} x {SIZE} numbers; {LOOKS} looks."
        print(
            write("routing-memory", workload, table, ["without the encoder, which reads the request first"])
        )
        return
    table = []
    for count in args.counts or COUNTS:
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
