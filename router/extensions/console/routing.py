"""Routing: what decides, how sure it has to be, and what was corrected.

A calibration's file lists every threshold that was tried; the page shows them as a table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt, ValidationError

from router.access.clients import Role
from router.extensions.console.site import Entry, Page, Visit
from router.routing.calibration import Calibration
from router.routing.state import ClassifierState
from router.server.policy import Policy
from router.types import Reason, Visible

if TYPE_CHECKING:
    from router.corrections.store import Correction
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


def findings(classifiers: Iterable[ClassifierState]) -> list[str]:
    """What the last fit of each classifier found out about adapters, a line each, which names others too."""
    return [f"{name}: {line}" for one in classifiers for name, line in sorted(one.findings.items())]


ROUTING = Policy(Role.OBSERVE)
CORRECTIONS = Policy(Role.ADMIN)  # users' words: each look is in the audit
MOST_SHOWN = 200  # corrections; findings
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
    state = console.context.routing()
    of = state.calibration
    proof = proof_of(of) if of is not None else None
    return {
        "state": state,
        "reasons": by_reason(console.context.metrics),
        "classifiers": classifier_rows(state.classifiers, console.context.metrics),
        "of": of,
        "made": when(of.created) if of is not None else None,
        "adapters": [name for name in of.adapters if name in visible] if of is not None else [],
        "newcomers": [name for name in state.newcomers if name in visible],
        "proof": proof,
        "findings": findings(state.classifiers) if visible.everything else [],
        "most": MOST_SHOWN,
        "no_corrections": visit.why_not(CORRECTIONS),
    }


def samples_of(metric: Any, ending: str) -> Iterable[tuple[Mapping[str, str], float]]:
    """Labels and value of the samples whose name ends so."""
    for family in metric.collect():
        for sample in family.samples:
            if sample.name.endswith(ending):
                yield sample.labels, sample.value


def quantile(buckets: Sequence[tuple[float, float]], share: float) -> float | None:
    """As PromQL's histogram_quantile: by a straight line inside a bucket; None where nothing was counted.

    >>> quantile(((0.1, 2), (0.2, 4), (float("inf"), 4)), 0.5)
    0.1
    >>> quantile(((0.1, 0), (0.2, 4), (float("inf"), 4)), 0.5)
    0.15
    """
    if not buckets or not buckets[-1][1]:
        return None
    wanted, low, below = share * buckets[-1][1], 0.0, 0.0
    for end, count in buckets:
        if count >= wanted:
            if end == float("inf"):
                return low
            return round(low + (end - low) * ((wanted - below) / (count - below) if count > below else 0), 5)
        low, below = end, count
    return low


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


@dataclass(frozen=True, slots=True)
class ClassifierRow:
    """A classifier with its times, in seconds, and how many of its votes were lost."""

    state: ClassifierState
    p50: float | None
    p95: float | None
    verdicts: Mapping[str, int]


def classifier_rows(classifiers: Sequence[ClassifierState], metrics: ServerMetrics) -> list[ClassifierRow]:
    """In the order in which they vote."""
    buckets: dict[str, list[tuple[float, float]]] = {}
    for labels, value in samples_of(metrics.classified, "_bucket"):
        buckets.setdefault(labels["classifier"], []).append((float(labels["le"]), value))
    verdicts: dict[str, Counter[str]] = {}
    for labels, value in samples_of(metrics.verdicts, "_total"):
        verdicts.setdefault(labels["classifier"], Counter())[labels["verdict"]] += round(value)
    return [
        ClassifierRow(
            one,
            quantile(buckets.get(one.name, ()), 0.5),
            quantile(buckets.get(one.name, ()), 0.95),
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


# -- Corrections: users' words, for who administers the server


async def corrections(visit: Visit) -> dict[str, Any]:
    """The latest ones, and who is taken for whom."""
    kept = visit.console.context.corrections
    found: Sequence[Correction] = ()
    damaged = 0
    if kept is not None:
        client = visit.client
        # Who may know of everything looks after all tenants; anybody else sees its own.
        read = await kept.read(None if client.adapters.everything else client.tenant)
        visible = client.adapters
        found = [one for one in read.corrections if _seen(one, visible)]
        damaged = read.damaged
    return {
        "kept": kept is not None,
        "keeping": kept.keeping if kept is not None else "off",
        "latest": list(reversed(found))[:MOST_SHOWN],
        "count": len(found),
        "damaged": damaged,
        "confusions": confusions(found),
    }


def _seen(one: Correction, visible: Visible) -> bool:
    return all(name in visible for name in (one.label, one.chosen) if name)


def confusions(found: Iterable[Correction]) -> list[dict[str, Any]]:
    """Who answered, who should have, and how often; the commonest first. Nobody is the base."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for one in found:
        if one.wrong:
            counts[one.chosen or "base", one.label or "base", one.reason] += 1
    return [
        {"chosen": chosen, "label": label, "reason": reason, "count": count}
        for (chosen, label, reason), count in counts.most_common(50)
    ]


ENTRIES: tuple[Entry, ...] = (
    Page("/routing", ROUTING, show, "routing.html", "Routing", nav="Routing"),
    Page("/routing/corrections", CORRECTIONS, corrections, "corrections.html", "Corrections"),
)
