"""Plan, run, judge and decide experiments, and record outcomes: for threads and for asyncio.

with Client() as client:
    experiments = Experiments(client)
    experiments.create("medical-v2", Spec(...))
"""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import TypeAdapter

from router.client import aio, sync
from router.extensions.experiments import calls
from router.extensions.experiments.calls import Outcome, Promotion, Recorded
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
from router.v1 import experiments_pb2_grpc

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


def metric(name: str, kind: Kind | str = Kind.PROPORTION, **fields: Any) -> MetricSpec:
    """A metric, by the fields of `MetricSpec`; values of enums may be texts, and windows `36h`.

    Where it does not say so, the server chooses how outcomes are combined and what a unit without one counts
    as. Raises ValueError naming every wrong field.
    """
    return _metrics().validate_python({"name": name, "kind": kind, **fields})


@cache
def _metrics() -> TypeAdapter[MetricSpec]:
    return TypeAdapter(MetricSpec)


class Experiments(sync.Part):
    """Of a `Client`. Names are NAME or `experiments/NAME`; `etag` refuses what changed since."""

    service = experiments_pb2_grpc.ExperimentServiceStub
    create = sync.unary(calls.create)
    get = sync.unary(calls.get)
    list = sync.listed(calls.list_experiments)
    update = sync.unary(calls.update)
    start = sync.unary(calls.start)
    stop = sync.unary(calls.stop)
    promote = sync.unary(calls.promote)
    roll_back = sync.unary(calls.roll_back)
    delete = sync.unary(calls.delete)
    report = sync.unary(calls.report)
    record_outcome = sync.unary(calls.record_outcome)
    record_outcomes = sync.streamed(calls.record_outcomes)


class AsyncExperiments(aio.AsyncPart):
    """The same of an `AsyncClient`, awaited."""

    service = experiments_pb2_grpc.ExperimentServiceStub
    create = aio.unary(calls.create)
    get = aio.unary(calls.get)
    list = aio.listed(calls.list_experiments)
    update = aio.unary(calls.update)
    start = aio.unary(calls.start)
    stop = aio.unary(calls.stop)
    promote = aio.unary(calls.promote)
    roll_back = aio.unary(calls.roll_back)
    delete = aio.unary(calls.delete)
    report = aio.unary(calls.report)
    record_outcome = aio.unary(calls.record_outcome)
    record_outcomes = aio.streamed(calls.record_outcomes)
