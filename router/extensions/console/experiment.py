"""One experiment, judged when it is opened and while one looks, and what may be done about it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from router.errors import FailedPrecondition, InvalidRequest, RouterError, StaleEtag
from router.extensions.console.experiments import REPORT, SERVICE, STATES, who
from router.extensions.console.rendering import segment
from router.extensions.console.site import ROOT, Action, Entry, Page, PageReply, Visit, redirect
from router.server.status import public_message
from router.v1 import experiments_pb2 as pb

if TYPE_CHECKING:
    from router.extensions.experiments.next_step import NextStep
    from router.extensions.experiments.report.model import Report

START, STOP = SERVICE + "StartExperiment", SERVICE + "StopExperiment"
PROMOTE, ROLL_BACK = SERVICE + "PromoteArm", SERVICE + "RollBackPromotion"


async def detail(visit: Visit) -> dict[str, Any]:
    """One, judged now."""
    phase = visit.query.get("phase", "")
    number = int(phase) if phase.isdecimal() and len(phase) < 6 else 0
    return await judged(visit, visit.path("name"), number)


async def judged(visit: Visit, name: str, phase: int = 0, **more: Any) -> dict[str, Any]:
    """What the page of an experiment shows, judged now."""
    report = await visit.ask(REPORT, pb.GetReportRequest(name=f"experiments/{name}", phase=phase))
    return shown(visit, name, report, phase) | more


def shown(visit: Visit, name: str, report: pb.GetReportResponse, phase: int = 0) -> dict[str, Any]:
    """What the page shows of a report."""
    # They come with experiments, whose folder may be taken away: then the call for the report has raised.
    from router.extensions.experiments.document import document
    from router.extensions.experiments.messages import report_of
    from router.extensions.experiments.page import body

    one, found = report.experiment, report_of(report)
    told, may = document(found), acts(visit, report)
    return {
        "title": name,
        "name": name,
        "it": one,
        "phase": phase,
        "state": STATES.get(one.state, ("", "")),
        "running": one.state == pb.Experiment.STATE_RUNNING,
        "step": told.step,
        "body": partial(body, told),
        "acts": may,
        "may": may_now(told.step, may, found),
        "versions": {arm.name: who(one, arm) for arm in one.arms},
        "promotable": [arm.name for arm in one.arms if not why_no_promotion(arm.name, found)],
        "wrong": "",
        "at": "",
        "typed": {},
    }


def acts(visit: Visit, report: pb.GetReportResponse) -> dict[str, str | None]:
    """What may be done: None where there is nothing to do, '' where it may be, else why not."""
    one = report.experiment
    draft, runs = one.state == pb.Experiment.STATE_DRAFT, one.state == pb.Experiment.STATE_RUNNING
    return {
        "start": None if runs or one.promoted else visit.why_not(START),
        "stop": visit.why_not(STOP) if runs else None,
        "promote": None if draft or one.promoted else visit.why_not(PROMOTE),
        "roll_back": visit.why_not(ROLL_BACK) if one.promoted else None,
    }


def may_now(step: NextStep, may: dict[str, str | None], found: Report) -> bool:
    """Whether the next step has a button here."""
    if step.act == "promote" and why_no_promotion(found.arm or "", found):
        return False
    return bool(step.act) and may[step.act.replace(" ", "_")] == ""


def why_no_promotion(arm: str, report: Report) -> str:
    """Why an arm may not be promoted, in the words of its verdict; empty if it may."""
    from router.extensions.experiments import words

    if arm == report.experiment.spec.control:
        return "It is control: stopping the experiment keeps it."
    ruling = next((one.verdict for one in report.arms if one.arm == arm), report.verdict)
    if ruling.decision == "promote":
        return ""
    return words.sentence(report, ruling, arm) if report.phase else words.heading(report)


# -- What may be done


async def start(visit: Visit) -> PageReply:
    """Begin to assign units."""
    message = pb.StartExperimentRequest(name=visit.form.get("name", ""), etag=visit.form.get("etag", ""))
    return await _done(visit, START, message, "start")


async def stop(visit: Visit) -> PageReply:
    """Return everybody to the default."""
    form = visit.form
    message = pb.StopExperimentRequest(
        name=form.get("name", ""), etag=form.get("etag", ""), reason=form.get("reason", "").strip()
    )
    return await _done(visit, STOP, message, "stop")


async def promote(visit: Visit) -> PageReply:
    """Make the arm's version the default. The verdict is not overruled here."""
    form = visit.form
    message = pb.PromoteArmRequest(
        name=form.get("name", ""),
        arm=form.get("arm", ""),
        etag=form.get("etag", ""),
        reason=form.get("reason", "").strip(),
    )
    return await _done(visit, PROMOTE, message, "promote")


async def roll_back(visit: Visit) -> PageReply:
    """Put back the default from before."""
    message = pb.RollBackPromotionRequest(
        name=visit.form.get("name", ""), reason=visit.form.get("reason", "").strip()
    )
    return await _done(visit, ROLL_BACK, message, "roll_back")


async def _done(visit: Visit, method: str, message: Any, act: str) -> PageReply:
    """Do it, and show the experiment; a refusal is shown there, beside what was typed."""
    name = message.name.removeprefix("experiments/")
    try:
        await visit.ask(method, message)
    except (FailedPrecondition, InvalidRequest, StaleEtag) as error:
        await _tell(visit, name, error, act)
        raise
    return redirect(f"{ROOT}/experiments/{segment(name)}")


async def _tell(visit: Visit, name: str, error: RouterError, act: str) -> None:
    """Have the experiment's page tell it, where the client may look at that."""
    if visit.why_not(REPORT):
        return
    try:
        values = await judged(visit, name, wrong=public_message(error), at=act, typed=dict(visit.form))
    except RouterError:  # it is gone, or has no good name: then the refusal is shown by itself
        return
    visit.refused_with(DETAIL, values)


DETAIL = Page("/experiments/{name}", REPORT, detail, "experiment.html")

ENTRIES: tuple[Entry, ...] = (
    DETAIL,
    Page("/experiments/{name}/live", REPORT, detail, "experiment_live.html"),
    Action("/experiments/start", START, start),
    Action("/experiments/stop", STOP, stop),
    Action("/experiments/promote", PROMOTE, promote),
    Action("/experiments/roll-back", ROLL_BACK, roll_back),
)
