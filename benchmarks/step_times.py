"""`python -m benchmarks.step_times`: what a step of this engine costs, for the simulations of fleets.

On the real base: answers and adapters in all mixtures of a grid, prompts that are read on the way, and
loads of adapters beside running answers. A straight line is laid through the times
(benchmarks/fleet_model.py, Costs) and written to benchmarks/results/step-times.json, which the simulations
read. Then the engine answers closed loops of clients, and a simulation of it is asked for the same: how far
it is off is what it is worth.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.answering import NEW_TOKENS, PROMPT_TOKENS, RANK, prompts
from benchmarks.fleet_model import STEP_TIMES, Costs, Shape, Simulation, outcome
from benchmarks.fleet_policies import RoundRobin
from router.engine.base import Delta, Finished, Job
from router.types import AdapterRef, SamplingParams

ROWS, BETWEEN = (1, 4, 8, 16, 32), (0, 1, 4, 8, 16, 32)
ADAPTERS, IN_MEMORY = 48, 24  # on disk, and where memory is short
WITHIN = 0.15  # what the simulation may be off by
IDLE = 0.005  # seconds without a step: nothing was to be done
GRID_TOKENS, LONG = 24, 900  # tokens of an answer in the grid, and while adapters are loaded
LOADS = 40
WARM = 12.0  # seconds of a closed loop that do not count: longer than an answer takes
CHECKS = {  # clients, adapters, how many of them have place in memory
    "few adapters": (8, 4, ADAPTERS),
    "all rows, adapters come and go": (32, ADAPTERS, IN_MEMORY),
    "more clients than rows": (48, 16, ADAPTERS),
}


@dataclass(frozen=True, slots=True)
class Step:
    """What was in it, and what it took until the next one could begin."""

    answers: int
    adapters: int
    prompt: int
    seconds: float


@dataclass
class Watch:
    """Every step of an engine, as its loop makes it."""

    engine: Any
    tokens: int = 0  # that were sampled
    seen: list[tuple[float, float, int, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        loop = self.engine._loop
        made = loop.step

        def step(chunks: Sequence[Any]) -> Any:
            answers = sum(chunk.count == 1 for chunk in chunks)
            prompt = sum(chunk.count for chunk in chunks) - answers
            adapters = len({chunk.adapter for chunk in chunks} - {None})
            began = time.perf_counter()
            events = made(chunks)
            self.tokens += sum(chunk.samples for chunk in chunks)
            self.seen.append((began, time.perf_counter(), answers, adapters, prompt))
            return events

        loop.step = step

    def taken(self) -> list[Step]:
        """Those since this was last asked."""
        seen, self.seen = self.seen, []
        steps = []
        for this, following in pairwise([*seen, (float("inf"),) * 2 + (0,) * 3]):
            began, ended, answers, adapters, prompt = this
            until = following[0] if following[0] - ended < IDLE else ended
            steps.append(Step(answers, adapters, prompt, until - began))
        return steps


def fit(steps: Sequence[Step]) -> tuple[dict[str, float], float]:
    """Seconds for a step, an answer, an adapter, a token of a prompt; and by how much of a step that is off,
    in the median. Steps of a kind count once, with their median; all in relation to what they take.
    """
    kinds = defaultdict(list)
    for step in steps:
        kinds[step.answers, step.adapters, step.prompt].append(step.seconds)
    found = [(1, *kind, median(times)) for kind, times in kinds.items() if len(times) > 2 or kind[2]]
    table = np.array(found, dtype=float)
    times = table[:, -1]
    weighted = table[:, :-1] / times[:, None]
    solved, *_ = np.linalg.lstsq(weighted, np.ones(len(times)), rcond=None)
    off = float(np.median(np.abs(weighted @ solved - 1)))
    return dict(zip(("base", "row", "adapter", "token"), map(float, solved), strict=True)), off


class Bench:
    """An engine with adapters in folders, and a registry that brings them."""

    def __init__(self, engine: Any, folder: Path, watch: Watch) -> None:
        self.engine, self.folder, self.watch = engine, folder, watch
        self.size = 0  # bytes of an adapter in memory, once some are there

    def registry(self, adapters: int) -> Any:
        """One with memory for so many."""
        from router.registry.registry import Registry, RegistryOptions

        size = self.size or 2 * (self.folder / "adapters/0/adapter_model.safetensors").stat().st_size
        options = RegistryOptions(
            host_memory_bytes=int(size * (adapters + 0.5)), preload=False, state_dir=self.folder / "state"
        )
        return Registry(self.engine, [self.folder / "adapters"], options)

    async def answer(self, tokens: Sequence[int], digest: str | None, new: int = NEW_TOKENS) -> float:
        """One, whole; returns when its first token came."""
        params, first = SamplingParams(max_tokens=new, min_tokens=new), 0.0
        async for event in self.engine.submit(Job("r", tokens, params, digest)):
            if isinstance(event, Delta | Finished):
                first = first or time.perf_counter()
        return first

    async def grid(self, registry: Any, rounds: int) -> list[Step]:
        """All mixtures of answers and adapters, in turn."""
        steps: list[Step] = []
        vocabulary = self.engine.info.vocab_size
        for number in range(rounds):
            for rows in ROWS:
                for adapters in (count for count in BETWEEN if count <= rows):
                    asked = prompts(vocabulary, (number * 100 + rows) * 100 + adapters, rows)
                    steps += await self.mixture(registry, asked, adapters)
        return steps

    async def mixture(self, registry: Any, asked: Sequence[list[int]], adapters: int) -> list[Step]:
        """So many answers at once, dealt to so many adapters."""
        async with AsyncExitStack() as stack:
            leases = [registry.lease(AdapterRef(str(i), "0")) for i in range(adapters)]
            digests = [(await stack.enter_async_context(lease)).digest for lease in leases] or [None]
            self.watch.taken()
            answers = (self.answer(p, digests[i % len(digests)], GRID_TOKENS) for i, p in enumerate(asked))
            await asyncio.gather(*answers)
        return self.watch.taken()

    async def loads(self) -> tuple[float, float]:
        """Seconds of a load beside 16 answers, and how much longer it makes their steps, all together."""
        registry = self.registry(IN_MEMORY)
        await registry.start()
        asked = prompts(self.engine.info.vocab_size, 7, 16)
        answers = [asyncio.create_task(self.answer(prompt, None, LONG)) for prompt in asked]
        usual: list[float] = []
        while len(usual) < 50:
            await asyncio.sleep(0.25)
            usual += [step.seconds for step in self.watch.taken() if step.answers == len(answers)]
        times = []
        for number in range(LOADS):
            began = time.perf_counter()
            async with registry.lease(AdapterRef(str(number % ADAPTERS), "0")):
                times.append(time.perf_counter() - began)
        steps = self.watch.taken()
        for task in answers:
            task.cancel()
        await asyncio.wait(answers)
        await registry.close()
        held = (sum(step.seconds for step in steps) - len(steps) * median(usual)) / LOADS
        return median(times), max(0.0, held)

    async def closed_loop(self, clients: int, adapters: int, memory: int, seconds: float) -> dict[str, float]:
        """What clients get who ask one after the other, by Zipf's law."""
        registry, draw = self.registry(memory), random.Random(3)
        await registry.start()
        names = [str(i) for i in range(adapters)]
        weights = [1 / (i + 1) for i in range(adapters)]
        vocabulary, firsts, found = self.engine.info.vocab_size, list[float](), [0, 0]
        began = time.perf_counter()
        counts_from, end = began + WARM, began + WARM + seconds

        async def client(number: int) -> None:
            asked = 0
            while (now := time.perf_counter()) < end:
                (name,) = draw.choices(names, weights)
                (tokens,) = prompts(vocabulary, number * 1000 + asked, 1)
                asked += 1
                cold = registry.resolve(name).state.value != "ready"
                async with registry.lease(AdapterRef(name, "0")) as lease:
                    first = await self.answer(tokens, lease.digest)
                if now >= counts_from:
                    firsts.append(first - now)
                    found[cold] += 1

        async def look() -> int:
            await asyncio.sleep(WARM)
            before = self.watch.tokens
            await asyncio.sleep(seconds)
            return self.watch.tokens - before

        looking = asyncio.create_task(look())
        await asyncio.gather(*(client(number) for number in range(clients)))
        tokens = await looking
        await registry.close()
        if not firsts:
            raise SystemExit(f"nobody was answered within {seconds:g} s: others use this machine")
        firsts.sort()
        return {
            "tokens/s": tokens / seconds,
            "in memory": found[0] / max(1, sum(found)),
            "first ms": 1e3 * firsts[len(firsts) // 2],
        }


def predicted(costs: Costs, clients: int, adapters: int, memory: int, seconds: float) -> dict[str, float]:
    """The same clients in the simulation."""
    shape = Shape(adapters=adapters, replicas=1, memory=memory, prompt=PROMPT_TOKENS, answer=NEW_TOKENS)
    simulation = Simulation([RoundRobin()], shape, costs, 3)
    simulation.run(clients, WARM, max(seconds, 60.0))
    told = outcome(simulation, max(seconds, 60.0))
    return {
        "tokens/s": told["tokens/s"],
        "in memory": told["in memory"],
        "first ms": told["first token p50 ms"],
    }


async def measure(
    args: argparse.Namespace, engine: Any, folder: Path
) -> tuple[Costs, float, list[dict[str, Any]]]:
    """The costs, how far the line is off, and the check."""
    bench = Bench(engine, folder, Watch(engine))
    registry = bench.registry(ADAPTERS)
    await registry.start()
    await bench.mixture(
        registry, prompts(engine.info.vocab_size, 1, max(ROWS)), max(BETWEEN)
    )  # caches, kernels
    steps = await bench.grid(registry, args.rounds)
    status = engine.status()
    bench.size = status.host_bytes // len(status.host_adapters)
    await registry.close()
    load, held = await bench.loads()
    line, off = fit(steps)
    if min(line.values()) <= 0:
        raise SystemExit(f"no line fits these times, others use this machine: {line}")
    costs = Costs(line["base"], line["row"], line["adapter"], line["token"], load, held)
    rows = []
    for what, (clients, adapters, memory) in CHECKS.items():
        real = await bench.closed_loop(clients, adapters, memory, args.seconds)
        said = predicted(costs, clients, adapters, memory, args.seconds)
        rows.append(compared(what, clients, adapters, memory, real, said))
        print(rows[-1])
    return costs, off, rows


def compared(
    what: str, clients: int, adapters: int, memory: int, real: dict[str, float], said: dict[str, float]
) -> dict[str, Any]:
    """A line of the check."""
    row: dict[str, Any] = {
        "closed loop": what,
        "clients": clients,
        "adapters": adapters,
        "in memory at most": min(adapters, memory),
    }
    for name in real:
        row |= {f"{name}, measured": real[name], f"{name}, simulated": said[name]}
    return row | {"off by": said["tokens/s"] / real["tokens/s"] - 1}


def main() -> None:
    """Measure, fit, check, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=16.0, help="of each closed loop")
    parser.add_argument("--no-write", action="store_true")
    args = parser.parse_args()
    os.environ.setdefault(
        "GOMP_SPINCOUNT", "10000"
    )  # as `lora-router serve` sets it, before torch is imported
    from benchmarks.workload import start, write_adapters

    engine = start("smollm2-135m-instruct", "auto", native=True)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        (folder / "adapters").mkdir()
        write_adapters(folder / "adapters", ADAPTERS, RANK, dict(engine.info.sites))
        costs, off, rows = asyncio.run(measure(args, engine, folder))
    about = f"{engine.info.kernels}, {engine.info.precision}"
    engine.close()
    table = [{"what": name, "ms": 1e3 * value} for name, value in asdict(costs).items() if name != "source"]
    print(report.table(table), report.table(rows), f"the line is off by {off:.3f} in the median", sep="\n\n")
    if not args.no_write:
        write(costs, off, table, rows, args, about)
    worst = max(abs(row["off by"]) for row in rows)
    print(
        f"the simulation is off by up to {worst:.2f} (may be {WITHIN}{'' if worst <= WITHIN else ', missed'})"
    )


def write(
    costs: Costs, off: float, table: list[dict[str, Any]], rows: list[dict[str, Any]], args: Any, about: str
) -> None:
    """What simulations read, and what people read."""
    values = {name: value for name, value in asdict(costs).items() if name != "source"}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    said = {"costs": values, "date": now, "hardware": report.hardware(), "engine": about, "off": off}
    STEP_TIMES.write_text(json.dumps(said, indent=1) + "\n")
    worst = max(abs(row["off by"]) for row in rows)
    notes = [
        "a step: `base`, and `row` for each answer in it, `adapter` for each adapter among them, `token` "
        "for each token of a prompt; `load`: from a folder to memory beside 16 answers, `held`: what that "
        "adds to their steps",
        f"the line is off by {off:.3f} of a step in the median of its kinds",
        f"tokens a second of the simulation are off by up to {worst:.2f} (may be {WITHIN})",
        f"engine: {about}",
    ]
    workload = (
        f"The real base: {ROWS} answers with {BETWEEN} adapters of rank {RANK}, prompts of "
        f"{PROMPT_TOKENS}±8 and answers of {NEW_TOKENS} tokens, {args.rounds} rounds after one of warm-up; "
        f"closed loops of {args.seconds:g} s, Zipf's law."
    )
    tables = {"Does the simulation say what the engine does?": rows}
    print(report.write("step-times", workload, table, notes, tables=tables, page="scale"))


if __name__ == "__main__":
    main()
