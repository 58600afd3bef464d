"""Experiments: the list, with what each has found so far. One by itself is in `experiment.py`.

All comes from ExperimentService, called as the client that looks. What it refuses is refused here, in its
words.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from router.extensions.console.site import Entry, Page, Visit
from router.v1 import experiments_pb2 as pb

if TYPE_CHECKING:
    from router.extensions.experiments.report.model import Report

SERVICE = "/router.v1.ExperimentService/"
LIST, REPORT = SERVICE + "ListExperiments", SERVICE + "GetReport"
CREATE = SERVICE + "CreateExperiment"
PAGE_SIZE, MOST_READ = 500, 2000  # experiments in one answer of the service, and in all
MOST_SHOWN, MANY = 100, 8  # of one state on the page; from so many on there is a search
JUDGING_SECONDS = 0.5  # for those at which the server has not looked yet
STATES: Mapping[int, tuple[str, str]] = {
    pb.Experiment.STATE_DRAFT: ("draft", ""),
    pb.Experiment.STATE_RUNNING: ("running", "info"),
    pb.Experiment.STATE_STOPPED: ("stopped", ""),
}
MODES: Mapping[int, str] = {
    pb.Experiment.MODE_SHADOW: "shadow",
    pb.Experiment.MODE_HOLDOUT: "holdout",
}
TONES: Mapping[str, str] = {"promote": "ok", "stop for harm": "bad", "invalid": "bad", "undecided": "info"}


async def show(visit: Visit) -> dict[str, Any]:
    """The list."""
    if absent := visit.console.no_experiments:
        return {"absent": absent}
    return {"absent": "", "why_not": visit.why_not(CREATE), **await live(visit)}


async def live(visit: Visit) -> dict[str, Any]:
    """What changes while one looks: experiments by state, those with a verdict first."""
    found = visit.query.get("q", "").strip()[:100]
    every, more = await _every(visit)
    shown = [one for one in every if not found or matches(one, found)]
    of_state = {
        state: [one for one in shown if one.state == state]
        for state in (pb.Experiment.STATE_RUNNING, pb.Experiment.STATE_DRAFT, pb.Experiment.STATE_STOPPED)
    }
    running, drafts, stopped = of_state.values()
    reports = await last_reports(visit, running)
    running.sort(key=lambda one: _order(reports.get(one.name)))
    stopped.sort(key=lambda one: -one.stop_time.seconds)
    return {
        "found": found,
        "search": len(every) >= MANY or bool(found),
        "more": more,
        "most": MOST_SHOWN,
        "empty": not every,
        "running": [row_of(one, reports.get(one.name)) for one in running[:MOST_SHOWN]],
        "drafts": [row_of(one) for one in drafts[:MOST_SHOWN]],
        "stopped": [row_of(one) for one in stopped[:MOST_SHOWN]],
        "counts": {"running": len(running), "drafts": len(drafts), "stopped": len(stopped)},
    }


async def _every(visit: Visit) -> tuple[list[pb.Experiment], bool]:
    """All experiments that the client may see, and whether there are more than are read."""
    every: list[pb.Experiment] = []
    if visit.console.no_experiments:
        return every, False
    token = ""
    while not visit.console.no_experiments and len(every) < MOST_READ:
        answer = await visit.ask(LIST, pb.ListExperimentsRequest(page_size=PAGE_SIZE, page_token=token))
        every += answer.experiments
        if not (token := answer.next_page_token):
            break
    return every, bool(token)


def matches(one: pb.Experiment, text: str) -> bool:
    """Whether all words of `text` stand in its name, route, hypothesis, metric or versions."""
    arms = (f"{arm.name} {arm.adapter}" for arm in one.arms)
    whole = " ".join((one.name, one.route, one.hypothesis, one.primary.name, *arms)).lower()
    return all(word in whole for word in text.lower().split())


async def last_reports(visit: Visit, running: Sequence[pb.Experiment]) -> dict[str, Report]:
    """Reports by resource name: of the server's own last look, and for those that it did not look at yet,
    made now, while there is time."""
    from router.extensions.experiments.messages import report_of

    if visit.why_not(REPORT):
        return {}
    experiments = visit.console.live
    latest = experiments.guardian.latest if experiments is not None else {}
    looks = ((one, latest.get(name_of(one))) for one in running)
    reports = {one.name: found for one, found in looks if found and found.phase == len(one.phases)}
    try:
        async with asyncio.timeout(JUDGING_SECONDS):
            for one in running:
                if one.name not in reports:
                    answer = await visit.ask(REPORT, pb.GetReportRequest(name=one.name))
                    reports[one.name] = report_of(answer)
    except TimeoutError:
        pass  # the server looks at them within seconds
    return reports


def _order(report: Report | None) -> tuple[int, float]:
    """Those that may be decided first, then by how long they still take."""
    from router.extensions.experiments.next_step import days_left
    from router.extensions.experiments.words import gives_up

    if report is None:
        return 3, 0.0
    left = days_left(report)
    if report.verdict.decision != "undecided":
        return 0, 0.0
    return (1 if gives_up(report) else 2), left if left is not None else 1e9


def row_of(one: pb.Experiment, report: Report | None = None) -> dict[str, Any]:
    """What the list shows of an experiment; `report` of one that runs."""
    arms = [(arm.name, arm.weight, who(one, arm)) for arm in one.arms]
    row: dict[str, Any] = {
        "it": one,
        "name": name_of(one),
        "arms": arms,
        "mode": MODES.get(one.mode, ""),
        "route": one.route.removeprefix("adapters/") or "all requests, by router",
        "changed": one.update_time.seconds or one.create_time.seconds,
        "stopped": one.stop_time.seconds,
        "judged": None,
    }
    if report is not None:
        row["judged"] = judged_in_short(report)
    return row


def judged_in_short(report: Report) -> dict[str, Any]:
    """The verdict with its difference, how far the experiment is, and the time left."""
    from router.extensions.experiments import words
    from router.extensions.experiments.next_step import time_left

    first, _, rest = words.heading(report).partition(":")
    so_far, planned = words.progress_of(report)
    return {
        "first": first,
        "rest": rest.strip(),
        "tone": TONES.get(report.verdict.decision, ""),
        "difference": words.difference(report),
        "metric": report.judged.spec.primary.name,
        "progress": words.progress(report),
        "share": min(1.0, so_far / planned) if planned else None,
        "left": time_left(report),
        "time": report.time,
    }


def who(one: pb.Experiment, arm: pb.Experiment.Arm) -> str:
    """Who answers for an arm: a version, or the base; nobody for one of a holdout."""
    named = arm.adapter.removeprefix("adapters/").replace("/versions/", "@")
    return named or ("base" if one.route else "")


def name_of(one: pb.Experiment) -> str:
    """Without `experiments/`."""
    return one.name.removeprefix("experiments/")


ENTRIES: tuple[Entry, ...] = (
    Page("/experiments", LIST, show, "experiments.html", "Experiments", nav="Experiments"),
    Page("/experiments-live", LIST, live, "experiments_live.html"),
)
