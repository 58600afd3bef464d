"""The rule of the gate, for one version: pure functions of its report, its weights and the base."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from router.engine.base import BaseInfo
from router.registry.disk.places import REPORT
from router.registry.format.text import show
from router.registry.gate.report import Report
from router.types import Override


class Standing(Enum):
    """Where a version stands with the gate."""

    PASSED = auto()
    PENDING = auto()  # something has not been read yet
    FAILED = auto()


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a report is worth for these weights. `again`: another evaluation might help."""

    standing: Standing
    finding: str = ""
    again: bool = False
    weights: str = ""  # sha256 hex of those it is about; empty where they were not read
    report: Report | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says of a version among the others of its name. `open`: it may be routed to."""

    standing: Standing
    open: bool = False
    finding: str = ""
    advice: str = ""
    override: Override | None = None
    needs_weights: bool = False  # they have to be read before more can be said


UNJUDGED = Verdict(Standing.PENDING, finding=f"its {REPORT} has not been read yet")
NO_GATE = Verdict(Standing.PASSED, open=True)


def judge(report: Report | str | None, weights: str, base: BaseInfo) -> Judgement:
    """The rule. `report` is what was read, or why it cannot be used, or None where there is none."""
    if report is None:
        return Judgement(Standing.FAILED, f"no {REPORT}", again=True, weights=weights)
    if isinstance(report, str):
        return Judgement(Standing.FAILED, f"{REPORT}: {report}", again=True, weights=weights)
    finding, again = _about(report, weights, base), True
    if not finding:
        finding, again = _worth(report), False
    if finding:
        return Judgement(Standing.FAILED, finding, again, weights, report)
    if not weights:
        finding = f"its weights have not been compared with its {REPORT} yet"
        return Judgement(Standing.PENDING, finding, report=report)
    return Judgement(Standing.PASSED, weights=weights, report=report)


def _about(report: Report, weights: str, base: BaseInfo) -> str:
    """Why it is not about these weights on this base."""
    if report.base_digest != base.digest:
        theirs, ours = report.base_digest[:12], base.digest[:12]
        return (
            f"{REPORT} was measured on another base: {show(report.base_model)} with digest "
            f"{show(theirs)}, here is {base.name} with {ours}"
        )
    if weights and report.weights_sha256 != weights:
        return (
            f"{REPORT} is about other weights: sha256 {report.weights_sha256[:12]}, these have {weights[:12]}"
        )
    return ""


def _worth(report: Report) -> str:
    """Why what it measured is not enough."""
    if report.gain.low <= 0:
        return f"its gain over the base, {report.gain}, does not exclude zero"
    if report.worse:
        more = f" and {len(report.worse) - 1} more" if len(report.worse) > 1 else ""
        return f"it is worse than the base beyond the margin: {report.worse[0]}{more}"
    return ""


def fallen_behind(report: Report, other: Report) -> bool:
    """Whether a version is surely worse than another one: same metric and test data, intervals apart."""
    comparable = (report.metric, report.data_sha256) == (other.metric, other.data_sha256)
    return comparable and report.score.high < other.score.low
