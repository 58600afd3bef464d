"""`python -m benchmarks.outcome_intake`: outcomes a second through gRPC into a database, and what kills lose.

The server is a process of its own on the fake engine; one client sends batches on one stream at a rate. With
`--kills N` the server is killed (SIGKILL) N times while it takes outcomes in; after each kill the database is
read: what was acknowledged must be in it. The client sends the rest again under the same keys, and in the end
every outcome must be counted once. Without `--url` it runs on SQLite, and on PostgreSQL where that is there.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import grpc
import psutil

from benchmarks import report
from benchmarks.serving import used
from router.extensions.experiments.store.store import ExperimentStore
from router.v1 import experiments_pb2 as pb
from router.v1 import inference_pb2
from router.v1.experiments_pb2_grpc import ExperimentServiceStub
from router.v1.inference_pb2_grpc import InferenceServiceStub
from tests.extensions.experiments.store.postgres import Server, binaries

NAME, METRIC = "intake", "points"
AT_ONCE = 32
TARGET = 5000
HEARD_SECONDS = 60.0


class IntakeServer:
    """The process, between `async with`; `kill` ends it as a power cut would."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.address = ""
        self.process: Process

    async def __aenter__(self) -> IntakeServer:
        command = [sys.executable, "-m", "tests.extensions.experiments.service.serve", self._url]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, env=environment)
        assert self.process.stdout is not None
        self.address = (await self.process.stdout.readline()).decode().strip()
        if not self.address:
            raise RuntimeError("the server did not start")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.returncode is None:
            self.process.terminate()
        await self.process.wait()

    async def kill(self) -> None:
        """SIGKILL."""
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()


async def responses(address: str, units: int) -> list[str]:
    """Begin an experiment and give each unit an answer in it; returns the response ids."""
    arms = [
        {"name": "old", "weight": 0.5, "adapter": "adapters/medical/versions/1.0.0"},
        {"name": "new", "weight": 0.5, "adapter": "adapters/medical/versions/1.1.0"},
    ]
    plan = pb.Experiment(
        route="adapters/medical",
        arms=arms,
        control="old",
        primary=pb.Experiment.Metric(
            name=METRIC, kind=pb.Experiment.Metric.KIND_MEAN, missing=pb.Experiment.Metric.MISSING_ZERO
        ),
    )
    async with grpc.aio.insecure_channel(address) as channel:
        service = ExperimentServiceStub(channel)
        await service.CreateExperiment(pb.CreateExperimentRequest(experiment_id=NAME, experiment=plan))
        await service.StartExperiment(pb.StartExperimentRequest(name=f"experiments/{NAME}"))
        stub, room = InferenceServiceStub(channel), asyncio.Semaphore(AT_ONCE)

        async def answer(unit: int) -> str:
            request = inference_pb2.GenerateRequest(
                input=inference_pb2.Input(text="a medical question"),
                routing=inference_pb2.Routing(unit=f"user-{unit}"),
                sampling=inference_pb2.Sampling(max_tokens=1),
            )
            async with room:
                response = await stub.Generate(request)
            assert response.decision.experiment == NAME
            return str(response.response_id)

        return list(await asyncio.gather(*(answer(unit) for unit in range(units))))


# What grpc itself says of a write into a connection that ended under it.
BROKEN = "Internal error from Core"


def _gone(error: grpc.aio.AioRpcError) -> bool:
    return error.code() is grpc.StatusCode.UNAVAILABLE or error.details() == BROKEN


@dataclass
class Sender:
    """Outcomes of 1.0 with keys of their own, so that their sum is their number.

    `open` are batches that were made and not acknowledged: they are sent again, first, by the next `send`.
    """

    responses: Sequence[str]
    batch: int
    made: int = 0
    acknowledged: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)  # seconds from sending a batch to its acknowledgement
    open: dict[int, pb.RecordOutcomesRequest] = field(default_factory=dict)
    heard: asyncio.Event = field(default_factory=asyncio.Event)  # an acknowledgement since `send`

    async def send(self, address: str, seconds: float, rate: float) -> bool:
        """Send for so long at `rate` outcomes a second (0: as fast as it goes), then wait for the last
        acknowledgement; True if it came, False if the server went away."""
        sent: dict[int, float] = {}
        self.heard.clear()
        async with grpc.aio.insecure_channel(address) as channel:
            call = ExperimentServiceStub(channel).RecordOutcomes()  # type: ignore[no-untyped-call]
            writing = asyncio.ensure_future(self._write(call, sent, seconds, rate))
            try:
                async for answer in call:
                    self._take(answer, sent)
                await writing
            except grpc.aio.AioRpcError as error:
                if not _gone(error):
                    raise
                return False
            finally:
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)
        return not self.open

    async def _write(self, call: Any, sent: dict[int, float], seconds: float, rate: float) -> None:
        again, begin = deque(sorted(self.open)), time.monotonic()
        for number in range(1 << 40):
            if again:
                request = self.open[again.popleft()]
            elif time.monotonic() - begin < seconds:
                request = self._next()
            else:
                break
            if rate:
                await asyncio.sleep(begin + number * self.batch / rate - time.monotonic())
            sent[request.sequence] = time.monotonic()
            await call.write(request)
        await call.done_writing()

    def _next(self) -> pb.RecordOutcomesRequest:
        number, known = self.made // self.batch, len(self.responses)
        outcomes = [
            pb.Outcome(
                response_id=self.responses[i % known], metric=METRIC, value=1.0, idempotency_key=f"key-{i}"
            )
            for i in range(self.made, self.made + self.batch)
        ]
        self.made += self.batch
        self.open[number] = pb.RecordOutcomesRequest(sequence=number, outcomes=outcomes)
        return self.open[number]

    def _take(self, answer: pb.RecordOutcomesResponse, sent: dict[int, float]) -> None:
        self.waits.append(time.monotonic() - sent[answer.sequence])
        del self.open[answer.sequence]
        self.heard.set()
        self.acknowledged += len(answer.statuses)
        self.statuses.update(pb.OutcomeStatus.Name(s)[15:].lower() for s in answer.statuses)


