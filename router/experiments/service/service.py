"""ExperimentService: plans, their life, reports, and outcomes over gRPC."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar, cast

from router.errors import ExperimentNotFound, FieldViolation, Findings
from router.experiments.management.manager import Manager
from router.experiments.management.promotion import Promoter
from router.experiments.model import Experiment, Spec, id_problem, parse_experiment
from router.experiments.report.model import Report
from router.experiments.service.outcomes import Caller, Intake, StoreThreads, answers_in_order, paced
from router.experiments.visibility import Visibility
from router.experiments.wire.plans import (
    answer_message,
    checked_paths,
    experiment_message,
    merged,
    plan_of,
    question_of,
)
from router.experiments.wire.report import report_message
from router.server.adapters import page
from router.server.call import Call, current_call, present_client
from router.v1 import experiments_pb2 as pb
from router.v1.experiments_pb2_grpc import ExperimentServiceServicer

T = TypeVar("T")
MAX_REASON_BYTES, MAX_TOKEN_BYTES, MAX_ARM_BYTES = 500, 1024, 64
UNACKNOWLEDGED = 8
WITHIN = "experiment."
NOT_ITS_NAME = "is no name that this client may give: its `experiments` in the clients file say which"


class ExperimentService(ExperimentServiceServicer):
    """Everything that waits for the store does so in `threads`. `changed` is awaited after each change, so
    that it is served at once; `warnings` are what deserves a second look."""

    def __init__(
        self,
        manager: Manager,
        promoter: Promoter,
        report: Callable[[str, int], Report],
        intake: Intake,
        threads: StoreThreads,
        changed: Callable[[], Awaitable[None]],
        warnings: Callable[[Experiment], Iterable[str]],
    ) -> None:
        self._manager, self._promoter, self._report = manager, promoter, report
        self._intake, self._threads = intake, threads
        self._after_change, self._warnings = changed, warnings

    async def CreateExperiment(
        self, request: pb.CreateExperimentRequest, call: Call
    ) -> pb.CreateExperimentResponse:
        """Keeps a draft."""
        found = Findings()
        if problem := id_problem(request.experiment_id):
            found.add("experiment_id", problem)
        if request.experiment_id not in current_visibility().experiments:
            found.add("experiment_id", NOT_ITS_NAME)
        spec = plan_of(request.experiment, found, WITHIN)
        _add(found, await self._threads.run(self._manager.problems, spec))
        _check_width(found, spec)
        found.check()
        kept = await self._change(self._manager.create, request.experiment_id, spec, call.actor)
        return pb.CreateExperimentResponse(experiment=self._message(kept))

    async def GetExperiment(self, request: pb.GetExperimentRequest, call: Call) -> pb.GetExperimentResponse:
        """One."""
        found = await self._seen(parse_experiment(request.name))
        return pb.GetExperimentResponse(experiment=self._message(found))

    async def ListExperiments(
        self, request: pb.ListExperimentsRequest, call: Call
    ) -> pb.ListExperimentsResponse:
        """A page."""
        found = Findings()
        found.text("page_token", request.page_token, MAX_TOKEN_BYTES)
        found.check()
        seen = filter(current_visibility().sees, await self._threads.run(self._manager.list))
        shown, token = page(
            seen, lambda one: (one.name, ""), request.page_size, request.page_token, ("experiments",)
        )
        return pb.ListExperimentsResponse(experiments=map(self._message, shown), next_page_token=token)

    async def UpdateExperiment(
        self, request: pb.UpdateExperimentRequest, call: Call
    ) -> pb.UpdateExperimentResponse:
        """The fields of the mask; every bad one is named."""
        found = Findings()
        message = request.experiment
        name = parse_experiment(message.name, f"{WITHIN}name")
        paths = checked_paths(request.update_mask.paths, found)
        found.check()

        def edit(old: Spec) -> Spec:
            spec = plan_of(merged(old, message, paths), found, WITHIN)
            _add(found, self._manager.problems(spec))
            _check_width(found, spec)
            found.check()
            return spec

        await self._check_seen(name)
        kept = await self._change(self._manager.update, name, edit, message.etag, call.actor)
        return pb.UpdateExperimentResponse(experiment=self._message(kept))

    async def DeleteExperiment(
        self, request: pb.DeleteExperimentRequest, call: Call
    ) -> pb.DeleteExperimentResponse:
        """Forgets a draft or a stopped one."""
        name = parse_experiment(request.name)
        await self._check_seen(name)
        await self._change(self._manager.delete, name, request.etag)
        return pb.DeleteExperimentResponse()

    async def StartExperiment(
        self, request: pb.StartExperimentRequest, call: Call
    ) -> pb.StartExperimentResponse:
        """Running, and served by this process when it answers."""
        name = parse_experiment(request.name)
        await self._check_seen(name)
        kept = await self._change(self._manager.start, name, request.etag, call.actor)
        return pb.StartExperimentResponse(experiment=self._message(kept))

    async def StopExperiment(
        self, request: pb.StopExperimentRequest, call: Call
    ) -> pb.StopExperimentResponse:
        """Stopped."""
        name, reason = parse_experiment(request.name), _reason(request.reason)
        await self._check_seen(name)
        kept = await self._change(self._manager.stop, name, request.etag, reason, call.actor)
        return pb.StopExperimentResponse(experiment=self._message(kept))

    async def PromoteArm(self, request: pb.PromoteArmRequest, call: Call) -> pb.PromoteArmResponse:
        """The new default and the one before."""
        found = Findings()
        found.text("arm", request.arm, MAX_ARM_BYTES)
        found.text("reason", request.reason, MAX_REASON_BYTES)
        found.check()
        name = parse_experiment(request.name)
        await self._check_seen(name)
        done = await self._change(
            self._promoter.promote,
            name,
            request.arm,
            request.etag,
            call.actor,
            force=request.force,
            reason=request.reason,
        )
        return pb.PromoteArmResponse(
            experiment=self._message(done.experiment),
            default_version=done.default.resource,
            previous_version=done.previous.resource if done.previous else "",
        )

    async def RollBackPromotion(
        self, request: pb.RollBackPromotionRequest, call: Call
    ) -> pb.RollBackPromotionResponse:
        """The default from before."""
        name, reason = parse_experiment(request.name), _reason(request.reason)
        await self._check_seen(name)
        done = await self._change(self._promoter.roll_back, name, reason, call.actor)
        return pb.RollBackPromotionResponse(
            experiment=self._message(done.experiment), default_version=done.default.resource
        )

    async def GetReport(self, request: pb.GetReportRequest, call: Call) -> pb.GetReportResponse:
        """Judged now."""
        found = Findings()
        name = parse_experiment(request.name)
        if request.phase < 0:
            found.add("phase", f"must be 0 (the last) or the number of a phase, got {request.phase}")
        found.check()
        await self._check_seen(name)
        report = await self._threads.run(self._report, name, request.phase)
        visibility = current_visibility()
        audit = tuple(replace(entry, detail=visibility.detail(entry.detail)) for entry in report.audit)
        return report_message(replace(report, audit=audit), self._message(report.judged))

    async def PlanExperiment(
        self, request: pb.PlanExperimentRequest, call: Call
    ) -> pb.PlanExperimentResponse:
        """By the history of its route, where it leaves something open."""
        found = Findings()
        question = question_of(request, found)
        found.check()
        return answer_message(await self._threads.run(self._manager.size, question))

    async def RecordOutcome(self, request: pb.RecordOutcomeRequest, call: Call) -> pb.RecordOutcomeResponse:
        """Durable when it answers."""
        return await self._intake.one(request.outcome, _caller())

    async def RecordOutcomes(self, request_iterator: Any, call: Call) -> None:
        """Acknowledges batches in their order until the caller ends the stream or the server drains."""
        await call.begin()
        caller = _caller()

        async def recorded(batch: pb.RecordOutcomesRequest) -> pb.RecordOutcomesResponse:
            try:
                return await self._intake.batch(batch, caller)
            finally:
                request_iterator.done(batch)

        async with aclosing(paced(request_iterator, caller.meter)) as batches:
            answers = answers_in_order(batches, recorded, UNACKNOWLEDGED)
            async with aclosing(cast(Any, answers)) as acknowledgements:
                async for acknowledgement in acknowledgements:
                    await call.write(acknowledgement)

    async def _seen(self, name: str) -> Experiment:
        """The experiment. Raises ExperimentNotFound for one that the caller may not know of, as for none."""
        found = await self._threads.run(self._manager.get, name)
        if not current_visibility().sees(found):
            raise ExperimentNotFound(name)
        return found

    async def _check_seen(self, name: str) -> None:
        """Raise what `_seen` raises; who may know of all needs no look."""
        if not current_visibility().everything:
            await self._seen(name)

    async def _change(self, change: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        changed = await self._threads.run(change, *args, **kwargs)
        await self._after_change()
        return changed

    def _message(self, experiment: Experiment) -> pb.Experiment:
        return experiment_message(experiment, self._warnings(experiment))


def _caller() -> Caller:
    call = current_call()
    return Caller(call.client.tenant, current_visibility(), call.meter)


def current_visibility() -> Visibility:
    """What the caller may know of."""
    client = present_client()
    return Visibility(client.adapters, client.experiments)


def _check_width(found: Findings, spec: Spec) -> None:
    if problem := current_visibility().too_wide(spec):
        found.add(f"{WITHIN}route", problem)


def _reason(reason: str) -> str:
    found = Findings()
    found.text("reason", reason, MAX_REASON_BYTES)
    found.check()
    return reason


def _add(found: Findings, problems: Iterable[FieldViolation]) -> None:
    for problem in problems:
        found.add(f"{WITHIN}{problem.field}", problem.description)
