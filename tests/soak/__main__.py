"""Does a server grow? `python -m tests.soak --hours 8 | --minutes 10 [--engine fake|real] [--leak WHAT]`.

A server process, callers in a second one that check every answer, changes under both; samples every second.
Exit code 0 where nothing grew and every call ended as it should. Writes benchmarks/results/load.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import write
from tests.soak.alone import answers_alone
from tests.soak.experiment import begin_experiment, fill_store
from tests.soak.leaks import LEAKS
from tests.soak.sampling import sample, samples
from tests.soak.series import SHORT_SECONDS, Verdict, judged, least, sparkline
from tests.soak.server import Callers, Server, bad, rows, serving
from tests.soak.world import ALL, World

CLIENTS = 16
CROWD = 64  # clients of the warm-up, without pauses: every pool starts all its threads
PAUSE = {"fake": 0.05, "real": 0.0}  # mean seconds between two calls of a client
WARM = 0.2  # of the run, before it is looked at; no longer than:
WARM_SECONDS = 300.0
IDLE_SECONDS = 15.0  # nothing runs for so long, then as long is looked at what is there
TOLD_SECONDS = 10.0  # between two lines of progress


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run: what the detectors say, what became of the calls, and all samples under load."""

    verdicts: Sequence[Verdict]
    counts: Counter[str]
    problems: Sequence[str]
    samples: Sequence[dict[str, float]]
    seconds: float

    @property
    def good(self) -> bool:
        """Nothing grew, and no call ended as it should not."""
        return not bad(self.counts) and not any(verdict.grows for verdict in self.verdicts)

    @property
    def growing(self) -> list[str]:
        """Names of what grew."""
        return [verdict.name for verdict in self.verdicts if verdict.grows]

    def table(self) -> list[dict[str, Any]]:
        """Rows of the detectors, then of what is only shown."""
        found = [v.row([one[v.name] for one in self.samples]) for v in self.verdicts]
        for name in ("kv", "lag_ms"):
            values = [one[name] for one in self.samples]
            row = {"what": name, "first": values[0], "last": values[-1], "slope a minute": ""}
            found.append(
                {**row, "bound": "", "verdict": f"most {max(values):.3g}", "course": sparkline(values)}
            )
        return found


def soak(
    world: World, seconds: float, *, leak: str = "", idle: float = IDLE_SECONDS, quiet: bool = False
) -> Outcome:
    """One run of so long under load, after a warm-up."""
    world.lay_out()
    with serving(world, "--leak", leak) as server:
        if world.real:
            answers_alone(world, server)
        begin_experiment(world, server)
        if seconds >= SHORT_SECONDS:
            fill_store(world, server)
        flags = ("--clients", CLIENTS, "--pause", PAUSE["real" if world.real else "fake"], "--changes")
        warm = Callers.begin(world, server, "--clients", CROWD, "--changes")
        time.sleep(min(WARM * seconds, WARM_SECONDS))
        warm.end()
        before = _idle(server, idle)
        callers, began = Callers.begin(world, server, *flags), time.monotonic()
        taken = _watched(server, callers, seconds, quiet)
        callers.end()
        took = time.monotonic() - began
        after = _idle(server, idle)
        code = server.stop()
    counts, problems = warm.counts + callers.counts, [*warm.problems, *callers.problems]
    if code:
        counts["shutdown error"] += 1
        problems.append(f"the server ended with {code}")
    return Outcome(judged(taken, before, after, len(ALL)), counts, problems, taken, took)


def _idle(server: Server, seconds: float) -> dict[str, float]:
    time.sleep(seconds)
    return least(samples(server, seconds))


def _watched(server: Server, callers: Callers, seconds: float, quiet: bool) -> list[dict[str, float]]:
    began = told = time.monotonic()
    taken: list[dict[str, float]] = []
    while (now := time.monotonic()) < began + seconds:
        if callers.process.poll() is not None:
            raise RuntimeError("the callers have ended")
        taken.append(sample(server))
        if not quiet and now >= told + TOLD_SECONDS:
            told = now
            last = taken[-1]
            print(
                f"{now - began:6.0f} s  {callers.counts.total()} calls, {bad(callers.counts)} bad;"
                f" {last['rss_mb']:.1f} MB, {last['fds']:.0f} fds, {last['threads']:.0f} threads,"
                f" {last['tasks']:.0f} tasks, {last['leases']:.0f} leases, lag {last['lag_ms']:.0f} ms",
                flush=True,
            )
        time.sleep(max(0.0, now + 1.0 - time.monotonic()))
    return taken


def report(outcome: Outcome, engine: str) -> Path:
    """Write the page."""
    calls = outcome.counts.total()
    text = (
        f"{outcome.seconds / 60:.1f} minutes on the {engine} engine, {CLIENTS} clients of three tenants: "
        f"{calls} calls, {bad(outcome.counts)} of which ended as they should not."
    )
    notes = [
        "`retried`: calls whose end was not known, made again under the same id; in their column beside.",
        *outcome.problems,
    ]
    return write("soak", text, outcome.table(), notes, page="load")


def main() -> int:
    """Run, write, and say by the exit code whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=0.0)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--engine", choices=("fake", "real"), default="fake")
    parser.add_argument(
        "--leak", choices=tuple(LEAKS), default="", help="leak this on purpose; no page is written"
    )
    parser.add_argument("--keep", type=Path, help="work in this folder, which must not exist, and keep it")
    options = parser.parse_args()
    seconds = options.hours * 3600 + options.minutes * 60 or 600.0
    with tempfile.TemporaryDirectory() as folder:
        world = World(options.keep or Path(folder) / "world", options.engine == "real")
        outcome = soak(world, seconds, leak=options.leak)
    for row in (*outcome.table(), *rows(outcome.counts)):
        print(row)
    print(*outcome.problems, sep="\n")
    if not options.leak:
        print(report(outcome, options.engine))
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
