"""Measures of a router. Plain functions of arrays; none knows of adapters or files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from router.calibration.arrays import Array

BINS = 10
DRAWS = 1000


def macro_f1(truth: Sequence[str], said: Sequence[str], labels: Sequence[str]) -> float:
    """Mean F1 of `labels`; one that is neither true nor said counts 0."""
    pairs = list(zip(truth, said, strict=True))
    scores = []
    for label in labels:
        hits = sum(t == s == label for t, s in pairs)
        total = sum(t == label for t, _ in pairs) + sum(s == label for _, s in pairs)
        scores.append(2 * hits / total if total else 0.0)
    return sum(scores) / len(scores) if scores else 0.0


def confusion(truth: Sequence[str], said: Sequence[str], labels: Sequence[str]) -> list[list[int]]:
    """[true label, said label] counts."""
    place = {label: i for i, label in enumerate(labels)}
    table = [[0] * len(labels) for _ in labels]
    for t, s in zip(truth, said, strict=True):
        table[place[t]][place[s]] += 1
    return table


def ece(confidence: Array, right: Array, bins: int = BINS) -> float:
    """Expected calibration error over bins of equal mass (Naeini et al., 2015; Nguyen and O'Connor, 2015)."""
    if not len(confidence):
        return 0.0
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    gaps = [len(p) * abs(float(confidence[p].mean()) - float(right[p].mean())) for p in parts]
    return sum(gaps) / len(order)


def interval(measure: Callable[[Array], float], rows: int, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap, 95 %: `measure` of row numbers drawn with replacement."""
    if not rows:
        return (0.0, 0.0)
    rng = np.random.default_rng(seed)
    drawn = [measure(rng.integers(0, rows, rows)) for _ in range(DRAWS)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def auroc(strange: Array, known: Array) -> float:
    """Chance that a strange request scores above a known one; ties count half."""
    if not len(strange) or not len(known):
        return float("nan")
    values = np.concatenate([strange, known])
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    rank = (ends - (counts - 1) / 2)[place]
    above = rank[: len(strange)].sum() - len(strange) * (len(strange) + 1) / 2
    return float(above / (len(strange) * len(known)))


def risk_coverage(confidence: Array, right: Array) -> list[tuple[float, float, float]]:
    """(threshold, coverage, error among routed), strict to loose, one entry for each confidence there is."""
    order = np.argsort(-confidence, kind="stable")
    values = confidence[order]
    wrong = np.cumsum(~right[order].astype(bool))
    last: Any = np.flatnonzero(np.append(values[1:] != values[:-1], True)) if len(values) else []
    return [(float(values[i]), (i + 1) / len(values), float(wrong[i]) / (i + 1)) for i in last]


def area(curve: Sequence[tuple[float, float, float]]) -> float:
    """Area under a risk-coverage curve (AURC; Geifman et al., 2019): 0 is best."""
    total, before = 0.0, 0.0
    for _, coverage, risk in curve:
        total += risk * (coverage - before)
        before = coverage
    return total


def coverage_at(curve: Sequence[tuple[float, float, float]], risk: float) -> float:
    """The largest coverage whose error is within `risk`."""
    return max((coverage for _, coverage, error in curve if error <= risk), default=0.0)
