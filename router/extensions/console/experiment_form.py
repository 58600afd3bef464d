"""What is typed into the form of a new experiment, as the messages of ExperimentService, and back: what is
wrong with a message stands at the field of the form."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from google.protobuf.duration_pb2 import Duration

from router.errors import FieldViolation, Findings, InvalidRequest
from router.experiments.model import BUILT_IN, FEEDBACK, Kind
from router.experiments.times import is_meant_as_share
from router.extensions.console.fields import BASE, adapter_of, number, put, whole
from router.v1 import experiments_pb2 as pb

ARMS, GUARDRAILS = 4, 3  # rows of the form
KINDS = {kind.value: f"KIND_{kind.name}" for kind in Kind}
MODES = {
    "split": pb.Experiment.MODE_SPLIT,
    "shadow": pb.Experiment.MODE_SHADOW,
}
HOUR = 3600.0
PROPORTION = pb.Experiment.Metric.KIND_PROPORTION
BEFORE: Mapping[str, str] = {  # what stands in an empty form
    "arms[0].name": "old",
    "arms[1].name": "new",
    "arms[1].weight": "50 %",
    "primary.name": FEEDBACK,
    "effect": "5 points",
    "mode": "split",
    "unit": "user",
    "window": "24",
    "enrolment": "100 %",
    "min_units": "100",
    "alpha": "5 %",
    "margin": "0",
    "guardrails[0].name": "error",
    "guardrails[0].margin": "2 points",
}
ALSO: Mapping[str, str] = {"control": "arms[0].adapter", "treatment": "arms[1].adapter"}  # in an address
SHORT = {
    *("arms[0].adapter", "arms[1].adapter", "arms[1].weight", "unit", "effect", "baseline"),
    *("units_per_day", "days", "name", "primary.name", "primary.kind", "primary.better"),
}
"""Fields that are always to be seen; others are in a fold."""
AVERAGES = ("completion_tokens", "serving_cost")  # built-in metrics that are no shares
_ROW = re.compile(r"(arms|guardrails)\[(\d+)\]")
_WITHIN = re.compile(r"experiment\.(?=[a-z])")
_SHARE = re.compile(r"(-?[0-9]{1,12}(?:\.[0-9]{0,12})?) ?(%|points?)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PlanForm:
    """A form that was read. `rows` are the form's rows of the message's arms and guardrails, since empty ones
    are left out."""

    message: pb.Experiment
    rows: Mapping[str, list[int]] = field(default_factory=dict)

    def placed(self, violations: Iterable[FieldViolation]) -> dict[str, list[str]]:
        """What is wrong, by the field of the form; under '' what has none there."""
        found: dict[str, list[str]] = {}
        for violation in violations:
            name = self._field(_WITHIN.sub("", violation.field, count=1))
            text = violation.description if name else f"{violation.field}: {violation.description}"
            found.setdefault(name, []).append(text)
        return found

    def _field(self, name: str) -> str:
        row = _ROW.match(name)
        if row is not None:
            rows, place = self.rows.get(row[1], []), int(row[2])
            name = name.replace(row[0], f"{row[1]}[{rows[place]}]" if place < len(rows) else row[1], 1)
            if name not in FIELDS:
                name = NEAR.get(name, f"{name.partition('.')[0]}.name")
        return NEAR.get(name, name) if NEAR.get(name, name) in FIELDS else ""


METRIC = ("name", "kind", "better")
FIELDS = frozenset(
    {
        *("name", "hypothesis", "route", "mode", "unit", "unit_label", "enrolment", "window"),
        *("planned_units", "min_units", "alpha", "margin", "segments", "namespace", "effect", "baseline"),
        *("deviation", "units_per_day", "days", "power", "outcome_share", "primary.cap", "primary.per"),
        *("primary.missing", *(f"primary.{name}" for name in METRIC)),
        *(f"arms[{i}].{name}" for i in range(ARMS) for name in ("name", "adapter", "weight")),
        *(f"guardrails[{i}].{name}" for i in range(GUARDRAILS) for name in (*METRIC, "margin")),
    }
    - {"arms[0].weight"}
)
NEAR: Mapping[str, str] = {  # where the form has no field of that very name
    "experiment_id": "name",
    "arms": "arms[1].adapter",
    "control": "arms[0].name",
    "weights": "arms[1].weight",
    "variants": "arms[1].weight",
    "arms[0].weight": "arms[1].weight",
    "primary": "primary.name",
    "metric": "primary.name",
    "kind": "primary.kind",
    "cap": "primary.cap",
    "guardrails": "guardrails[0].name",
    "units": "planned_units",
    "slot": "namespace",
}


def noted(found: Findings) -> list[FieldViolation]:
    """What was found to be wrong."""
    try:
        found.check()
    except InvalidRequest as error:
        return list(error.violations)
    return []


def share(found: Findings, name: str, typed: str) -> float | None:
    """A part of 1: `10 %`, `5 points` or `0.1`; None for nothing."""
    match = _SHARE.fullmatch(typed.strip())
    if match is not None:
        return round(float(match[1]) / 100, 12)
    value = number(found, name, typed)
    if value is not None and abs(value) > 1:
        found.add(name, f"must be a share, such as {value:g} % or {value / 100:g}")
        return None
    return value


def plan_of(form: Mapping[str, str], found: Findings) -> PlanForm:
    """The plan; what cannot be read is noted in `found`, under the names of the form."""

    def typed(name: str) -> str:
        return form.get(name, "").strip()

    message = pb.Experiment(
        hypothesis=form.get("hypothesis", "").strip(),
        mode=MODES.get(typed("mode"), pb.Experiment.MODE_UNSPECIFIED),
        unit=typed("unit") or None,
        unit_label=typed("unit_label"),
        namespace=typed("namespace"),
        primary=_metric(form, "primary", found),
    )
    put(message.primary, cap=number(found, "primary.cap", typed("primary.cap")))
    arms = [i for i in range(ARMS) if i < 2 or typed(f"arms[{i}].adapter") or typed(f"arms[{i}].name")]
    _put_arms(message, form, arms, found)
    message.route = _route(message, typed("route"))
    rails = [i for i in range(GUARDRAILS) if typed(f"guardrails[{i}].name")]
    for i in rails:
        message.guardrails.append(_guardrail(form, f"guardrails[{i}]", found))
    proportion = message.primary.kind == PROPORTION
    margin = share if proportion else number
    put(
        message,
        enrolment=share(found, "enrolment", typed("enrolment")),
        alpha=share(found, "alpha", typed("alpha")),
        margin=margin(found, "margin", typed("margin")),
        planned_units=whole(found, "planned_units", typed("planned_units"), 64),
        min_units=whole(found, "min_units", typed("min_units"), 64),
    )
    for label in filter(None, (part.strip() for part in typed("segments").split(","))):
        message.segments.add(label=label)
    _window(message, number(found, "window", typed("window")), found)
    return PlanForm(message, {"arms": arms, "guardrails": rails})


def question_of(form: Mapping[str, str], plan: PlanForm, found: Findings) -> pb.PlanExperimentRequest:
    """How long would it take? The server takes what is left out from history."""
    primary = plan.message.primary
    read = share if primary.kind == PROPORTION else number
    message = pb.PlanExperimentRequest(
        route=plan.message.route,
        metric=primary.name,
        kind=primary.kind,
        higher_is_better=primary.higher_is_better,
        cap=primary.cap if primary.HasField("cap") else None,
        weights=[arm.weight for arm in plan.message.arms],
    )
    days = number(found, "days", form.get("days", ""))
    effect = read(found, "effect", form.get("effect", ""))
    if effect is not None and not primary.higher_is_better:
        effect = -abs(effect)
    put(
        message,
        effect=None if days is not None else effect,
        days=days,
        baseline=read(found, "baseline", form.get("baseline", "")),
        deviation=number(found, "deviation", form.get("deviation", "")),
        units_per_day=number(found, "units_per_day", form.get("units_per_day", "")),
        power=share(found, "power", form.get("power", "")),
        outcome_share=share(found, "outcome_share", form.get("outcome_share", "")),
    )
    for name in ("enrolment", "alpha"):
        if plan.message.HasField(name):
            setattr(message, name, getattr(plan.message, name))
    if not (message.HasField("effect") or message.HasField("days")) and plan.message.planned_units:
        message.units = plan.message.planned_units
    return message


def _put_arms(message: pb.Experiment, form: Mapping[str, str], rows: list[int], found: Findings) -> None:
    """The arms with their shares; control has what the others leave."""
    left = 1.0
    for i in rows:
        name = form.get(f"arms[{i}].name", "").strip()
        typed = form.get(f"arms[{i}].adapter", "").strip()
        if i < 2 and not typed:
            found.add(f"arms[{i}].adapter", "must be a version, or base")
        weight = share(found, f"arms[{i}].weight", form.get(f"arms[{i}].weight", "")) or 0.0 if i else 0.0
        adapter = "" if typed == BASE else adapter_of(typed)
        message.arms.add(name=name or BEFORE.get(f"arms[{i}].name", ""), weight=weight, adapter=adapter)
        left -= weight
    message.arms[0].weight = round(max(0.0, left), 12)
    message.control = message.arms[0].name
    if left < 0:
        found.add(
            "arms[1].weight", "leaves no users for the old version: all shares together are above 100 %"
        )


def _route(message: pb.Experiment, typed: str) -> str:
    """What is typed, else the adapter of the first arm that has one."""
    if typed:
        return BASE if typed == BASE else adapter_of(typed)
    first = next((arm.adapter for arm in message.arms if arm.adapter), "")
    return first.partition("/versions/")[0] or BASE


def kind_of(name: str, typed: str) -> str:
    """The kind of a metric: what is typed, else by its name."""
    if typed in KINDS:
        return KINDS[typed]
    average = name in AVERAGES or (name in BUILT_IN and "time" in name and not is_meant_as_share(name))
    return KINDS[Kind.MEAN if average else Kind.PROPORTION]


def less_is_better(name: str, typed: str, guards: bool = False) -> bool:
    """What is typed, else by the metric's name: all that the server measures is better when it is less."""
    if typed in ("more", "less"):
        return typed == "less"
    known = name in BUILT_IN or is_meant_as_share(name)
    return known or (guards and name not in (FEEDBACK, "thumbs_up"))


