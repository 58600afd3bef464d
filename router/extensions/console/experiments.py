"""Experiments: what is planned, runs and was found, and what may be done about it.

All comes from ExperimentService, called as the client that looks. What it refuses is refused here, in its
words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp

from router.errors import FailedPrecondition, InvalidRequest, NotFound, RouterError, StaleEtag
from router.extensions.console.rendering import segment
from router.extensions.console.site import ROOT, Action, Entry, Page, PageReply, Visit, redirect
from router.server.status import public_message
from router.v1 import experiments_pb2 as pb

if TYPE_CHECKING:
    from router.experiments.report.model import MetricReport, Report

SERVICE = "/router.v1.ExperimentService/"
LIST, REPORT = SERVICE + "ListExperiments", SERVICE + "GetReport"
CREATE, START, STOP = (SERVICE + name for name in ("CreateExperiment", "StartExperiment", "StopExperiment"))
PROMOTE, ROLL_BACK = SERVICE + "PromoteArm", SERVICE + "RollBackPromotion"
PAGE_SIZE = 50
MOST_ACTS = 100
MOST_POINTS = 40  # of the table beside the chart
STATES: Mapping[int, tuple[str, str]] = {
    pb.Experiment.STATE_DRAFT: ("draft", ""),
    pb.Experiment.STATE_RUNNING: ("running", "info"),
    pb.Experiment.STATE_STOPPED: ("stopped", ""),
}
TONES: Mapping[str, str] = {"promote": "ok", "stop for harm": "bad", "invalid": "bad", "undecided": "info"}
MARKS: Mapping[str, str] = {"✓": "ok", "✗": "bad"}  # of what a table says, to tones


async def show(visit: Visit) -> dict[str, Any]:
    """The list."""
    if absent := visit.console.context.no_experiments:
        return {"absent": absent, "rows": [], "next_page": "", "why_not": ""}
    request = pb.ListExperimentsRequest(page_size=PAGE_SIZE, page_token=visit.query.get("page", ""))
    answer = await visit.ask(LIST, request)
    rows = [
        {
            "it": one,
            "name": name_of(one),
            "state": STATES.get(one.state, ("", "")),
            "judged": await _judged_now(visit, one),
        }
        for one in answer.experiments
    ]
    return {"absent": "", "rows": rows, "next_page": answer.next_page_token, "why_not": visit.why_not(CREATE)}


async def _judged_now(visit: Visit, one: pb.Experiment) -> dict[str, str]:
    """Of one that runs: its verdict in a few words, the difference, progress, and the time left."""
    from router.experiments import words
    from router.experiments.report_messages import report_of

    if one.state != pb.Experiment.STATE_RUNNING or visit.why_not(REPORT):
        return {}
    report = report_of(await visit.ask(REPORT, pb.GetReportRequest(name=one.name)))
    return {
        "verdict": words.short_verdict(report),
        "tone": TONES.get(report.verdict.decision, ""),
        "difference": words.difference(report),
        "progress": words.progress(report),
        "left": words.time_left(report),
    }


async def detail(visit: Visit) -> dict[str, Any]:
    """One, judged now."""
    phase = visit.query.get("phase", "")
    return await judged(visit, visit.path("name"), int(phase) if phase.isdecimal() and len(phase) < 6 else 0)


async def judged(visit: Visit, name: str, phase: int = 0, **more: Any) -> dict[str, Any]:
    """What the page of an experiment shows."""
    report = await visit.ask(REPORT, pb.GetReportRequest(name=f"experiments/{name}", phase=phase))
    # They come with experiments, whose folder may be taken away: then the line above has raised.
    from router.experiments import check_words, report_tables, words
    from router.experiments.report_messages import report_of

    one, found = report.experiment, report_of(report)
    return {
        "title": name,
        "name": name,
        "it": one,
        "state": STATES.get(one.state, ("", "")),
        "report": report,
        "tones": TONES,
        "heading": words.heading(found),
        "lines": [*check_words.failed_checks(found), *words.effect_lines(found)],
        "outlook": words.outlook(found),
        "following": words.following(found),
        "since": words.since(found),
        "tables": list(report_tables.tables(found)),
        "details": list(report_tables.details(found)),
        "legend": words.legend(found),
        "sound": check_words.checks_line(found),
        "axis": words.quantity(found.judged.spec.primary),
        "rails": [words.guardrail_line(rail) for rail in found.experiment.spec.guardrails],
        "arms": arm_rows(visit, report, found),
        "series": series(report),
        "split": one.mode in (pb.Experiment.MODE_UNSPECIFIED, pb.Experiment.MODE_SPLIT),
        "every": (every := 1 + len(points := treated(report)) // MOST_POINTS),
        "points": points[::-1][::every],
        "audit": [audit_row(entry) for entry in reversed(report.audit)][:MOST_ACTS],
        "acts": acts(visit, report),
        "comparison": comparison,
        "marks": MARKS,
        "moment": moment,
        "wrong": "",
        "at": "",
        "typed": {},
        **more,
    }


def name_of(one: pb.Experiment) -> str:
    """Without `experiments/`."""
    return one.name.removeprefix("experiments/")


def arm_rows(visit: Visit, report: pb.GetReportResponse, found: Report) -> list[dict[str, Any]]:
    """Each arm with its counts, target and actual share, and whom it is."""
    numbers = {one.arm: one for one in report.numbers}
    arms = next(
        (p.arms for p in report.experiment.phases if p.number == report.phase), report.experiment.arms
    )
    total = sum(one.units for one in report.numbers)
    return [
        {
            "no_promotion": why_no_promotion(arm.name, found),
            "it": arm,
            "who": arm.adapter.removeprefix("adapters/").replace("/versions/", " ")
            or router_words(arm)
            or "base",
            "digest": digest_of(visit, arm.adapter),
            "numbers": (there := numbers.get(arm.name)),
            "target": there.weight if there is not None else arm.weight,
            "actual": there.units / total if there is not None and total else None,
            "control": arm.name == report.experiment.control,
        }
        for arm in arms
    ]


def router_words(arm: pb.Experiment.Arm) -> str:
    """How its router differs, or nothing."""
    if not arm.HasField("router"):
        return ""
    settings = MessageToDict(arm.router, preserving_proto_field_name=True)
    return "router with " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in settings.items())


def digest_of(visit: Visit, adapter: str) -> str:
    """Of the version as it is here now; empty where it is not, or may not be known."""
    name, _, version = adapter.removeprefix("adapters/").partition("/versions/")
    if not version:
        return ""
    try:
        return visit.console.context.registry.get(name, version, visit.client.adapters).digest
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


def why_no_promotion(arm: str, report: Report) -> str:
    """Why an arm may not be promoted, in the words of its verdict; empty if it may."""
    from router.experiments import words

    if arm == report.experiment.spec.control:
        return "It is control: stopping the experiment keeps it."
    ruling = next((one.verdict for one in report.arms if one.arm == arm), report.verdict)
    if ruling.decision == "promote":
        return ""
    return words.sentence(report, ruling, arm) if report.phase else words.heading(report)


def comparison(one: MetricReport) -> dict[str, Any]:
    """A comparison with its interval as places in a picture: 0 to 100, no effect being 50."""
    known = all(map(math.isfinite, (one.low, one.high, one.effect)))
    ends = [abs(one.low), abs(one.high), one.margin if not one.margin_relative else 0.0, 1e-12]
    scale = 48 / max(ends) if known else 0.0
    low, high, at = (
        (50 + scale * value for value in (one.low, one.high, one.effect)) if known else (0, 100, 50)
    )
    better = 1 if one.higher_is_better else -1
    tone = ""
    if known and min(better * one.low, better * one.high) > 0:
        tone = "ok"
    elif known and max(better * one.low, better * one.high) < 0:
        tone = "bad"
    return {"known": known, "low": low, "width": max(0.5, high - low), "at": at, "tone": tone}


def treated(report: pb.GetReportResponse) -> list[pb.GetReportResponse.Point]:
    """The points of effects: control has none against itself."""
    return [point for point in report.points if point.arm != report.experiment.control]


def series(report: pb.GetReportResponse) -> dict[str, Any] | None:
    """The effect over time for the script that draws it: columns, None where nothing is known."""
    points = treated(report)
    times = sorted({round(moment(point.time), 3) for point in points})
    if len(times) < 2:
        return None
    place = {time: i for i, time in enumerate(times)}
    arms: dict[str, dict[str, Any]] = {}
    for point in points:
        arm = arms.setdefault(
            point.arm, {"name": point.arm, **{key: [None] * len(times) for key in ("effect", "low", "high")}}
        )
        for key in ("effect", "low", "high"):
            value = getattr(point, key)
            arm[key][place[round(moment(point.time), 3)]] = value if math.isfinite(value) else None
    return {"metric": report.experiment.primary.name, "time": times, "arms": list(arms.values())}


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
    Page("/experiments", LIST, show, "experiments.html", "Experiments", nav="Experiments"),
    DETAIL,
    Action("/experiments/start", START, start),
    Action("/experiments/stop", STOP, stop),
    Action("/experiments/promote", PROMOTE, promote),
    Action("/experiments/roll-back", ROLL_BACK, roll_back),
)
