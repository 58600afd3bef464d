"""Checks of the data in words: what is wrong when one fails, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from router.quantities import counted

if TYPE_CHECKING:
    from router.extensions.experiments.report.model import PipelineCheck, Report


class Check(NamedTuple):
    """A check in words: its name, what is wrong when it fails, what to do about it, and what is so
    otherwise; empty: the text of the check says that."""

    title: str
    wrong: str
    repair: str
    fine: str = ""


NOT_TESTED = "not tested"  # how the text of a check begins that a plan does not need
CHECKS: Mapping[str, Check] = {
    "sample-ratio": Check(
        "Shares of the arms",
        "The arms do not have their planned shares of {units}, so one arm loses some of them or counts"
        " them twice.",
        "Look for requests that fail, are sent twice or carry no unit in one arm",
        "The arms have their planned shares of {units}.",
    ),
    "missing-outcomes": Check(
        "Missing outcomes",
        "One arm has no outcome from more of its {units} than the other, so those that are left are not"
        " alike.",
        'Find out why outcomes of that arm do not arrive, or count a missing outcome as 0 (missing = "zero")',
    ),
    "crossed-units": Check(
        "One arm for each of them",
        "Too many {units} saw more than one arm.",
        "Send the same unit with every request of one {unit}",
    ),
    "mixed-digests": Check(
        "Arms that stay the same",
        "What an arm consists of changed while the experiment ran.",
        "Keep the adapter, the base and the router of each arm as they are",
        "Adapters, base and router are what they were at the start.",
    ),
    "maturity": Check("Time for outcomes", "Too few {units} had time for their outcomes.", "Wait"),
}


def check_title(check: PipelineCheck) -> str:
    """The name of a check for people."""
    found = CHECKS.get(check.name)
    return found.title if found else check.name.replace("-", " ").capitalize()


def failed_checks(report: Report) -> list[str]:
    """A sentence for each check that failed: what is wrong, and its numbers."""
    return [failed_check(report, check) for check in report.checks if check.failed]


def failed_check(report: Report, check: PipelineCheck) -> str:
    """What is wrong, and its numbers."""
    known, unit = CHECKS.get(check.name), report.judged.spec.unit
    wrong = known.wrong.format(units=f"{unit}s", unit=unit) if known else check_title(check) + "."
    if check.name == "sample-ratio":
        return f"{wrong} {_shares(report)}."
    return f"{wrong} {check.text[:1].upper()}{check.text[1:].rstrip('.')}."


def _shares(report: Report) -> str:
    unit = report.judged.spec.unit
    each = [f"{n.arm} has {counted(n.units, unit)}, {n.expected:,.0f} are expected" for n in report.numbers]
    return "; ".join(each)


def check_lines(report: Report) -> list[tuple[bool, str, str]]:
    """Each check: whether it failed, its name, and what it found in a sentence."""
    return [(check.failed, check_title(check), _found(report, check)) for check in report.checks]


def _found(report: Report, check: PipelineCheck) -> str:
    known, unit = CHECKS.get(check.name), report.judged.spec.unit
    if check.failed:
        return failed_check(report, check)
    if known is None or not known.fine or check.text.startswith(NOT_TESTED):
        return f"{check.text[:1].upper()}{check.text[1:].rstrip('.')}."
    return known.fine.format(units=f"{unit}s", unit=unit)


def checks_line(report: Report) -> str:
    """How many checks are fine, and which are not; empty where nothing is checked yet."""
    failed = [check_title(check) for check in report.checks if check.failed]
    many = len(report.checks)
    if failed:
        return f"✗ {len(failed)} of {many} checks failed: {', '.join(failed)}."
    return f"✓ All {many} checks of the data are fine." if many else ""


def repairs(report: Report) -> str:
    """What to do about all that failed."""
    unit = report.judged.spec.unit
    found = [CHECKS[c.name].repair.format(unit=unit) for c in report.checks if c.failed and c.name in CHECKS]
    text = ". ".join(found) or "Repair what the failed check names"
    return f"{text[:1].lower()}{text[1:]}"
