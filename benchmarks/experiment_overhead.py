"""`python -m benchmarks.experiment_overhead`: what a running experiment costs a server that answers.

One server, one client in a process of its own. Rounds without and with a running A/A experiment take turns on
the same engine; in the second the server assigns every request, keeps its exposure and six built-in outcomes,
and takes in one outcome of the client for every answer, all of it in SQLite on this disk. `--engine fake`
answers without a model: then processor time for each answer is the figure, and nothing hides the cost.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import grpc

from benchmarks import report
from benchmarks.answering import NEW_TOKENS, REQUESTS
from benchmarks.serving import Ask, answer, asked, parts, served, texts
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
from router.server.app import ServerApp
from router.types import AdapterRef, Decision, Reason, Request, RoutingHints
from router.v1 import experiments_pb2
from router.v1 import inference_pb2 as pb
from router.v1.experiments_pb2_grpc import ExperimentServiceStub
from router.v1.inference_pb2_grpc import InferenceServiceStub

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


async def round_of(ask: Ask, seed: int, batches: int, told: bool) -> dict[str, float]:
    """REQUESTS streams that never pause; tokens a second, and processor ms of the server for an answer."""
    spent = time.process_time()
    prompts = [text for batch in range(batches) for text in texts(seed * batches + batch)]
    seconds, tokens = await ask((prompts, told))
    return {"tokens/s": tokens / seconds, "cpu ms": 1e3 * (time.process_time() - spent) / len(prompts)}


class Round:
    """The answers of one line, in the client's process."""

    def __init__(self, channel: grpc.aio.Channel, told: bool) -> None:
        self._stub, self._outcomes = InferenceServiceStub(channel), ExperimentServiceStub(channel)
        self._told, self._telling, self._tokens = told, set[asyncio.Task[None]](), 0

    async def run(self, texts: list[str]) -> tuple[float, int]:
        """Seconds until the last answer, and all tokens; returns when all outcomes are kept too."""
        begin, left = time.perf_counter(), iter(enumerate(texts))
        await asyncio.gather(*(self._stream(left) for _ in range(REQUESTS)))
        seconds = time.perf_counter() - begin
        await asyncio.gather(*self._telling)
        return seconds, self._tokens

    async def _stream(self, left: Iterator[tuple[int, str]]) -> None:
        for number, text in left:
            response_id = await self._answer(number, text)
            if self._told:
                self._telling.add(asyncio.create_task(self._tell(response_id)))

    async def _answer(self, number: int, text: str) -> str:
        asked = pb.StreamGenerateRequest(
            input=pb.Input(raw_prompt=text),
            sampling=pb.Sampling(max_tokens=NEW_TOKENS, min_tokens=NEW_TOKENS),
            routing=pb.Routing(unit=f"user-{number}"),
        )
        events = [event async for event in self._stub.StreamGenerate(asked)]
        self._tokens += events[-1].finished.usage.completion_tokens
        return str(events[0].started.response_id)

    async def _tell(self, response_id: str) -> None:
        about = experiments_pb2.Outcome(response_id=response_id, metric="liked", value=1)
        await self._outcomes.RecordOutcome(experiments_pb2.RecordOutcomeRequest(outcome=about))


async def client(address: str) -> None:
    """The client's process: texts, and whether it tells outcomes, in; seconds and tokens out."""
    async with grpc.aio.insecure_channel(address) as channel:

        async def one_round(work: tuple[list[str], bool]) -> tuple[float, int]:
            return await Round(channel, work[1]).run(work[0])

        await answer(one_round)


async def set_state(live: LiveExperiments, state: Lifecycle) -> None:
    """Start or stop it, and serve so."""
    found = await asyncio.to_thread(live.store.get, NAME)
    entry = AuditEntry(NAME, time.time(), "benchmark", state.value, "")
    await asyncio.to_thread(live.store.replace, replace(found, state=state), entry)
    await live.refresh()
    assert live.running is (state is Lifecycle.RUNNING)


@asynccontextmanager
async def under_trial(engine: Engine, folder: Path) -> AsyncIterator[tuple[LiveExperiments, Ask]]:
    """A server on `engine` with the experiment, and the client's process."""
    store = ExperimentStore(f"sqlite:///{folder / 'experiments.db'}")
    store.create(trial(state=Lifecycle.STOPPED))
    async with parts(engine) as (registry, router):
        live = LiveExperiments(store, base_digest=lambda: engine.info.digest, router_digest=router.digest)
        hooks = Hooks(PluginHost([], built_in=True))
        settings = Settings(listen="127.0.0.1:0", metrics_listen="")
        app = ServerApp(settings, engine, registry, router, live.start, hooks=hooks)
        app.experiments = live
        async with served(app), asked("benchmarks.experiment_overhead", "--client", app.address) as ask:
            yield live, ask
        await live.close()


async def measure(engine: Engine, rounds: int, batches: int, told: bool) -> tuple[Found, str]:
    """Both in turn, the one first that was second before; and what was kept."""
    found: Found = {WITHOUT: [], WITH: []}
    with tempfile.TemporaryDirectory() as name:
        async with under_trial(engine, Path(name)) as (live, ask):
            for run in range(rounds + 1):
                for kind in (WITHOUT, WITH) if run % 2 else (WITH, WITHOUT):
                    running = kind is WITH
                    await set_state(live, Lifecycle.RUNNING if running else Lifecycle.STOPPED)
                    figures = await round_of(ask, 2 * run + running, batches, running and told)
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
    parser.add_argument("--client", metavar="ADDRESS", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client:
        asyncio.run(client(args.client))
        return
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
