"""A new experiment: five questions, how long it would take, and the plan in words and as a file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from router.errors import AlreadyExists, FieldViolation, Findings, InvalidRequest, RouterError
from router.experiments.model import BUILT_IN, COST, FEEDBACK
from router.extensions.console.experiment_form import (
    ALSO,
    ARMS,
    BEFORE,
    GUARDRAILS,
    KINDS,
    MODES,
    PROPORTION,
    SHORT,
    PlanForm,
    noted,
    plan_of,
    question_of,
)
from router.extensions.console.experiments import CREATE, LIST, SERVICE
from router.extensions.console.fields import BASE, MOST_OFFERED, offered, texts
from router.extensions.console.rendering import segment
from router.extensions.console.site import ROOT, Action, Entry, Page, PageReply, Visit, redirect
from router.server.status import INTERNAL, clip, code_of, public_message
from router.v1 import experiments_pb2 as pb

SIZE = SERVICE + "PlanExperiment"
MOST_NAMES = 200  # experiments whose metrics are suggested
GUESS = 0.5  # control's value of a share that nothing is known of: with it the plan takes most users
GUESSED = "What {name} is now is not known: 50 % is assumed, which takes the most users."
KIND_WORDS: Mapping[str, str] = {
    "proportion": "share of users (yes or no)",
    "mean": "average of a number",
    "ratio": "one sum divided by another",
}
UNITS = ("user", "session", "conversation", "team")


async def show(visit: Visit) -> dict[str, Any]:
    """The form, with what the address says already in it, and the answer to it."""
    typed = dict(BEFORE)
    for name, text in visit.query.items():
        if text:
            typed[ALSO.get(name, name)] = text
    if visit.console.no_experiments:
        return await values(visit, typed)
    typed.setdefault("name", await _free_name(visit, typed))
    return await values(visit, typed, preview=await previewed(visit, typed))


async def values(
    visit: Visit,
    typed: Mapping[str, str],
    errors: Mapping[str, list[str]] | None = None,
    preview: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What the form shows: all that was typed, what is wrong with it, and the plan that it makes."""
    registry, visible = visit.console.server.registry, visit.client.adapters
    versions = [name for name in offered(registry, visible, BASE) if name == BASE or "@" in name]
    known = await _known(visit)
    metrics = dict.fromkeys((FEEDBACK, "thumbs_up", *(one.primary.name for one in known), "error", COST))
    return {
        "title": PAGE.title,
        "absent": visit.console.no_experiments,
        "typed": typed,
        "errors": errors or {},
        "kinds": {"": "by its name", **{name: KIND_WORDS.get(name, name) for name in KINDS}},
        "modes": list(MODES),
        "arms": range(2, ARMS),
        "guardrails": range(GUARDRAILS),
        "routes": offered(registry, visible, BASE, versions=False),
        "versions": by_adapter(versions) if len(versions) < MOST_OFFERED - 1 else None,
        "some": versions,
        "metrics": [name for name in metrics if name],
        "built_in": BUILT_IN,
        "units": UNITS,
        "open": bool(set(errors or ()) - SHORT - {""}),
        "why_not": visit.why_not(CREATE),
        **(preview or blank()),
    }


def by_adapter(versions: Sequence[str]) -> dict[str, list[str]]:
    """Versions under the names of their adapters, for a list to pick from; the base comes last."""
    found: dict[str, list[str]] = {}
    for version in versions:
        if version != BASE:
            found.setdefault(version.partition("@")[0], []).append(version)
    return found


async def _known(visit: Visit) -> Sequence[pb.Experiment]:
    """Some experiments, for their names and metrics; none where they cannot be read."""
    if visit.console.no_experiments or visit.why_not(LIST):
        return ()
    try:
        answer = await visit.ask(LIST, pb.ListExperimentsRequest(page_size=MOST_NAMES))
    except RouterError:
        return ()
    return list(answer.experiments)


async def _free_name(visit: Visit, typed: Mapping[str, str]) -> str:
    """A name for the experiment, by the version that is tried; empty where none is picked yet."""
    wanted = re.sub(r"[^a-z0-9]+", "-", typed.get("arms[1].adapter", "").lower()).strip("-")[:40]
    if not wanted:
        return ""
    taken = {one.name.removeprefix("experiments/") for one in await _known(visit)}
    names = (wanted, *(f"{wanted}-{number}" for number in range(2, MOST_NAMES + 2)))
    return next((name for name in names if name not in taken), wanted)


# -- The answer to what is typed


def blank() -> dict[str, Any]:
    """Before anything is typed."""
    return {"answer": None, "missing": [], "sentences": [], "toml": "", "command": "", "notes": []}


