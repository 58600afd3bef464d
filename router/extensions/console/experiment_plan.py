"""A new experiment: its plan as a form, how long it would take, and what is wrong beside each field.

Typed fields become the messages of ExperimentService, and what is wrong with them goes back to the fields.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.duration_pb2 import Duration

from router.errors import AlreadyExists, FieldViolation, Findings, InvalidRequest, RouterError
from router.experiments.designs import Design
from router.experiments.model import Kind
from router.extensions.console.experiments import CREATE, SERVICE
from router.extensions.console.fields import BASE, adapter_of, number, offered, put, texts, whole
from router.extensions.console.rendering import segment
from router.extensions.console.site import ROOT, Action, Entry, Page, PageReply, Visit, redirect
from router.server.status import INTERNAL, code_of, public_message, shown
from router.v1 import experiments_pb2 as pb

ARMS, GUARDRAILS = 4, 3  # rows of the form
KINDS = {kind.value: kind.proto for kind in Kind}
MODES = {
    "split": pb.Experiment.MODE_SPLIT,
    "shadow": pb.Experiment.MODE_SHADOW,
    "bandit": pb.Experiment.MODE_BANDIT,
    "switchback": pb.Experiment.MODE_SWITCHBACK,
}
DESIGNS = {design.value: design.proto for design in Design}
HOUR = 3600.0
BEFORE: Mapping[str, str] = {  # what stands in an empty form
    "primary.missing_is_zero": "yes",
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
        *("name", "hypothesis", "route", "mode", "design", "unit", "unit_label", "enrolment", "window"),
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

    def typed(name: str) -> str:
        return form.get(name, "").strip()

    message = pb.Experiment(
        hypothesis=form.get("hypothesis", "").strip(),
        route=_route(typed("route")),
        mode=MODES.get(typed("mode"), pb.Experiment.MODE_UNSPECIFIED),
        design=DESIGNS.get(typed("design"), "DESIGN_UNSPECIFIED"),
        unit=typed("unit"),
        unit_label=typed("unit_label"),
        namespace=typed("namespace"),
        primary=_metric(form, "primary", found),
    )
    arms = [i for i in range(ARMS) if typed(f"arms[{i}].name") or typed(f"arms[{i}].adapter")]
    for i in arms:
        message.arms.append(_arm(form, f"arms[{i}]", found))
    message.control = message.arms[0].name if message.arms else ""
    rails = [i for i in range(GUARDRAILS) if typed(f"guardrails[{i}].name")]
    for i in rails:
        message.guardrails.append(_metric(form, f"guardrails[{i}]", found))
    put(
        message,
        enrolment=number(found, "enrolment", typed("enrolment")),
        alpha=number(found, "alpha", typed("alpha")),
        margin=number(found, "margin", typed("margin")),
        planned_units=whole(found, "planned_units", typed("planned_units"), 64),
        min_units=whole(found, "min_units", typed("min_units"), 64),
    )
    for label in filter(None, (part.strip() for part in typed("segments").split(","))):
        message.segments.add(label=label)
    _window(message, number(found, "window", typed("window")), found)
    return PlanForm(message, {"arms": arms, "guardrails": rails})


def question_of(form: Mapping[str, str], plan: PlanForm, found: Findings) -> pb.PlanExperimentRequest:
    """How long would it take? The server takes what is left out from history."""
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
        missing="MISSING_ZERO" if form.get(f"{row}.missing_is_zero") == "yes" else "MISSING_EXCLUDED",
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


SIZE = SERVICE + "PlanExperiment"


async def show(visit: Visit) -> dict[str, Any]:
    """The form, with what the address says already in it."""
    typed = {**BEFORE, **{name: text for name, text in visit.query.items() if text}}
    return values(visit, typed)


def values(
    visit: Visit,
    typed: Mapping[str, str],
    errors: Mapping[str, list[str]] | None = None,
    answer: pb.PlanExperimentResponse | None = None,
) -> dict[str, Any]:
    """What the form shows: all that was typed, what is wrong with it, and how long it takes."""
    registry, visible = visit.console.context.registry, visit.client.adapters
    return {
        "title": PAGE.title,
        "absent": visit.console.context.no_experiments,
        "typed": typed,
        "errors": errors or {},
        "answer": answer,
        "kinds": list(KINDS),
        "modes": list(MODES),
        "designs": ["", *DESIGNS],
        "design_names": {pb.Experiment.Design.Value(proto): name for name, proto in DESIGNS.items()},
        "arms": range(ARMS),
        "guardrails": range(GUARDRAILS),
        "routes": offered(registry, visible, BASE, versions=False),
        "versions": [name for name in offered(registry, visible, BASE) if name == BASE or "@" in name],
        "why_not": visit.why_not(CREATE),
    }


async def size(visit: Visit) -> PageReply:
    """How long it would take; nothing is kept."""
    form, found = texts(visit.form), Findings()
    plan = plan_of(form, found)
    question = question_of(form, plan, found)
    answer = await _tried(visit, form, plan, found, SIZE, question)
    return visit.console.page(visit, PAGE, values(visit, form, answer=answer))


async def create(visit: Visit) -> PageReply:
    """Keep it as a draft."""
    form, found = texts(visit.form), Findings()
    plan = plan_of(form, found)
    name = form.get("name", "").strip()
    message = pb.CreateExperimentRequest(experiment_id=name, experiment=plan.message)
    await _tried(visit, form, plan, found, CREATE, message)
    return redirect(f"{ROOT}/experiments/{segment(name)}")


async def _tried(
    visit: Visit, form: Mapping[str, str], plan: PlanForm, found: Findings, method: str, message: Any
) -> Any:
    """The answer; what is wrong is raised, and shown by the form itself."""
    try:
        found.check()
        return await visit.ask(method, message)
    except InvalidRequest as error:
        wrong = [FieldViolation(v.field, shown(v.description)) for v in error.violations]
        visit.refused_with(PAGE, values(visit, form, plan.placed(wrong)))
        raise
    except RouterError as error:
        where = "name" if isinstance(error, AlreadyExists) else ""
        if code_of(error) != INTERNAL:
            visit.refused_with(PAGE, values(visit, form, {where: [public_message(error)]}))
        raise


PAGE = Page("/new-experiment", SIZE, show, "experiment_plan.html", "New experiment")

ENTRIES: tuple[Entry, ...] = (
    PAGE,
    Action("/new-experiment/size", SIZE, size),
    Action("/new-experiment/create", CREATE, create),
)
