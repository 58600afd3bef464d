"""`python -m benchmarks.experiment_overhead`: what a running experiment costs a server that answers.

One server, one client in a process of its own. Rounds without and with a running A/A experiment take turns on
the same engine; in the second the server assigns every request, keeps its exposure and six built-in outcomes,
and takes in one outcome of the client for every answer, all of it in SQLite on this disk. `--engine fake`
answers without a model: then processor time for each answer is the figure, and nothing hides the cost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.grpc_stream import texts
from benchmarks.prompts import NEW_TOKENS, REQUESTS
from router.config import Settings
from router.engine.base import Engine
from router.engine.fake import FakeEngine
from router.experiments.assignment import Assigner, running_of
from router.experiments.model import (
    ArmSpec,
    AuditEntry,
    Experiment,
    ExperimentPhase,
    Kind,
    Lifecycle,
    MetricSpec,
    Spec,
)
from router.experiments.runtime import LiveExperiments
from router.experiments.store.store import ExperimentStore
from router.plugins import Hooks, PluginHost
from router.registry.registry import Registry
from router.routing.router import Router
from router.server.app import ServerApp
from router.types import AdapterRef, Decision, Reason, Request, RoutingHints

NAME = "same-and-same"
SPEC = Spec(
    hypothesis="none: both arms are the base",
    route="base",
    arms=(ArmSpec("control", 0.5), ArmSpec("same", 0.5)),
    control="control",
    primary=MetricSpec("liked", Kind.PROPORTION),
    guardrails=(MetricSpec("error", Kind.PROPORTION, higher_is_better=False, margin=0.05),),
)
Found = dict[str, list[dict[str, float]]]
WITHOUT, WITH = "no experiment runs", "A/A experiment"


def trial(spec: Spec = SPEC, name: str = NAME, state: Lifecycle = Lifecycle.RUNNING) -> Experiment:
    """Started now."""
    phase = ExperimentPhase(1, time.time(), f"{name}-enrolment", f"{name}-variant", spec)
    return Experiment(name, spec, state, (phase,))


async def round_of(process: Process, seed: int, batches: int, told: bool) -> dict[str, float]:
    """REQUESTS streams that never pause; tokens a second, and processor ms of the server for an answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    spent = time.process_time()
    asked = [text for batch in range(batches) for text in texts(seed * batches + batch)]
    process.stdin.write(json.dumps({"texts": asked, "told": told}).encode() + b"\n")
    answer = json.loads(await process.stdout.readline())
    return {
        "tokens/s": answer["tokens"] / answer["seconds"],
        "cpu ms": 1e3 * (time.process_time() - spent) / len(asked),
    }


async def set_state(live: LiveExperiments, state: Lifecycle) -> None:
    """Start or stop it, and serve so."""
    found = await asyncio.to_thread(live.store.get, NAME)
    entry = AuditEntry(NAME, time.time(), "benchmark", state.value, "")
    await asyncio.to_thread(live.store.replace, replace(found, state=state), entry)
    await live.refresh()
    assert live.running is (state is Lifecycle.RUNNING)


@asynccontextmanager
async def served(engine: Engine, folder: Path) -> AsyncIterator[tuple[LiveExperiments, Process]]:
    """A server on `engine` with the experiment, and the client's process."""
    settings = Settings(listen="127.0.0.1:0", metrics_listen="")
    (folder / "adapters").mkdir()
    registry = Registry(engine, [folder / "adapters"])
    router = Router(registry, PluginHost([], load_plugins=""))
    store = ExperimentStore(f"sqlite:///{folder / 'experiments.db'}")
    store.create(trial(state=Lifecycle.STOPPED))
    live = LiveExperiments(store, base_digest=lambda: engine.info.digest, router_digest=router.digest)

    async def startup() -> None:
        await asyncio.to_thread(engine.start)
        await registry.start()
        await router.start()
        await live.start()

    hooks = Hooks(PluginHost([], built_in=True))
    app = ServerApp(settings, engine, registry, router, startup, hooks=hooks)
    app.experiments = live
    await app.start()
    await app.ready.wait()
    command = [sys.executable, "-m", "benchmarks.overhead_client", app.address]
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
    try:
        yield live, process
    finally:
        process.kill()
        await process.wait()
        await app.stop()
        await live.close()
        await router.close()
        await registry.close()


