"""One experiment, judged when it is opened and while one looks, and what may be done about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp

from router.errors import FailedPrecondition, InvalidRequest, NotFound, RouterError, StaleEtag
from router.extensions.console.experiments import REPORT, SERVICE, STATES, TONES, judged_in_short, who
from router.extensions.console.rendering import segment
from router.extensions.console.site import ROOT, Action, Entry, Page, PageReply, Visit, redirect
from router.server.status import public_message
from router.v1 import experiments_pb2 as pb

if TYPE_CHECKING:
    from markupsafe import Markup

    from router.experiments.next_step import NextStep
    from router.experiments.report.model import Report

START, STOP = SERVICE + "StartExperiment", SERVICE + "StopExperiment"
PROMOTE, ROLL_BACK = SERVICE + "PromoteArm", SERVICE + "RollBackPromotion"
GET = SERVICE + "GetExperiment"
MOST_ACTS = 100
MOST_POINTS = 40  # of the table beside the chart
MARKS = {"✓": "ok", "✗": "bad"}  # of what a table says, to tones


async def detail(visit: Visit) -> dict[str, Any]:
    """One, judged now."""
    phase = visit.query.get("phase", "")
    number = int(phase) if phase.isdecimal() and len(phase) < 6 else 0
    return await judged(visit, visit.path("name"), number)


async def live(visit: Visit) -> dict[str, Any]:
    """The same by the server's own last look, which costs little; the course over time stays as it is."""
    name = visit.path("name")
    experiments = visit.console.live
    latest = experiments.guardian.latest.get(name) if experiments is not None else None
    if latest is None:
        return await judged(visit, name)
    from router.experiments.report_messages import report_message
    from router.experiments.service import current_visibility

    answer = await visit.ask(GET, pb.GetExperimentRequest(name=f"experiments/{name}"))
    if latest.phase != len(answer.experiment.phases):
        return await judged(visit, name)
    sees = current_visibility()
    audit = tuple(replace(entry, detail=sees.detail(entry.detail)) for entry in latest.audit)
    report = report_message(replace(latest, audit=audit), answer.experiment)
    return shown(visit, name, report) | {"course": False}


async def judged(visit: Visit, name: str, phase: int = 0, **more: Any) -> dict[str, Any]:
    """What the page of an experiment shows, judged now."""
    report = await visit.ask(REPORT, pb.GetReportRequest(name=f"experiments/{name}", phase=phase))
    return shown(visit, name, report, phase) | more


