"""`python -m benchmarks.quantized`: weights in 8 and 4 bits against weights as they are, speed and memory.

The same engine three times, interleaved, each in a process of its own: one request alone and 16 at once,
without and with adapters.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.answering import PROMPT_TOKENS, RANK, prompts
from benchmarks.contestants import Entry, Field, ending, ours, told
from benchmarks.engine import AS_SERVED, SERVED
from router.models import resolve_model

PLAIN, INT8, INT4 = "weights as they are", "weights in int8", "weights in int4"
WAYS = {PLAIN: "none", INT8: "int8", INT4: "int4"}
TARGETS = {INT8: (1.5, 0.5), INT4: (2.5, 0.32)}  # of one request's decoding, and of memory


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked at once."""

    name: str
    requests: int
    adapters: int
    new: int


LOADS = (
    Load("one request", 1, 0, 192),
    Load("one request with an adapter", 1, 1, 192),
    Load("16 requests", 16, 0, 64),
    Load("16 requests, 8 adapters", 16, 8, 64),
)
Rounds = dict[tuple[str, str], list[dict[str, float]]]  # answers by load and contestant


def main() -> None:
    """Parse arguments, run, write results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default 5)")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--torch-operations", action="store_true", help="as without a C++ compiler")
    args = parser.parse_args()
    resolve_model(args.model)  # fetched here, where its progress is seen
    more = ["--torch-operations"] if args.torch_operations else []
    base = ("--model", args.model, "--dtype", args.dtype, "--adapters", "8", *more)
    with ending(), Field() as field:
        about = {
            name: field.start(
                Entry(name, ours("contestant_engine", *base, "--quantize", way), SERVED, AS_SERVED)
            )
            for name, way in WAYS.items()
        }
        rounds = measure(field, int(about[PLAIN]["vocabulary"]), args.rounds)
        alone = field.notes()
    rows, memory = summarise(rounds), memory_rows(about)
    said = [*notes(rounds, about), *alone]
    print(report.table(rows), report.table(memory), *said, sep="\n\n")
    workload = (
        f"{PROMPT_TOKENS}±8 random prompt tokens a request, greedy; 192 new tokens of one request, 64 of "
        f"each of 16; adapters of rank {RANK} on all linear layers. A step: from one token of a request to "
        f"its next. Medians of {args.rounds} interleaved rounds after one warm-up round, each contestant in "
        "a process of its own."
    )
    command = "python -m benchmarks.quantized" + "".join(f" {flag}" for flag in more)
    name = "weights-in-8-and-4-bits" + ("-torch" if args.torch_operations else "")
    tables = {"Memory": memory}
    print(report.write(name, workload, rows, said, command=command, tables=tables, page="engine"))


def measure(field: Field, vocabulary: int, rounds: int) -> Rounds:
    """Every round asks all for every load; the first is warm-up. No prompt is asked twice."""
    found: Rounds = {(load.name, name): [] for load in LOADS for name in WAYS}
    with told("rounds", (rounds + 1) * len(found)) as step:
        for run in range(rounds + 1):
            for place, load in enumerate(LOADS):
                tokens = prompts(vocabulary, seed=run * len(LOADS) + place, count=load.requests)
                for name in WAYS:
                    step(f"round {run} of {rounds}: {load.name}, {name}")
                    work = {"prompts": tokens, "new": load.new, "adapters": load.adapters}
                    answer = field.ask(name, work)
                    if run:
                        found[load.name, name].append(answer)
    return found


def summarise(rounds: Rounds) -> list[dict[str, Any]]:
    """One row a load: steps and tokens a second of all, ratios of each round's own pair."""
    rows = []
    for load in LOADS:
        row: dict[str, Any] = {"load": load.name}
        for name, way in WAYS.items():
            row[f"step, ms: {way}"] = median(1000 * one["gap"] for one in rounds[load.name, name])
        for name in TARGETS:
            row[f"{WAYS[name]} decodes faster"] = faster(rounds, load.name, name)
        for name, way in WAYS.items():
            row[f"tokens/s: {way}"] = median(
                one["tokens"] / one["seconds"] for one in rounds[load.name, name]
            )
        rows.append(row)
    return rows


def faster(rounds: Rounds, load: str, name: str) -> float:
    """How many times as fast steps in few bits are: the median of the rounds' ratios."""
    pairs = zip(rounds[load, PLAIN], rounds[load, name], strict=True)
    return median(plain["gap"] / small["gap"] for plain, small in pairs)


def memory_rows(about: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the linear layers' weights take, scales included. Resident memory tells of the cache more."""
    return [
        {
            "contestant": name,
            "precision": said["precision"],
            "linear layers, MiB": said["linear"],
        }
        for name, said in about.items()
    ]


def notes(rounds: Rounds, about: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The targets."""
    said = []
    for name, (speed, memory) in TARGETS.items():
        part = about[name]["linear"] / about[PLAIN]["linear"]
        times = faster(rounds, LOADS[0].name, name)
        said += [
            f"{name}: one request decodes {times:.2f} times as fast (target {speed})",
            f"{name}: the linear layers' weights take {part:.2f} of the memory (target {memory})",
        ]
    return [*said, f"operations: {about[INT4]['kernels']}"]


if __name__ == "__main__":
    main()
