"""Plans and experiments as messages: spec, arms, metrics, phases both ways; edits by field mask; sizes.

Each conversion is written once, for the server and for clients. The server names every bad field of what it
reads, in `Findings`. A client drops its findings: what a newer server says and an older client does not know
has the default.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import fields, replace
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from router.errors import Findings
from router.experiments.model import (
    BASE,
    Aggregate,
    ArmSpec,
    Experiment,
    ExperimentPhase,
    Kind,
    Lifecycle,
    MetricSpec,
    Mode,
    SegmentSpec,
    SizeAnswer,
    SizeQuestion,
    Spec,
    Unanswered,
    listed,
)
from router.names import VERSION_FORM, split_adapter
from router.types import AdapterRef
from router.v1 import experiments_pb2 as pb

_BILLION = 1_000_000_000


def timestamp(unix_seconds: float) -> Timestamp:
    """A proto timestamp."""
    nanos = round(unix_seconds * 1e9)
    return Timestamp(seconds=nanos // _BILLION, nanos=nanos % _BILLION)


def unix_seconds(value: Timestamp) -> float:
    """A proto timestamp as unix seconds."""
    return float(value.ToNanoseconds() / 1e9)


def duration(seconds: float) -> Duration:
    """A proto duration."""
    nanos = round(seconds * 1e9)
    return Duration(seconds=nanos // _BILLION, nanos=nanos % _BILLION)


def seconds_of(value: Duration) -> float:
    """The double next to a proto duration, in seconds."""
    return float((value.seconds * 10**9 + value.nanos) / 10**9)


STATES = {
    Lifecycle.DRAFT: pb.Experiment.STATE_DRAFT,
    Lifecycle.RUNNING: pb.Experiment.STATE_RUNNING,
    Lifecycle.STOPPED: pb.Experiment.STATE_STOPPED,
}
LIFECYCLES = {number: state for state, number in STATES.items()}
MODES = {
    pb.Experiment.MODE_UNSPECIFIED: Mode.SPLIT,
    pb.Experiment.MODE_SPLIT: Mode.SPLIT,
    pb.Experiment.MODE_SHADOW: Mode.SHADOW,
    pb.Experiment.MODE_HOLDOUT: Mode.HOLDOUT,
}
MODE_NUMBERS = {mode: number for number, mode in MODES.items()}
MODE_NAMES = listed(f"MODE_{mode.name}" for mode in Mode)
KINDS = {pb.Experiment.Metric.Kind.Value(kind.proto): kind for kind in Kind}
KIND_NAMES = listed(kind.proto for kind in Kind)
AGGREGATES = {
    pb.Experiment.Metric.AGGREGATE_SUM: Aggregate.SUM,
    pb.Experiment.Metric.AGGREGATE_MEAN: Aggregate.MEAN,
    pb.Experiment.Metric.AGGREGATE_MAX: Aggregate.MAX,
    pb.Experiment.Metric.AGGREGATE_LAST: Aggregate.LAST,
}
MISSING = {
    pb.Experiment.Metric.MISSING_UNSPECIFIED: Unanswered.UNSAID,
    pb.Experiment.Metric.MISSING_EXCLUDED: Unanswered.EXCLUDED,
    pb.Experiment.Metric.MISSING_ZERO: Unanswered.ZERO,
}
MISSING_NUMBERS = {missing: number for number, missing in MISSING.items()}
AGGREGATE_NUMBERS = {aggregate: number for number, aggregate in AGGREGATES.items()}
PRESENT = ("enrolment", "alpha", "planned_units", "min_units", "min_matured", "shadow_share")
"""Numbers of which an explicit 0 is not the same as unset."""
TIMES = ("window", "grace")
TEXTS = ("unit",)
"""Texts that have a default where they are empty."""
PLANNED = (
    *("hypothesis", "route", "arms", "control", "primary", "guardrails", "mode", "unit_label", "namespace"),
    *("slot_start", "slot_end", "margin", "secondary", "segments", "equal_arms", *PRESENT, *TIMES, *TEXTS),
)
"""Fields of the resource that an operator sets."""
EVERYTHING = "*"
LISTS = ("arms", "guardrails", "secondary", "segments")
MOST_ENTRIES = 256  # of any list in a plan, whose own rules allow fewer
SIZED = (
    *("baseline", "deviation", "effect", "units_per_day", "enrolment", "days", "units", "alpha"),
    "power",
    "outcome_share",
)
"""Numbers of a question that may be left open, or have a default."""
ANSWERED = (
    *("baseline", "deviation", "fixed_units", "units", "half_units", "factor", "least_units"),
    *("days", "units_per_day"),
)
_EMPTY = Spec("", "", (), "", MetricSpec("", Kind.PROPORTION))
_SEPARATE = {"slot": ("slot_start", "slot_end")}  # fields of a Spec that are several in the proto


def experiment_name(name: str) -> str:
    """NAME or a resource name, as a resource name."""
    return name if name.startswith("experiments/") else f"experiments/{name}"


def experiment_message(experiment: Experiment, warnings: Iterable[str] = ()) -> pb.Experiment:
    """The resource."""
    message = plan_message(experiment.spec)
    message.name = experiment.resource
    message.state = STATES[experiment.state]
    message.phases.extend(map(_phase_message, experiment.phases))
    message.create_time.CopyFrom(timestamp(experiment.created))
    message.update_time.CopyFrom(timestamp(experiment.updated))
    if experiment.stopped is not None:
        message.stop_time.CopyFrom(timestamp(experiment.stopped))
    message.stop_reason = experiment.stop_reason
    message.promoted = experiment.promoted
    message.etag = experiment.etag
    message.warnings.extend(warnings)
    return message


def experiment_of(message: pb.Experiment) -> Experiment:
    """The resource as a client has it, with its phases."""
    spec = plan_of(message, Findings())
    return Experiment(
        name=message.name.removeprefix("experiments/"),
        spec=spec,
        state=LIFECYCLES.get(message.state, Lifecycle.DRAFT),
        phases=tuple(_phase_of(phase, spec) for phase in message.phases),
        created=unix_seconds(message.create_time),
        updated=unix_seconds(message.update_time),
        stopped=unix_seconds(message.stop_time) if message.HasField("stop_time") else None,
        stop_reason=message.stop_reason,
        promoted=message.promoted,
        etag=message.etag,
        warnings=tuple(message.warnings),
    )


def _phase_message(phase: ExperimentPhase) -> pb.Experiment.Phase:
    return pb.Experiment.Phase(
        number=phase.number,
        start_time=timestamp(phase.started),
        end_time=None if phase.ended is None else timestamp(phase.ended),
        reason=phase.reason,
        enrolment_salt=phase.enrolment_salt,
        variant_salt=phase.variant_salt,
        arms=map(_arm_message, phase.spec.arms),
        enrolment=phase.spec.enrolment,
    )


def _phase_of(message: pb.Experiment.Phase, spec: Spec) -> ExperimentPhase:
    """A phase; its plan is today's with the arms and the share of then."""
    arms = tuple(_arm_of(arm, "", Findings()) for arm in message.arms)
    return ExperimentPhase(
        number=message.number,
        started=unix_seconds(message.start_time),
        enrolment_salt=message.enrolment_salt,
        variant_salt=message.variant_salt,
        spec=replace(spec, arms=arms, enrolment=message.enrolment),
        ended=unix_seconds(message.end_time) if message.HasField("end_time") else None,
        reason=message.reason,
    )