def counted(url: str) -> int:
    """Outcomes in the sums of the database."""
    store = ExperimentStore(url)
    try:
        buckets = store.data(NAME, 1).buckets
        return round(sum(float(b.moments[METRIC].sums[0]) for b in buckets if METRIC in b.moments))
    finally:
        store.close()


async def measure(url: str, units: int, batch: int, rate: float, seconds: float) -> dict[str, Any]:
    """One run without a kill."""
    async with IntakeServer(url) as server:
        sender = Sender(await responses(server.address, units), batch)
        watched, here = psutil.Process(server.process.pid), psutil.Process()
        before, before_here, begin = used(watched), used(here), asyncio.get_running_loop().time()
        whole = await sender.send(server.address, seconds, rate)
        took = asyncio.get_running_loop().time() - begin
        spent, spent_here = used(watched) - before, used(here) - before_here
    waits = sorted(sender.waits)
    return {
        "database": url.partition(":")[0],
        "outcomes": sender.acknowledged,
        "outcomes_per_s": round(sender.acknowledged / took),
        "batch": batch,
        "p50_ms": round(1e3 * waits[len(waits) // 2], 1),
        "p99_ms": round(1e3 * waits[int(len(waits) * 0.99)], 1),
        "server_us_each": round(1e6 * spent / sender.acknowledged, 1),
        "client_us_each": round(1e6 * spent_here / sender.acknowledged, 1),
        "lost": sender.acknowledged - counted(url),
        "whole": whole,
    }


async def killed(url: str, units: int, batch: int, rate: float, kills: int, seed: int) -> dict[str, Any]:
    """Kill the server again and again; returns what was sent, acknowledged, lost and counted twice."""
    rng, lost = random.Random(seed), 0
    async with IntakeServer(url) as server:
        sender = Sender(await responses(server.address, units), batch)
    for _ in range(kills):
        async with IntakeServer(url) as server:
            sending = asyncio.ensure_future(sender.send(server.address, 60.0, rate))
            await asyncio.wait_for(sender.heard.wait(), HEARD_SECONDS)
            await asyncio.sleep(rng.uniform(0.0, 0.5))
            await server.kill()
            assert not await sending
        lost += max(0, sender.acknowledged - counted(url))
    at_last = counted(url)
    async with IntakeServer(url) as server:
        whole = await sender.send(server.address, 0.0, 0.0)
    final = counted(url)
    return {
        "database": url.partition(":")[0],
        "kills": kills,
        "outcomes": sender.made,
        "in_doubt": sender.made - at_last,
        "sent_twice": sender.statuses["duplicate"],
        "lost": lost + max(0, sender.made - final),
        "counted_twice": max(0, final - sender.made),
        "whole": whole and not set(sender.statuses) - {"counted", "duplicate"},
    }


@contextmanager
def databases(url: str | None) -> Iterator[list[str]]:
    """URLs of empty databases: the one given, or a file and a PostgreSQL server where there is one."""
    if url:
        yield [url]
        return
    where = binaries()
    with tempfile.TemporaryDirectory() as folder:
        files = [f"sqlite:///{folder}/experiments.db"]
        if where is None:
            yield files
            return
        server = Server(where)
        try:
            yield [*files, server.url()]
        finally:
            server.close()


def main() -> None:
    """Measure or kill, print, and write results with --write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="an empty database; default: SQLite, and PostgreSQL if installed")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=TARGET, help="outcomes a second; 0: as fast as it goes")
    for name, default in (("units", 2000), ("batch", 500), ("kills", 0), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/results")
    args = parser.parse_args()
    rows = []
    with databases(args.url) as urls:
        for url in urls:
            if args.kills:
                work = killed(url, args.units, args.batch, args.rate, args.kills, args.seed)
            else:
                work = measure(url, args.units, args.batch, args.rate, args.seconds)
            rows.append(asyncio.run(work))
            print(rows[-1], flush=True)
    if args.write:
        workload = f"one stream, batches of {args.batch}, {args.rate:g} outcomes/s, {args.units} units"
        notes = ["`lost`: acknowledged and not in the sums; `in_doubt`: sent, not counted at the last kill."]
        name = "outcome-intake-kills" if args.kills else "outcome-intake"
        print(report.write(name, workload, rows, notes, page="scale"))


if __name__ == "__main__":
    main()