async def measure(engine: Engine, rounds: int, batches: int, told: bool) -> tuple[Found, str]:
    """Both in turn, the one first that was second before; and what was kept."""
    found: Found = {WITHOUT: [], WITH: []}
    with tempfile.TemporaryDirectory() as name:
        async with served(engine, Path(name)) as (live, process):
            for run in range(rounds + 1):
                for kind in (WITHOUT, WITH) if run % 2 else (WITH, WITHOUT):
                    running = kind is WITH
                    await set_state(live, Lifecycle.RUNNING if running else Lifecycle.STOPPED)
                    figures = await round_of(process, 2 * run + running, batches, running and told)
                    if run:  # the first warms up
                        found[kind].append(figures)
            await live.recorder.flush()
            data = await asyncio.to_thread(live.store.data, NAME, 1)
    answers, asked = sum(data.responses.values()), (rounds + 1) * batches * REQUESTS
    assert answers == asked, f"{answers} exposures were kept of {asked}"
    return (
        found,
        f"{answers} exposures kept, none lost, {sum(live.counts.outcomes.values())} outcomes of the client",
    )


def assignment_cost(experiments: int) -> float:
    """Processor microseconds to find the arm of a request, with so many experiments running."""
    spec = replace(SPEC, route="medical", arms=(ArmSpec("control", 0.5), ArmSpec("new", 0.5)))
    whole = replace(spec, namespace="users", slot=(0.0, 0.9), enrolment=0.9)
    names = [f"e{i}" for i in range(experiments)]
    others = [trial(replace(whole, route=f"route-{name}"), name) for name in names[1:]]
    made = [running_of(one, str, 0.01) for one in (trial(whole, "e0"), *others)]
    assigner, costs = Assigner(), []
    assigner.use([one for one in made if one is not None])
    decision = Decision(AdapterRef("medical", "1.0.0"), Reason.CLASSIFIED)
    requests = [Request(f"r{i}", routing=RoutingHints(unit=f"user-{i}")) for i in range(1000)]
    for _ in range(20):
        begin = time.process_time()
        for request in requests:
            assigner.assign(request, decision, 0.0)
        costs.append((time.process_time() - begin) / len(requests))
    return median(costs) * 1e6


def engine_of(kind: str) -> Engine:
    """The one that answers."""
    if kind == "fake":
        return FakeEngine(context_length=8192)
    from router.engine.torch_engine import TorchEngine

    return TorchEngine(Settings(listen="127.0.0.1:0"))


def rows_of(found: Found) -> list[dict[str, Any]]:
    """Medians and spread."""
    return [
        {
            "server": kind,
            "tokens/s": median(r["tokens/s"] for r in rounds),
            "min": min(r["tokens/s"] for r in rounds),
            "max": max(r["tokens/s"] for r in rounds),
            "processor ms an answer": median(r["cpu ms"] for r in rounds),
        }
        for kind, rounds in found.items()
    ]


def main() -> None:
    """Measure and write results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, default=4, help=f"times {REQUESTS} answers in one round")
    parser.add_argument("--engine", choices=("torch", "fake"), default="torch")
    parser.add_argument("--dry", action="store_true", help="print, write nothing")
    parser.add_argument("--no-outcomes", action="store_true", help="the client records none")
    args = parser.parse_args()
    found, kept = asyncio.run(
        measure(engine_of(args.engine), args.rounds, args.batches, not args.no_outcomes)
    )
    rows = rows_of(found)
    pairs = list(zip(found[WITHOUT], found[WITH], strict=True))
    slower = 100 * (1 - median(b["tokens/s"] / a["tokens/s"] for a, b in pairs))
    more = median(b["cpu ms"] - a["cpu ms"] for a, b in pairs)
    notes = [
        f"throughput is {slower:.1f} % lower with the experiment (target 2 % at most): median of pairs",
        f"processor time of the server for one answer: {1e3 * more:+.0f} us with the experiment",
        f"assignment of one request: {assignment_cost(1):.1f} us with 1 experiment running, "
        f"{assignment_cost(100):.1f} us with 100 (target under 50)",
        kept,
    ]
    print(report.table(rows), *notes, sep="\n")
    workload = (
        f"{args.engine} engine, {REQUESTS} concurrent streams to the base, about 90 prompt and {NEW_TOKENS} "
        f"new tokens each, greedy, {args.batches * REQUESTS} answers a round, {args.rounds} rounds of each "
        "in turn; server and engine in one process, the client in another; experiments in SQLite on disk."
    )
    name = "experiment-overhead" if args.engine == "torch" else "experiment-overhead-fake"
    if not args.dry:
        print("written to", report.write(name, workload, rows, notes))


if __name__ == "__main__":
    main()
