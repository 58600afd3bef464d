"""`python -m benchmarks.constrained`: what it costs to hold answers to a constraint; whether they keep to it.

The same 16 requests with and without, in rounds that take turns; each answer has the same number of tokens.
What a grammar forces is not sampled, so JSON can be faster than free text. A mask of all tokens is made only
where questions about single ones do not settle the next token. Validity is counted over
answers that are whole. Specialists answer 16 of their validation prompts at once, freely and held to the
prompt; only prompts with the same answer both ways count, so that both do the same work.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sqlite3
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from rich.progress import track

from benchmarks import report
from benchmarks.answering import NEW_TOKENS, REQUESTS, prompts
from benchmarks.workload import jobs, run_jobs, start
from router.engine.base import Finished, Job, Prompt, with_grammar
from router.engine.constrained.templates import ConstraintTemplates
from router.engine.torch_engine import TorchEngine
from router.extensions.sql import sql
from router.extensions.sql.grammar import select_grammar
from router.extensions.training.data import read_rows
from router.extensions.training.recipe import load_recipe
from router.registry.format.artifact import FolderRules, read_artifact
from router.types import Constraint, FinishReason, SamplingParams, Turn

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 24},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "role": {"enum": ["nurse", "baker", "judge"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 3},
    },
    "required": ["name", "age", "role", "tags"],
    "additionalProperties": False,
}
PEOPLE = json.dumps({"type": "array", "items": PERSON, "minItems": 50})
LABELS = ("Balance Sheet, Current Assets", "Balance Sheet, Equity", "Income Statement, Revenue")
PASSAGE = " ".join(
    random.Random(0).choices([f"{a}{b}" for a in ("ba", "so", "tri") for b in ("n", "lt", "x")], k=3000)
)
SENTENCE = "Jean Ribault drew a map of the river in 1,562 days."
TABLES: Mapping[str, tuple[str, ...]] = {
    "singer": ("id", "name", "age"),
    "song": ("id", "singer_id", "title"),
}
ENDLESS: dict[str, Constraint | None] = {  # each can go on for as long as it has to
    "free": None,
    "any text": Constraint("regex", r"(.|\n)*"),
    "words": Constraint("regex", r"([a-z]{1,12}[ ,.])*"),
    "JSON": Constraint("json_schema", PEOPLE),
    "grammar": Constraint(
        "grammar", 'start: line+\nline: KEY ": " /[^\\n]{1,60}/ "\\n"\nKEY: /[a-z_]{1,16}/'
    ),
    "quote": Constraint("quote", PASSAGE),
}


SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "drawn": {"temperature": 1.0},
    "top_p 0.9": {"temperature": 0.8, "top_p": 0.9},
}


@dataclass(frozen=True)
class Whole:
    """A constraint whose answers end, and how to tell a right one."""

    asked: str
    constraint: Constraint
    holds: Callable[[str], bool]


def _is_person(text: str) -> bool:
    return bool(Draft202012Validator(PERSON).is_valid(json.loads(text)))


def _compiles(query: str) -> bool:
    with closing(sqlite3.connect(":memory:")) as database:
        for table, columns in TABLES.items():
            database.execute(f"CREATE TABLE {table} ({', '.join(columns)})")
        try:
            database.execute(f"EXPLAIN {query}", (1,) * re.sub("'[^']*'", "", query).count("?"))
        except sqlite3.Error:
            return False
    return True


WHOLE = {
    "JSON": Whole("Describe a person as JSON.", Constraint("json_schema", json.dumps(PERSON)), _is_person),
    "choices": Whole("Where is cash reported?", Constraint("choices", choices=LABELS), LABELS.__contains__),
    "regex": Whole(
        "Give a date.",
        Constraint("regex", "[0-9]{4}-[01][0-9]-[0-3][0-9]"),
        lambda text: re.fullmatch("[0-9]{4}-[01][0-9]-[0-3][0-9]", text) is not None,
    ),
    "grammar": Whole(
        "Write a sum.",
        Constraint("grammar", 'start: NUM ("+" NUM){1,4} "="\nNUM: /[1-9][0-9]{0,3}/'),
        lambda text: re.fullmatch(r"[1-9]\d{0,3}(\+[1-9]\d{0,3}){1,4}=", text) is not None,
    ),
    "quote": Whole(
        "Quote something.", Constraint("quote", PASSAGE), lambda text: f" {text} " in f" {PASSAGE} "
    ),
    "sql": Whole("Who sings?", Constraint("grammar", select_grammar(TABLES)), _compiles),
}
SPECIALISTS, ADAPTERS = ("qa", "code"), Path("adapters").absolute()


async def speed(engine: TorchEngine, sampling: str, rounds: int, rows: int, new: int) -> list[dict[str, Any]]:
    """Tokens a second of each constraint, the same requests for all, in rounds that take turns."""
    plain = [
        replace(job, params=replace(job.params, seed=i, **SAMPLINGS[sampling]))
        for i, job in enumerate(jobs(prompts(engine.info.vocab_size, count=rows), [None], new))
    ]
    work = {name: await _held(engine, plain, constraint) for name, constraint in ENDLESS.items()}
    rates: dict[str, list[float]] = {name: [] for name in work}
    for turn in track(range(rounds + 1), description=f"rounds, {sampling}", transient=True):
        for name, asked in work.items():
            seconds, tokens = await run_jobs(engine, asked)
            if tokens != rows * new:
                raise RuntimeError(f"{name}: {tokens} tokens, not {rows * new}")
            if turn:  # the first round warms up
                rates[name].append(tokens / seconds)
    free = rates["free"]
    return [
        {
            "sampling": sampling,
            "constraint": name,
            **{f"tokens/s, {k}": v for k, v in report.spread(found).items()},
            "of free, median": report.spread([a / b for a, b in zip(found, free, strict=True)])["median"],
        }
        for name, found in rates.items()
    ]


async def _held(engine: TorchEngine, plain: Sequence[Job], constraint: Constraint | None) -> list[Job]:
    return [
        await with_grammar(engine, replace(job, params=replace(job.params, constraint=constraint)))
        for job in plain
    ]


async def specialists(engine: TorchEngine, rounds: int, rows: int) -> list[dict[str, Any]]:
    """What an adapter's own template costs on the validation prompts of its recipe."""
    templates, found = ConstraintTemplates(lambda: {"sql": sql}), []
    for name in SPECIALISTS:
        recipe = load_recipe(Path("recipes") / f"{name}.toml")
        artifact, seen = read_artifact(ADAPTERS / name, FolderRules(engine.info))
        await engine.load(artifact)
        free, held, seconds = [], [], []
        for row in read_rows(recipe.data.valid):
            tokens = engine.encode(Prompt((Turn("user", row.prompt),), template=seen.manifest.prompt))
            params = SamplingParams(recipe.generation.max_tokens)
            plain = Job(row.place, tokens, params, artifact.digest)
            named = replace(plain, params=replace(params, constraint=recipe.generation.as_constraint()))
            began = time.perf_counter()
            ready = await templates.prepared(engine, named, row.prompt)
            seconds.append(time.perf_counter() - began)
            if len(free) < rows and await _answer(engine, plain) == await _answer(engine, ready):
                free.append(plain)
                held.append(ready)
        rates: list[float] = []
        for turn in range(rounds + 1):
            (slow, count), (ours, _) = await run_jobs(engine, free), await run_jobs(engine, held)
            if turn:
                rates.append(slow / ours)
        spread = report.spread(rates)
        found.append(
            {
                "adapter": name,
                "answers": len(free),
                "tokens": count,
                **{f"of free, {key}": value for key, value in spread.items()},
                "constraint made, median ms": round(1e3 * statistics.median(seconds), 1),
                "most ms": round(1e3 * max(seconds[1:]), 1),
            }
        )
    return found


