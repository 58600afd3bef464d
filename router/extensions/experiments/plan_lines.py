"""A plan as lines of key and value, for the terminal and the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.extensions.experiments.words import HOLDOUT, at, direction, duration, named, per_unit

if TYPE_CHECKING:
    from router.extensions.experiments.model import (
        ArmSpec,
        Experiment,
        ExperimentPhase,
        MetricSpec,
        SegmentSpec,
        Spec,
    )


def pairs_of(experiment: Experiment) -> list[tuple[str, str]]:
    """Everything that is set."""
    spec = experiment.spec
    pairs = [
        ("name", experiment.resource),
        ("state", _state(experiment)),
        ("promoted", experiment.promoted),
        ("hypothesis", spec.hypothesis),
        ("route", spec.route),
        *((f"arm {arm.name}", arm_line(arm, spec)) for arm in spec.arms),
        ("decides", metric_line(spec.primary)),
        *(("guardrail", metric_line(metric)) for metric in spec.guardrails),
        *(("secondary", metric_line(metric)) for metric in spec.secondary),
        *(("segment", _segment(segment)) for segment in spec.segments),
        ("unit", spec.unit + (f", from label {spec.unit_label}" if spec.unit_label else "")),
        *_rules(spec),
        *((f"phase {phase.number}", _phase(phase)) for phase in experiment.phases),
        ("etag", experiment.etag),
        *(("warning", warning) for warning in getattr(experiment, "warnings", ())),
    ]
    return [(key, value) for key, value in pairs if value]


def _state(experiment: Experiment) -> str:
    reason = f": {experiment.stop_reason}" if experiment.stop_reason else ""
    stopped = f" at {at(experiment.stopped)}" if experiment.stopped else ""
    return f"{experiment.state.value}{stopped}{reason}"


def arm_line(arm: ArmSpec, spec: Spec) -> str:
    """What an arm is and its share."""
    what = str(arm.adapter) if arm.adapter else "base" if spec.route else ""
    control = " (control)" if arm.name == spec.control else ""
    return f"{arm.weight:.4g} of units{what and f': {what}'}{control}"


def _segment(segment: SegmentSpec) -> str:
    return f"label {segment.label}" + (f": {', '.join(segment.values)}" if segment.values else "")


def metric_line(metric: MetricSpec) -> str:
    """`thumbs_up: proportion, more is better`."""
    parts = [metric.kind.value, direction(metric.higher_is_better)]
    if metric.kind.rules.has_denominator:
        parts.append(f"per {metric.per}")
    elif not metric.kind.rules.binary:
        parts.append(f"{metric.combined.value} of a unit's outcomes")
        if not metric.built_in:
            parts.append(per_unit(metric, "unit"))
    if metric.cap is not None and metric.least:
        parts.append(f"{metric.least:,g} at least")
    if metric.missing == "zero":
        parts.append("0 where there is none")
    if metric.covariate:
        parts.append("adjusted by the unit's own past")
    if metric.improve:
        parts.append("must improve")
    if metric.margin:
        margin = f"{metric.margin:.3g}" if not metric.relative else f"{metric.margin:.1%} of control"
        parts.append(f"margin {margin}")
    return f"{named(metric.name, metric.cap)}: {', '.join(parts)}"


def _rules(spec: Spec) -> list[tuple[str, str]]:
    modes = {
        "shadow": f"shadow: others answer {spec.shadow_share:.0%} of requests unseen",
        "holdout": f"holdout: {HOLDOUT}",
    }
    size = [
        ("planned", f"{spec.planned_units:,} units"),
        (
            "promotes",
            f"from {spec.min_units:,} units in each arm, {spec.min_matured:.0%} of them past their window",
        ),
    ]
    where = f"{spec.namespace}, from {spec.slot[0]:g} to {spec.slot[1]:g}" if spec.namespace else ""
    return [
        ("mode", modes.get(spec.mode.value, "")),
        ("enrolment", f"{spec.enrolment:.1%} of units"),
        ("namespace", where),
        ("window", f"{duration(spec.window)} for outcomes"),
        ("grace", f"{duration(spec.grace)} more for them to arrive" if spec.grace else ""),
        ("level", f"{spec.alpha:g} for all arms together"),
        ("margin", f"{spec.margin:g}" if spec.margin else ""),
        ("equal arms", "allowed, as in an A/A test" if spec.equal_arms else ""),
        *size,
    ]


def _phase(phase: ExperimentPhase) -> str:
    ended = f" to {at(phase.ended)}" if phase.ended else ""
    reason = f", {phase.reason}" if phase.reason else ""
    salts = f"salts: enrolment {phase.enrolment_salt}, variant {phase.variant_salt}"
    return f"{at(phase.started)}{ended}{reason}; {salts}"
