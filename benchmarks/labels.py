"""`python -m benchmarks.labels`: what probabilities and a prior of choices add to an answer's time.

The label adapters answer validation prompts without them, with probabilities, and with a prior (of zeros
where an adapter has none), in turn: one request after the other, and 16 at once. Each prompt is asked once,
so that it is new to the prefix cache but for what all prompts share.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from benchmarks.report import write
from router.config import Settings
from router.engine.base import Finished, Job, Prompt, with_grammar
from router.engine.labels import LabelTree
from router.engine.torch_engine import TorchEngine
from router.extensions.training.data import load_splits
from router.extensions.training.evaluation.subject import read_manifest
from router.extensions.training.recipe import load_recipe
from router.registry.format.artifact import FolderRules, read_artifact
from router.types import LabelSettings, SamplingParams, Turn

ROOT = Path(__file__).parents[1]
ADAPTERS = ("medical", "financial", "legal")
TOGETHER, BATCHES = 16, 3


async def answered(engine: TorchEngine, job: Job) -> float:
    """Seconds that an answer takes."""
    started = time.perf_counter()
    async for event in engine.submit(await with_grammar(engine, job)):
        last = event
    if not isinstance(last, Finished) or (last.labels is None) is not (job.labels is None):
        raise RuntimeError("no labels came")
    return time.perf_counter() - started


async def jobs_of(engine: TorchEngine, name: str, count: int) -> list[Job]:
    """The first validation prompts of an adapter, which is loaded."""
    artifact, _ = read_artifact(ROOT / "adapters" / name, FolderRules(engine.info))
    await engine.load(artifact)
    manifest = read_manifest(ROOT / "adapters" / name)
    rows = load_splits(load_recipe(ROOT / "recipes" / f"{name}.toml").data).valid[:count]
    params = SamplingParams.of(manifest.generation)
    prompts = [Prompt((Turn("user", row.prompt),), template=manifest.prompt) for row in rows]
    return [Job("r", engine.encode(one), params, artifact.digest, own_constraint=True) for one in prompts]


Way = Callable[[Job], Job]


def plain(job: Job) -> Job:
    """Neither."""
    constraint = job.params.constraint
    return replace(job, params=replace(job.params, constraint=constraint and constraint.without_prior()))


def labelled(job: Job) -> Job:
    """With the probabilities of its choices."""
    return replace(plain(job), labels=LabelSettings())


def corrected(job: Job) -> Job:
    """With a prior of its choices."""
    constraint = job.params.constraint
    if constraint is None:
        raise RuntimeError("the adapter has no choices")
    prior = constraint.prior or (0.0,) * len(constraint.choices)
    return replace(job, params=replace(job.params, constraint=replace(constraint, prior=prior)))


WAYS: dict[str, Way] = {"plain": plain, "labels": labelled, "prior": corrected}


async def measured(engine: TorchEngine, name: str, count: int) -> dict[str, float | str]:
    """One row of the table."""
    jobs = await jobs_of(engine, name, len(WAYS) * (count + BATCHES * TOGETHER))
    choices = jobs[0].params.constraint.choices if jobs[0].params.constraint else ()
    tree = LabelTree.of([engine.encode(Prompt(raw=one, follows=True)) for one in choices], (0,))
    ways = tuple(WAYS)
    alone: dict[str, list[float]] = {way: [] for way in ways}
    together: dict[str, list[float]] = {way: [] for way in ways}
    for way in ways:
        await answered(engine, WAYS[way](jobs[-1]))  # grammar, slot and shared prompt are there
    singles, others = jobs[: len(ways) * count], jobs[len(ways) * count :]
    for place, job in enumerate(singles):
        way = ways[place % len(ways)]
        alone[way].append(await answered(engine, WAYS[way](job)))
    for place in range(len(ways) * BATCHES):
        way, batch = ways[place % len(ways)], others[place * TOGETHER :][:TOGETHER]
        together[way].append(await all_at_once(engine, [WAYS[way](job) for job in batch]))
    one, many = ({way: median(times) * 1e3 for way, times in found.items()} for found in (alone, together))
    return {
        "adapter": name,
        "choices": len(choices),
        "branchings": len(tree.branchings),
        "alone, ms": one["plain"],
        "with labels, ms": one["labels"],
        "ratio": one["labels"] / one["plain"],
        "ratio with a prior": one["prior"] / one["plain"],
        f"{TOGETHER} at once, ms": many["plain"],
        f"{TOGETHER} with labels, ms": many["labels"],
        "ratio at once": many["labels"] / many["plain"],
        "ratio at once with a prior": many["prior"] / many["plain"],
    }


async def all_measured(engine: TorchEngine, count: int) -> list[dict[str, float | str]]:
    """A row for each adapter."""
    return [await measured(engine, name, count) for name in ADAPTERS]


async def all_at_once(engine: TorchEngine, jobs: Sequence[Job]) -> float:
    """Seconds until all have answers."""
    started = time.perf_counter()
    await asyncio.gather(*(answered(engine, job) for job in jobs))
    return time.perf_counter() - started


def main() -> None:
    """Print the table and write it to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20, help="answers each way, one after the other")
    count = parser.parse_args().count
    engine = TorchEngine(Settings())
    engine.start()
    try:
        rows = asyncio.run(all_measured(engine, count))
    finally:
        engine.close()
    notes = [
        "Medians. `branchings`: places in the tree of choices; the likely ones are read. Each way answers "
        "other prompts; those of legal differ the most in length.",
    ]
    print(
        write(
            "labels",
            "Answers of label adapters, with the probabilities and with a prior of their choices.",
            rows,
            notes,
        )
    )


if __name__ == "__main__":
    main()
