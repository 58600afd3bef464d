"""Who makes inputs: hypothesis, which makes small what it finds; plain random numbers, which are fast; or
atheris, which looks for new code paths.

Atheris is no dependency: `make fuzz FUZZER=atheris` installs it in a folder of its own.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import hypothesis
from hypothesis import strategies as st

from tests.fuzz.targets import CORPUS, ROOT, Attempt, Target, tried

BATCH = 500
MOST_SEEDS = 1_000


@dataclass
class Tally:
    """What a run came to: `found` has the smallest input of each kind of fault."""

    inputs: int = 0
    seconds: float = 0.0
    slowest: float = 0.0  # seconds of processor time
    found: dict[str, tuple[Attempt, bytes]] = field(default_factory=dict)

    def add(self, data: bytes, attempt: Attempt) -> bool:
        """Count it; whether it is a fault that was not known."""
        self.inputs += 1
        self.slowest = max(self.slowest, attempt.seconds)
        known = self.found.get(attempt.kind)
        new = bool(attempt.wrong) and (known is None or len(data) < len(known[1]))
        if new:
            self.found[attempt.kind] = attempt, data
        return new and known is None


def strategy(target: Target) -> st.SearchStrategy[bytes]:
    """Changed seeds, and bytes as they come."""
    random = st.randoms(use_true_random=False)
    changed = st.builds(target.change, st.sampled_from(target.seeds()), random)
    return changed | changed | st.binary(max_size=200)


def by_hypothesis(target: Target, seconds: float) -> Iterator[Tally]:
    """Fuzz for so long; yields the tally so far, once a batch."""
    tally, start = Tally(), time.monotonic()
    while tally.seconds < seconds:
        _batch(target, tally)
        tally.seconds = time.monotonic() - start
        yield tally


def by_random(target: Target, seconds: float) -> Iterator[Tally]:
    """The same by changing seeds, and a part of what was made of them."""
    tally, start, random = Tally(), time.monotonic(), Random()
    seeds = target.seeds()
    first = len(seeds)
    while tally.seconds < seconds:
        for _ in range(BATCH):
            data = target.change(random.choice(seeds), random)
            tally.add(data, tried(target, data))
            if random.randint(0, 9) == 0:
                if len(seeds) < MOST_SEEDS:
                    seeds.append(data)
                else:
                    seeds[random.randrange(first, MOST_SEEDS)] = data
        tally.seconds = time.monotonic() - start
        yield tally


def _batch(target: Target, tally: Tally) -> None:
    @hypothesis.seed(time.time_ns())
    @hypothesis.settings(
        max_examples=BATCH,
        database=None,
        derandomize=False,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
        verbosity=hypothesis.Verbosity.quiet,
    )
    @hypothesis.given(strategy(target))
    def run(data: bytes) -> None:
        found = tried(target, data)
        if tally.add(data, found) or (found.wrong and tally.found[found.kind][0] is found):
            raise AssertionError(found.wrong)  # tells hypothesis to look for a smaller one

    try:
        run()
    except AssertionError:
        return  # it stands in the tally
    except BaseExceptionGroup:
        return  # several of them do


def keep(target: Target, tally: Tally) -> list[Path]:
    """Write what was found into the target's corpus; returns the files."""
    folder = CORPUS / target.name
    kept = []
    for _, data in tally.found.values():
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / hashlib.sha256(data).hexdigest()[:12]
        path.write_bytes(data)
        kept.append(path)
    return kept


def by_atheris(target: Target, seconds: float) -> Tally:
    """Fuzz for so long in a process of its own, in which the parsers are instrumented."""
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "tally.json"
        command = [sys.executable, "-m", "tests.fuzz.guided", target.name, f"{seconds:g}", folder, str(said)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if not said.exists():
            raise RuntimeError(f"atheris ended with {done.returncode}: {done.stderr[-2000:]}")
        from tests.fuzz.guided import read

        return read(said)
