"""`python -m benchmarks.speculation`: what speculation does for the shipped adapters on their test prompts.

Each prompt is answered without and with speculation, in turns that change, after it was read once, so that
its keys and values are in the prefix cache and the time is the answer's. What earlier answers teach is
forgotten before each part, and no prompt comes twice in a part with speculation. One request alone, adapter
by adapter; then 4 and 16 at once, all adapters mixed. Every answer must have the same tokens both times.

Sections may be measured one by one (`--section`): this engine, and the lookups of llama.cpp and vLLM on the
first of the same prompts. The newest of each stands on the page `results/speculation.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice, zip_longest
from pathlib import Path
from statistics import mean
from typing import Any, TypeVar

from benchmarks import report, speculation_peers
from benchmarks.contestants import ending
from benchmarks.sections import Section, measure
from benchmarks.speculation_page import ADAPTERS, BEHIND, COPYING, FASTER, OURS, text
from benchmarks.speculation_peers import AdapterPrompts
from router.config import Settings
from router.engine.base import Finished, Job, Prompt
from router.engine.constrained.templates import ConstraintTemplates
from router.engine.rows import AnswerRow, BatchRow
from router.engine.speculation import Speculation
from router.engine.torch_engine import TorchEngine
from router.extensions.sql import sql
from router.extensions.training.data import read_rows
from router.extensions.training.recipe import load_recipe
from router.models import resolve_model
from router.registry.format.artifact import FolderRules, read_artifact
from router.types import SamplingParams, Turn, Usage

MODEL = "smollm2-135m-instruct"
PEERS = {"llama.cpp": speculation_peers.llama, "vllm": speculation_peers.vllm}
PEER_REQUESTS = 16  # of each adapter, where this engine is not asked for fewer
PAGE = report.RESULTS / "speculation.md"
T = TypeVar("T")


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
        FASTER: off / on,
        BEHIND: sum(totals.behind[0]) / max(1e-9, sum(totals.behind[1])),
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
        FASTER: totals.ratio(),
        "worst part": min(parts),
        "accepted drafts of tokens": totals.accepted / totals.tokens,
    }


async def compared(args: argparse.Namespace, engine: TorchEngine) -> Section:
    """This engine: one request alone, several at once, and the prompts of the peers without a constraint."""
    bench = Bench(engine)
    work = await bench.jobs(args.split, args.requests)
    bench.forget()
    await bench.compare([jobs[0] for jobs in work.values()], len(work), Totals(), first=True)  # warm-up
    single = await alone(bench, work | await bench.jobs(args.split, args.requests, COPYING, free=True))
    several = [batch_row(rows, await batched(bench, work, rows, part)) for rows, part in ((4, 28), (16, 56))]
    free = await alone(bench, await bench.jobs(args.split, peer_requests(args), free=True))
    facts = {
        "alone": [row_of(name, totals) for name, totals in single.items()],
        "several": several,
        "free": [row_of(name.removesuffix(", free"), totals) for name, totals in free.items()],
    }
    return Section(facts | {"requests": args.requests})


async def asked(args: argparse.Namespace, engine: TorchEngine) -> dict[str, AdapterPrompts]:
    """The prompts for peers as this engine encodes them, by adapter."""
    found = {}
    for name, jobs in (await Bench(engine).jobs(args.split, peer_requests(args), free=True)).items():
        most = jobs[0].params.max_tokens
        assert most is not None
        found[name.removesuffix(", free")] = AdapterPrompts([list(job.tokens) for job in jobs], most)
    return found


def peer_requests(args: argparse.Namespace) -> int:
    """Of each adapter."""
    return int(min(args.requests, PEER_REQUESTS))


def with_engine(
    args: argparse.Namespace, work: Callable[[argparse.Namespace, TorchEngine], Coroutine[Any, Any, T]]
) -> T:
    """What `work` finds with an engine of its own."""
    engine = TorchEngine(Settings(model=MODEL))
    engine.start()
    try:
        return asyncio.run(work(args, engine))
    finally:
        engine.close()


def ours(args: argparse.Namespace) -> Section:
    """This engine."""
    return of_split(args, with_engine(args, compared))


def peer(name: str, args: argparse.Namespace) -> Section:
    """A peer with the same adapters on the same base."""
    work = with_engine(args, asked)
    folders = [Path("adapters").resolve() / adapter for adapter in work]
    return of_split(args, PEERS[name](work, resolve_model(MODEL), folders))


def of_split(args: argparse.Namespace, section: Section) -> Section:
    """With the rows that prompts are of."""
    return replace(section, facts=section.facts | {"split": args.split})


SECTIONS: dict[str, Callable[[argparse.Namespace], Section]] = {
    OURS: ours,
    **{name: partial(peer, name) for name in PEERS},
}


def main() -> None:
    """Measure the sections that are asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--section", choices=SECTIONS, nargs="+", default=list(SECTIONS), help="default: all")
    parser.add_argument(
        "--requests",
        type=int,
        default=64,
        help=f"of each adapter (default 64); of peers at most {PEER_REQUESTS}",
    )
    parser.add_argument("--split", choices=("test", "valid"), default="test")
    parser.add_argument("--no-write", action="store_true", help="print the page only")
    args = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as `lora-router serve` sets it for itself
    with ending():
        measure(
            {name: partial(SECTIONS[name], args) for name in args.section},
            PAGE,
            text,
            write=not args.no_write,
        )


if __name__ == "__main__":
    main()
