"""What clients were told across many lives of one server, to be held against what the next life knows."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from benchmarks.outcome_intake import Sender, counted
from router.access import audit
from router.v1 import experiments_pb2 as pb
from router.v1.inference_pb2 import GenerateResponse
from tests.audited import entries
from tests.faults.served import MEDICAL, VERSIONS, Served, ask, long_answer

UNITS = 40
CHOICE = "router.v1.AdapterService/SetDefaultVersion"


@dataclass
class Chooser:
    """Chooses default versions in turn. `acknowledged`: the last that was answered with OK; `doubt`: one that
    was asked for since and has no answer."""

    acknowledged: str = ""
    doubt: str = ""
    answers: int = 0

    async def choose(self, server: Served) -> None:
        """Again and again, until the server is gone."""
        while True:
            version = VERSIONS[self.answers % 2]
            self.doubt = f"{MEDICAL}/versions/{version}"
            try:
                await server.choose(version)
            except grpc.aio.AioRpcError:
                return
            self.acknowledged, self.doubt = self.doubt, ""
            self.answers += 1
            await asyncio.sleep(0.01)

    async def check(self, server: Served) -> None:
        """What was chosen with OK is in force, or what was asked for after it."""
        if self.acknowledged:
            found = await server.default()
            assert found in {self.acknowledged, self.doubt}
            self.acknowledged, self.doubt = found, ""


@dataclass
class Clients:
    """All kinds at once, of a server with a store at `url` and an audit file."""

    url: str
    audit: Path
    sender: Sender
    arms: dict[str, str]
    chooser: Chooser = field(default_factory=Chooser)

    @classmethod
    async def of(cls, server: Served, url: str, audit: Path) -> Clients:
        """With an experiment that runs, and an answer for each unit."""
        await begin_experiment(server)
        answers = await asyncio.gather(*(answer(server, unit) for unit in range(UNITS)))
        sender = Sender([response for response, _ in answers], batch=50)
        return cls(url, audit, sender, {str(unit): arm for unit, (_, arm) in enumerate(answers)})

    @asynccontextmanager
    async def at_work(self, server: Served) -> AsyncIterator[None]:
        """They call from now on; all were answered once when this begins. They end with the server, which has
        to be gone at the end of the block."""
        first = asyncio.Event()
        work = [
            asyncio.ensure_future(self.sender.send(server.address, 60.0, 1000)),
            asyncio.ensure_future(self.chooser.choose(server)),
            asyncio.ensure_future(stream(server, first)),
        ]
        try:
            async with asyncio.timeout(30):
                await self.sender.heard.wait()
                await first.wait()
            yield
        finally:
            await asyncio.wait_for(asyncio.gather(*work), 30)

    async def check(self, server: Served) -> None:
        """The server after a death knows what the one before said, and nobody else's arm has changed."""
        await self.chooser.check(server)
        sample = random.sample(sorted(self.arms), 5)
        assert {u: (await answer(server, int(u)))[1] for u in sample} == {u: self.arms[u] for u in sample}

    def check_files(self) -> None:
        """Everything acknowledged is on the disk, while nobody serves."""
        assert counted(self.url) >= self.sender.acknowledged
        assert audit.verify(self.audit).problems == ()
        kept = sum(e["method"] == CHOICE and e["code"] == "OK" for e in entries(self.audit))
        assert kept >= self.chooser.answers

    async def finish(self, server: Served) -> None:
        """What has no answer is sent again under the same keys; then all is there, once."""
        assert await self.sender.send(server.address, 0.0, 0.0)
        assert counted(self.url) == self.sender.made
        assert set(self.sender.statuses) <= {"counted", "duplicate"}


async def begin_experiment(server: Served) -> None:
    """One between both versions of medical."""
    arms = [
        {"name": name, "weight": 0.5, "adapter": f"{MEDICAL}/versions/{version}"}
        for name, version in zip(("old", "new"), VERSIONS, strict=True)
    ]
    kinds = pb.Experiment.Metric
    primary = kinds(name="points", kind=kinds.KIND_MEAN, missing=kinds.MISSING_EXCLUDED)
    plan = pb.Experiment(route=MEDICAL, arms=arms, control="old", primary=primary)
    await server.experiments.CreateExperiment(
        pb.CreateExperimentRequest(experiment_id="intake", experiment=plan)
    )
    await server.experiments.StartExperiment(pb.StartExperimentRequest(name="experiments/intake"))


async def of_unit(server: Served, unit: int) -> GenerateResponse:
    """An answer to a unit."""
    return await server.inference.Generate(ask(routing={"unit": f"user-{unit}"}), timeout=20)


async def answer(server: Served, unit: int) -> tuple[str, str]:
    """Response id and arm of an answer to a unit."""
    response = await of_unit(server, unit)
    return str(response.response_id), str(response.decision.arm)


async def stream(server: Served, first: asyncio.Event) -> None:
    """One long answer after the other, until the server is gone."""
    while True:
        try:
            async for _ in server.inference.StreamGenerate(long_answer(300)):
                first.set()
        except grpc.aio.AioRpcError:
            return
