"""`python -m benchmarks.lost_votes --server HOST:PORT`: votes that a server loses on a busy machine.

Parallel callers ask for all votes, while other processes compute. The exit code is 1 if a vote of the
classifiers in --must is lost. Start `lora-router serve` before it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.report import table
from router.client import AsyncClient

TEXTS = Path(__file__).parents[1] / "recipes" / "routing" / "dev.jsonl"
MUST = "keywords,linear,embedding"


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that do nothing but compute."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def texts(count: int) -> list[str]:
    """Labelled requests of the repository, each a little different when it comes again."""
    found = [json.loads(line)["text"] for line in TEXTS.read_text(encoding="utf-8").splitlines()]
    return [f"{found[i % len(found)]} ({i})" for i in range(count)]


class Counts:
    """Votes and losses of each classifier, and the time of each decision."""

    def __init__(self) -> None:
        self.votes, self.lost = Counter[str](), Counter[tuple[str, str]]()
        self.in_decisions = 0
        self.seconds: list[float] = []

    def add(self, decision: Any, seconds: float) -> None:
        """One decision with all votes."""
        self.seconds.append(seconds)
        self.in_decisions += len(decision.votes_lost)
        for vote in decision.votes:
            self.votes[vote.classifier] += 1
            if vote.error:
                self.lost[vote.classifier, str(vote.error)] += 1

    def rows(self) -> list[dict[str, Any]]:
        """One for each classifier."""
        return [
            {
                "classifier": name,
                "votes": count,
                "lost": sum(n for (who, _), n in self.lost.items() if who == name),
                "why": ", ".join(f"{why} {n}" for (who, why), n in self.lost.items() if who == name),
            }
            for name, count in self.votes.items()
        ]


async def measure(server: str, requests: Sequence[str], callers: int) -> Counts:
    """Ask for decisions with all votes, so many at once."""
    counts, waiting = Counts(), iter(requests)

    async with AsyncClient(server, timeout=120) as client:

        async def caller() -> None:
            for text in waiting:
                started = time.perf_counter()
                decision = await client.route(text)
                counts.add(decision, time.perf_counter() - started)

        await asyncio.gather(*(caller() for _ in range(callers)))
    return counts


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="127.0.0.1:50051")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--busy", type=int, default=2, help="processes that compute beside the server")
    parser.add_argument("--must", default=MUST, help="classifiers that may lose no vote, a comma list")
    said = parser.parse_args()
    with busy(said.busy):
        counts = asyncio.run(measure(said.server, texts(said.requests), said.callers))
    print(table(counts.rows()))
    ordered = sorted(counts.seconds)
    half, most = ordered[len(ordered) // 2], ordered[int(0.99 * len(ordered))]
    print(f"\ndecisions: {len(ordered)}, median {half:.3f} s, 99 % within {most:.3f} s")
    print(f"lost votes that decisions had to do without: {counts.in_decisions}")
    return int(any(who in said.must.split(",") for who, _ in counts.lost))


if __name__ == "__main__":
    raise SystemExit(main())
