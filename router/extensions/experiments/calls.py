"""Every method of ExperimentService, once: what is sent, and how the answer is read."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, islice
from typing import Any, Unpack

from router.client.calls import Call
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
from router.extensions.experiments.model import Accepted, Experiment, Spec
from router.extensions.experiments.report.model import Report
from router.names import bare_response_id
from router.types import AdapterRef
from router.v1 import experiments_pb2 as pb

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


@dataclass(frozen=True, slots=True)
class Promotion:
    """The experiment after a promotion or its undoing, the default version now, and the one before."""

    experiment: Experiment
    default: AdapterRef | None
    previous: AdapterRef | None = None


def experiment_in(message: Any) -> Experiment:
    """The experiment of an answer."""
    return experiment_of(message.experiment)


def promotion_of(message: pb.PromoteArmResponse | pb.RollBackPromotionResponse) -> Promotion:
    """A promotion or its undoing."""
    return read(Promotion, message, experiment=experiment_of(message.experiment))


def status_of(message: pb.RecordOutcomeResponse) -> Accepted | None:
    """What became of one outcome. A warning is logged."""
    _log_warning(message.warning)
    return ACCEPTED.get(message.status)


# -- the methods


def create(name: str, spec: Spec, **options: Unpack[CallOptions]) -> Call[Experiment]:
    """Keep a plan; nothing is served by it before `start`."""
    request = pb.CreateExperimentRequest(experiment_id=name, experiment=plan_message(spec))
    return Call("CreateExperiment", request, options, experiment_in)


def get(name: str, **options: Unpack[CallOptions]) -> Call[Experiment]:
    """One experiment."""
    request = pb.GetExperimentRequest(name=experiment_name(name))
    return Call("GetExperiment", request, options, experiment_in)


def list_experiments(*, page_size: int = 200, **options: Unpack[CallOptions]) -> Call[Iterable[Experiment]]:
    """All experiments, all pages, by name."""
    request = pb.ListExperimentsRequest(page_size=page_size)
    return Call("ListExperiments", request, options, lambda page: map(experiment_of, page.experiments))


def update(
    name: str,
    changes: Mapping[str, Any],
    *,
    etag: str = "",
    new_phase: bool | None = None,
    **options: Unpack[CallOptions],
) -> Call[Experiment]:
    """Change fields of the plan, by their names in `Spec`. While it runs this opens a new phase, in which
    nothing of the old one counts; `new_phase=False` refuses such a change."""
    request = update_request(name, etag, changes, new_phase)
    return Call("UpdateExperiment", request, options, experiment_in)


def start(name: str, *, etag: str = "", **options: Unpack[CallOptions]) -> Call[Experiment]:
    """Begin to assign units."""
    request = pb.StartExperimentRequest(name=experiment_name(name), etag=etag)
    return Call("StartExperiment", request, options, experiment_in)


def stop(name: str, *, reason: str = "", etag: str = "", **options: Unpack[CallOptions]) -> Call[Experiment]:
    """Everybody gets the default again; outcomes count until their window closes."""
    request = pb.StopExperimentRequest(name=experiment_name(name), etag=etag, reason=reason)
    return Call("StopExperiment", request, options, experiment_in)


def promote(
    name: str,
    arm: str = "",
    *,
    force: bool = False,
    reason: str = "",
    etag: str = "",
    **options: Unpack[CallOptions],
) -> Call[Promotion]:
    """Make an arm's version the default and stop. `arm` empty: the one that the verdict names."""
    request = pb.PromoteArmRequest(name=experiment_name(name), arm=arm, etag=etag, force=force, reason=reason)
    return Call("PromoteArm", request, options, promotion_of)


def roll_back(name: str, *, reason: str = "", **options: Unpack[CallOptions]) -> Call[Promotion]:
    """Put back the default version from before `promote`."""
    request = pb.RollBackPromotionRequest(name=experiment_name(name), reason=reason)
    return Call("RollBackPromotion", request, options, promotion_of)


def delete(name: str, *, etag: str = "", **options: Unpack[CallOptions]) -> Call[None]:
    """Forget it and all that was logged of it."""
    request = pb.DeleteExperimentRequest(name=experiment_name(name), etag=etag)
    return Call("DeleteExperiment", request, options, lambda _: None)


def report(name: str, phase: int = 0, **options: Unpack[CallOptions]) -> Call[Report]:
    """The verdict now with all that it rests on; `phase` 0 is the last. Valid at every look."""
    return Call("GetReport", pb.GetReportRequest(name=experiment_name(name), phase=phase), options, report_of)


def record_outcome(outcome: Outcome, **options: Unpack[CallOptions]) -> Call[Accepted | None]:
    """Keep one outcome; it is durable when this returns. An unknown response is a ClientError. A metric
    that no plan has is a warning of the log `router.client`."""
    request = pb.RecordOutcomeRequest(outcome=outcome_message(outcome))
    return Call("RecordOutcome", request, options, status_of)


def record_outcomes(outcomes: Iterable[Outcome], **options: Unpack[CallOptions]) -> Call[Iterable[Recorded]]:
    """Keep many over one call: what became of each, in order, once it is durable. No deadline unless
    given; reading the results is what drives it."""
    options.setdefault("timeout", None)
    return Call("RecordOutcomes", batches(outcomes), options, recorded_of)
