"""`python -m benchmarks.quantized_scores`: what weights in few bits cost every adapter here in quality.

Each adapter answers the test rows of its recipe and its own probes twice, greedily, in the engine that
serves: with the base's weights as they are and with `--quantize int8` (or int4, by the same flag here). Both
see the same rows, so differences are paired.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks import report
from router.extensions.training.base import LoadedBase, load_base
from router.extensions.training.data import Rendering
from router.extensions.training.evaluation.exam import EvaluationPlan, draw_rows, every_folder, make_plan
from router.extensions.training.evaluation.metrics import METRICS, score_answers
from router.extensions.training.evaluation.scoring import Resampled, Task, resample
from router.extensions.training.evaluation.subject import AnsweringEngine
from router.registry.format.manifest import parse_probes
from router.types import SamplingParams

PLAIN = "none"


class Answered:
    """One adapter's answers by precision."""

    def __init__(self, plan: EvaluationPlan, base: LoadedBase, rows: int | None) -> None:
        judging, generation = plan.recipe.evaluation, plan.recipe.generation
        self.name, self.folder = plan.manifest.name, plan.folder
        asked = draw_rows(plan.splits.test, rows)
        self.task = Task(judging.metric, asked, [], generation.max_tokens, judging.parts)
        self._params = SamplingParams(max_tokens=generation.max_tokens, stop=generation.stop)
        self._rendering = Rendering.of(base.tokenizer, plan.manifest.prompt)
        self._probes, _ = parse_probes((plan.folder / "probes.jsonl").read_bytes())
        self.texts: dict[str, list[str]] = {}
        self.passed: dict[str, int] = {}

    def ask(self, engine: AnsweringEngine, way: str) -> None:
        """Answer all rows and probes."""
        digest = engine.load(self.folder)
        self.texts[way] = self._answers(engine, [row.prompt for row in self.task.rows], self._params, digest)
        self.passed[way] = sum(
            probe.passes(
                self._answers(engine, [probe.prompt], SamplingParams(max_tokens=probe.max_tokens), digest)[0]
            )
            for probe in self._probes
        )
        engine.unload(digest)

    def _answers(
        self, engine: AnsweringEngine, prompts: Sequence[str], params: SamplingParams, digest: str
    ) -> list[str]:
        encoded = [self._rendering.prompt(text) for text in prompts]
        return [answer.text for answer in engine.answers(encoded, params, digest)]

    def row(self, way: str) -> dict[str, Any]:
        """A line of the table: a precision against weights as they are."""
        scores = {way: self._score(texts) for way, texts in self.texts.items()}
        metric, lost = METRICS[self.task.metric], scores[way].minus(scores[PLAIN])
        points = 100 / metric.whole
        same = sum(a == b for a, b in zip(self.texts[PLAIN], self.texts[way], strict=True))
        return {
            "adapter": self.name,
            "rows": len(self.task.rows),
            "metric": metric.title,
            "as they are": scores[PLAIN].value * points,
            way: scores[way].value * points,
            "difference, points": lost.value * points,
            "95 % from": lost.low * points,
            "to": lost.high * points,
            "same answers": same / len(self.task.rows),
            "probes passed": f"{self.passed[PLAIN]} and {self.passed[way]} of {len(self._probes)}",
        }

    def _score(self, texts: Sequence[str]) -> Resampled:
        return resample(score_answers(self.task, texts).score, len(self.task.rows))


def compare(names: Sequence[str], model: str, rows: int | None, quantize: str) -> list[dict[str, Any]]:
    """A line for each adapter; none named: all that have a recipe."""
    adapters, recipes = Path("adapters"), Path("recipes")
    folders = [adapters / name for name in names] or every_folder(adapters, recipes, print)
    base = load_base(model, "cpu")
    asked = [Answered(make_plan(folder, recipes), base, rows) for folder in folders]
    for way in (PLAIN, quantize):
        with closing(AnsweringEngine(base, way)) as engine:
            print(f"engine: {engine.info.kernels}, {engine.info.precision}", flush=True)
            for one in asked:
                one.ask(engine, way)
                print(f"{way}: {one.name}", flush=True)
    return [one.row(quantize) for one in asked]


def main() -> None:
    """Ask, compare, write results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapters", nargs="*", help="names in ./adapters (all that have a recipe)")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--rows", type=int, help="most test rows of each")
    parser.add_argument("--quantize", choices=("int8", "int4"), default="int8")
    args = parser.parse_args()
    table = compare(args.adapters, args.model, args.rows, args.quantize)
    print(report.table(table))
    worst = min(table, key=lambda row: row["difference, points"])
    notes = [f"most lost: {worst['adapter']}, {-worst['difference, points']:.2f} points (target: at most 1)"]
    workload = (
        "Test rows of each adapter's recipe and its probes, greedy, in the engine that serves, with the "
        f"base's weights as they are and in {args.quantize}; scores in points of 100, intervals by paired "
        "bootstrap."
    )
    command = f"python -m benchmarks.quantized_scores --quantize {args.quantize}"
    name = "quantized_scores" if args.quantize == "int8" else f"quantized_scores-{args.quantize}"
    print("written to", report.write(name, workload, table, notes, command=command))


if __name__ == "__main__":
    main()
