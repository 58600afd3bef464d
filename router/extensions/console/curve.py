"""What a calibration's file tells of every threshold that it was tried with, for a slider that shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from router.routing.state import CalibrationState


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
