"""Experiments: plans between model and proto both ways, the resource to proto."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.duration_pb2 import Duration

from router.experiments.model import Experiment, Lifecycle, Mode, Phase, Spec
from router.server.convert.adapters import timestamp
from router.server.convert.experiment_arms import arm_message, arm_of, route_name, route_of
from router.server.convert.experiment_metrics import metric_message, metric_of
from router.server.convert.findings import Findings
from router.server.convert.replies import duration
from router.v1 import experiments_pb2 as pb

STATES = {
    Lifecycle.DRAFT: pb.Experiment.STATE_DRAFT,
    Lifecycle.RUNNING: pb.Experiment.STATE_RUNNING,
    Lifecycle.STOPPED: pb.Experiment.STATE_STOPPED,
}
MODES = {
    pb.Experiment.MODE_UNSPECIFIED: Mode.SPLIT,
    pb.Experiment.MODE_SPLIT: Mode.SPLIT,
    pb.Experiment.MODE_SHADOW: Mode.SHADOW,
    pb.Experiment.MODE_BANDIT: Mode.BANDIT,
}
MODE_NUMBERS = {mode: number for number, mode in MODES.items()}
PRESENT = ("enrolment", "alpha", "planned_units", "min_units", "min_matured", "shadow_share", "floor")
"""Numbers of which an explicit 0 is not the same as unset."""
TIMES = ("window", "epoch")
TEXTS = ("unit", "judge")
"""Texts that have a default where they are empty."""
PLANNED = (
    *("hypothesis", "route", "arms", "control", "primary", "guardrails", "mode", "unit_label", "namespace"),
    *("slot_start", "slot_end", "margin", *PRESENT, *TIMES, *TEXTS),
)
"""Fields of the resource that an operator sets."""


def plan_of(message: pb.Experiment, found: Findings, within: str = "experiment.") -> Spec:
    """The plan; what is not set has the model's default, what cannot be read is noted in `found`."""
    said = {name: getattr(message, name) for name in PRESENT if message.HasField(name)}
    said.update({name: _seconds(getattr(message, name)) for name in TIMES if message.HasField(name)})
    said.update({name: text for name in TEXTS if (text := getattr(message, name))})
    if message.mode not in MODES:
        found.add(f"{within}mode", "must be MODE_SPLIT, MODE_SHADOW or MODE_BANDIT")
    return Spec(
        hypothesis=message.hypothesis,
        route=route_of(message.route, f"{within}route", found),
        arms=tuple(arm_of(arm, f"{within}arms[{i}]", found) for i, arm in enumerate(message.arms)),
        control=message.control,
        primary=metric_of(message.primary, f"{within}primary", found),
        guardrails=tuple(
            metric_of(m, f"{within}guardrails[{i}]", found) for i, m in enumerate(message.guardrails)
        ),
        mode=MODES.get(message.mode, Mode.SPLIT),
        unit_label=message.unit_label,
        namespace=message.namespace,
        slot=(message.slot_start, message.slot_end if message.HasField("slot_end") else 1.0),
        margin=message.margin,
        **said,
    )


def plan_message(spec: Spec) -> pb.Experiment:
    """A plan with every field set."""
    message = pb.Experiment(
        hypothesis=spec.hypothesis,
        route=route_name(spec.route),
        arms=map(arm_message, spec.arms),
        control=spec.control,
        primary=metric_message(spec.primary),
        guardrails=map(metric_message, spec.guardrails),
        mode=MODE_NUMBERS[spec.mode],
        unit_label=spec.unit_label,
        namespace=spec.namespace,
        slot_start=spec.slot[0],
        slot_end=spec.slot[1],
        margin=spec.margin,
    )
    for name in (*PRESENT, *TEXTS):
        setattr(message, name, getattr(spec, name))
    for name in TIMES:
        getattr(message, name).CopyFrom(duration(getattr(spec, name)))
    return message


def experiment_message(experiment: Experiment, warnings: Iterable[str] = ()) -> pb.Experiment:
    """The resource."""
    message = plan_message(experiment.spec)
    message.name = experiment.resource
    message.state = STATES[experiment.state]
    message.phases.extend(map(_phase, experiment.phases))
    message.create_time.CopyFrom(timestamp(experiment.created))
    message.update_time.CopyFrom(timestamp(experiment.updated))
    if experiment.stopped is not None:
        message.stop_time.CopyFrom(timestamp(experiment.stopped))
    message.stop_reason = experiment.stop_reason
    message.promoted = experiment.promoted
    message.etag = experiment.etag
    message.warnings.extend(warnings)
    return message


def _phase(phase: Phase) -> pb.Experiment.Phase:
    return pb.Experiment.Phase(
        number=phase.number,
        start_time=timestamp(phase.started),
        end_time=None if phase.ended is None else timestamp(phase.ended),
        reason=phase.reason,
        enrolment_salt=phase.enrolment_salt,
        variant_salt=phase.variant_salt,
        arms=map(arm_message, phase.spec.arms),
        enrolment=phase.spec.enrolment,
    )


def _seconds(value: Duration) -> float:
    """The double next to `value` in seconds."""
    return float((value.seconds * 10**9 + value.nanos) / 10**9)