def plan_message(spec: Spec) -> pb.Experiment:
    """A plan with every field set."""
    message = pb.Experiment(
        hypothesis=spec.hypothesis,
        route=_route_message(spec.route),
        arms=map(_arm_message, spec.arms),
        control=spec.control,
        primary=metric_message(spec.primary),
        guardrails=map(metric_message, spec.guardrails),
        mode=MODE_NUMBERS[spec.mode],
        unit_label=spec.unit_label,
        namespace=spec.namespace,
        slot_start=spec.slot[0],
        slot_end=spec.slot[1],
        margin=spec.margin,
        equal_arms=spec.equal_arms,
        secondary=map(metric_message, spec.secondary),
        segments=(pb.Experiment.Segment(label=s.label, values=s.values) for s in spec.segments),
    )
    for name in (*PRESENT, *TEXTS):
        setattr(message, name, getattr(spec, name))
    for name in TIMES:
        if (seconds := getattr(spec, name)) is not None:
            getattr(message, name).CopyFrom(duration(seconds))
    return message


def plan_of(message: pb.Experiment, found: Findings, within: str = "experiment.") -> Spec:
    """The plan; what is not set has the model's default, what cannot be read is noted in `found`.

    Raises InvalidRequest for a list that no plan is as long as.
    """
    _check_lengths(message, found, within)
    given = {name: getattr(message, name) for name in PRESENT if message.HasField(name)}
    given.update({name: seconds_of(getattr(message, name)) for name in TIMES if message.HasField(name)})
    given.update({name: text for name in TEXTS if (text := getattr(message, name))})
    if message.mode not in MODES:
        found.add(f"{within}mode", f"must be {MODE_NAMES}")
    return Spec(
        hypothesis=message.hypothesis,
        route=_route_of(message.route, f"{within}route", found),
        arms=tuple(_arm_of(arm, f"{within}arms[{i}]", found) for i, arm in enumerate(message.arms)),
        control=message.control,
        primary=metric_of(message.primary, f"{within}primary", found),
        guardrails=_metrics_of(message.guardrails, f"{within}guardrails", found),
        secondary=_metrics_of(message.secondary, f"{within}secondary", found),
        segments=tuple(SegmentSpec(s.label, tuple(s.values)) for s in message.segments),
        mode=MODES.get(message.mode, Mode.SPLIT),
        unit_label=message.unit_label,
        namespace=message.namespace,
        slot=(message.slot_start, message.slot_end if message.HasField("slot_end") else 1.0),
        margin=message.margin,
        equal_arms=message.equal_arms,
        **given,
    )


