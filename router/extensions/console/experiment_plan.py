"""A new experiment: its name, two versions, their shares, the metric, and the rest of the plan as a file has
it. Beside them stands the whole plan, and how large a difference its users find."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from router.errors import AlreadyExists, FieldViolation, InvalidRequest, RouterError
from router.extensions.console.experiments import CREATE, LIST
from router.extensions.console.fields import MOST_OFFERED, offered, texts
from router.extensions.console.rendering import segment
from router.extensions.console.site import ROOT, Action, Entry, Page, PageReply, Visit, redirect
from router.extensions.experiments.messages import plan_message
from router.extensions.experiments.model import FEEDBACK, Experiment, Spec
from router.extensions.experiments.plan_file import example_plan, plan_of, plan_toml, typed
from router.extensions.experiments.plan_lines import pairs_of
from router.names import BASE
from router.server.status import INTERNAL, clip, code_of, public_message
from router.v1 import experiments_pb2 as pb

MOST_NAMES = 200  # experiments whose metrics are suggested
MOST_PLAN, MOST_DOTS = (
    1 << 15,
    100,
)  # characters of a plan, and dots in a line: a key of n parts takes n² steps
GUESS = 0.5  # control's value of a share that nothing is known of: with it the plan takes most users
GUESSED = (
    "What {name} is now is not known: 50 % is assumed, which takes the most users. `lora-router experiments"
    " plan` counts with other numbers."
)
BEFORE: Mapping[str, str] = {  # what stands in an empty form
    "metric": FEEDBACK,
    "split": "50/50",
    "plan": """\
hypothesis = ""
unit = "user"
window = "24h"
planned_units = 5000

