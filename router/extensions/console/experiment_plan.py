"""A new experiment: its plan as a form, how long it would take, and what is wrong beside each field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router.errors import AlreadyExists, FieldViolation, Findings, InvalidRequest, RouterError
from router.extensions.console.exchange import PageReply, redirect
from router.extensions.console.experiments import CREATE, SERVICE
from router.extensions.console.fields import BASE, offered, texts
from router.extensions.console.plan_form import (
    ARMS,
    BEFORE,
    GUARDRAILS,
    KINDS,
    MODES,
    PlanForm,
    plan_of,
    question_of,
)
from router.extensions.console.rendering import segment
from router.extensions.console.site import ROOT, Action, Entry, Page, Visit
from router.server.status import INTERNAL, code_of, public_message, shown
from router.v1 import experiments_pb2 as pb

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
    """The answer; what is wrong is raised, and told by the form itself."""
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
