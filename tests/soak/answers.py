"""Is every answer its caller's? `python -m tests.soak.answers --count 1000000 [--engine fake|real]`.

Several processes of callers ask through gRPC while adapters are loaded, unloaded and replaced, clients come
and go and bad folders are dropped. On the fake engine an answer names tenant, response, adapter files and
prompt; on the real base it must be the one that the same weights gave to the same prompt alone. Exit code 0
where all are right. Writes benchmarks/results/load.md.
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

import psutil

from benchmarks.report import write
from tests.soak.alone import answers_alone
from tests.soak.experiment import begin_experiment
from tests.soak.server import Callers, Server, bad, rows, serving, together
from tests.soak.world import World

PROCESSES, CLIENTS = 2, 32  # of all processes together
TOLD_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it went. `reasons`: why answers came from where they came."""

    counts: Counter[str]
    reasons: Counter[str]
    problems: Sequence[str]
    seconds: float
    server_seconds: float  # of a processor
    contents: int  # adapter files that were served
    alone: int  # answers that a real base gave alone
    alike: float  # share of pairs of those with the same text: so many mix-ups would not be seen

    @property
    def answers(self) -> int:
        """Whole answers that were looked at."""
        return self.reasons.total()


def answers(
    world: World, count: int, *fake: str, processes: int = PROCESSES, clients: int = CLIENTS
) -> Outcome:
    """Check so many answers, or a few more; `fake` are flags of `serve`."""
    world.lay_out()
    with serving(world, "--step", "0.001", "--joint", *fake) as server:
        alone = answers_alone(world, server) if world.real else {}
        begin_experiment(world, server)
        began, used = time.monotonic(), _used(server)
        flags = ("--mix", "answers", "--clients", clients // processes, "--count", -(-count // processes))
        running = [
            Callers.begin(
                world,
                server,
                *flags,
                "--first",
                number * clients // processes,
                *(["--changes"] * (number == 0)),
            )
            for number in range(processes)
        ]
        _follow(running, count, began)
        took, used = time.monotonic() - began, _used(server) - used
    counts, problems = together(running)
    reasons: Counter[str] = sum((one.reasons for one in running), Counter())
    world.journal.read()
    written = world.journal.path.read_text().count('"kind": "content"')
    return Outcome(counts, reasons, problems, took, used, written, len(alone), alike(list(alone.values())))


def alike(texts: Sequence[str]) -> float:
    """The share of pairs with the same text."""
    pairs = len(texts) * (len(texts) - 1)
    return sum(n * (n - 1) for n in Counter(texts).values()) / pairs if pairs else 0.0


def _follow(running: Sequence[Callers], count: int, began: float) -> None:
    while any(callers.process.poll() is None for callers in running):
        time.sleep(TOLD_SECONDS)
        counts, _ = together(running)
        asked = sum(one.reasons.total() for one in running)
        print(f"{time.monotonic() - began:6.0f} s  {asked} of {count} answers, {bad(counts)} bad", flush=True)
    for callers in running:
        callers.join(1)


def _used(server: Server) -> float:
    times = psutil.Process(server.process.pid).cpu_times()
    return float(times.user + times.system)


def report(outcome: Outcome, engine: str, clients: int) -> Path:
    """Write the page."""
    text = (
        f"{outcome.answers} answers of the {engine} engine through gRPC to {clients} clients of 3 tenants "
        f"in {outcome.seconds:.0f} s ({outcome.answers / outcome.seconds:.0f}/s), {outcome.contents} folders "
        f"of adapters served one after the other: {bad(outcome.counts)} calls ended as they should not."
    )
    why = ", ".join(f"{name} {number}" for name, number in outcome.reasons.most_common())
    notes = [
        f"Why answers came from where they came: {why}.",
        f"Processor time of the server: {outcome.server_seconds / outcome.answers * 1e3:.2f} ms an answer.",
        "`refused`: as it should be: hidden adapters, a quota, a client that was taken out.",
    ]
    if outcome.alone:
        notes.append(
            f"{outcome.alone} answers were taken alone; {outcome.alike:.1%} of pairs are alike: "
            "one in place of the other would not be seen."
        )
    return write(
        f"answers-{engine}" if engine == "real" else "answers",
        text,
        rows(outcome.counts),
        [*notes, *outcome.problems],
        page="load",
    )


def main() -> int:
    """Run, write, and say by the exit code whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=0, help="default: 1,000,000, on the real base 20,000")
    parser.add_argument("--engine", choices=("fake", "real"), default="fake")
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--keep", type=Path, help="work in this folder, which must not exist, and keep it")
    options = parser.parse_args()
    real = options.engine == "real"
    count = options.count or (20_000 if real else 1_000_000)
    with tempfile.TemporaryDirectory() as folder:
        outcome = answers(
            World(options.keep or Path(folder) / "world", real),
            count,
            processes=options.processes,
            clients=options.clients,
        )
    print(report(outcome, options.engine, options.clients).read_text())
    return 1 if bad(outcome.counts) else 0


if __name__ == "__main__":
    sys.exit(main())
