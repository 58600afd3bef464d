"""`python -m benchmarks.speculation`: what speculation does for the shipped adapters on their test prompts.

Each prompt is answered without and with speculation, in turns that change, after it was read once, so that
its keys and values are in the prefix cache and the time is the answer's. What earlier answers teach is
forgotten before each part, and no prompt comes twice in a part with speculation. One request alone, adapter
by adapter; then 4 and 16 at once, all adapters mixed. Every answer must have the same tokens both times.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice, zip_longest
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import report
from router.config import Settings
from router.engine.base import Finished, Job, Prompt
from router.engine.constrained.templates import ConstraintTemplates
from router.engine.rows import AnswerRow, BatchRow
from router.engine.speculation import Speculation
from router.engine.torch_engine import TorchEngine
from router.extensions.sql import sql
from router.extensions.training.data import read_rows
from router.extensions.training.recipe import load_recipe
from router.registry.format.artifact import FolderRules, read_artifact
from router.types import SamplingParams, Turn, Usage

ADAPTERS = ("qa", "code", "summarization", "translation", "legal", "financial", "medical")
COPYING = ("qa", "code")
MODEL = "smollm2-135m-instruct"
GOALS = {"alone": 1.5, "copying": 2.0, "4": 1.1, "16": 0.98}


@dataclass(frozen=True, slots=True)
class Answered:
    """A request's end, its tokens and its wall time in seconds."""

    usage: Usage
    tokens: tuple[int, ...]
    seconds: float


@dataclass
class Totals:
    """Of requests without and with speculation."""

    seconds: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    behind: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))  # the first token
    steps: list[int] = field(default_factory=lambda: [0, 0])
    reading: list[float] = field(default_factory=list)  # seconds that a prompt takes which is not cached
    tokens: int = 0
    accepted: int = 0

    def ratio(self) -> float:
        """How much faster with speculation."""
        return sum(self.seconds[0]) / sum(self.seconds[1])


class Bench:
    """An engine with the shipped adapters, whose speculation can be taken away and made anew."""

    def __init__(self, engine: TorchEngine) -> None:
        self.engine = engine
        self._loop: Any = engine._loop
        self._tokens: dict[str, tuple[int, ...]] = {}
        if not isinstance(self._loop._speculation, Speculation):
            raise SystemExit("this engine does not speculate: it needs native operations")
        finish = self._loop._finish

        def finished(row: BatchRow) -> None:
            if isinstance(row, AnswerRow):
                self._tokens[row.job.request_id] = tuple(row.tokens[row.prompt_length :])
            finish(row)

        self._loop._finish = finished
        self._kept: Speculation | None = None

    def _use(self, speculation: Speculation | None) -> None:
        """From the next step on."""
        self._loop._post(lambda: setattr(self._loop, "_speculation", speculation))

    def forget(self) -> None:
        """Begin without anything learnt from earlier answers. What steps cost stays known."""
        made = self.engine._speculation(self._loop._scheduler)
        if made is None:
            raise SystemExit("this engine does not speculate")
        if self._kept is not None:
            made._times = self._kept._times
        self._kept = made

    async def jobs(
        self, split: str, most: int, names: Sequence[str] = ADAPTERS, *, free: bool = False
    ) -> dict[str, list[Job]]:
        """Of each adapter, the first rows of a split, answered as its manifest says, or `free`ly."""
        found: dict[str, list[Job]] = {}
        templates = ConstraintTemplates(lambda: {"sql": sql})
        for name in names:
            artifact, seen = read_artifact(Path("adapters") / name, FolderRules(self.engine.info))
            await self.engine.load(artifact)
            manifest, recipe = seen.manifest, load_recipe(Path("recipes") / f"{name}.toml")
            said = manifest.generation
            constraint = None if free else said.constraint
            params = SamplingParams(max_tokens=said.max_tokens or 64, constraint=constraint)
            jobs = found[f"{name}, free" if free else name] = []
            for number, row in enumerate(islice(read_rows(getattr(recipe.data, split)), most)):
                prompt = Prompt((Turn("user", row.prompt),), template=manifest.prompt)
                tokens = self.engine.encode(prompt)
                job = Job(f"{name}-{number}", tokens, params, artifact.digest, own_constraint=True)
                jobs.append(await templates.prepared(self.engine, job, row.prompt))
        return found

    async def answer(self, job: Job) -> Answered:
        """One request, whole."""
        began = time.perf_counter()
        async for event in self.engine.submit(job):
            if isinstance(event, Finished):
                seconds = time.perf_counter() - began
                return Answered(event.usage, self._tokens.pop(job.request_id), seconds)
        raise RuntimeError("a generation ended without Finished")

    async def read(self, jobs: Sequence[Job]) -> list[float]:
        """Bring prompts into the prefix cache; returns the seconds of each."""
        self._use(None)
        # Free: a token that a constraint forces would need no step.
        one = [replace(job.params, max_tokens=1, constraint=None) for job in jobs]
        short = [replace(job, params=params, grammar=None) for job, params in zip(jobs, one, strict=True)]
        return [(await self.answer(job)).seconds for job in short]

    async def together(self, jobs: Sequence[Job], rows: int, *, drafts: bool) -> tuple[list[Answered], float]:
        """All of them, so many at once; with the seconds that all take."""
        self._use(self._kept if drafts else None)
        places = asyncio.Semaphore(rows)

        async def one(job: Job) -> Answered:
            async with places:
                return await self.answer(job)

        began = time.perf_counter()
        found = await asyncio.gather(*map(one, jobs))
        return list(found), time.perf_counter() - began

    async def compare(self, jobs: Sequence[Job], rows: int, totals: Totals, *, first: bool) -> None:
        """The same jobs without and with drafts, with them `first` or last."""
        totals.reading += await self.read(jobs)
        results: dict[bool, list[Answered]] = {}
        for drafts in (first, not first):
            before = self.engine.status().steps
            results[drafts], seconds = await self.together(jobs, rows, drafts=drafts)
            totals.steps[drafts] += self.engine.status().steps - before
            totals.seconds[drafts].append(seconds)
            totals.behind[drafts].extend(
                one.usage.total_time - one.usage.time_to_first_token for one in results[drafts]
            )
        for job, plain, drafted in zip(jobs, results[False], results[True], strict=True):
            if plain.tokens != drafted.tokens:
                raise SystemExit(f"{job.request_id}: {drafted.tokens} with drafts, {plain.tokens} without")
        totals.tokens += sum(len(one.tokens) for one in results[True])
        totals.accepted += sum(one.usage.accepted_draft_tokens for one in results[True])


