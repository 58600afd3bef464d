"""Long prompts: `python -m benchmarks.long_prompts`.

How fast one prompt of thousands of tokens is read, by this engine and by transformers with its scaled dot
product attention, each in a process of its own, interleaved; and what a stream beside such a prompt notices.
"""

from __future__ import annotations

import argparse
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.answering import prompts
from benchmarks.contestants import Entry, Field, ending, ours, told
from benchmarks.engine import AS_PEFT, AS_SERVED, SERVED
from router.models import resolve_model

OURS, THEIRS = "lora-router", "transformers"
LENGTHS = {4000: 1900, 7900: 1350}  # tokens of a prompt, and tokens a second that are to be reached
STREAM_TOKENS = 4000  # of the stream at most: it is left as soon as the prompt beside it is read


def main() -> None:
    """Parse arguments, run, write results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds (default 3)")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    args = parser.parse_args()
    resolve_model(args.model)
    with ending(), Field() as field:
        vocabulary, dtype = enter(field, args.model)
        speeds, gaps = measure(field, vocabulary, args.rounds)
        who, alone = field.rows(), field.notes()
    rows = [
        {
            "prompt": length,
            **{f"{name}, tokens/s": median(speeds[name, length]) for name in (OURS, THEIRS)},
            "gap alone, ms": 1e3 * median(median(g["usual"]) for g in gaps[length]),
            "gap beside, ms": 1e3 * median(median(g["beside"]) for g in gaps[length]),
            "longest beside, ms": 1e3 * median(max(g["beside"]) for g in gaps[length]),
            "longest / usual beside": median(max(g["beside"]) / median(g["beside"]) for g in gaps[length]),
        }
        for length in LENGTHS
    ]
    print(report.table(rows), *alone, sep="\n\n")
    workload = (
        f"one prompt of random tokens, one new token, {dtype}; the gap: from token to token of one stream, "
        "alone and while the prompt is read beside it in chunks of at most max_step_tokens; "
        f"median of {args.rounds} rounds."
    )
    notes = [*verdicts(rows), *alone]
    tables = {"Contestants": who}
    print("written to", report.write("long-prompts", workload, rows, notes, tables=tables))


def enter(field: Field, model: str) -> tuple[int, str]:
    """Start both; returns the size of the vocabulary and the dtype."""
    about = field.start(Entry(OURS, ours("contestant_engine", "--model", model), SERVED, AS_SERVED))
    dtype = str(about["dtype"])
    command = ours("contestant_peft", "--model", model, "--dtype", dtype, "--adapters", "1")
    field.start(Entry(THEIRS, command, why=AS_PEFT))
    return int(about["vocabulary"]), dtype


def measure(
    field: Field, vocabulary: int, rounds: int
) -> tuple[dict[tuple[str, int], list[float]], dict[int, list[dict[str, list[float]]]]]:
    """Tokens a second by contestant and length, and gaps by length; the first round is warm-up."""
    speeds: dict[tuple[str, int], list[float]] = {
        (n, length): [] for n in (OURS, THEIRS) for length in LENGTHS
    }
    gaps: dict[int, list[dict[str, list[float]]]] = {length: [] for length in LENGTHS}
    with told("rounds", (rounds + 1) * len(LENGTHS) * 3) as step:
        for run in range(rounds + 1):
            for length in LENGTHS:
                for name in (OURS, THEIRS):
                    step(f"round {run} of {rounds}: {name}, {length} tokens")
                    work: dict[str, Any] = {
                        "prompts": [long(vocabulary, run, length)],
                        "new": 1,
                        "adapters": 0,
                    }
                    seconds = field.ask(name, work)["seconds"]
                    speeds[name, length] += [length / seconds] * bool(run)
                step(f"round {run} of {rounds}: a stream beside {length} tokens")
                both = [long(vocabulary, run + 100, 90), long(vocabulary, run + 200, length)]
                gap = field.ask(OURS, {"prompts": both, "new": STREAM_TOKENS, "adapters": 0, "beside": True})
                gaps[length] += [gap] * bool(run)
    return speeds, gaps


def long(vocabulary: int, seed: int, length: int) -> list[int]:
    """Random tokens that nobody has seen."""
    pieces = prompts(vocabulary, seed=1000 + seed, count=length // 80 + 1)
    return [token for piece in pieces for token in piece][:length]


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """What was to be reached."""

    def said(what: str, value: float, target: float, good: bool) -> str:
        return f"{what}: {value:,.4g} (target {target:,}{'' if good else ', missed'})"

    lines = []
    for row in rows:
        length = row["prompt"]
        speed, gap = row[f"{OURS}, tokens/s"], row["longest / usual beside"]
        lines.append(said(f"{length:,} tokens, tokens/s", speed, LENGTHS[length], speed >= LENGTHS[length]))
        lines.append(
            said(f"beside {length:,} tokens, the longest gap / the usual one there", gap, 2, gap < 2)
        )
    return lines


if __name__ == "__main__":
    main()
