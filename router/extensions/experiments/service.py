"""Experiments as a server has them: ExperimentService, metrics, and the modes of plugins."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import TimeoutError as NotInTime
from contextlib import aclosing
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar, cast

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.conversion import fill
from router.errors import ExperimentNotFound, FieldViolation, Findings, RouterError, StoreDown, Unavailable
from router.extensions.experiments.assignment import Snapshot
from router.extensions.experiments.manager import Manager, Promoter
from router.extensions.experiments.messages import (
    checked_paths,
    experiment_message,
    merged,
    plan_of,
    report_message,
)
from router.extensions.experiments.model import Experiment, Spec, id_problem, parse_experiment
from router.extensions.experiments.outcomes import Intake, OutcomeSender, answers_in_order, paced
from router.extensions.experiments.plans import Known, arm_warnings, plan_warnings
from router.extensions.experiments.report.model import Report
from router.extensions.experiments.runtime import LiveExperiments, StoreThreads
from router.extensions.experiments.visibility import Visibility
from router.ports import AdapterRegistry, Force
from router.server.adapters import page
from router.server.call import Call, current_call, present_client
from router.server.policy import ADMIN, LARGE, OBSERVE, RECORD, Policy
from router.types import AdapterInfo, AdapterRef
from router.v1 import experiments_pb2 as pb
from router.v1.experiments_pb2_grpc import ExperimentServiceServicer

log = logging.getLogger(__name__)
READ, CHANGE = replace(OBSERVE, max_body=LARGE), replace(ADMIN, max_body=LARGE)
SERVICE = "/router.v1.ExperimentService/"
ROWS: Mapping[str, Policy] = {
    SERVICE + "RecordOutcome": RECORD,
    SERVICE + "RecordOutcomes": replace(RECORD, watch=True, max_body=LARGE),
    SERVICE + "GetExperiment": READ,
    SERVICE + "ListExperiments": READ,
    SERVICE + "GetReport": READ,
    SERVICE + "CreateExperiment": CHANGE,
    SERVICE + "UpdateExperiment": CHANGE,
    SERVICE + "DeleteExperiment": CHANGE,
    SERVICE + "StartExperiment": CHANGE,
    SERVICE + "StopExperiment": CHANGE,
    SERVICE + "PromoteArm": CHANGE,
    SERVICE + "RollBackPromotion": CHANGE,
}
LOOP_SECONDS = 10.0  # for the event loop to come to a call
ARM = ("experiment", "arm")
P = ParamSpec("P")
T = TypeVar("T")


def experiment_service(live: LiveExperiments, registry: AdapterRegistry) -> ExperimentService:
    """ExperimentService; versions of arms are kept in memory from now on. On the event loop."""
    live.subscribe(WarmArms(registry))
    from_thread = RegistryOnLoop(registry, asyncio.get_running_loop())
    known = Known(
        from_thread.resolve,
        lambda one: current_visibility().sees(one),
    )
    manager = Manager(live.store, known)

    async def changed() -> None:
        try:
            await live.refresh()
        except StoreDown as error:  # what was changed is kept, and taken over when the store is back
            log.warning("a change of experiments is not served yet: %s", error.message)

    def refused(number: int) -> None:
        live.counts.outcomes["invalid"] += number

    def warnings(experiment: Experiment) -> tuple[str, ...]:
        seen = present_client().adapters
        of_arms = arm_warnings(
            experiment.spec, lambda name, version="": registry.resolve(name, version, seen)
        )
        of_plan = plan_warnings(experiment.spec)
        return (*live.assigner.warnings(experiment.name), *of_plan, *of_arms)

    return ExperimentService(
        manager,
        Promoter(manager, from_thread, lambda experiment: live.judged(experiment.name)),
        live.reported,
        Intake(live.recorder, lambda: live.known, live.threads, refused),
        live.threads,
        changed,
        warnings,
    )


class ExperimentMetrics(Collector):
    """Labels are names that operators gave, so there are few."""

    def __init__(self, experiments: LiveExperiments) -> None:
        self._experiments = experiments

    def collect(self) -> Iterator[Metric]:
        """Everything as it is now."""
        live, counts = self._experiments, self._experiments.counts
        one = ("experiment",)
        yield _counter("exposures", "Requests of an arm's units.", ARM, counts.exposures)
        ended = "Of these, without a whole answer: in lease, admission, prefill or stream; error, cancelled."
        yield _counter("ended", ended, (*ARM, "stage", "how"), counts.ended)
        yield _counter(
            "degraded", "Of these, answered by another version than the arm's.", ARM, counts.degraded
        )
        yield _counter("unit_missing", "Requests without a unit.", one, counts.unit_missing)
        yield _counter(
            "skipped",
            "Requests answered without the experiment, since the store was down.",
            one,
            counts.skipped,
        )
        shadows = (
            "Shadow answers: same, different; lost: load, cold, deadline, unserved, other_version, failed."
        )
        yield _counter("shadows", shadows, (*ARM, "result"), counts.shadows)
        yield _counter(
            "acts", "Acts of the guardian: stop, take out or hold.", ("experiment", "act"), counts.acts
        )
        yield _counter(
            "outcomes",
            "Outcomes: counted, duplicate, late, unknown, not-kept or invalid.",
            ("status",),
            counts.outcomes,
        )
        yield _counter("lost", "Records that were lost.", ("kind",), counts.lost)
        running = len(live.assigner.snapshot.all())
        yield GaugeMetricFamily("lora_router_experiments_running", "Experiments that assign units.", running)
        yield GaugeMetricFamily(
            "lora_router_experiment_queue", "Records that wait to be written.", live.recorder.queued
        )
        yield GaugeMetricFamily(
            "lora_router_experiment_store_up", "1 while the database answers.", live.availability.up
        )


def _counter(name: str, text: str, labels: tuple[str, ...], values: Mapping[Any, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"lora_router_experiment_{name}", text, labels=labels)
    for key, value in tuple(values.items()):
        family.add_metric([str(k) for k in (key if isinstance(key, tuple) else (key,))], value)
    return family


class WarmArms:
    """Called with every new snapshot, on the event loop."""

    def __init__(self, registry: AdapterRegistry) -> None:
        self._registry = registry
        self._asked: frozenset[AdapterRef] = frozenset()
        self._loads: set[asyncio.Task[None]] = set()

    def __call__(self, snapshot: Snapshot) -> None:
        """Load what was not wanted before. A version that cannot be loaded is a matter of its requests."""
        arms = (arm for one in snapshot.all() for arm in one.arms.values())
        wanted = frozenset(arm.adapter for arm in arms if arm.adapter)
        for ref in sorted(wanted - self._asked, key=str):
            task = asyncio.get_running_loop().create_task(self._load(ref), name=f"load {ref}")
            self._loads.add(task)
            task.add_done_callback(self._loads.discard)
        self._asked = wanted

    async def _load(self, ref: AdapterRef) -> None:
        try:
            await self._registry.load(ref)
        except RouterError as error:
            log.warning("the arm's version %s cannot be loaded: %s", ref, error.message)


class RegistryOnLoop:
    """What experiments ask of the registry, as far as the caller may know of it. Call it from a thread, never
    on the loop itself.

    Raises Unavailable where the loop does not come to it in ten seconds.
    """

    def __init__(self, registry: AdapterRegistry, loop: asyncio.AbstractEventLoop) -> None:
        self._registry, self._loop = registry, loop

    def resolve(self, name: str, version: str = "", /) -> AdapterInfo:
        """As `Catalog.resolve`."""
        return self._call(self._registry.resolve, name, version, present_client().adapters)

    def get(self, name: str, version: str = "", /) -> AdapterInfo:
        """As `AdapterRegistry.get`."""
        return self._call(self._registry.get, name, version, present_client().adapters)

    def set_default(
        self, ref: AdapterRef, etag: str = "", force: Force | None = None, /
    ) -> tuple[AdapterInfo, AdapterRef | None]:
        """As `AdapterRegistry.set_default`."""
        return self._done(self._registry.set_default(ref, etag, force))

    def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        async def call() -> T:
            return function(*args, **kwargs)

        return self._done(call())

    def _done(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(LOOP_SECONDS)
        except NotInTime:
            future.cancel()
            raise Unavailable(f"the server did not come to it in {LOOP_SECONDS:g} s") from None


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
            spec = merged(old, message, paths, found, WITHIN)
            _add(found, self._manager.problems(spec, old))
            _check_width(found, spec)
            found.check()
            return spec

        await self._check_seen(name)
        kept = await self._change(
            self._manager.update,
            name,
            edit,
            message.etag,
            call.actor,
            new_phase=request.new_phase or not request.HasField("new_phase"),
        )
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
        message = pb.PromoteArmResponse(experiment=self._message(done.experiment))
        return fill(message, {"default": done.default, "previous": done.previous})

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
        return experiment_message(experiment, (*experiment.warnings, *self._warnings(experiment)))


def _caller() -> OutcomeSender:
    call = current_call()
    return OutcomeSender(call.client.tenant, current_visibility(), call.meter)


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
