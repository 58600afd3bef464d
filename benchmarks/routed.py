"""`python -m benchmarks.routed`: what routing is worth, end to end, on a mix of all adapters' test rows.

The same requests go to real servers three times: unasked (the router picks), with the right adapter named
(the oracle), and to a server without classifiers (the base answers). Answers are judged by each
adapter's own metric.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.local_router import ROOT
from router.client import Answer, AsyncClient
from router.extensions.training.data import TrainingRow, load_splits
from router.extensions.training.evaluation.metrics import METRICS, score_answers
from router.extensions.training.evaluation.scoring import Task
from router.extensions.training.recipe import Recipe, load_recipe
from tests.serving import serving

IN_FLIGHT = 16
SEED = 5
DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Part:
    """One adapter's share of the mix."""

    recipe: Recipe
    rows: Sequence[TrainingRow]

    @property
    def name(self) -> str:
        """The adapter's."""
        return self.recipe.adapter.name

    def judged(self, answers: Sequence[Answer]) -> np.ndarray[Any, Any]:
        """[rows] each answer's score, 1 where it is all right."""
        task = Task(self.recipe.evaluation.metric, self.rows, (), self.recipe.generation.max_tokens)
        scorer = score_answers(task, [answer.text.strip() for answer in answers]).score
        whole = METRICS[task.metric].whole
        return np.array([scorer.score(np.array([i])) / whole for i in range(len(self.rows))])


def parts(each: int) -> list[Part]:
    """`each` test rows of every adapter that is here, drawn by a fixed seed."""
    found = []
    for folder in sorted((ROOT / "adapters").iterdir()):
        path = ROOT / "recipes" / f"{folder.name}.toml"
        if (folder / "adapter_model.safetensors").is_file() and path.is_file():
            recipe = load_recipe(path)
            if recipe.adapter.name != folder.name:  # another version of an adapter
                continue
            rows = load_splits(recipe.data).test
            found.append(Part(recipe, random.Random(SEED).sample(rows, min(each, len(rows)))))
    return found


async def ask(address: str, mix: Sequence[Part], oracle: bool) -> dict[str, list[Answer]]:
    """All answers, some requests in flight at once, adapters mixed."""
    places = asyncio.Semaphore(IN_FLIGHT)
    async with AsyncClient(address) as client:

        async def one(part: Part, row: TrainingRow) -> Answer:
            limit = part.recipe.generation.max_tokens
            async with places:
                return await client.generate(
                    row.prompt, max_tokens=limit, adapter=part.name if oracle else ""
                )

        asked = [(part, row) for part in mix for row in part.rows]
        order = random.Random(SEED).sample(range(len(asked)), len(asked))
        came = dict(zip(order, await asyncio.gather(*(one(*asked[i]) for i in order)), strict=True))
    found: dict[str, list[Answer]] = {part.name: [] for part in mix}
    for i, (part, _) in enumerate(asked):
        found[part.name].append(came[i])
    return found


async def measure(mix: Sequence[Part]) -> dict[str, dict[str, list[Answer]]]:
    """Answers by arm and adapter."""
    found = {}
    for arm, plugins in (("routed", "examples"), ("base", "")):
        with tempfile.TemporaryDirectory() as folder:
            flags = ("--adapters-dir", str(ROOT / "adapters"), "--plugins-dir", str(ROOT / "plugins"))
            more = (*flags, "--set", f"load_plugins={plugins}")
            with serving(Path(folder), *more) as (_, address):
                if arm == "routed":
                    found["oracle"] = await ask(address, mix, oracle=True)
                found[arm] = await ask(address, mix, oracle=False)
    return found


ARMS = ("routed", "oracle", "base")
Values = dict[str, "np.ndarray[Any, Any]"]


def rows_of(
    mix: Sequence[Part], found: Mapping[str, Mapping[str, Sequence[Answer]]]
) -> tuple[list[dict[str, Any]], Values]:
    """The table, and [rows] scores of all rows by arm."""
    table, values = [], {arm: list[np.ndarray[Any, Any]]() for arm in ARMS}
    for part in mix:
        by_arm = {arm: part.judged(found[arm][part.name]) for arm in ARMS}
        right = [name_of(answer) == part.name for answer in found["routed"][part.name]]
        about = {"adapter": part.name, "metric": part.recipe.evaluation.metric, "rows": len(part.rows)}
        means = {arm: float(v.mean()) for arm, v in by_arm.items()}
        table.append(about | means | {"routed to it": sum(right) / len(right)})
        for arm, v in by_arm.items():
            values[arm].append(v)
    return table, {arm: np.concatenate(v) for arm, v in values.items()}


def name_of(answer: Answer) -> str:
    """Of the adapter that answered; empty for the base."""
    return answer.decision.adapter.name if answer.decision.adapter else ""


def interval(differences: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Bootstrap interval of a mean of paired differences, 95 %."""
    draws = np.random.default_rng(SEED).choice(differences, (DRAWS, len(differences))).mean(axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(low), float(high)


def main() -> None:
    """Measure and write results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=40, help="test rows of each adapter")
    mix = parts(parser.parse_args().each)
    table, values = rows_of(mix, asyncio.run(measure(mix)))
    means = {arm: float(v.mean()) for arm, v in values.items()}
    lost, won = (values["routed"] - values[arm] for arm in ("oracle", "base"))
    notes = [
        "all rows: routed {routed:.3f}, right adapter named {oracle:.3f}, base {base:.3f}".format(**means),
        "routed - named: {:+.3f} [{:+.3f}, {:+.3f}]".format(lost.mean(), *interval(lost)),
        "routed - base: {:+.3f} [{:+.3f}, {:+.3f}]".format(won.mean(), *interval(won)),
        "scores are of single rows, 1 is all right; chrF of single rows is not chrF of the whole",
    ]
    print(report.table(table), "\n".join(notes), sep="\n")
    workload = (
        f"{sum(len(p.rows) for p in mix)} test rows of {len(mix)} adapters, mixed, {IN_FLIGHT} in flight, "
        "through gRPC; servers with the classifier examples, or without classifiers (base)."
    )
    print("written to", report.write("routed", workload, table, notes))


if __name__ == "__main__":
    main()
