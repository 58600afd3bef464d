"""Routing: what decides, and how sure it has to be.

A calibration's file lists every threshold that was tried; the page shows them as a table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt, ValidationError

from router.access.clients import Role
from router.extensions.console.site import Entry, Page, Visit
from router.routing.calibration import Calibration
from router.routing.state import ClassifierState
from router.server.metrics import samples_of
from router.server.policy import Policy
from router.types import Reason

if TYPE_CHECKING:
    from router.server.metrics import ServerMetrics


Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Candidate(BaseModel):
    """A confidence that routes, and what becomes of the calibration's requests there: `errors` of those
    `routed` went to another adapter than theirs."""

    threshold: Share
    routed: NonNegativeInt
    errors: NonNegativeInt
    strange_routed: NonNegativeInt


class Proof(BaseModel):
    """What a calibration's report says of the requests that it was proven on; candidates strict to loose."""

    rows: PositiveInt
    strange_rows: NonNegativeInt
    accuracy: Share
    coverage: Share
    error: Share
    strange_routed: NonNegativeInt
    tested: Annotated[tuple[Candidate, ...], Field(min_length=1)]


def proof_of(of: Calibration) -> Proof | None:
    """None where the file does not say it: a person may have written it."""
    try:
        found = Proof.model_validate(of.report)
    except ValidationError:
        return None
    fits = all(
        one.errors <= one.routed <= found.rows and one.strange_routed <= found.strange_rows
        for one in found.tested
    )
    return found if fits else None


ROUTING = Policy(Role.OBSERVE)
MOST_TESTED = 12  # thresholds that are shown beside the one in force
REASONS: Mapping[str, str] = {
    Reason.CLASSIFIED.value: "A classifier was sure: an adapter answered",
    Reason.ABSTAINED.value: "No classifier was sure: the base answered",
    Reason.EXPLICIT.value: "The request named the adapter",
    Reason.HINT.value: "Domain or task of the request left one adapter",
    Reason.FALLBACK.value: "No classifier could be asked: the base answered",
    "none": "Refused before a decision",
}


async def show(visit: Visit) -> dict[str, Any]:
    """The page."""
    console, visible = visit.console, visit.client.adapters
    state = console.server.router.state()
    of = state.calibration
    proof = proof_of(of) if of is not None else None
    return {
        "state": state,
        "reasons": by_reason(console.server.metrics),
        "classifiers": classifier_rows(state.classifiers, console.server.metrics),
        "of": of,
        "made": when(of.created) if of is not None else None,
        "adapters": [name for name in of.adapters if name in visible] if of is not None else [],
        "newcomers": [name for name in state.newcomers if name in visible],
        "proof": proof,
        "tested": thinned(proof.tested, of.threshold) if of is not None and proof is not None else [],
    }


def by_reason(metrics: ServerMetrics) -> list[dict[str, Any]]:
    """How requests were decided since the server started, the commonest first."""
    counts: Counter[str] = Counter()
    for labels, value in samples_of(metrics.decisions, "_total"):
        if labels["reason"]:
            counts[labels["reason"]] += round(value)
    total = counts.total()
    return [
        {"reason": reason, "words": REASONS.get(reason, reason), "count": count, "share": count / total}
        for reason, count in counts.most_common()
        if count
    ]


def thinned(tested: Sequence[Candidate], threshold: float) -> list[Candidate]:
    """Some of many candidates, evenly, and the one in force."""
    step = ceil(len(tested) / MOST_TESTED)
    return [one for place, one in enumerate(tested) if not place % step or one.threshold == threshold]


@dataclass(frozen=True, slots=True)
class ClassifierRow:
    """A classifier with its mean time, in seconds, and its votes by verdict."""

    state: ClassifierState
    seconds: float | None
    verdicts: Mapping[str, int]


def classifier_rows(classifiers: Sequence[ClassifierState], metrics: ServerMetrics) -> list[ClassifierRow]:
    """In the order in which they vote."""
    sums, counts = (
        {labels["classifier"]: value for labels, value in samples_of(metrics.classified, suffix)}
        for suffix in ("_sum", "_count")
    )
    verdicts: dict[str, Counter[str]] = {}
    for labels, value in samples_of(metrics.verdicts, "_total"):
        verdicts.setdefault(labels["classifier"], Counter())[labels["verdict"]] += round(value)
    return [
        ClassifierRow(
            one,
            sums[one.name] / count if (count := counts.get(one.name, 0)) else None,
            verdicts.get(one.name, {}),
        )
        for one in sorted(classifiers, key=lambda one: (one.priority, one.name))
    ]


def when(created: str) -> float | None:
    """Unix seconds of what a file says; None for what is no time."""
    try:
        at = datetime.fromisoformat(created)
    except ValueError:
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


ENTRIES: tuple[Entry, ...] = (Page("/routing", ROUTING, show, "routing.html", "Routing", nav="Routing"),)
