"""The gate's rule for one version: pure functions of its report, its weights and the base.

The gate decides which versions answer requests that name no adapter. `gatekeeper.py` applies the rule to all
versions of a name. Of a report card only what decides that is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Literal, TypeAlias

from router.engine.base import BaseInfo
from router.registry.format.folder import REPORT
from router.registry.format.parsing import JsonError, load_json
from router.registry.format.text import show
from router.types import Override

SCHEMAS = (1, 2)
MOST_REGRESSIONS = 1_000
_SHA256 = re.compile(r"[0-9a-f]{64}")


# replacements: the first version of a name needs no report, a version that replaces one that serves does;
# strict: every version needs one; off: no version does.
GateMode: TypeAlias = Literal["replacements", "strict", "off"]


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
    report: ReportCard | None = None


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """The gate's verdict on a version among the others of its name.

    `open`: it may be routed to, for the `reason`. Otherwise `finding` is why not, and `advice` what to do.
    """

    standing: Standing
    open: bool = False
    reason: str = ""
    finding: str = ""
    advice: str = ""
    override: Override | None = None
    needs_weights: bool = False  # they have to be read before more can be said


UNJUDGED = GateVerdict(Standing.PENDING, finding=f"its {REPORT} has not been read yet")
NO_GATE = GateVerdict(Standing.PASSED, open=True, reason="the gate is off")


def judge(report: ReportCard | str | None, weights: str, base: BaseInfo) -> Judgement:
    """The rule. `report` is what was read, or why it cannot be used, or None where there is none."""
    if report is None:
        return Judgement(Standing.FAILED, f"no {REPORT}", again=True, weights=weights)
    if isinstance(report, str):
        return Judgement(Standing.FAILED, f"{REPORT}: {report}", again=True, weights=weights)
    finding, again = _not_about(report, weights, base), True
    if not finding:
        finding, again = _not_enough(report), False
    if finding:
        return Judgement(Standing.FAILED, finding, again, weights, report)
    if not weights:
        finding = f"its weights have not been compared with its {REPORT} yet"
        return Judgement(Standing.PENDING, finding, report=report)
    return Judgement(Standing.PASSED, weights=weights, report=report)


def _not_about(report: ReportCard, weights: str, base: BaseInfo) -> str:
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


def _not_enough(report: ReportCard) -> str:
    """Why what it measured is not enough."""
    if report.gain.low <= 0:
        return f"its gain over the base, {report.gain}, does not exclude zero"
    if report.worse:
        more = f" and {len(report.worse) - 1} more" if len(report.worse) > 1 else ""
        return f"it is worse than the base beyond the margin: {report.worse[0]}{more}"
    return ""


def fallen_behind(report: ReportCard, other: ReportCard) -> bool:
    """Whether a version is surely worse than another one: same metric and test data, intervals apart."""
    comparable = (report.metric, report.data_sha256) == (other.metric, other.data_sha256)
    return comparable and report.score.high < other.score.low


# -- the report


class ReportError(ValueError):
    """The file is no report card; the message says why and is fit for a user."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A measured value with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} (95 % interval {self.low:.4g} to {self.high:.4g})"


@dataclass(frozen=True, slots=True)
class Regression:
    """Something that got worse by `by` (more is worse) where `margin` was allowed."""

    what: str
    by: Interval
    margin: float

    def __str__(self) -> str:
        return f"{show(self.what)} by {self.by}, allowed is {self.margin:.4g}"


@dataclass(frozen=True, slots=True)
class ReportCard:
    """What a report says. Scores and gains: more is better."""

    weights_sha256: str
    base_model: str
    base_digest: str
    metric: str
    data_sha256: str
    score: Interval  # of the adapter
    gain: Interval  # adapter - base
    worse: tuple[Regression, ...] = ()


def parse_report(data: bytes) -> ReportCard:
    """Read a report card. Raises ReportError and nothing else."""
    try:
        card = load_json(data)
    except JsonError as error:
        raise ReportError(str(error)) from None
    schema = _value_at(card, "schema")
    if isinstance(schema, bool) or schema not in SCHEMAS:
        known = " and ".join(map(str, SCHEMAS))
        raise ReportError(f"schema {show(schema)} is not known here, only {known} are")
    return ReportCard(
        weights_sha256=_sha256(card, "adapter", "weights_sha256"),
        base_model=_text(card, "base", "model"),
        base_digest=_text(card, "base", "digest"),
        metric=_text(card, "metric"),
        data_sha256=_sha256(card, "data", "sha256"),
        score=_interval(_value_at(card, "arms", "adapter", "score"), "arms.adapter.score"),
        gain=_interval(_value_at(card, "gains", "adapter - base", "score"), "gains.adapter - base.score"),
        worse=_worse(card, required=schema > 1),
    )


def _worse(card: Any, required: bool) -> tuple[Regression, ...]:
    if "regressions" not in card and not required:
        return ()
    listed = _value_at(card, "regressions")
    if not isinstance(listed, list) or len(listed) > MOST_REGRESSIONS:
        raise ReportError(f"regressions must be a list of at most {MOST_REGRESSIONS}, is {show(listed)}")
    found = []
    for place, entry in enumerate(listed):
        where = f"regressions[{place}]"
        regression = Regression(
            _text(entry, "what", at=where), _interval(entry, where), _number(entry, "margin", where)
        )
        worse = _value_at(entry, "worse", at=where)
        if not isinstance(worse, bool):
            raise ReportError(f"{where}.worse must be true or false, is {show(worse)}")
        if worse:
            found.append(regression)
    return tuple(found)


def _value_at(value: Any, *path: str, at: str = "") -> Any:
    for step in path:
        if not isinstance(value, Mapping):
            raise ReportError(f"{at or 'the file'} must be a table, is {show(value)}")
        at = f"{at}.{step}" if at else step
        if step not in value:
            raise ReportError(f"{at} is missing")
        value = value[step]
    return value


def _text(value: Any, *path: str, at: str = "") -> str:
    found = _value_at(value, *path, at=at)
    if not isinstance(found, str):
        raise ReportError(f"{'.'.join(filter(None, (at, *path)))} must be a string, is {show(found)}")
    return found


def _sha256(value: Any, *path: str) -> str:
    found = _text(value, *path)
    if not _SHA256.fullmatch(found):
        raise ReportError(f"{'.'.join(path)} must be a sha256 in hex, is {show(found)}")
    return found


def _number(value: Any, key: str, at: str) -> float:
    found = _value_at(value, key, at=at)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise ReportError(f"{at}.{key} must be a number, is {show(found)}")
    try:
        return float(found)
    except OverflowError:
        raise ReportError(f"{at}.{key} must be a number, is {show(found)}") from None


def _interval(value: Any, at: str) -> Interval:
    found = Interval(*(_number(value, key, at) for key in ("value", "low", "high")))
    if found.low > found.high:
        raise ReportError(f"{at}: low {found.low:g} is above high {found.high:g}")
    return found
