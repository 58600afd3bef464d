"""`python -m benchmarks.routing_memory`: what the vectors of up to 100,000 adapters take, and a look at
them.

The index of `nearest` alone (router/classifiers/nearest.py), with vectors of no texts: to encode the
examples of so many adapters takes half an hour, and changes neither its memory nor the time of a look. Each
size has a process of its own. What is right or wrong in an answer is measured by `benchmarks.routing_many`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import numpy as np
import psutil

from benchmarks import report
from router.classifiers.nearest import Neighbours, principal
from router.models.encoder import SIZE

SIZES = (10_000, 30_000, 100_000)
EXAMPLES, PARTS = 6, 3
LOOKS = 200
NEAR = 16  # adapters of an answer, as `nearest` asks


def one(adapters: int) -> dict[str, Any]:
    """Fill an index, look at it, add one more."""
    draw = np.random.default_rng(1)

    def rows(count: int) -> Any:
        found = draw.standard_normal((count, PARTS * SIZE), np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    space = Neighbours(principal(rows(2000)))
    asked, before = rows(LOOKS), psutil.Process().memory_info().rss
    began = time.perf_counter()
    for number in range(adapters):
        space.put(f"adapter-{number}", rows(EXAMPLES))
    filled = time.perf_counter() - began
    memory = psutil.Process().memory_info().rss - before
    times = []
    for vector in asked:
        began = time.perf_counter()
        space.near(vector, NEAR)
        times.append(time.perf_counter() - began)
    began = time.perf_counter()
    space.put("one more", rows(EXAMPLES))
    return {
        "adapters": adapters,
        "memory MB": memory / 1e6,
        "KB an adapter": memory / adapters / 1e3,
        "a look p50 ms": 1e3 * sorted(times)[LOOKS // 2],
        "a look p99 ms": 1e3 * sorted(times)[LOOKS * 99 // 100],
        "one more, ms": 1e3 * (time.perf_counter() - began),
        "all of them, s": filled,
    }


def main() -> None:
    """All sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one)))
        return
    command = [sys.executable, "-m", "benchmarks.routing_memory", "--one"]
    made = [
        subprocess.run([*command, str(n)], stdout=subprocess.PIPE, text=True, check=True) for n in args.sizes
    ]
    table = [json.loads(process.stdout) for process in made]
    print(report.table(table))
    if args.write:
        workload = (
            f"{EXAMPLES} examples an adapter, random unit vectors of {PARTS} x {SIZE} numbers; {LOOKS} looks."
        )
        notes = ["without the encoder, which reads the request first: see routing-many for a whole decision"]
        print(report.write("routing-memory", workload, table, notes))


if __name__ == "__main__":
    main()
