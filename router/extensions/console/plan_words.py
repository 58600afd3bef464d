"""A plan in sentences, for somebody who is about to keep it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from router.experiments.model import FEEDBACK, Kind, Mode, Spec
from router.experiments.words import direction, duration, guardrail_line, quantity
from router.quantities import counted, percent
from router.v1 import experiments_pb2 as pb

if TYPE_CHECKING:
    from router.experiments.model import ArmSpec, MetricSpec

KINDS = {Kind.PROPORTION: "the share of {unit}s with it", Kind.MEAN: "its average over {unit}s"}


def sentences(spec: Spec, answer: pb.PlanExperimentResponse | None) -> Iterator[str]:
    """What happens to users, what decides, and when."""
    unit = spec.unit
    arms = ", ".join(f"{_who(arm)} for {percent(arm.weight, 0)}" for arm in spec.arms)
    part = "" if spec.enrolment == 1 else f" {percent(spec.enrolment, 0)} of {spec.unit}s take part."
    match spec.mode:
        case Mode.SHADOW:
            yield f"{_who(spec.arms[0])} answers; the others answer the same requests unseen."
        case _:
            keeps = f"Each {unit} keeps one version."
            yield f"Requests for {spec.route} are split by {unit}: {arms}.{part} {keeps}"
    yield f"{_metric(spec.primary, unit)} decides, {direction(spec.primary.higher_is_better)}."
    if spec.margin:
        margin = quantity(spec.primary).margin(spec.margin)
        yield f"The new version may be promoted if it is shown to be worse by less than {margin}."
    rails = "; ".join(guardrail_line(rail) for rail in spec.guardrails)
    harm = f" or makes a guardrail worse than allowed ({rails})" if rails else ""
    yield f"A version that is shown to be worse{harm} is stopped by the server."
    if answer is not None and answer.effect:
        yield _size(spec, answer)
    yield f"Outcomes count for {duration(spec.window)} after a {spec.unit}'s first answer."


def _who(arm: ArmSpec) -> str:
    return str(arm.adapter) if arm.adapter else "the base"


def _metric(metric: MetricSpec, unit: str) -> str:
    how = KINDS.get(metric.kind, "").format(unit=unit)
    if metric.name == FEEDBACK:
        how = f"the share of {unit}s who found an answer good"
    return f"{metric.name} ({how})" if how else metric.name


def _size(spec: Spec, answer: pb.PlanExperimentResponse) -> str:
    form = quantity(spec.primary)
    units = counted(spec.planned_units or answer.units, spec.unit)
    days = f", about {counted(max(1, round(answer.days)), 'day')}" if answer.HasField("days") else ""
    what = f"A difference of {form.margin(abs(answer.effect))} from {form.value(answer.baseline)}"
    return f"{what} is found with a chance of 80 % by {units}{days}."