async def validity(engine: TorchEngine, answers: int) -> list[dict[str, Any]]:
    """How many whole answers are right, half of them greedy, half drawn at temperature 1."""
    rows = []
    for name, kind in WHOLE.items():
        tokens = engine.encode(Prompt((Turn("user", kind.asked),)))
        asked = [
            Job(str(i), tokens, SamplingParams(120, temperature=i % 2, seed=i, constraint=kind.constraint))
            for i in range(answers)
        ]
        found = await asyncio.gather(*[_answer(engine, await with_grammar(engine, job)) for job in asked])
        whole = [text for text, reason in found if reason is FinishReason.STOP]
        valid = sum(map(kind.holds, whole))
        rows.append({"constraint": name, "answers": answers, "whole": len(whole), "valid of whole": valid})
    return rows


async def _answer(engine: TorchEngine, job: Job) -> tuple[str, FinishReason]:
    text = ""
    async for event in engine.submit(job):
        if isinstance(event, Finished):
            return text, event.reason
        text += event.text
    raise RuntimeError("a generation ended without Finished")


async def measure(
    engine: TorchEngine, args: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Speed, specialists and validity."""
    rates = [
        row
        for sampling in args.sampling
        for row in await speed(engine, sampling, args.rounds, args.rows, args.new)
    ]
    return rates, await specialists(engine, args.rounds, args.rows), await validity(engine, args.answers)


def main() -> None:
    """Measure and write results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=REQUESTS)
    parser.add_argument("--new", type=int, default=NEW_TOKENS)
    parser.add_argument("--sampling", nargs="+", choices=SAMPLINGS, default=list(SAMPLINGS))
    parser.add_argument("--answers", type=int, default=64)
    parser.add_argument("--try", action="store_true", dest="smoke", help="a short run that writes nothing")
    args = parser.parse_args()
    if args.smoke:
        args.rounds, args.rows, args.new, args.answers = 1, 4, 12, 4
    engine = start("smollm2-135m-instruct", "auto", native=True)
    rates, own, right = asyncio.run(measure(engine, args))
    kernels = engine.info.kernels
    engine.close()
    print(report.table(rates), report.table(own), report.table(right), sep="\n\n")
    if args.smoke:
        return
    work = f"{args.rows} requests at once, {args.new} tokens each, {args.rounds} rounds that take turns"
    tables = {"specialists": own, "validity": right}
    print("written to", report.write("constrained", f"{work}; {kernels}.", rates, [], tables=tables))


if __name__ == "__main__":
    main()
