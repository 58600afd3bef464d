"""`make bench`: this engine against PEFT, in one run, interleaved.

16 concurrent requests of about 90 prompt tokens, 64 new tokens each, random rank-16 adapters on all
linear layers, greedy, end-of-sequence ignored. Every round runs every arm once; medians over rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from rich.progress import Progress

from benchmarks import report
from benchmarks.workload import (
    NEW_TOKENS,
    PROMPT_TOKENS,
    RANK,
    REQUESTS,
    jobs,
    peft_generate,
    peft_model,
    prompts,
    random_adapter,
    run_jobs,
)
from router.config import Settings
from router.engine.model.loader import load_model
from router.engine.torch_engine import TorchEngine
from router.models import resolve_model

Arm = Callable[[int], "tuple[float, int]"]
COUNTS = (1, 4, 8, 16)


def main() -> None:
    """Parse arguments, run, write results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default 5)")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--no-peft", action="store_true", help="leave the PEFT baseline out")
    args = parser.parse_args()
    with asyncio.Runner() as runner:
        arms, close = build(runner, args.model, args.dtype, not args.no_peft)
        speeds = measure(arms, args.rounds)
        close()
    rows = summarise(speeds)
    print(report.table(rows))
    workload = (
        f"{REQUESTS} concurrent requests, {PROMPT_TOKENS}±8 random prompt tokens, {NEW_TOKENS} new tokens "
        f"each, greedy; adapters of rank {RANK} on all linear layers; tokens a second for the whole "
        f"run, prefill included; median of {args.rounds} interleaved rounds after one warm-up round."
    )
    print("written to", report.write("engine", workload, rows, notes(speeds), command="make bench"))


def build(
    runner: asyncio.Runner, model: str, dtype: str, peft: bool
) -> tuple[dict[str, Arm], Callable[[], None]]:
    """Every arm by name: run number -> seconds, generated tokens."""
    engines = {
        "native": start(model, dtype, native=True),
        "torch": start(model, dtype, native=False),
        "empty": start(model, dtype, native=True),
    }
    info = engines["native"].info
    artifacts = [random_adapter(str(i), dict(info.sites)) for i in range(max(COUNTS))]
    tokens = prompts(info.vocab_size)
    for name in ("native", "torch"):
        for artifact in artifacts if name == "native" else artifacts[:8]:
            runner.run(engines[name].load(artifact))
    digests = [a.digest for a in artifacts]

    def engine_arm(name: str, count: int) -> Arm:
        chosen = digests[:count] or [None]
        return lambda run: runner.run(run_jobs(engines[name], jobs(tokens, chosen, run)))

    arms: dict[str, Arm] = {"no adapter": engine_arm("native", 0)}
    arms |= {f"{n} adapters": engine_arm("native", n) for n in COUNTS}
    arms["no adapter, none resident"] = engine_arm("empty", 0)
    arms["no adapter, torch operations"] = engine_arm("torch", 0)
    arms["8 adapters, torch operations"] = engine_arm("torch", 8)
    if peft:
        arms |= peft_arms(model, info.dtype, artifacts[:8], tokens)

    def close() -> None:
        for engine in engines.values():
            engine.close()

    return arms, close


def start(model: str, dtype: str, *, native: bool) -> TorchEngine:
    """A running engine with default settings."""
    engine = TorchEngine(Settings(model=model, dtype=dtype, native=native, slots=32))  # type: ignore[arg-type]
    engine.start()
    print(f"engine: {engine.info.kernels}, {engine.info.dtype}")
    return engine


def peft_arms(model: str, dtype: str, artifacts: list[Any], tokens: list[list[int]]) -> dict[str, Arm]:
    """PEFT with the same weights in one static batch."""
    loaded = load_model(resolve_model(model), model)
    base = loaded.model.to(getattr(torch, dtype))
    tuned = peft_model(base, artifacts)
    names = [f"a{i % len(artifacts)}" for i in range(len(tokens))]

    def plain(_: int) -> tuple[float, int]:
        with tuned.disable_adapter():
            return peft_generate(tuned, tokens, None)

    return {
        "PEFT static batch, no adapter": plain,
        "PEFT static batch, 8 adapters": lambda _: peft_generate(tuned, tokens, names),
    }


def measure(arms: dict[str, Arm], rounds: int) -> dict[str, list[float]]:
    """Tokens a second for every arm and counted round."""
    speeds: dict[str, list[float]] = {name: [] for name in arms}
    with Progress(transient=True) as progress:
        task = progress.add_task("rounds", total=(rounds + 1) * len(arms))
        for run in range(rounds + 1):
            for index, (name, arm) in enumerate(arms.items()):
                gc.collect()
                seconds, generated = arm(run * len(arms) + index)
                if run:
                    speeds[name].append(generated / seconds)
                progress.advance(task)
    return speeds


def summarise(speeds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """One row an arm."""
    return [{"arm": name, "tokens/s": median(v), "min": min(v), "max": max(v)} for name, v in speeds.items()]


def notes(speeds: dict[str, list[float]]) -> list[str]:
    """The ratios that the targets speak of, each a median of ratios within a round."""

    def ratio(a: str, b: str) -> float:
        return median(x / y for x, y in zip(speeds[a], speeds[b], strict=True))

    lines = [
        f"8 adapters / no adapter: {ratio('8 adapters', 'no adapter'):.2f} (target 0.75)",
        "no adapter with 16 resident / none resident: "
        f"{ratio('no adapter', 'no adapter, none resident'):.2f} (target 0.98)",
    ]
    peft = "PEFT static batch, 8 adapters"
    if peft in speeds:
        lines += [
            f"8 adapters / PEFT 8 adapters: {ratio('8 adapters', peft):.1f} (target 6)",
            "8 adapters, torch operations / PEFT 8 adapters: "
            f"{ratio('8 adapters, torch operations', peft):.1f} (target 3)",
        ]
    return lines


if __name__ == "__main__":
    main()
