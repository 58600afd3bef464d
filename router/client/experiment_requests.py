"""Python arguments about experiments into proto messages."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from itertools import count, islice
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from router.client.experiment_results import Outcome
from router.experiments.kind import Kind
from router.experiments.model import ArmSpec, MetricSpec, RouterVariant, Spec, Unanswered
from router.v1 import experiments_pb2 as pb

BATCH = 500
EMPTY = Spec("", "", (), "", MetricSpec("", Kind.PROPORTION))
SEPARATE = {"slot": ("slot_start", "slot_end")}  # fields of a Spec that are several in the proto


def experiment_name(name: str) -> str:
    """NAME or a resource name, as a resource name."""
    return name if name.startswith("experiments/") else f"experiments/{name}"


def _duration(seconds: float) -> Duration:
    nanos = round(seconds * 1e9)
    return Duration(seconds=nanos // 1_000_000_000, nanos=nanos % 1_000_000_000)


def _route(route: str) -> str:
    return route if route in ("", "base") or route.startswith("adapters/") else f"adapters/{route}"


def experiment_message(spec: Spec) -> pb.Experiment:
    """The plan as a message."""
    return pb.Experiment(
        hypothesis=spec.hypothesis,
        route=_route(spec.route),
        arms=map(_arm, spec.arms),
        control=spec.control,
        primary=_metric(spec.primary),
        guardrails=map(_metric, spec.guardrails),
        mode=f"MODE_{spec.mode.name}",
        unit=spec.unit,
        unit_label=spec.unit_label,
        enrolment=spec.enrolment,
        namespace=spec.namespace,
        slot_start=spec.slot[0],
        slot_end=spec.slot[1],
        margin=spec.margin,
        alpha=spec.alpha,
        planned_units=spec.planned_units,
        min_units=spec.min_units,
        min_matured=spec.min_matured,
        window=_duration(spec.window),
        shadow_share=spec.shadow_share,
        judge=spec.judge,
        floor=spec.floor,
        epoch=_duration(spec.epoch),
    )


def _arm(arm: ArmSpec) -> pb.Experiment.Arm:
    return pb.Experiment.Arm(
        name=arm.name,
        weight=arm.weight,
        adapter=arm.adapter.resource if arm.adapter else "",
        router=_router(arm.router) if arm.router else None,
    )


def _router(variant: RouterVariant) -> pb.Experiment.RouterVariant:
    return pb.Experiment.RouterVariant(
        threshold=variant.threshold,
        classifiers=variant.classifiers or (),
        task_first=variant.task_first,
        domain_first=variant.domain_first,
    )


def _metric(metric: MetricSpec) -> pb.Experiment.Metric:
    return pb.Experiment.Metric(
        name=metric.name,
        kind=f"KIND_{metric.kind.name}",
        lower_is_better=not metric.higher_is_better,
        aggregate=f"AGGREGATE_{metric.aggregate.name}",
        per=metric.per if metric.kind is Kind.RATIO else "",
        missing_is_zero=metric.missing is Unanswered.ZERO,
        covariate=metric.covariate,
        margin=metric.margin,
        relative=metric.relative,
    )


def update_request(name: str, etag: str, changes: Mapping[str, Any]) -> pb.UpdateExperimentRequest:
    """Only the fields of a `Spec` that are given. TypeError for one that a plan does not have."""
    known = [field.name for field in fields(Spec)]
    if unknown := sorted(set(changes) - set(known)):
        raise TypeError(f"unknown field {unknown[0]!r} of a plan; fields are {', '.join(known)}")
    whole = experiment_message(replace(EMPTY, **changes))
    paths = [path for name in changes for path in SEPARATE.get(name, (name,))]
    whole.name, whole.etag = experiment_name(name), etag
    return pb.UpdateExperimentRequest(experiment=whole, update_mask=FieldMask(paths=paths))


def outcome_message(outcome: Outcome) -> pb.Outcome:
    """One outcome, with a key. ValueError unless it is of a response or of a unit in an experiment."""
    by_unit = bool(outcome.experiment or outcome.unit)
    if bool(outcome.response_id) == by_unit or by_unit != bool(outcome.experiment and outcome.unit):
        raise ValueError("an outcome is of a response_id, or of an experiment and a unit")
    made = pb.Outcome(
        metric=outcome.metric,
        value=outcome.value,
        idempotency_key=outcome.key or uuid.uuid4().hex,
        time=None if outcome.time is None else _timestamp(outcome.time),
    )
    if by_unit:
        made.unit.experiment, made.unit.unit = experiment_name(outcome.experiment), outcome.unit
    else:
        made.response_id = outcome.response_id
    return made


def _timestamp(unix_seconds: float) -> Timestamp:
    nanos = round(unix_seconds * 1e9)
    return Timestamp(seconds=nanos // 1_000_000_000, nanos=nanos % 1_000_000_000)


def batches(outcomes: Iterable[Outcome], size: int = BATCH) -> Iterator[pb.RecordOutcomesRequest]:
    """Numbered batches of outcomes."""
    left = iter(outcomes)
    for number in count(1):
        if not (batch := list(islice(left, size))):
            return
        yield pb.RecordOutcomesRequest(sequence=number, outcomes=map(outcome_message, batch))
