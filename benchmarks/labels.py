"""`python -m benchmarks.labels`: what the probabilities of choices add to an answer's time.

The label adapters answer validation prompts with and without them, in turn: one request after the other, and
16 at once. Each prompt is asked once, so that it is new to the prefix cache but for what all prompts share.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
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
TOGETHER = 16


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


async def measured(engine: TorchEngine, name: str, count: int) -> dict[str, float | str]:
    """One row of the table."""
    jobs = await jobs_of(engine, name, 2 * count + 8 * TOGETHER)
    choices = jobs[0].params.constraint.choices if jobs[0].params.constraint else ()
    tree = LabelTree.of([engine.encode(Prompt(raw=one, follows=True)) for one in choices], (0,))
    ways = (None, LabelSettings())
    alone: dict[bool, list[float]] = {False: [], True: []}
    for way in ways:
        await answered(engine, replace(jobs[-1], labels=way))  # grammar, slot and shared prompt are there
    for place, job in enumerate(jobs[: 2 * count]):
        way = ways[place % 2]
        alone[way is not None].append(await answered(engine, replace(job, labels=way)))
    batches = [jobs[2 * count + n * TOGETHER :][:TOGETHER] for n in range(8)]
    together: dict[bool, list[float]] = {False: [], True: []}
    for place, batch in enumerate(batches):
        together[place % 2 == 1].append(await all_at_once(engine, batch, ways[place % 2]))
    return {
        "adapter": name,
        "choices": len(choices),
        "branchings": len(tree.branchings),
        "alone, ms": median(alone[False]) * 1e3,
        "with labels, ms": median(alone[True]) * 1e3,
        "ratio": median(alone[True]) / median(alone[False]),
        f"{TOGETHER} at once, ms": median(together[False]) * 1e3,
        f"{TOGETHER} with labels, ms": median(together[True]) * 1e3,
        "ratio at once": median(together[True]) / median(together[False]),
    }


async def all_measured(engine: TorchEngine, count: int) -> list[dict[str, float | str]]:
    """A row for each adapter."""
    return [await measured(engine, name, count) for name in ADAPTERS]


async def all_at_once(engine: TorchEngine, jobs: Sequence[Job], way: LabelSettings | None) -> float:
    """Seconds until all have answers."""
    started = time.perf_counter()
    await asyncio.gather(*(answered(engine, replace(job, labels=way)) for job in jobs))
    return time.perf_counter() - started


def main() -> None:
    """Print the table and write it to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=30, help="answers each way, one after the other")
    count = parser.parse_args().count
    engine = TorchEngine(Settings())
    engine.start()
    try:
        rows = asyncio.run(all_measured(engine, count))
    finally:
        engine.close()
    notes = ["Medians. `branchings`: places in the tree of choices; the likely ones are read."]
    print(write("labels", "Answers of label adapters, with the probabilities of their choices.", rows, notes))


if __name__ == "__main__":
    main()
