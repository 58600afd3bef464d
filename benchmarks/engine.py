"""`make bench`: this engine against PEFT, in one run, interleaved, each in a process of its own.

16 concurrent requests of about 90 prompt tokens, 64 new tokens each, random rank-16 adapters on all
linear layers, greedy, end-of-sequence ignored. Every round runs every arm once; medians over rounds.
While one contestant works, all others are blocked in a read.
"""

from __future__ import annotations

import argparse
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.answering import NEW_TOKENS, PROMPT_TOKENS, RANK, REQUESTS
from benchmarks.contestants import Arm, Entry, Field, ending, measure, measure_alone, ours
from router.models import resolve_model

COUNTS = (1, 4, 8, 16)
SERVED = {"GOMP_SPINCOUNT": "10000"}  # as `lora-router serve` sets it for itself
AS_SERVED = "as `lora-router serve` runs"
AS_PEFT = "torch.set_num_threads(physical cores), OpenMP's own defaults"
NATIVE, EMPTY, TORCH = "lora-router", "lora-router, none resident", "lora-router, torch operations"
PLAIN, MIXED = "PEFT, no adapter", "PEFT, 8 adapters"

OUR_ARMS = (
    Arm("no adapter", NATIVE, 0),
    *(Arm(f"{n} adapters", NATIVE, n) for n in COUNTS),
    Arm("no adapter, none resident", EMPTY, 0),
    Arm("no adapter, torch operations", TORCH, 0),
    Arm("8 adapters, torch operations", TORCH, 8),
)
PLAIN_PEFT, MIXED_PEFT = "PEFT static batch, no adapter", "PEFT static batch, 8 adapters"
PEFT_ARMS = (Arm(PLAIN_PEFT, PLAIN, 0), Arm(MIXED_PEFT, MIXED, 8))
STEP_ARMS = ("no adapter", "8 adapters", "16 adapters")
STEP_TITLE = "Where the time of a step goes, in milliseconds: 16 rows of one token each"


def main() -> None:
    """Parse arguments, run, write results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default 5)")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--no-peft", action="store_true", help="leave the PEFT baseline out")
    args = parser.parse_args()
    resolve_model(args.model)  # fetched here, where its progress is seen
    arms = OUR_ARMS if args.no_peft else (*OUR_ARMS, *PEFT_ARMS)
    with ending(), Field() as field:
        vocabulary = enter(field, args.model, args.dtype, not args.no_peft)
        found = measure(field, arms, vocabulary, args.rounds)
        single = measure_alone(field, NATIVE, vocabulary, args.rounds)
        who, alone = field.rows(), field.notes()
    rows, steps = summarise(found.speeds), where_time_goes(found.steps)
    print(report.table(rows), report.table(steps), report.table(who), *alone, sep="\n\n")
    workload = (
        f"{REQUESTS} concurrent requests, {PROMPT_TOKENS}±8 random prompt tokens, {NEW_TOKENS} new tokens "
        f"each, greedy; adapters of rank {RANK} on all linear layers; tokens a second for the whole "
        f"run, prefill included; median of {args.rounds} interleaved rounds after one warm-up round. Each "
        "contestant has a process of its own; while one works, the others wait in a read."
    )
    tables = {STEP_TITLE: steps}
    told = [*notes(found.speeds), *notes_alone(single), *alone]
    print(
        "written to",
        report.write("beside-peft", workload, rows, told, command="make bench", tables=tables, page="engine"),
    )


def enter(field: Field, model: str, dtype: str, peft: bool) -> int:
    """Start all contestants; returns the size of the vocabulary."""
    base = ("--model", model, "--dtype", dtype)
    native = ours("contestant_engine", *base, "--adapters", str(max(COUNTS)))
    about = field.start(Entry(NATIVE, native, SERVED, AS_SERVED))
    print(f"engine: {about['kernels']}, {about['dtype']}")
    field.start(Entry(EMPTY, ours("contestant_engine", *base), SERVED, AS_SERVED))
    twin = ours("contestant_engine", *base, "--adapters", "8", "--torch-operations")
    field.start(Entry(TORCH, twin, SERVED, AS_SERVED))
    if peft:
        command = ours("contestant_peft", "--model", model, "--dtype", about["dtype"])
        for name in (PLAIN, MIXED):
            field.start(Entry(name, command, why=AS_PEFT))
    return int(about["vocabulary"])


def summarise(speeds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """One row an arm."""
    return [{"arm": name, "tokens/s": median(v), "min": min(v), "max": max(v)} for name, v in speeds.items()]


def where_time_goes(steps: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """Milliseconds of a step with 16 rows of one token each, by part, for the arms whose engine tells."""
    arms = [arm for arm in STEP_ARMS if arm in steps]
    parts = list(steps[arms[0]][0]) if arms else []
    rows = [{"part": part} | {arm: median(s[part] for s in steps[arm]) for arm in arms} for part in parts]
    whole = {arm: median(sum(s.values()) for s in steps[arm]) for arm in arms}
    return [*rows, {"part": "whole step", **whole}] if arms else []


def notes(speeds: dict[str, list[float]]) -> list[str]:
    """The ratios that the targets speak of, each a median of ratios within a round."""

    def ratio(a: str, b: str, target: float, digits: int = 2) -> str:
        value = median(x / y for x, y in zip(speeds[a], speeds[b], strict=True))
        return f"{a} / {b}: {value:.{digits}f} (target {target}{'' if value >= target else ', missed'})"

    lines = [
        ratio("8 adapters", "no adapter", 0.88),
        ratio("16 adapters", "no adapter", 0.85),
        ratio("no adapter", "no adapter, none resident", 0.98),
    ]
    if MIXED_PEFT in speeds:
        lines += [
            ratio("8 adapters", MIXED_PEFT, 9, 1),
            ratio("no adapter", PLAIN_PEFT, 3.3, 1),
            ratio("8 adapters, torch operations", MIXED_PEFT, 2.5, 1),
        ]
    return lines


def notes_alone(shares: dict[int, list[float]]) -> list[str]:
    """How near one request alone comes to what memory allows."""
    what = {0: ("one request alone", 0.85), 1: ("one request alone, with an adapter", 0.8)}
    return [
        f"{what[n][0]}: a token in {1 / median(values):.2f} times what reading the weights takes, or "
        f"{median(values):.2f} of what memory allows "
        f"(target {what[n][1]}{'' if median(values) >= what[n][1] else ', missed'})"
        for n, values in shares.items()
    ]


if __name__ == "__main__":
    main()
