"""`client.experiments` for asyncio: the same methods, awaited."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from typing import Any, Unpack

import grpc.aio

from router.client import experiment_requests as requests
from router.client import experiment_responses as responses
from router.client.calls import AsyncCaller
from router.client.experiment_results import Experiment, Outcome, Promotion, Recorded
from router.client.options import CallOptions
from router.client.report_responses import to_report
from router.experiments.model import Accepted, Spec
from router.experiments.report.model import Report
from router.v1 import experiments_pb2 as pb
from router.v1 import experiments_pb2_grpc


class AsyncExperiments:
    """`client.experiments`. Names are NAME or `experiments/NAME`; `etag` refuses what changed since."""

    def __init__(self, channel: grpc.aio.Channel, caller: AsyncCaller) -> None:
        self._stub: Any = experiments_pb2_grpc.ExperimentServiceStub(channel)  # type: ignore[no-untyped-call]
        self._caller = caller

    async def create(self, name: str, spec: Spec, **options: Unpack[CallOptions]) -> Experiment:
        """Keep a plan; nothing is served by it before `start`."""
        request = pb.CreateExperimentRequest(experiment_id=name, experiment=requests.experiment_message(spec))
        answer = await self._caller.unary(self._stub.CreateExperiment, request, options)
        return responses.to_experiment(answer.experiment)

    async def get(self, name: str, **options: Unpack[CallOptions]) -> Experiment:
        """One experiment."""
        request = pb.GetExperimentRequest(name=requests.experiment_name(name))
        answer = await self._caller.unary(self._stub.GetExperiment, request, options)
        return responses.to_experiment(answer.experiment)

    async def list(self, *, page_size: int = 200, **options: Unpack[CallOptions]) -> tuple[Experiment, ...]:
        """All experiments, all pages, by name."""
        found: tuple[Experiment, ...] = ()
        token = ""
        while True:
            request = pb.ListExperimentsRequest(page_size=page_size, page_token=token)
            page = await self._caller.unary(self._stub.ListExperiments, request, options)
            found += tuple(map(responses.to_experiment, page.experiments))
            if not (token := page.next_page_token):
                return found

    async def update(
        self, name: str, changes: Mapping[str, Any], *, etag: str = "", **options: Unpack[CallOptions]
    ) -> Experiment:
        """Change fields of the plan, by their names in `Spec`. While it runs this opens a new phase."""
        request = requests.update_request(name, etag, changes)
        answer = await self._caller.unary(self._stub.UpdateExperiment, request, options)
        return responses.to_experiment(answer.experiment)

    async def start(self, name: str, *, etag: str = "", **options: Unpack[CallOptions]) -> Experiment:
        """Begin to assign units."""
        request = pb.StartExperimentRequest(name=requests.experiment_name(name), etag=etag)
        answer = await self._caller.unary(self._stub.StartExperiment, request, options)
        return responses.to_experiment(answer.experiment)

    async def stop(
        self, name: str, *, reason: str = "", etag: str = "", **options: Unpack[CallOptions]
    ) -> Experiment:
        """Everybody gets the default again; outcomes count until their window closes."""
        request = pb.StopExperimentRequest(name=requests.experiment_name(name), etag=etag, reason=reason)
        answer = await self._caller.unary(self._stub.StopExperiment, request, options)
        return responses.to_experiment(answer.experiment)

    async def promote(
        self,
        name: str,
        arm: str = "",
        *,
        force: bool = False,
        reason: str = "",
        etag: str = "",
        **options: Unpack[CallOptions],
    ) -> Promotion:
        """Make an arm's version the default and stop. `arm` empty: the one that the verdict names."""
        request = pb.PromoteArmRequest(
            name=requests.experiment_name(name), arm=arm, etag=etag, force=force, reason=reason
        )
        return responses.to_promotion(await self._caller.unary(self._stub.PromoteArm, request, options))

    async def roll_back(self, name: str, *, reason: str = "", **options: Unpack[CallOptions]) -> Promotion:
        """Put back the default version from before `promote`."""
        request = pb.RollBackPromotionRequest(name=requests.experiment_name(name), reason=reason)
        return responses.to_promotion(
            await self._caller.unary(self._stub.RollBackPromotion, request, options)
        )

    async def delete(self, name: str, *, etag: str = "", **options: Unpack[CallOptions]) -> None:
        """Forget it and all that was logged of it."""
        request = pb.DeleteExperimentRequest(name=requests.experiment_name(name), etag=etag)
        await self._caller.unary(self._stub.DeleteExperiment, request, options)

    async def report(self, name: str, phase: int = 0, **options: Unpack[CallOptions]) -> Report:
        """The verdict now with all that it rests on; `phase` 0 is the last. Valid however often asked."""
        request = pb.GetReportRequest(name=requests.experiment_name(name), phase=phase)
        return to_report(await self._caller.unary(self._stub.GetReport, request, options))

    async def record_outcome(self, outcome: Outcome, **options: Unpack[CallOptions]) -> Accepted | None:
        """Keep one outcome; it is durable when this returns. An unknown response is a ClientError."""
        request = pb.RecordOutcomeRequest(outcome=requests.outcome_message(outcome))
        answer = await self._caller.unary(self._stub.RecordOutcome, request, options)
        return responses.to_accepted(answer.status)

    async def record_outcomes(
        self, outcomes: Iterable[Outcome], **options: Unpack[CallOptions]
    ) -> AsyncIterator[Recorded]:
        """Keep many over one call: what became of each, in order, once it is durable. No deadline unless
        given; reading the results is what drives it."""
        options.setdefault("timeout", None)
        messages: Any = self._caller.stream(self._stub.RecordOutcomes, requests.batches(outcomes), options)
        async with aclosing(messages):
            async for batch in messages:
                for recorded in responses.to_recorded(batch):
                    yield recorded
