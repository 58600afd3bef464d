"""The form of an experiment's plan: typed fields to the messages of ExperimentService, and what is wrong with
them back to the fields."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from google.protobuf.duration_pb2 import Duration

from router.errors import FieldViolation, Findings
from router.experiments.model import Kind
from router.extensions.console.fields import adapter_of, number, put, whole
from router.names import BASE
from router.v1 import experiments_pb2 as pb

ARMS, GUARDRAILS = 4, 3  # rows of the form
KINDS = {kind.value: kind.proto for kind in Kind}
MODES = {
    "split": pb.Experiment.MODE_SPLIT,
    "shadow": pb.Experiment.MODE_SHADOW,
    "bandit": pb.Experiment.MODE_BANDIT,
}
HOUR = 3600.0
BEFORE: Mapping[str, str] = {  # what stands in an empty form
    "arms[0].name": "control",
    "arms[0].weight": "0.5",
    "arms[1].name": "treatment",
    "arms[1].weight": "0.5",
    "primary.name": "thumbs_up",
    "primary.kind": "proportion",
    "mode": "split",
    "unit": "user",
    "window": "24",
    "enrolment": "1",
    "planned_units": "5000",
    "min_units": "100",
    "alpha": "0.05",
    "margin": "0",
}
_ROW = re.compile(r"(arms|guardrails)\[(\d+)\]")
_WITHIN = re.compile(r"experiment\.(?=[a-z])")


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
            if name == f"{row[1]}[{place}]" or name not in FIELDS:
                name = f"{name.partition('.')[0]}.name"
        return NEAR.get(name, name) if NEAR.get(name, name) in FIELDS else ""


METRIC = ("name", "kind", "lower_is_better", "missing_is_zero", "cap", "per")
FIELDS = frozenset(
    {
        *("name", "hypothesis", "route", "mode", "unit", "unit_label", "enrolment", "window"),
        *("planned_units", "min_units", "alpha", "margin", "segments", "namespace", "effect", "baseline"),
        *("deviation", "units_per_day", "days", "power"),
        *(f"primary.{name}" for name in METRIC),
        *(f"arms[{i}].{name}" for i in range(ARMS) for name in ("name", "adapter", "weight")),
        *(f"guardrails[{i}].{name}" for i in range(GUARDRAILS) for name in (*METRIC, "margin", "relative")),
    }
)
NEAR: Mapping[str, str] = {  # where the form has no field of that very name
    "experiment_id": "name",
    "arms": "arms[0].name",
    "control": "arms[0].name",
    "weights": "arms[0].weight",
    "variants": "arms[0].weight",
    "primary": "primary.name",
    "metric.name": "primary.name",
    "metric.kind": "primary.kind",
    "metric.cap": "primary.cap",
    "guardrails": "guardrails[0].name",
    "units": "planned_units",
    "slot_end": "namespace",
}


def plan_of(form: Mapping[str, str], found: Findings) -> PlanForm:
    """The plan; what cannot be read is noted in `found`, under the names of the form."""

    def said(name: str) -> str:
        return form.get(name, "").strip()

    message = pb.Experiment(
        hypothesis=form.get("hypothesis", "").strip(),
        route=_route(said("route")),
        mode=MODES.get(said("mode"), pb.Experiment.MODE_UNSPECIFIED),
        unit=said("unit"),
        unit_label=said("unit_label"),
        namespace=said("namespace"),
        primary=_metric(form, "primary", found),
    )
    arms = [i for i in range(ARMS) if said(f"arms[{i}].name") or said(f"arms[{i}].adapter")]
    for i in arms:
        message.arms.append(_arm(form, f"arms[{i}]", found))
    message.control = message.arms[0].name if message.arms else ""
    rails = [i for i in range(GUARDRAILS) if said(f"guardrails[{i}].name")]
    for i in rails:
        message.guardrails.append(_metric(form, f"guardrails[{i}]", found))
    put(
        message,
        enrolment=number(found, "enrolment", said("enrolment")),
        alpha=number(found, "alpha", said("alpha")),
        margin=number(found, "margin", said("margin")),
        planned_units=whole(found, "planned_units", said("planned_units"), 64),
        min_units=whole(found, "min_units", said("min_units"), 64),
    )
    for label in filter(None, (part.strip() for part in said("segments").split(","))):
        message.segments.add(label=label)
    _window(message, number(found, "window", said("window")), found)
    return PlanForm(message, {"arms": arms, "guardrails": rails})


def question_of(form: Mapping[str, str], plan: PlanForm, found: Findings) -> pb.PlanExperimentRequest:
    """How long would it take? What is not said the server takes from history."""
    message = pb.PlanExperimentRequest(
        route=plan.message.route,
        metric=plan.message.primary,
        weights=[arm.weight for arm in plan.message.arms],
    )
    values = {
        name: number(found, name, form.get(name, ""))
        for name in ("effect", "baseline", "deviation", "units_per_day", "days", "power")
    }
    put(message, **values)
    if plan.message.HasField("enrolment"):
        message.enrolment = plan.message.enrolment
    if plan.message.HasField("alpha"):
        message.alpha = plan.message.alpha
    if values["effect"] is None and values["days"] is None and plan.message.HasField("planned_units"):
        message.units = plan.message.planned_units
    return message


def _route(typed: str) -> str:
    return BASE if typed == BASE else adapter_of(typed)


def _arm(form: Mapping[str, str], row: str, found: Findings) -> pb.Experiment.Arm:
    weight = number(found, f"{row}.weight", form.get(f"{row}.weight", ""))
    typed = form.get(f"{row}.adapter", "").strip()
    adapter = "" if typed == BASE else adapter_of(typed)
    return pb.Experiment.Arm(name=form.get(f"{row}.name", "").strip(), weight=weight or 0.0, adapter=adapter)


def _metric(form: Mapping[str, str], row: str, found: Findings) -> pb.Experiment.Metric:
    message = pb.Experiment.Metric(
        name=form.get(f"{row}.name", "").strip(),
        kind=KINDS.get(form.get(f"{row}.kind", ""), "KIND_UNSPECIFIED"),
        lower_is_better=form.get(f"{row}.lower_is_better") == "yes",
        missing_is_zero=form.get(f"{row}.missing_is_zero") == "yes",
        relative=form.get(f"{row}.relative") == "yes",
        per=form.get(f"{row}.per", "").strip(),
    )
    put(message, cap=number(found, f"{row}.cap", form.get(f"{row}.cap", "")))
    if row != "primary":
        put(message, margin=number(found, f"{row}.margin", form.get(f"{row}.margin", "")))
    return message


def _window(message: pb.Experiment, hours: float | None, found: Findings) -> None:
    if hours is None:
        return
    if not 0 <= hours <= 24 * 400:
        found.add("window", f"must be hours, a year's at most, got {hours:g}")
        return
    span = Duration()
    span.FromNanoseconds(int(hours * HOUR * 1e9))
    message.window.CopyFrom(span)