[[guardrails]]
name = "error"
margin = 0.02
""",
}
NOTHING: Mapping[str, Any] = {"missing": (), "notes": (), "pairs": (), "toml": "", "file": ""}
"""What stands beside an empty form."""
PLACES: Mapping[str, str] = {
    "experiment_id": "name",
    "arms[0].adapter": "control",
    "arms[1].adapter": "treatment",
    "split": "split",
    "weights": "split",
    "primary.name": "metric",
    "primary.kind": "metric",
    "metric": "metric",
}
"""Fields of the form by those of messages and files; all others stand in the plan."""


def spec_of(form: Mapping[str, str]) -> Spec:
    """The plan; what a field says replaces what the file says. Raises InvalidRequest naming every wrong
    field."""
    text = form.get("plan", "")
    if len(text) > MOST_PLAN or any(line.count(".") > MOST_DOTS for line in text.splitlines()):
        limits = f"{MOST_PLAN:,} characters, and {MOST_DOTS} dots in a line"
        raise InvalidRequest([FieldViolation("plan", f"must have at most {limits}")])
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest([FieldViolation("plan", f"not valid TOML: {error}")]) from None
    versions = [form.get(name, "").strip() for name in ("control", "treatment")]
    arms = tuple(zip(("old", "new"), versions, strict=True)) if any(versions) else ()
    return plan_of(typed(values, arms, form.get("split", "").strip(), form.get("metric", "").strip()))


def placed(violations: Iterable[FieldViolation]) -> dict[str, list[str]]:
    """What is wrong, by the field of the form."""
    found: dict[str, list[str]] = {}
    for violation in violations:
        name, text = violation.field.removeprefix("experiment."), clip(violation.description)
        place = PLACES.get(name, "plan")
        found.setdefault(place, []).append(
            text if name in ("", place, "experiment_id") else f"{name}: {text}"
        )
    return found


async def show(visit: Visit) -> dict[str, Any]:
    """The form, with what the address says already in it, and the plan that it makes."""
    form = {**BEFORE, **{name: text for name, text in visit.query.items() if text}}
    if visit.console.no_experiments:
        return await values(visit, form)
    form.setdefault("name", await _free_name(visit, form))
    begun = form.get("control") or form.get("treatment")
    return await values(visit, form, preview=previewed(form) if begun else None)


async def values(
    visit: Visit,
    form: Mapping[str, str],
    errors: Mapping[str, list[str]] | None = None,
    preview: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What the page shows: all that was typed, what is wrong with it, and the plan that it makes."""
    registry, visible = visit.console.server.registry, visit.client.adapters
    versions = [name for name in offered(registry, visible, BASE) if name == BASE or "@" in name]
    known = await _known(visit)
    return {
        "title": PAGE.title,
        "absent": visit.console.no_experiments,
        "typed": form,
        "errors": errors or {},
        "versions": by_adapter(versions) if len(versions) < MOST_OFFERED - 1 else None,
        "some": versions,
        "metrics": dict.fromkeys((FEEDBACK, "thumbs_up", *(one.primary.name for one in known), "error")),
        "example": example_plan(),
        "why_not": visit.why_not(CREATE),
        **(preview or NOTHING),
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


async def _free_name(visit: Visit, form: Mapping[str, str]) -> str:
    """A name for the experiment, by the version that is tried; empty where none is picked yet."""
    wanted = re.sub(r"[^a-z0-9]+", "-", form.get("treatment", "").lower()).strip("-")[:40]
    if not wanted:
        return ""
    taken = {one.name.removeprefix("experiments/") for one in await _known(visit)}
    names = (wanted, *(f"{wanted}-{number}" for number in range(2, MOST_NAMES + 2)))
    return next((name for name in names if name not in taken), wanted)


def previewed(form: Mapping[str, str]) -> dict[str, Any]:
    """The plan in words and as a file, and what its users find; `missing` says what is wrong."""
    name = form.get("name", "").strip() or "my-test"
    try:
        spec = spec_of(form)
    except InvalidRequest as error:
        return {**NOTHING, "missing": [f"{v.field}: {clip(v.description)}" for v in error.violations]}
    made = {
        **NOTHING,
        "pairs": pairs_of(Experiment(name, spec)),
        "toml": plan_toml(spec),
        "file": f"{name}.toml",
    }
    try:
        return {**made, "notes": _size(spec)}
    except InvalidRequest as error:
        return {**made, "missing": [public_message(error)]}


def _size(spec: Spec) -> list[str]:
    """What the planned users find, of a proportion: nothing is known of the spread of other metrics. Raises
    InvalidRequest."""
    from router.extensions.experiments.sizing import SizeQuestion, sentence, size_of

    if not spec.primary.kind.rules.binary:
        return []
    question = replace(SizeQuestion.of(spec), baseline=GUESS)
    answer = size_of(question)
    found = [sentence(question, answer)] if answer.effect is not None else []
    return [*found, GUESSED.format(name=spec.primary.name), *answer.notes]


async def preview(visit: Visit) -> PageReply:
    """The plan alone, for the script that asks while somebody types."""
    form = texts(visit.form)
    return visit.console.page(visit, PREVIEW, previewed(form))


async def create(visit: Visit) -> PageReply:
    """Keep it as a draft. What is wrong is raised, and shown by the form itself."""
    form = texts(visit.form)
    name = form.get("name", "").strip()
    try:
        message = pb.CreateExperimentRequest(experiment_id=name, experiment=plan_message(spec_of(form)))
        await visit.ask(CREATE, message)
    except InvalidRequest as error:
        visit.refused_with(PAGE, await values(visit, form, placed(error.violations)))
        raise
    except RouterError as error:
        where = "name" if isinstance(error, AlreadyExists) else ""
        if code_of(error) != INTERNAL:
            visit.refused_with(PAGE, await values(visit, form, {where: [public_message(error)]}))
        raise
    return redirect(f"{ROOT}/experiments/{segment(name)}")


PAGE = Page("/new-experiment", LIST, show, "experiment_plan.html", "New experiment")
PREVIEW = Page("/new-experiment/preview", LIST, show, "experiment_preview.html")

ENTRIES: tuple[Entry, ...] = (
    PAGE,
    Action("/new-experiment/preview", LIST, preview),
    Action("/new-experiment/create", CREATE, create),
)
