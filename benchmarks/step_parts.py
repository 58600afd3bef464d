"""`python -m benchmarks.step_parts`: where a step's time outside the native computation goes.

16 answers of the default base, each step one token of each. The engine's parts are wrapped with stamps of a
clock from here; the engine itself keeps no times. What a part calls that has a name of its own counts there.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Callable, Sequence
from functools import wraps
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.answering import NEW_TOKENS, PROMPT_TOKENS, RANK, REQUESTS, prompts

COMPUTING = "native computation"
CALL, CHOOSING, REST = "native call, beside it", "choose: native", "the loop itself"
PARTS = (
    "commands, deadlines",
    "schedule",
    "drafts",
    "plan",
    CALL,
    "choose",
    CHOOSING,
    "accept",
    "hand over",
    REST,
)
BESIDE = ("processor: event loop", "processor: dispatcher")  # of those threads, while the engine computes
ARMS: dict[str, tuple[int, dict[str, Any]]] = {  # adapters, and how tokens are chosen
    "no adapter": (0, {}),
    "8 adapters": (8, {}),
    "8 adapters, drawn": (8, {"temperature": 0.8, "seed": 1}),
    "8 adapters, drawn with top_p": (8, {"temperature": 0.8, "seed": 1, "top_p": 0.9}),
}


class Stopwatch:
    """Nanoseconds of each part of the steps in which `rows` answers get a token each."""

    def __init__(self, engine: Any, rows: int) -> None:
        self.steps: list[dict[str, int]] = []
        self._rows, self._decodes = rows, False
        self._open: list[str] = [REST]
        self._spent = dict.fromkeys((COMPUTING, *PARTS), 0)
        self._last = time.perf_counter_ns()
        self._watch(engine)

    def _watch(self, engine: Any) -> None:
        loop = engine._loop
        scheduler, runner, sampler = loop._scheduler, loop._runner, loop._sampler
        inside = {
            "commands, deadlines": [(loop, "_take_inbox"), (scheduler, "expired")],
            "schedule": [(scheduler, "schedule")],
            "plan": [(runner, "_planner.plan"), (runner, "_lora_step")],
            CALL: [(runner, "run")],
            "choose": [(loop, "_sampled")],
            CHOOSING: [(sampler, "_choose")],
            "hand over": [(loop, "_send")],
        }
        if loop._speculation is not None:
            inside["drafts"] = [(loop._speculation, "add"), (loop._speculation, "took")]
        for part, functions in inside.items():
            for owner, name in functions:
                *path, last = name.split(".")
                for step in path:
                    owner = getattr(owner, step)
                setattr(owner, last, self.around(part, getattr(owner, last)))
        loop.step = self._step(self.around("accept", loop.step))
        engine.stack._run = _Timed(engine.stack._run, self)
        loop._turn = self._turn(loop._turn)

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time is that part's."""

        @wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            self.mark()
            self._open.append(part)
            try:
                return function(*arguments, **named)
            finally:
                self.mark()
                self._open.pop()

        return timed

    def mark(self) -> None:
        """What passed since the last mark is the open part's."""
        now = time.perf_counter_ns()
        self._spent[self._open[-1]] += now - self._last
        self._last = now

    def computed(self, seconds: float) -> None:
        """So much of the open part was computation. Marks."""
        self.mark()
        computing = int(1e9 * seconds)
        self._spent[self._open[-1]] -= computing
        self._spent[COMPUTING] += computing

    def skip(self) -> None:
        """What passed since the last mark was the measurement's own."""
        self._last = time.perf_counter_ns()

    def _step(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def step(chunks: Sequence[Any]) -> Any:
            self._decodes = len(chunks) == self._rows == sum(chunk.count for chunk in chunks)
            self.skip()
            return function(chunks)

        return step

    def _turn(self, function: Callable[[], None]) -> Callable[[], None]:
        def turn() -> None:
            self._decodes = False
            function()
            self.mark()
            if self._decodes:
                self.steps.append(self._spent)
            self._spent = dict.fromkeys(self._spent, 0)
            self.skip()

        return turn


class _Timed:
    """The native layers of a step."""

    def __init__(self, run: Any, watch: Stopwatch) -> None:
        self._run, self._watch = run, watch
        self._forward = watch.around(CALL, self._timed)

    def forward(self, *arguments: Any) -> Any:
        return self._forward(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def _timed(self, *arguments: Any) -> Any:
        logits = self._run.forward(*arguments)
        self._watch.mark()
        seconds = sum(spent for decode in (True, False) for _, spent in self._run.spent(decode)[0])
        self._watch.skip()
        self._watch.computed(seconds)
        return logits


def processor(ident: int) -> int:
    """Nanoseconds of processor that a thread has used."""
    return time.clock_gettime_ns(time.pthread_getcpuclockid(ident))


def measure(engine: Any, adapters: Sequence[str], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a step by part, for each arm; the arms in turn."""
    from benchmarks.workload import run_jobs
    from router.engine.base import Job
    from router.types import SamplingParams

    watch = Stopwatch(engine, REQUESTS)
    found: dict[str, list[dict[str, int]]] = {arm: [] for arm in ARMS}
    beside: dict[str, list[list[float]]] = {arm: [] for arm in ARMS}
    with asyncio.Runner() as runner:
        threads = (runner.run(_ident()), engine._loop._dispatcher._thread.ident)
        for number in range(rounds + 1):
            for place, (arm, (count, how)) in enumerate(ARMS.items()):
                params = SamplingParams(max_tokens=NEW_TOKENS, min_tokens=NEW_TOKENS, **how)
                digests = [*adapters[:count]] or [None]
                asked = prompts(engine.info.vocab_size, number * len(ARMS) + place)
                jobs = [Job(str(i), p, params, digests[i % len(digests)]) for i, p in enumerate(asked)]
                before, first, steps = (
                    [processor(t) for t in threads],
                    len(watch.steps),
                    engine.status().steps,
                )
                runner.run(run_jobs(engine, jobs))
                steps = engine.status().steps - steps
                if number:
                    found[arm] += watch.steps[first:]
                    beside[arm].append(
                        [(processor(t) - b) / steps for t, b in zip(threads, before, strict=True)]
                    )
    return {arm: _means(found[arm], beside[arm]) for arm in ARMS}


async def _ident() -> int:
    import threading

    return threading.get_ident()


def _means(steps: Sequence[dict[str, int]], beside: Sequence[Sequence[float]]) -> dict[str, float]:
    def ms(values: Sequence[float]) -> float:
        return median(values) / 1e6

    outside = [sum(step[part] for part in PARTS) for step in steps]
    return (
        {part: ms([step[part] for step in steps]) for part in PARTS}
        | {"outside": ms(outside), COMPUTING: ms([step[COMPUTING] for step in steps])}
        | {name: ms(values) for name, values in zip(BESIDE, zip(*beside, strict=True), strict=True)}
    )


def main() -> None:
    """Measure and write results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--speculation", choices=("auto", "off"), default="auto", help="(default auto)")
    parser.add_argument("--no-write", action="store_true")
    args = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as `lora-router serve` sets it for itself
    from benchmarks.workload import random_adapter, start

    engine = start(args.model, "auto", native=True, speculation=args.speculation == "auto")
    artifacts = [random_adapter(str(number), engine.info.sites) for number in range(8)]
    for artifact in artifacts:
        asyncio.run(engine.load(artifact))
    found = measure(engine, [artifact.digest for artifact in artifacts], args.rounds)
    engine.close()
    names = list(next(iter(found.values())))
    rows = [{"part": name} | {arm: parts[name] for arm, parts in found.items()} for name in names]
    print(report.table(rows))
    if args.no_write:
        return
    workload = (
        f"{REQUESTS} answers at once, {PROMPT_TOKENS}±8 prompt and {NEW_TOKENS} new tokens; adapters of rank "
        f"{RANK} on all linear layers; speculation {args.speculation}. Milliseconds, medians "
        f"over the steps of {args.rounds} rounds in which each answer gets one token."
    )
    notes = [
        "`outside` is the sum of all parts but the native computation (target 0.4), stamps included",
        "`processor` is what threads use beside the engine's, mostly while it computes",
    ]
    print("written to", report.write("step-parts", workload, rows, notes))


if __name__ == "__main__":
    main()
