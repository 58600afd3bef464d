"""`client.experiments`: plan, run, judge and decide experiments, record outcomes; for threads and asyncio.

These names are also those of `router.client`: `from router.client import Spec, metric`.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import count, islice
from typing import Any, Unpack

import grpc
import grpc.aio
from pydantic import TypeAdapter

from router.client.channel import AsyncCaller, SyncCaller
from router.client.values import CallOptions
from router.conversion import read, timestamp
from router.extensions.experiments.messages import (
    STATUSES,
    experiment_name,
    experiment_of,
    plan_message,
    report_of,
    update_request,
)
from router.extensions.experiments.model import (
    Accepted,
    ArmSpec,
    Experiment,
    Kind,
    Lifecycle,
    MetricSpec,
    Mode,
    SegmentSpec,
    Spec,
)
from router.extensions.experiments.report.model import Report
from router.names import bare_response_id
from router.types import AdapterRef
from router.v1 import experiments_pb2 as pb
from router.v1 import experiments_pb2_grpc

log = logging.getLogger("router.client")
BATCH = 500
ACCEPTED = {number: status for status, number in STATUSES.items()}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One value of one metric, of a response or of a unit in an experiment.

    A unit is named by `unit`, or by `unit_hash` as exports have it. `time` in unix seconds, None: when the
    server gets it. The same `key` is counted once; without one the client makes one for each call, so that
    its own retries are safe, but not yours.
    """

    metric: str
    value: float
    response_id: str = ""
    experiment: str = ""
    unit: str = ""
    time: float | None = None
    key: str = ""
    unit_hash: str = ""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of an outcome of a batch; status None: refused, and `error` says why."""

    status: Accepted | None
    error: str = ""


def outcome_message(outcome: Outcome) -> pb.Outcome:
    """One outcome, with a key. ValueError unless it is of a response or of a unit in an experiment."""
    units = [unit for unit in (outcome.unit, outcome.unit_hash) if unit]
    by_unit = bool(outcome.experiment or units)
    if bool(outcome.response_id) == by_unit or by_unit != bool(outcome.experiment and len(units) == 1):
        raise ValueError("an outcome is of a response_id, or of an experiment and a unit or a unit_hash")
    made = pb.Outcome(
        metric=outcome.metric,
        value=outcome.value,
        idempotency_key=outcome.key or uuid.uuid4().hex,
        time=None if outcome.time is None else timestamp(outcome.time),
    )
    if by_unit:
        made.unit.experiment = experiment_name(outcome.experiment)
        made.unit.unit, made.unit.unit_hash = outcome.unit, outcome.unit_hash
    else:
        made.response_id = bare_response_id(outcome.response_id)
    return made


def batches(outcomes: Iterable[Outcome]) -> Iterator[pb.RecordOutcomesRequest]:
    """Numbered batches of outcomes."""
    left = iter(outcomes)
    for number in count(1):
        if not (batch := list(islice(left, BATCH))):
            return
        yield pb.RecordOutcomesRequest(sequence=number, outcomes=map(outcome_message, batch))


@lru_cache(maxsize=256)
def _log_warning(text: str) -> None:
    """Log what a server warns of, once: a misspelt metric is in every outcome that an application sends."""
    if text:
        log.warning("%s", text)


def recorded_of(message: pb.RecordOutcomesResponse) -> Iterator[Recorded]:
    """One for each outcome of a batch; errors stand with those that were refused. Warnings are logged."""
    for text in message.warnings:
        _log_warning(text)
    errors = iter(message.errors)
    for status in message.statuses:
        found = ACCEPTED.get(status)
        yield Recorded(found, "" if found else next(errors, "refused"))


__all__ = [
    "Accepted",
    "ArmSpec",
    "AsyncExperiments",
    "Experiment",
    "Experiments",
    "Kind",
    "Lifecycle",
    "MetricSpec",
    "Mode",
    "Outcome",
    "Promotion",
    "Recorded",
    "Report",
    "SegmentSpec",
    "Spec",
    "metric",
]


@dataclass(frozen=True, slots=True)
class Promotion:
    """The experiment after a promotion or its undoing, the default version now, and the one before."""

    experiment: Experiment
    default: AdapterRef | None
    previous: AdapterRef | None = None


def metric(name: str, kind: Kind | str = Kind.PROPORTION, **fields: Any) -> MetricSpec:
    """A metric, by the fields of `MetricSpec`; values of enums may be texts, and windows `36h`.

    Where it does not say so, the server chooses how outcomes are combined and what a unit without one counts
    as. Raises ValueError naming every wrong field.
    """
    return _metrics().validate_python({"name": name, "kind": kind, **fields})


@cache
def _metrics() -> TypeAdapter[MetricSpec]:
    return TypeAdapter(MetricSpec)


class Experiments:
    """`client.experiments`. Names are NAME or `experiments/NAME`; `etag` refuses what changed since."""

    def __init__(self, channel: grpc.Channel, caller: SyncCaller) -> None:
        self._stub = experiments_pb2_grpc.ExperimentServiceStub(channel)  # type: ignore[no-untyped-call]
        self._caller = caller

    def create(self, name: str, spec: Spec, **options: Unpack[CallOptions]) -> Experiment:
        """Keep a plan; nothing is served by it before `start`."""
        request = pb.CreateExperimentRequest(experiment_id=name, experiment=plan_message(spec))
        answer = self._caller.unary(self._stub.CreateExperiment, request, options)
        return experiment_of(answer.experiment)

    def get(self, name: str, **options: Unpack[CallOptions]) -> Experiment:
        """One experiment."""
        request = pb.GetExperimentRequest(name=experiment_name(name))
        answer = self._caller.unary(self._stub.GetExperiment, request, options)
        return experiment_of(answer.experiment)

    def list(self, *, page_size: int = 200, **options: Unpack[CallOptions]) -> tuple[Experiment, ...]:
        """All experiments, all pages, by name."""
        found: tuple[Experiment, ...] = ()
        token = ""
        while True:
            request = pb.ListExperimentsRequest(page_size=page_size, page_token=token)
            page = self._caller.unary(self._stub.ListExperiments, request, options)
            found += tuple(map(experiment_of, page.experiments))
            if not (token := page.next_page_token):
                return found

    def update(
        self,
        name: str,
        changes: Mapping[str, Any],
        *,
        etag: str = "",
        new_phase: bool | None = None,
        **options: Unpack[CallOptions],
    ) -> Experiment:
        """Change fields of the plan, by their names in `Spec`. While it runs this opens a new phase, in which
        nothing of the old one counts; `new_phase=False` refuses such a change."""
        request = update_request(name, etag, changes, new_phase)
        answer = self._caller.unary(self._stub.UpdateExperiment, request, options)
        return experiment_of(answer.experiment)

    def start(self, name: str, *, etag: str = "", **options: Unpack[CallOptions]) -> Experiment:
        """Begin to assign units."""
        request = pb.StartExperimentRequest(name=experiment_name(name), etag=etag)
        answer = self._caller.unary(self._stub.StartExperiment, request, options)
        return experiment_of(answer.experiment)

    def stop(
        self, name: str, *, reason: str = "", etag: str = "", **options: Unpack[CallOptions]
    ) -> Experiment:
        """Everybody gets the default again; outcomes count until their window closes."""
        request = pb.StopExperimentRequest(name=experiment_name(name), etag=etag, reason=reason)
        answer = self._caller.unary(self._stub.StopExperiment, request, options)
        return experiment_of(answer.experiment)

    def promote(
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
            name=experiment_name(name), arm=arm, etag=etag, force=force, reason=reason
        )
        return _promotion_of(self._caller.unary(self._stub.PromoteArm, request, options))

    def roll_back(self, name: str, *, reason: str = "", **options: Unpack[CallOptions]) -> Promotion:
        """Put back the default version from before `promote`."""
        request = pb.RollBackPromotionRequest(name=experiment_name(name), reason=reason)
        return _promotion_of(self._caller.unary(self._stub.RollBackPromotion, request, options))

    def delete(self, name: str, *, etag: str = "", **options: Unpack[CallOptions]) -> None:
        """Forget it and all that was logged of it."""
        request = pb.DeleteExperimentRequest(name=experiment_name(name), etag=etag)
        self._caller.unary(self._stub.DeleteExperiment, request, options)

    def report(self, name: str, phase: int = 0, **options: Unpack[CallOptions]) -> Report:
        """The verdict now with all that it rests on; `phase` 0 is the last. Valid at every look."""
        request = pb.GetReportRequest(name=experiment_name(name), phase=phase)
        return report_of(self._caller.unary(self._stub.GetReport, request, options))

    def record_outcome(self, outcome: Outcome, **options: Unpack[CallOptions]) -> Accepted | None:
        """Keep one outcome; it is durable when this returns. An unknown response is a ClientError. A metric
        that no plan has is a warning of the log `router.client`."""
        request = pb.RecordOutcomeRequest(outcome=outcome_message(outcome))
        answer = self._caller.unary(self._stub.RecordOutcome, request, options)
        _log_warning(answer.warning)
        return ACCEPTED.get(answer.status)

    def record_outcomes(
        self, outcomes: Iterable[Outcome], **options: Unpack[CallOptions]
    ) -> Iterator[Recorded]:
        """Keep many over one call: what became of each, in order, once it is durable. No deadline unless
        given; reading the results is what drives it."""
        options.setdefault("timeout", None)
        for batch in self._caller.stream(self._stub.RecordOutcomes, batches(outcomes), options):
            yield from recorded_of(batch)


class AsyncExperiments:
    """`client.experiments`. Names are NAME or `experiments/NAME`; `etag` refuses what changed since."""

    def __init__(self, channel: grpc.aio.Channel, caller: AsyncCaller) -> None:
        self._stub: Any = experiments_pb2_grpc.ExperimentServiceStub(channel)  # type: ignore[no-untyped-call]
        self._caller = caller

    async def create(self, name: str, spec: Spec, **options: Unpack[CallOptions]) -> Experiment:
        """Keep a plan; nothing is served by it before `start`."""
        request = pb.CreateExperimentRequest(experiment_id=name, experiment=plan_message(spec))
        answer = await self._caller.unary(self._stub.CreateExperiment, request, options)
        return experiment_of(answer.experiment)

    async def get(self, name: str, **options: Unpack[CallOptions]) -> Experiment:
        """One experiment."""
        request = pb.GetExperimentRequest(name=experiment_name(name))
        answer = await self._caller.unary(self._stub.GetExperiment, request, options)
        return experiment_of(answer.experiment)

    async def list(self, *, page_size: int = 200, **options: Unpack[CallOptions]) -> tuple[Experiment, ...]:
        """All experiments, all pages, by name."""
        found: tuple[Experiment, ...] = ()
        token = ""
        while True:
            request = pb.ListExperimentsRequest(page_size=page_size, page_token=token)
            page = await self._caller.unary(self._stub.ListExperiments, request, options)
            found += tuple(map(experiment_of, page.experiments))
            if not (token := page.next_page_token):
                return found

    async def update(
        self,
        name: str,
        changes: Mapping[str, Any],
        *,
        etag: str = "",
        new_phase: bool | None = None,
        **options: Unpack[CallOptions],
    ) -> Experiment:
        """Change fields of the plan, by their names in `Spec`. While it runs this opens a new phase, in which
        nothing of the old one counts; `new_phase=False` refuses such a change."""
        request = update_request(name, etag, changes, new_phase)
        answer = await self._caller.unary(self._stub.UpdateExperiment, request, options)
        return experiment_of(answer.experiment)

    async def start(self, name: str, *, etag: str = "", **options: Unpack[CallOptions]) -> Experiment:
        """Begin to assign units."""
        request = pb.StartExperimentRequest(name=experiment_name(name), etag=etag)
        answer = await self._caller.unary(self._stub.StartExperiment, request, options)
        return experiment_of(answer.experiment)

    async def stop(
        self, name: str, *, reason: str = "", etag: str = "", **options: Unpack[CallOptions]
    ) -> Experiment:
        """Everybody gets the default again; outcomes count until their window closes."""
        request = pb.StopExperimentRequest(name=experiment_name(name), etag=etag, reason=reason)
        answer = await self._caller.unary(self._stub.StopExperiment, request, options)
        return experiment_of(answer.experiment)

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
            name=experiment_name(name), arm=arm, etag=etag, force=force, reason=reason
        )
        return _promotion_of(await self._caller.unary(self._stub.PromoteArm, request, options))

    async def roll_back(self, name: str, *, reason: str = "", **options: Unpack[CallOptions]) -> Promotion:
        """Put back the default version from before `promote`."""
        request = pb.RollBackPromotionRequest(name=experiment_name(name), reason=reason)
        return _promotion_of(await self._caller.unary(self._stub.RollBackPromotion, request, options))

    async def delete(self, name: str, *, etag: str = "", **options: Unpack[CallOptions]) -> None:
        """Forget it and all that was logged of it."""
        request = pb.DeleteExperimentRequest(name=experiment_name(name), etag=etag)
        await self._caller.unary(self._stub.DeleteExperiment, request, options)

    async def report(self, name: str, phase: int = 0, **options: Unpack[CallOptions]) -> Report:
        """The verdict now with all that it rests on; `phase` 0 is the last. Valid at every look."""
        request = pb.GetReportRequest(name=experiment_name(name), phase=phase)
        return report_of(await self._caller.unary(self._stub.GetReport, request, options))

    async def record_outcome(self, outcome: Outcome, **options: Unpack[CallOptions]) -> Accepted | None:
        """Keep one outcome; it is durable when this returns. An unknown response is a ClientError. A metric
        that no plan has is a warning of the log `router.client`."""
        request = pb.RecordOutcomeRequest(outcome=outcome_message(outcome))
        answer = await self._caller.unary(self._stub.RecordOutcome, request, options)
        _log_warning(answer.warning)
        return ACCEPTED.get(answer.status)

    async def record_outcomes(
        self, outcomes: Iterable[Outcome], **options: Unpack[CallOptions]
    ) -> AsyncIterator[Recorded]:
        """Keep many over one call: what became of each, in order, once it is durable. No deadline unless
        given; reading the results is what drives it."""
        options.setdefault("timeout", None)
        messages: Any = self._caller.stream(self._stub.RecordOutcomes, batches(outcomes), options)
        async with aclosing(messages):
            async for batch in messages:
                for recorded in recorded_of(batch):
                    yield recorded


def _promotion_of(message: pb.PromoteArmResponse | pb.RollBackPromotionResponse) -> Promotion:
    """A promotion or its undoing."""
    return read(Promotion, message, experiment=experiment_of(message.experiment))
