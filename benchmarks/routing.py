"""`python -m benchmarks.routing`: p50 and p99 of each classifier and of whole routing, on this machine.

Adapters are those of recipes/*.toml; requests are their examples, slightly changed, and general ones.
Whole routing is measured through `Router.route`, threads and timeouts included, one request after the
other and with 32 at once.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import quantile, table, write
from benchmarks.routing_many import FixedCatalog
from router.classifiers.regression import read_background
from router.extensions.training.recipe import load_recipe
from router.plugins import PluginHost
from router.routing.router import Router
from router.types import AdapterProfile, Request, Turn

ROOT = Path(__file__).parents[1]
SETS = ("keywords", "linear", "embedding", "nearest", "keywords,linear", "keywords,linear,embedding")
AT_ONCE = 32


def adapters() -> tuple[AdapterProfile, ...]:
    """The recipes' adapters as routing sees them."""
    found = {}
    for path in sorted((ROOT / "recipes").glob("*.toml")):
        recipe = load_recipe(path)
        about, routing = recipe.adapter, recipe.routing
        found.setdefault(  # a second version is routed to as the first
            about.name,
            AdapterProfile(
                about.name,
                about.version,
                domain=about.domain,
                task=about.task,
                examples=routing.examples,
                negative_examples=routing.negative_examples,
                keywords=routing.keywords,
            ),
        )
    return tuple(found.values())


def requests(profiles: Sequence[AdapterProfile], count: int) -> list[Request]:
    """Examples with words of their own, and as many general requests."""
    general = read_background(ROOT / "plugins" / "background.txt", profiles)
    special = [example for profile in profiles for example in profile.examples]
    texts = [
        f"{text} (case {i})"
        for i in range(count)
        for text in (special[i % len(special)], general[i % len(general)])
    ]
    return [Request(f"bench-{i}", turns=(Turn("user", text),)) for i, text in enumerate(texts[:count])]


async def measure(plugins: str, count: int) -> dict[str, Any]:
    """Times of `count` requests through a router with these plugins, in milliseconds."""
    profiles = adapters()
    router = Router(FixedCatalog(profiles), PluginHost([ROOT / "plugins"], plugins))
    started = time.perf_counter()
    await router.start()
    start = time.perf_counter() - started
    try:
        batch = requests(profiles, count)
        for request in batch[:20]:
            await router.route(request)
        alone, reasons = [], Counter[str]()
        for request in batch:
            decision = await router.route(request)
            alone.append(decision.latency * 1000)
            reasons[decision.reason.value] += 1
        started = time.perf_counter()
        together = []
        for i in range(0, len(batch), AT_ONCE):
            decisions = await asyncio.gather(*map(router.route, batch[i : i + AT_ONCE]))
            together += [d.latency * 1000 for d in decisions]
        rate = len(batch) / (time.perf_counter() - started)
    finally:
        await router.close()
    return {
        "classifiers": plugins,
        "start s": start,
        "p50 ms": quantile(alone, 0.5),
        "p99 ms": quantile(alone, 0.99),
        f"p50 ms, {AT_ONCE} at once": quantile(together, 0.5),
        "requests/s": rate,
        "classified": reasons["classified"] / count,
        "no answer": reasons["fallback"] / count,
    }


def main() -> None:
    """Measure, print, and write with --write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--only", nargs="*", default=SETS, help="sets of plugins, comma lists")
    parser.add_argument("--write", action="store_true", help="write to benchmarks/results/")
    options = parser.parse_args()
    rows = [asyncio.run(measure(plugins, options.requests)) for plugins in options.only]
    print(table(rows))
    if options.write:
        workload = f"{options.requests} requests through Router.route; the adapters of recipes/."
        print(
            write(
                "routing",
                workload,
                rows,
                ["targets: keywords,linear p50 under 1 ms; with embedding under 15 ms"],
            )
        )


if __name__ == "__main__":
    main()