async def previewed(visit: Visit, form: Mapping[str, str]) -> dict[str, Any]:
    """How long it takes, and the plan in words and as a file; `missing` says what is still to be typed."""
    found = Findings()
    plan = plan_of(form, found)
    question = question_of(form, plan, found)
    made, wrong = blank(), noted(found)
    answer: pb.PlanExperimentResponse | None = None
    unread = {one.field for one in wrong} - {"arms[0].adapter", "arms[1].adapter"}
    if not unread:
        try:
            answer = await _sized(visit, plan, question, made["notes"])
        except InvalidRequest as error:
            wrong += error.violations
        except RouterError as error:
            wrong.append(FieldViolation("", public_message(error)))
    planned = answer.units if answer is not None and answer.effect else 0
    if planned and not plan.message.HasField("planned_units"):
        plan.message.planned_units = planned
    texts_ = plan.placed([FieldViolation(v.field, clip(v.description)) for v in wrong])
    made |= {
        "answer": answer,
        "missing": [(label_of(name), text) for name, every in texts_.items() for text in every],
    }
    if not any(one.field.startswith("arms[") for one in wrong):
        made |= _in_words(form, plan, answer)
    return made


def _in_words(
    form: Mapping[str, str], plan: PlanForm, answer: pb.PlanExperimentResponse | None
) -> dict[str, Any]:
    from router.experiments.messages import plan_of as spec_of
    from router.experiments.plan_file import plan_toml
    from router.extensions.console.plan_words import sentences

    spec = spec_of(plan.message)
    name = form.get("name", "").strip() or "my-test"
    return {
        "sentences": list(sentences(spec, answer)),
        "toml": plan_toml(spec),
        "command": f"lora-router experiments create {name} {name}.toml",
        "file": f"{name}.toml",
    }


async def _sized(
    visit: Visit, plan: PlanForm, question: pb.PlanExperimentRequest, notes: list[str]
) -> pb.PlanExperimentResponse:
    """The planner's answer. Where control's share is not known, with the one that takes most users."""
    try:
        answer: pb.PlanExperimentResponse = await visit.ask(SIZE, question)
    except InvalidRequest as error:
        if [one.field for one in error.violations] != ["baseline"] or question.kind != PROPORTION:
            raise
        if question.HasField("baseline"):
            raise
        question.baseline = GUESS
        notes.append(GUESSED.format(name=plan.message.primary.name))
        answer = await visit.ask(SIZE, question)
    return answer


LABELS: Mapping[str, str] = {
    "arms[0].adapter": "Version now",
    "arms[1].adapter": "New version",
    "arms[1].weight": "Share of the new version",
    "primary.name": "Metric",
    "baseline": "Its value now",
    "effect": "Difference to find",
    "units_per_day": "New users a day",
}


def label_of(name: str) -> str:
    """A field in the words of the form."""
    return LABELS.get(name, name.replace("_", " ").replace("[", " ").replace("].", " ").capitalize())


async def preview(visit: Visit) -> PageReply:
    """The answer alone, for the script that asks while somebody types."""
    form = texts(visit.form)
    made = await previewed(visit, form)
    return visit.console.page(visit, PREVIEW, {"typed": form, "errors": {}, **made})


async def size(visit: Visit) -> PageReply:
    """How long it would take; nothing is kept."""
    form, found = texts(visit.form), Findings()
    plan = plan_of(form, found)
    question = question_of(form, plan, found)
    with_guess = await _tried(visit, form, plan, found, SIZE, question)
    made = await previewed(visit, form)
    return visit.console.page(visit, PAGE, await values(visit, form, preview={**made, "answer": with_guess}))


async def create(visit: Visit) -> PageReply:
    """Keep it as a draft, of the size that the planner says where none is typed."""
    form, found = texts(visit.form), Findings()
    plan = plan_of(form, found)
    question = question_of(form, plan, found)
    name = form.get("name", "").strip()
    if not noted(found) and not plan.message.HasField("planned_units"):
        try:
            answer = await _sized(visit, plan, question, [])
            plan.message.planned_units = answer.units
        except InvalidRequest:
            pass  # the server's default, or what is wrong is said at the plan itself
    message = pb.CreateExperimentRequest(experiment_id=name, experiment=plan.message)
    await _tried(visit, form, plan, found, CREATE, message)
    return redirect(f"{ROOT}/experiments/{segment(name)}")


async def _tried(
    visit: Visit, form: Mapping[str, str], plan: PlanForm, found: Findings, method: str, message: Any
) -> Any:
    """The answer; what is wrong is raised, and shown by the form itself."""
    try:
        found.check()
        if method == SIZE:
            return await _sized(visit, plan, message, [])
        return await visit.ask(method, message)
    except InvalidRequest as error:
        wrong = [FieldViolation(v.field, clip(v.description)) for v in error.violations]
        visit.refused_with(PAGE, await values(visit, form, plan.placed(wrong)))
        raise
    except RouterError as error:
        where = "name" if isinstance(error, AlreadyExists) else ""
        if code_of(error) != INTERNAL:
            visit.refused_with(PAGE, await values(visit, form, {where: [public_message(error)]}))
        raise


PAGE = Page("/new-experiment", SIZE, show, "experiment_plan.html", "New experiment")
PREVIEW = Page("/new-experiment/preview", SIZE, show, "experiment_preview.html")

ENTRIES: tuple[Entry, ...] = (
    PAGE,
    Action("/new-experiment/preview", SIZE, preview),
    Action("/new-experiment/size", SIZE, size),
    Action("/new-experiment/create", CREATE, create),
)
