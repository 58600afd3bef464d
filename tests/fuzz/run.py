"""`make fuzz`: every target for some seconds, a line of progress, a table: `python -m tests.fuzz.run`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from typing import Any

from benchmarks.report import table, write
from tests.fuzz import rpcs
from tests.fuzz.engines import Tally, by_atheris, by_hypothesis, by_random, keep
from tests.fuzz.targets import TARGETS, Target

RPCS = "rpcs"
TELL_SECONDS = 15.0


def run(target: Target, seconds: float, engine: str) -> Tally:
    """Fuzz one, with a line that says how far it is."""
    if engine == "atheris":
        return by_atheris(target, seconds)
    tally, told = Tally(), 0.0
    for tally in (by_hypothesis if engine == "hypothesis" else by_random)(target, seconds):
        if tally.seconds - told > TELL_SECONDS:
            told = tally.seconds
            line = f"{target.name}: {tally.inputs} inputs in {told:.0f} s, {len(tally.found)} findings"
            print(line, file=sys.stderr, flush=True)
    return tally


def row(name: str, tally: Tally) -> dict[str, Any]:
    """Of the table."""
    return {
        "target": name,
        "inputs": tally.inputs,
        "seconds": round(tally.seconds, 1),
        "inputs/s": round(tally.inputs / max(tally.seconds, 1e-9)),
        "slowest ms": round(1000 * tally.slowest, 1),
        "findings": len(tally.found),
    }


def tell(name: str, tally: Tally) -> None:
    """What is wrong, with the trace."""
    for attempt, data in tally.found.values():
        print(f"\n{name}: {attempt.wrong}\ninput: {data[:200]!r}\n{attempt.trace}", file=sys.stderr)


def main() -> int:
    """Returns 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", help=f"of {', '.join((*TARGETS, RPCS))}; default: all")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each target")
    parser.add_argument("--engine", choices=("hypothesis", "random", "atheris"), default="hypothesis")
    said = parser.parse_args()
    if unknown := set(said.targets) - {*TARGETS, RPCS}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    logging.getLogger("router").setLevel(
        logging.CRITICAL
    )  # a log line for each input would take longer than it
    rows, found = [], 0
    for name in said.targets or (*TARGETS, RPCS):
        if name == RPCS:
            tally = asyncio.run(rpcs.for_seconds(said.seconds))
        else:
            tally = run(TARGETS[name], said.seconds, said.engine)
            keep(TARGETS[name], tally)
        rows.append(row(name, tally))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
        tell(name, tally)
        found += len(tally.found)
    if not said.targets:
        notes = ["Written by `make fuzz`; what was found is kept in `tests/fuzz/corpus`."]
        print(write("fuzz", f"{said.engine}, {said.seconds:g} s for each target.", rows, notes, page="load"))
    return min(found, 1)


if __name__ == "__main__":
    sys.exit(main())
