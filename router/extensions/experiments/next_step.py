"""What to do now with an experiment: promote, wait and until when, give up, or repair.

A step is a sentence, the act that does it, and the command for it, so that a page can show a button in place
of the command.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from router.extensions.experiments.model import Lifecycle, Mode
from router.extensions.experiments.words import at, gives_up, repairs, units_of, units_so_far
from router.quantities import counted

if TYPE_CHECKING:
    from router.extensions.experiments.report.model import Report

DAY = 86_400.0
Act = Literal["", "start", "stop", "promote", "roll back"]


@dataclass(frozen=True, slots=True)
class NextStep:
    """`command` does the `act` in a terminal, and `joint` stands between `text` and it. An act of "" is none
    that a button could do."""

    text: str
    act: Act = ""
    command: str = ""
    joint: str = ": "

    @property
    def sentence(self) -> str:
        """The text for a page that has a button for the act."""
        return f"{self.text[:1].upper()}{self.text[1:].rstrip('.')}."


def following(report: Report) -> str:
    """What to do now, with the command."""
    step = next_step(report)
    return f"Next: {step.text}{step.joint}{step.command}" if step.command else f"Next: {step.text}"


def next_step(report: Report) -> NextStep:
    """What to do now: promote, wait and until when, give up, or repair."""
    name, decision = report.experiment.name, report.verdict.decision
    start, stop = (f"lora-router experiments {act} {name}" for act in ("start", "stop"))
    if report.phase == 0:
        return NextStep("start it", "start", start)
    if promoted := report.experiment.promoted:
        undo = f"lora-router experiments rollback {name}"
        return NextStep(f"nothing. {promoted} is promoted", "roll back", undo, "; to undo this: ")
    if any(entry.act == "roll back" for entry in report.audit):
        return NextStep("nothing. It was promoted and rolled back.")
    if decision == "promote":
        return _promote(report)
    if decision == "invalid":
        return NextStep(repairs(report), "", start, ". Then start anew: ")
    if report.experiment.state is Lifecycle.STOPPED:
        return NextStep("nothing. It has stopped", "start", start, "; a new phase begins with: ")
    if decision == "stop for harm":
        return NextStep("stop it", "stop", f"{stop} --reason harm")
    if gives_up(report):
        text = f"give up. All planned {units_of(report.judged)} took part, and no gain is in sight"
        return NextStep(text, "stop", stop)
    return _wait(report)


def _promote(report: Report) -> NextStep:
    command = f"lora-router experiments promote {report.experiment.name}"
    return NextStep(f"promote {report.arm or 'it'}", "promote", command)


def _wait(report: Report) -> NextStep:
    """`wait until about 2026-12-12: ...`, at the speed of now."""
    spec, per_day, name = report.judged.spec, report.units_per_day, report.experiment.name
    if spec.mode is Mode.SHADOW:
        return NextStep("to learn what users prefer, run an experiment in which users see both")
    if per_day is None:
        how_long = ". After a day of traffic the report says how long" if spec.mode is Mode.SPLIT else ""
        return NextStep(f"wait{how_long}", "", f"lora-router experiments report {name}", "; ")
    units = f"{spec.unit}s"
    if not per_day:
        text = f"no new {units} came in the last week. Check that requests arrive and carry their unit"
        return NextStep(f"{text}, or stop it", "stop", f"lora-router experiments stop {name}")
    pace = f"About {counted(round(per_day), f'new {spec.unit}')} come each day."
    return NextStep(
        f"wait until about {_until(report)}, when the planned {spec.planned_units:,} {units} had their time."
        f" {pace}"
    )


def _until(report: Report) -> str:
    days = days_left(report) or 0.0
    then = report.time + days * DAY
    return at(then) if days < 2 else at(then).partition(" ")[0]


def days_left(report: Report) -> float | None:
    """Days until all planned units had their time; None: not known."""
    if not report.units_per_day:
        return None
    spec = report.judged.spec
    return max(0.0, spec.planned_units - units_so_far(report)) / report.units_per_day + spec.closing / DAY


def time_left(report: Report) -> str:
    """`about 12 days`; empty where nothing is waited for."""
    days = days_left(report)
    if days is None or gives_up(report):
        return ""
    if days < 2:
        return f"about {counted(max(1, round(24 * days)), 'hour')}"
    return f"about {counted(round(days), 'day')}"
