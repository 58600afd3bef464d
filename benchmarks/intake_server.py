"""A server of its own for outcomes, and an experiment whose responses they are about."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from types import TracebackType

import grpc

from router.v1 import experiments_pb2 as pb
from router.v1 import inference_pb2
from router.v1.experiments_pb2_grpc import ExperimentServiceStub
from router.v1.inference_pb2_grpc import InferenceServiceStub

NAME, METRIC = "intake", "points"
AT_ONCE = 32


class IntakeServer:
    """The process, between `async with`; `kill` ends it as a power cut would."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.address = ""
        self.process: Process

    async def __aenter__(self) -> IntakeServer:
        command = [sys.executable, "-m", "tests.experiments.service.serve", self._url]
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
        primary=pb.Experiment.Metric(name=METRIC, kind=pb.Experiment.Metric.KIND_MEAN),
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