async def alone(bench: Bench, work: dict[str, list[Job]]) -> dict[str, Totals]:
    """Each adapter's prompts, one after the other."""
    found = {}
    for name, jobs in work.items():
        bench.forget()
        found[name] = totals = Totals()
        for number, job in enumerate(jobs):
            await bench.compare([job], 1, totals, first=bool(number % 2))
    return found


async def batched(bench: Bench, work: dict[str, list[Job]], rows: int, part: int) -> Totals:
    """All adapters' prompts in turn, so many at once."""
    bench.forget()
    totals = Totals()
    mixed = [job for job in chain(*zip_longest(*work.values())) if job is not None]
    for number, start in enumerate(range(0, len(mixed), part)):
        await bench.compare(mixed[start : start + part], rows, totals, first=bool(number % 2))
    return totals


def row_of(name: str, totals: Totals) -> dict[str, Any]:
    """A line of the table of requests alone."""
    count = len(totals.behind[0])
    off, on = (mean(seconds) for seconds in totals.seconds)
    reading = mean(totals.reading)
    first = mean(totals.seconds[0]) - mean(totals.behind[0])
    return {
        "adapter": name,
        "requests": count,
        "tokens": totals.tokens / count,
        "of these drafts": totals.accepted / count,
        "steps, off": totals.steps[0] / count,
        "steps, on": totals.steps[1] / count,
        "ms, off": 1e3 * off,
        "ms, on": 1e3 * on,
        "times as fast": off / on,
        "behind the first token": sum(totals.behind[0]) / max(1e-9, sum(totals.behind[1])),
        "with a prompt that is not cached": (off + reading - first) / (on + reading - first),
    }


def batch_row(rows: int, totals: Totals) -> dict[str, Any]:
    """A line of the table of requests together."""
    count = len(totals.behind[0])
    parts = [off / on for off, on in zip(*totals.seconds, strict=True)]
    return {
        "at once": rows,
        "requests": count,
        "tokens/s, off": totals.tokens / sum(totals.seconds[0]),
        "tokens/s, on": totals.tokens / sum(totals.seconds[1]),
        "times as fast": totals.ratio(),
        "worst part": min(parts),
        "accepted drafts of tokens": totals.accepted / totals.tokens,
    }


def notes(single: list[dict[str, Any]], several: list[dict[str, Any]]) -> list[str]:
    """The goals, and whether they are reached."""

    def goal(what: str, value: float, wanted: float) -> str:
        return f"{what}: {value:.2f} (goal {wanted}{'' if value >= wanted else ', missed'})"

    by_name = {row["adapter"]: row for row in single}
    told = []
    for column in ("times as fast", "behind the first token"):
        average = mean(by_name[name][column] for name in ADAPTERS)
        told.append(goal(f"one request alone, average of the adapters, {column}", average, GOALS["alone"]))
        for name in COPYING:
            told += [
                goal(f"{kind}, {column}", by_name[kind][column], GOALS["copying"])
                for kind in (name, f"{name}, free")
            ]
    return told + [
        goal(f"{r['at once']} at once", r["times as fast"], GOALS[str(r["at once"])]) for r in several
    ]


async def measure(
    engine: TorchEngine, args: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One request alone, and several."""
    bench = Bench(engine)
    work = await bench.jobs(args.split, args.requests)
    bench.forget()
    await bench.compare([jobs[0] for jobs in work.values()], len(work), Totals(), first=True)  # warm-up
    single = await alone(bench, work | await bench.jobs(args.split, args.requests, COPYING, free=True))
    several = [batch_row(rows, await batched(bench, work, rows, part)) for rows, part in ((4, 28), (16, 56))]
    return [row_of(name, totals) for name, totals in single.items()], several


def main() -> None:
    """Measure and write results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=64, help="of each adapter (default 64)")
    parser.add_argument("--split", choices=("test", "valid"), default="test")
    parser.add_argument("--no-write", action="store_true")
    args = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as `lora-router serve` sets it for itself
    engine = TorchEngine(Settings(model=MODEL))
    engine.start()
    try:
        single, several = asyncio.run(measure(engine, args))
    finally:
        engine.close()
    told = notes(single, several)
    print(report.table(single), report.table(several), *told, sep="\n\n")
    if args.no_write:
        return
    workload = (
        f"The first {args.requests} {args.split} prompts of each adapter, greedy, with its manifest's limits "
        "and constraint; prompts are in the prefix cache. Each request without and with speculation, in "
        "turns; all tokens are equal. *With a prompt that is not cached* adds the time to read it to both. "
        "*Free*: without the constraint, so that every token is sampled."
    )
    tables = {"Several at once, all adapters mixed": several}
    command = "python -m benchmarks.speculation"
    print("written to", report.write("speculation", workload, single, told, tables, command=command))


if __name__ == "__main__":
    main()
