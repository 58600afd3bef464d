"""Proto messages about experiments into results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from google.protobuf.timestamp_pb2 import Timestamp

from router.client.experiment_results import Experiment, Promotion, Recorded
from router.client.responses import seconds, to_ref
from router.experiments.kind import Kind
from router.experiments.model import (
    Accepted,
    Aggregate,
    ArmSpec,
    Lifecycle,
    MetricSpec,
    Mode,
    Phase,
    RouterVariant,
    Spec,
    Unanswered,
)
from router.v1 import experiments_pb2 as pb

Proto = pb.Experiment


def to_time(value: Timestamp) -> float:
    """Unix seconds."""
    return value.ToNanoseconds() / 1e9


def _name(enum: object, value: int, prefix: str) -> str:
    name: str = enum.Name(value)  # type: ignore[attr-defined]
    return name.removeprefix(prefix).lower()


def to_experiment(message: pb.Experiment) -> Experiment:
    """An experiment with its phases."""
    spec = to_spec(message)
    state = _name(Proto.State, message.state, "STATE_")
    return Experiment(
        name=message.name.removeprefix("experiments/"),
        spec=spec,
        state=Lifecycle(state) if state != "unspecified" else Lifecycle.DRAFT,
        phases=tuple(_phase(phase, spec) for phase in message.phases),
        created=to_time(message.create_time),
        updated=to_time(message.update_time),
        stopped=to_time(message.stop_time) if message.HasField("stop_time") else None,
        stop_reason=message.stop_reason,
        promoted=message.promoted,
        etag=message.etag,
        warnings=tuple(message.warnings),
    )


def to_spec(message: pb.Experiment) -> Spec:
    """The plan; what is not set has the default."""
    spec = Spec(
        hypothesis=message.hypothesis,
        route=message.route.removeprefix("adapters/"),
        arms=tuple(map(_arm, message.arms)),
        control=message.control,
        primary=_metric(message.primary),
        guardrails=tuple(map(_metric, message.guardrails)),
        mode=Mode(_name(Proto.Mode, message.mode or Proto.MODE_SPLIT, "MODE_")),
        unit=message.unit,
        unit_label=message.unit_label,
        namespace=message.namespace,
        margin=message.margin,
    )
    plain = ("enrolment", "alpha", "planned_units", "min_units", "min_matured", "shadow_share", "floor")
    said = {name: getattr(message, name) for name in plain if message.HasField(name)}
    said |= {name: seconds(getattr(message, name)) for name in ("window", "epoch") if message.HasField(name)}
    slot = (message.slot_start, message.slot_end if message.HasField("slot_end") else 1.0)
    return replace(spec, slot=slot, judge=message.judge or spec.judge, **said)


def _arm(message: pb.Experiment.Arm) -> ArmSpec:
    router = _router(message.router) if message.HasField("router") else None
    return ArmSpec(message.name, message.weight, to_ref(message.adapter), router)


def _router(message: pb.Experiment.RouterVariant) -> RouterVariant:
    said = {
        name: getattr(message, name)
        for name in ("threshold", "task_first", "domain_first")
        if message.HasField(name)
    }
    return RouterVariant(classifiers=tuple(message.classifiers) or None, **said)


def _metric(message: pb.Experiment.Metric) -> MetricSpec:
    kind = Kind(_name(Proto.Metric.Kind, message.kind or Proto.Metric.KIND_PROPORTION, "KIND_"))
    usual = Aggregate.MAX if kind is Kind.PROPORTION else Aggregate.SUM
    aggregate = _name(Proto.Metric.Aggregate, message.aggregate, "AGGREGATE_")
    return MetricSpec(
        name=message.name,
        kind=kind,
        higher_is_better=not message.lower_is_better,
        aggregate=usual if aggregate == "unspecified" else Aggregate(aggregate),
        per=message.per or "responses",
        missing=Unanswered.ZERO if message.missing_is_zero else Unanswered.EXCLUDED,
        covariate=message.covariate,
        margin=message.margin,
        relative=message.relative,
    )


def _phase(message: pb.Experiment.Phase, spec: Spec) -> Phase:
    """A phase; its plan is today's with the arms and the share of then."""
    return Phase(
        number=message.number,
        started=to_time(message.start_time),
        enrolment_salt=message.enrolment_salt,
        variant_salt=message.variant_salt,
        spec=replace(spec, arms=tuple(map(_arm, message.arms)), enrolment=message.enrolment),
        ended=to_time(message.end_time) if message.HasField("end_time") else None,
        reason=message.reason,
    )


def to_promotion(message: pb.PromoteArmResponse | pb.RollBackPromotionResponse) -> Promotion:
    """A promotion or its undoing."""
    before = message.previous_version if isinstance(message, pb.PromoteArmResponse) else ""
    return Promotion(to_experiment(message.experiment), to_ref(message.default_version), to_ref(before))


def to_accepted(status: int) -> Accepted | None:
    """What became of an outcome; None if it was refused."""
    name = pb.OutcomeStatus.Name(status).removeprefix("OUTCOME_STATUS_").lower()
    return next((member for member in Accepted if member.value == name), None)


def to_recorded(message: pb.RecordOutcomesResponse) -> Iterator[Recorded]:
    """One for each outcome of a batch; errors stand with those that were refused."""
    errors = iter(message.errors)
    for status in message.statuses:
        found = to_accepted(status)
        yield Recorded(found, "" if found else next(errors, "refused"))