def _check_lengths(message: pb.Experiment, found: Findings, within: str) -> None:
    """Before anything is done for each entry."""
    lists: dict[str, Sized] = {name: getattr(message, name) for name in LISTS}
    for i, segment in enumerate(message.segments[:MOST_ENTRIES]):
        lists[f"segments[{i}].values"] = segment.values
    too_long = {field: len(entries) for field, entries in lists.items() if len(entries) > MOST_ENTRIES}
    for field, count in too_long.items():
        found.add(f"{within}{field}", f"must have at most {MOST_ENTRIES} entries, got {count}")
    if too_long:
        found.check()


def _metrics_of(
    messages: Iterable[pb.Experiment.Metric], field: str, found: Findings
) -> tuple[MetricSpec, ...]:
    return tuple(metric_of(m, f"{field}[{i}]", found) for i, m in enumerate(messages))


def _route_message(route: str) -> str:
    """The route as clients see it; a resource name stays what it is."""
    return route if route in ("", BASE) or route.startswith("adapters/") else f"adapters/{route}"


def _route_of(route: str, field: str, found: Findings) -> str:
    """The adapter's name, `base`, or nothing."""
    if route in ("", BASE):
        return route
    name, version = split_adapter(route) or ("", "")
    if not name or version or name == BASE:
        found.add(field, "must be adapters/NAME, or base; a holdout has none")
        return BASE
    return name


def _arm_message(arm: ArmSpec) -> pb.Experiment.Arm:
    return pb.Experiment.Arm(
        name=arm.name,
        weight=arm.weight,
        adapter=arm.adapter.resource if arm.adapter else "",
        withdraw_time=None if arm.withdrawn is None else timestamp(arm.withdrawn),
    )


