"""Routing: what decides, how sure it has to be, what it came to lately, and what was corrected.

A calibration's file lists every threshold that it was tried with; the page shows them with a slider.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from router.access.clients import Role
from router.extensions.console.site import Entry, Page, Visit
from router.routing.state import CalibrationState, ClassifierState, DecisionShare, RoutingState
from router.server.policy import Policy
from router.types import Reason, Visible

if TYPE_CHECKING:
    from router.corrections.store import Correction
    from router.server.metrics import ServerMetrics


@dataclass(frozen=True, slots=True)
class CurveCandidate:
    """A confidence that routes with the most strangeness that does, and what became of the requests that the
    calibration was proven on. Bounds hold with the calibration's confidence."""

    threshold: float
    novelty_limit: float
    routed: int
    errors: int
    error_bound: float
    strange_routed: int
    strange_bound: float


@dataclass(frozen=True, slots=True)
class CandidateCurve:
    """Candidates, those that route least first, of so many `rows` of requests and `strange` ones. `present`
    is the place of the one in force, None where the file does not tell of it."""

    candidates: tuple[CurveCandidate, ...]
    rows: int
    strange: int
    present: int | None

    def plotted(self, of: CalibrationState) -> dict[str, Any]:
        """For the page's script."""
        return {
            "points": [asdict(one) for one in self.candidates],
            "rows": self.rows,
            "strange": self.strange,
            "present": self.present,
            "target": of.target,
            "ood_target": of.ood_target,
        }


def curve_of(of: CalibrationState) -> CandidateCurve | None:
    """None where the file does not say it: an older version made it, or somebody wrote it."""
    try:
        found = [_candidate(one) for one in of.report["tested"]]
        counts = of.report["counts"]
        rows, strange = int(counts["proven_on"]), int(counts["ood_proven_on"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    if not found or rows < 1 or strange < 0 or any(one.routed > rows for one in found):
        return None
    found.sort(key=lambda one: (one.routed, -one.threshold, one.novelty_limit))
    now = (of.threshold, of.novelty_limit)
    present = next((i for i, one in enumerate(found) if (one.threshold, one.novelty_limit) == now), None)
    return CandidateCurve(tuple(found), rows, strange, present)


def _candidate(value: Mapping[str, Any]) -> CurveCandidate:
    """Raises KeyError, TypeError, ValueError for what is none."""
    counts = {name: int(value[name]) for name in ("routed", "errors", "strange_routed")}
    shares = {
        name: float(value[name]) for name in ("threshold", "novelty_limit", "error_bound", "strange_bound")
    }
    if min(counts.values()) < 0 or not all(0 <= share <= 1 for share in shares.values()):
        raise ValueError("out of range")
    return CurveCandidate(**counts, **shares)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class HeldOutShares:
    """What the calibration came to on requests that nothing was fitted on; shares, and None for what the
    file does not tell."""

    accuracy: float | None
    coverage: float | None
    error: float | None
    strange: float | None
    decided: Mapping[str, int]  # by classifier
    counts: Mapping[str, int]  # of requests: fitted_on, proven_on, ood_fitted_on, ood_proven_on


def held_out(of: CalibrationState) -> HeldOutShares:
    """As far as the file tells."""
    value = of.report.get("held_out")
    there: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
    return HeldOutShares(
        _share(there.get("accuracy")),
        _share(there.get("coverage")),
        _share(there.get("error")),
        _share(there.get("ood_routed")),
        _counts(there.get("stages")),
        _counts(of.report.get("counts")),
    )


def _share(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and 0 <= value <= 1 else None


def _counts(value: Any) -> Mapping[str, int]:
    if not isinstance(value, Mapping):
        return {}
    return {str(name): count for name, count in value.items() if isinstance(count, int) and count >= 0}


ROUTING = Policy(Role.OBSERVE)
CORRECTIONS = Policy(Role.ADMIN)  # users' words: each look is in the audit
MOST_SHOWN = 200  # corrections
MOST_SHARES = 100
REASONS: Mapping[str, str] = {
    Reason.CLASSIFIED.value: "Classifiers were sure: an adapter answered",
    Reason.ABSTAINED.value: "No classifier was sure: the base answered",
    Reason.UNFAMILIAR.value: "Sure, but unlike what the adapters are for: the base answered",
    Reason.EXPLICIT.value: "The request named the adapter",
    Reason.HINT.value: "Domain or task of the request left one adapter",
    Reason.FALLBACK.value: "No classifier could be asked: the base answered",
    "none": "Refused before a decision",
}
HIDDEN = "It does not fit what is served now; what differs names adapters that you may not know of."


async def show(visit: Visit) -> dict[str, Any]:
    """The page."""
    console, visible = visit.console, visit.client.adapters
    state = console.context.routing()
    fitted = state.fitted
    curve = curve_of(fitted) if fitted is not None else None
    return {
        "state": state,
        "reasons": by_reason(console.context.metrics),
        "shares": list(shares_seen(state.shares, visible))[:MOST_SHARES],
        "proven": any(share.proven is not None for share in state.shares),
        "classifiers": classifier_rows(state.classifiers, console.context.metrics),
        "fitted": fitted,
        "made": when(fitted.created) if fitted is not None else None,
        "adapters": [name for name in fitted.adapters if name in visible] if fitted is not None else [],
        "stale": stale_words(state, visible),
        "newcomers": [name for name in fitted.newcomers if name in visible] if fitted is not None else [],
        "held_out": held_out(fitted) if fitted is not None else None,
        "curve": curve,
        "plotted": curve.plotted(fitted) if curve is not None and fitted is not None else None,
        "settings": console.settings,
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


def shares_seen(shares: Iterable[DecisionShare], visible: Visible) -> Iterator[DecisionShare]:
    """Without those of adapters that the client may not know of."""
    for share in shares:
        if not share.what.startswith("adapters/") or share.what.removeprefix("adapters/") in visible:
            yield share


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


def stale_words(state: RoutingState, visible: Visible) -> list[str]:
    """What is not as it was when the calibration was made, for a client that may know of all of it."""
    differences = state.fitted.differences if state.fitted is not None else ()
    if not differences:
        return []
    return list(differences) if visible.everything else [HIDDEN]


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
        "keeping": visit.console.settings.corrections,
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