def _metric(form: Mapping[str, str], row: str, found: Findings) -> pb.Experiment.Metric:
    def typed(name: str) -> str:
        return form.get(f"{row}.{name}", "").strip()

    missing = {"zero": "MISSING_ZERO", "excluded": "MISSING_EXCLUDED"}
    return pb.Experiment.Metric(
        name=typed("name"),
        kind=kind_of(typed("name"), typed("kind")),
        higher_is_better=not less_is_better(typed("name"), typed("better"), row != "primary"),
        missing=missing.get(typed("missing"), "MISSING_UNSPECIFIED"),
        per=typed("per") or None,
    )


def _guardrail(form: Mapping[str, str], row: str, found: Findings) -> pb.Experiment.Metric:
    """A margin in percent is a part of control's value, one in points is of 100 users."""
    message, margin = _metric(form, row, found), form.get(f"{row}.margin", "").strip()
    message.relative = margin.endswith("%")
    share_or_number = share if message.relative or message.kind == PROPORTION else number
    put(message, margin=share_or_number(found, f"{row}.margin", margin))
    return message


def _window(message: pb.Experiment, hours: float | None, found: Findings) -> None:
    if hours is None:
        return
    if not (math.isfinite(hours) and 0 <= hours <= 24 * 400):
        found.add("window", f"must be hours, a year's at most, got {hours:g}")
        return
    span = Duration()
    span.FromNanoseconds(int(hours * HOUR * 1e9))
    message.window.CopyFrom(span)