def _arm_of(message: pb.Experiment.Arm, field: str, found: Findings) -> ArmSpec:
    """The arm; an adapter's name that is none is noted and left out."""
    ref = None
    if message.adapter:
        name, version = split_adapter(message.adapter) or ("", "")
        if version:
            ref = AdapterRef(name, version)
        else:
            text = f"must be {VERSION_FORM}, so that it stays the same while the experiment runs"
            found.add(f"{field}.adapter", text)
    withdrawn = None
    if message.HasField("withdraw_time"):
        try:
            withdrawn = unix_seconds(message.withdraw_time)
        except ValueError:
            found.add(f"{field}.withdraw_time", "must be a time between the years 1 and 9999")
    return ArmSpec(message.name, message.weight, ref, withdrawn)


def metric_message(metric: MetricSpec) -> pb.Experiment.Metric:
    """The metric as proto."""
    return pb.Experiment.Metric(
        name=metric.name,
        kind=metric.kind.proto,
        lower_is_better=not metric.higher_is_better,
        aggregate=AGGREGATE_NUMBERS[metric.aggregate],
        per=metric.per if metric.kind.rules.has_denominator else "",
        missing_is_zero=metric.missing is Unanswered.ZERO,
        missing=MISSING_NUMBERS[metric.missing],
        covariate=metric.covariate,
        margin=metric.margin,
        relative=metric.relative,
        cap=metric.cap,
        floor=metric.least if metric.cap is not None or metric.least else None,
        window=duration(metric.window) if metric.window else None,
        improve=metric.improve,
    )


def metric_of(message: pb.Experiment.Metric, field: str, found: Findings) -> MetricSpec:
    """The metric; what is no value of an enum is noted and stands for another until then."""
    kind = KINDS.get(message.kind)
    if kind is None:
        found.add(f"{field}.kind", f"must be {KIND_NAMES}")
        kind = Kind.MEAN
    if message.per and not kind.rules.has_denominator:
        found.add(f"{field}.per", "only a ratio has a denominator: clear it, or set KIND_RATIO")
    return MetricSpec(
        name=message.name,
        kind=kind,
        higher_is_better=not message.lower_is_better,
        aggregate=_aggregate_of(message, kind, field, found),
        per=message.per or "responses",
        missing=_missing_of(message, field, found),
        covariate=message.covariate,
        margin=message.margin,
        relative=message.relative,
        cap=message.cap if message.HasField("cap") else None,
        least=message.floor,
        window=seconds_of(message.window) if message.HasField("window") else 0.0,
        improve=message.improve,
    )


def _missing_of(message: pb.Experiment.Metric, field: str, found: Findings) -> Unanswered:
    if message.missing not in MISSING:
        found.add(f"{field}.missing", "must be MISSING_EXCLUDED or MISSING_ZERO")
    chosen = MISSING.get(message.missing, Unanswered.UNSAID)
    return Unanswered.ZERO if chosen is Unanswered.UNSAID and message.missing_is_zero else chosen


def _aggregate_of(message: pb.Experiment.Metric, kind: Kind, field: str, found: Findings) -> Aggregate:
    usual = kind.rules.usual
    if message.aggregate == pb.Experiment.Metric.AGGREGATE_UNSPECIFIED:
        return usual
    if message.aggregate not in AGGREGATES:
        found.add(f"{field}.aggregate", "is no aggregate that this server knows")
    return AGGREGATES.get(message.aggregate, usual)