def shown(visit: Visit, name: str, report: pb.GetReportResponse, phase: int = 0) -> dict[str, Any]:
    """What the page shows of a report."""
    # They come with experiments, whose folder may be taken away: then the line above has raised.
    from router.experiments import report_tables, words
    from router.experiments.charts import effect_chart
    from router.experiments.forest import forest_of
    from router.experiments.next_step import next_step
    from router.experiments.report_messages import report_of

    one, found = report.experiment, report_of(report)
    step, may = next_step(found), acts(visit, report)
    points = list(report.points)
    return {
        "title": name,
        "name": name,
        "it": one,
        "phase": phase,
        "state": STATES.get(one.state, ("", "")),
        "running": one.state == pb.Experiment.STATE_RUNNING,
        "report": report,
        **_verdict(found),
        "step": step,
        "acts": may,
        "may": may_now(step, may, found),
        "promotable": [arm.name for arm in one.arms if not why_no_promotion(arm.name, found)],
        "forest": forest_of(found),
        "arms": arm_rows(visit, report, found),
        "chart": drawn(effect_chart(found)),
        "every": (every := 1 + len(points) // MOST_POINTS),
        "points": points[::-1][::every],
        "axis": words.quantity(found.judged.spec.primary),
        "control": found.judged.spec.control,
        "colors": colors(found),
        "tables": list(tables(found)),
        "numbers": [*number_tables(found)],
        "details": list(report_tables.details(found)),
        "legend": words.legend(found) if found.arms else [],
        "notes": [f"{note[:1].upper()}{note[1:].rstrip('.')}." for note in found.notes],
        "plan": plan_lines(found),
        "audit": [audit_row(entry) for entry in reversed(report.audit)][:MOST_ACTS],
        "marks": MARKS,
        "moment": moment,
        "wrong": "",
        "at": "",
        "typed": {},
        "course": True,
    }


def _verdict(found: Report) -> dict[str, Any]:
    """The verdict and the checks of the data, in sentences."""
    from router.experiments import check_words, words

    checks = check_words.check_lines(found)
    return {
        "heading": words.heading(found),
        "tone": TONES.get(found.verdict.decision, "") if found.phase else "",
        "short": judged_in_short(found),
        "failed": check_words.failed_checks(found),
        "lines": words.effect_lines(found),
        "rulings": [(arm.arm, words.sentence(found, arm.verdict, arm.arm)) for arm in found.arms],
        "outlook": words.outlook(found),
        "checks": checks,
        "checks_fail": any(failed for failed, _, _ in checks),
        "sound": check_words.checks_line(found),
        "shares": next((text for _, title, text in checks if title == SHARES), ""),
        "shares_fail": any(failed for failed, title, _ in checks if title == SHARES),
        "begun": next((one.started for one in found.experiment.phases if one.number == found.phase), 0.0),
    }


SHARES = "Shares of the arms"  # the check that stands beside the arms, too


def drawn(chart: str) -> Markup:
    """A chart; the texts in it are escaped where it is drawn."""
    from markupsafe import Markup

    return Markup(chart)  # noqa: S704


def colors(found: Report) -> dict[str, str]:
    """The class of each arm in charts."""
    from router.experiments.charts import color

    return {arm.name: color(found, arm.name) for arm in found.judged.spec.arms}


def tables(found: Report) -> Iterator[Any]:
    """What the chart of ranges has no row for."""
    from router.experiments import report_tables

    of_all = (report_tables.missing(found), report_tables.pairs(found))
    every = (*of_all, *report_tables.segments(found), *report_tables.days(found))
    yield from (table for table in every if table.rows or table.notes)


def number_tables(found: Report) -> Iterator[Any]:
    """The numbers of that chart; their notes stand below it."""
    from router.experiments import report_tables

    effects = [] if found.judged.spec.mode == "shadow" else [report_tables.effects(found)]
    every = (*effects, report_tables.guardrails(found), report_tables.secondary(found))
    yield from (table for table in every if table.rows or table.notes)


def plan_lines(found: Report) -> list[tuple[str, str]]:
    """The plan in words."""
    from router.experiments import words
    from router.experiments.report.source import duration

    spec = found.judged.spec
    decides = f"{spec.primary.name}, {words.direction(spec.primary.higher_is_better)}"
    if spec.margin:
        decides += f"; may be worse by {words.quantity(spec.primary).margin(spec.margin)}"
    unit = f"each {spec.unit}" + (f", as label {spec.unit_label} has it" if spec.unit_label else "")
    part = f"{spec.enrolment:.4g} of all".replace("1 of all", "all") + f" {spec.unit}s"
    lines = [
        ("Requests for", spec.route or "all adapters"),
        ("Decided by", decides),
        ("Must not get worse", "; ".join(words.guardrail_line(rail) for rail in spec.guardrails)),
        ("Also measured", ", ".join(metric.name for metric in spec.secondary)),
        ("Split by", unit),
        ("Takes part", part),
        ("Planned", f"{spec.planned_units:,} {spec.unit}s, at least {spec.min_units:,} in each arm"),
        ("Outcomes count", f"for {duration(spec.window)} after the first answer"),
        ("Chance of a false result", f"{100 * spec.alpha:g} % for all arms together"),
        ("Mode", spec.mode.value),
        ("Segments", ", ".join(segment.label for segment in spec.segments)),
        ("Namespace", spec.namespace),
        ("Stopped because", found.experiment.stop_reason),
    ]
    return [(key, value) for key, value in lines if value]


def arm_rows(visit: Visit, report: pb.GetReportResponse, found: Report) -> list[dict[str, Any]]:
    """Each arm with its counts, planned and actual share, and who answers for it."""
    numbers = {one.arm: one for one in report.numbers}
    arms = next(
        (p.arms for p in report.experiment.phases if p.number == report.phase), report.experiment.arms
    )
    total = sum(one.units for one in report.numbers)
    return [
        {
            "it": arm,
            "who": who(report.experiment, arm),
            "digest": digest_of(visit, arm.adapter),
            "numbers": (there := numbers.get(arm.name)),
            "target": there.weight if there is not None else arm.weight,
            "actual": there.units / total if there is not None and total else None,
            "answered": there.answered.get(found.judged.spec.primary.name, 0) if there is not None else 0,
            "control": arm.name == report.experiment.control,
        }
        for arm in arms
    ]


def digest_of(visit: Visit, adapter: str) -> str:
    """Of the version as it is here now; empty where it is not, or may not be known."""
    name, _, version = adapter.removeprefix("adapters/").partition("/versions/")
    if not version:
        return ""
    try:
        return visit.console.server.registry.get(name, version, visit.client.adapters).digest
    except NotFound:
        return ""


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
    from router.experiments import words

    if arm == report.experiment.spec.control:
        return "It is control: stopping the experiment keeps it."
    ruling = next((one.verdict for one in report.arms if one.arm == arm), report.verdict)
    if ruling.decision == "promote":
        return ""
    return words.sentence(report, ruling, arm) if report.phase else words.heading(report)


def audit_row(entry: pb.GetReportResponse.AuditEntry) -> dict[str, Any]:
    """An act, its numbers in a line."""
    detail = MessageToDict(entry.detail)
    return {
        "it": entry,
        "time": moment(entry.time),
        "detail": ", ".join(f"{key} {plain(value)}" for key, value in sorted(detail.items())),
    }


def plain(value: Any) -> str:
    """A value of an act; JSON knows no whole numbers.

    >>> plain(1.0), plain(0.25), plain("x"), plain(1795439090.18)
    ('1', '0.25', 'x', '1795439090')
    """
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value.is_integer() or abs(value) >= 1e6 else f"{value:.4g}"


def moment(at: Timestamp) -> float:
    """Unix seconds."""
    return at.ToNanoseconds() / 1e9


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
    Page("/experiments/{name}/live", REPORT, live, "experiment_live.html"),
    Action("/experiments/start", START, start),
    Action("/experiments/stop", STOP, stop),
    Action("/experiments/promote", PROMOTE, promote),
    Action("/experiments/roll-back", ROLL_BACK, roll_back),
)
