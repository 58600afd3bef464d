"""How well labelled requests are routed at a threshold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from router.extensions.calibration.certify import count_at, upper_bound
from router.extensions.calibration.rows import RoutedRow


def measure(
    known: Sequence[RoutedRow], strange: Sequence[RoutedRow], threshold: float, delta: float
) -> dict[str, Any]:
    """Shares and counts. `accuracy` and `macro_f1`: requests for an adapter, with the base no choice.
    `coverage`: the share of these that is routed. `error`: of all that is routed. Bounds hold with a chance
    of 1 - `delta`."""
    meant = [one for one in known if one.row.label]
    routed, errors = count_at(known, threshold)
    away, _ = count_at(strange, threshold)
    deciders = Counter(one.at(threshold).classifier for one in known if one.at(threshold).adapter)
    labels, sources = ({getattr(one.row, key) for one in known} for key in ("label", "source"))
    return {
        "rows": len(known),
        "strange_rows": len(strange),
        "accuracy": _share(sum(one.forced.adapter == one.row.label for one in meant), len(meant)),
        "macro_f1": macro_f1([(one.row.label, one.forced.adapter) for one in meant]),
        "coverage": _share(count_at(meant, threshold)[0], len(meant)),
        "routed": routed,
        "errors": errors,
        "error": _share(errors, routed),
        "error_bound": upper_bound(errors, routed, delta),
        "strange_routed": away,
        "strange_bound": upper_bound(away, len(strange), delta) if strange else None,
        "decided_by": dict(deciders.most_common()),
        "labels": {
            name: _counts([one for one in known if one.row.label == name], threshold)
            for name in sorted(labels)
        },
        "sources": {
            name: _counts([one for one in known if one.row.source == name], threshold)
            for name in sorted(sources)
        },
    }


def _share(count: int, of: int) -> float:
    return count / of if of else 0.0


def _counts(rows: Sequence[RoutedRow], threshold: float) -> dict[str, int]:
    """`right`: where each goes somewhere."""
    routed, errors = count_at(rows, threshold)
    right = sum(one.forced.adapter == one.row.label for one in rows)
    return {"rows": len(rows), "right": right, "routed": routed, "errors": errors}


def macro_f1(pairs: Sequence[tuple[str, str]]) -> float:
    """Mean F1 of the true labels; `pairs` of (true, said)."""
    true, said = Counter(label for label, _ in pairs), Counter(label for _, label in pairs)
    hits = Counter(label for label, other in pairs if label == other)
    scores = [2 * hits[label] / (true[label] + said[label]) for label in true]
    return sum(scores) / len(scores) if scores else 0.0


def confusion(rows: Sequence[RoutedRow], threshold: float) -> tuple[list[str], list[list[int]]]:
    """Labels, and [true label, where it goes] counts; "" is the base."""
    pairs = Counter((one.row.label, one.at(threshold).adapter) for one in rows)
    labels = sorted({label for pair in pairs for label in pair})
    return labels, [[pairs[true, said] for said in labels] for true in labels]