def update_request(
    name: str, etag: str, changes: Mapping[str, Any], new_phase: bool | None = None
) -> pb.UpdateExperimentRequest:
    """Only the fields of a `Spec` that are given. TypeError for one that a plan does not have."""
    known = [field.name for field in fields(Spec)]
    if unknown := sorted(set(changes) - set(known)):
        raise TypeError(f"unknown field {unknown[0]!r} of a plan; fields are {', '.join(known)}")
    whole = plan_message(replace(_EMPTY, **changes))
    paths = [path for name in changes for path in _SEPARATE.get(name, (name,))]
    whole.name, whole.etag = experiment_name(name), etag
    mask = FieldMask(paths=paths)
    return pb.UpdateExperimentRequest(experiment=whole, update_mask=mask, new_phase=new_phase)


def checked_paths(paths: Sequence[str], found: Findings) -> tuple[str, ...]:
    """Fields that a mask names; what cannot be edited is noted."""
    if not paths:
        found.add("update_mask", "must name the fields to change, such as enrolment; * is the whole plan")
    if EVERYTHING in paths:
        if len(paths) > 1:
            found.add("update_mask", "* names all fields: leave the others out")
        return PLANNED
    known = pb.Experiment.DESCRIPTOR.fields_by_name
    for path in paths:
        whole = path.partition(".")[0]
        if path in PLANNED:
            continue
        if whole in PLANNED:
            found.add("update_mask", f"{path!r}: name the whole field, {whole}")
        elif whole in known:
            found.add("update_mask", f"{path!r} is set by the server")
        else:
            found.add("update_mask", f"{path!r} is no field of an experiment")
    return tuple(path for path in paths if path in PLANNED)


def merged(spec: Spec, message: pb.Experiment, paths: Sequence[str]) -> pb.Experiment:
    """The plan of `spec` with the fields in `paths` as in `message`; unset there means the default."""
    result, new = plan_message(spec), pb.Experiment()
    new.CopyFrom(message)
    for field, _ in message.ListFields():
        if field.name not in paths:
            new.ClearField(field.name)
    for name in paths:
        result.ClearField(name)
    result.MergeFrom(new)
    return result


def question_message(question: SizeQuestion) -> pb.PlanExperimentRequest:
    """The question of a plan's size; what is None stays unset."""
    metric = pb.Experiment.Metric(
        name=question.metric,
        kind=question.kind.proto if question.kind else "KIND_UNSPECIFIED",
        lower_is_better=not question.higher_is_better,
        cap=question.cap,
        floor=question.least if question.cap is not None or question.least else None,
    )
    return pb.PlanExperimentRequest(
        route=_route_message(question.route),
        metric=metric,
        weights=question.weights,
        **{name: getattr(question, name) for name in SIZED},
    )


def question_of(message: pb.PlanExperimentRequest, found: Findings) -> SizeQuestion:
    """The question; what cannot be read is noted in `found`. A kind that is not set is history's."""
    metric = message.metric
    if metric.kind and metric.kind not in KINDS:
        found.add("metric.kind", f"must be {KIND_NAMES}, or unset for history's")
    given: dict[str, Any] = {name: getattr(message, name) for name in SIZED if message.HasField(name)}
    return SizeQuestion(
        metric.name,
        KINDS.get(metric.kind),
        higher_is_better=not metric.lower_is_better,
        cap=metric.cap if metric.HasField("cap") else None,
        least=metric.floor,
        route=_route_of(message.route, "route", found),
        weights=tuple(message.weights),
        **given,
    )


def answer_message(answer: SizeAnswer) -> pb.PlanExperimentResponse:
    """How long it takes; an effect of 0 is none."""
    values = {name: getattr(answer, name) for name in ANSWERED}
    return pb.PlanExperimentResponse(effect=answer.effect or 0.0, notes=answer.notes, **values)


def answer_of(message: pb.PlanExperimentResponse) -> SizeAnswer:
    """How long it takes, as a client has it."""
    values = {name: getattr(message, name) for name in ANSWERED}
    for name in ("days", "units_per_day"):
        values[name] = getattr(message, name) if message.HasField(name) else None
    return SizeAnswer(effect=message.effect or None, notes=tuple(message.notes), **values)
