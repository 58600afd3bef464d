"""`route evaluate`: how well requests are routed, from their votes and the rule that weighs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from router.calibration.model import Axis, Calibration
from router.extensions.calibration.cascade import Array, Run, RunOutcome, outcome_at, run_cascade
from router.extensions.calibration.certify import upper_bound
from router.extensions.calibration.rows import Ballot, spoke
from router.types import Vote

BINS = 10  # of the expected calibration error
DRAWS = 1000  # of a bootstrap
NONE = "(base)"


@dataclass(frozen=True, slots=True)
class Decided:
    """What became of a request. `routed` is the adapter it went to ("" the base); `forced` whom it would go
    to if the base were no choice, with that confidence in [0, 1]; `novelty` grows with strangeness."""

    routed: str
    forced: str
    confidence: float
    novelty: float
    classifier: str = ""


Decide = Callable[[Sequence[Vote]], Decided]


def evaluate(
    known: Sequence[Ballot],
    strange: Sequence[Ballot],
    decide: Decide,
    names: Sequence[str],
    delta: float,
    target: float,
) -> dict[str, Any]:
    """Everything that is told of labelled requests and of out-of-distribution ones."""
    rows = [(ballot, decide(ballot.votes)) for ballot in known]
    meant = [(b, j) for b, j in rows if b.row.label]
    truth, predicted = [b.row.label for b, _ in meant], [j.forced for _, j in meant]
    confidence = np.array([j.confidence for _, j in rows])
    right = np.array([j.forced == b.row.label for b, j in rows], bool)
    curve = risk_coverage(confidence, right)
    labels = sorted({*truth, *predicted})
    named = [label for label in (*names, "") if any(b.row.label == label for b, _ in rows)]
    sources = sorted({b.row.source for b, _ in rows})
    return {
        "rows": len(rows),
        "accuracy": _share([t == s for t, s in zip(truth, predicted, strict=True)]),
        "macro_f1": macro_f1(truth, predicted, sorted(set(truth))),
        "labels": {label: _of_label(rows, label) for label in named},
        "sources": {name: _counts([r for r in rows if r[0].row.source == name]) for name in sources},
        "confusion": {
            "labels": [label or NONE for label in labels],
            "table": confusion_table(truth, predicted, labels),
        },
        "routing": routing_report(rows, delta),
        "ece": ece_with_interval(confidence, right),
        "risk_coverage": [list(point) for point in curve],
        "aurc": area_under(curve),
        "coverage_at_target": coverage_at(curve, target),
        "ood": ood_report([decide(b.votes) for b in strange], [j for _, j in meant], delta),
    }


def routing_report(rows: Sequence[tuple[Ballot, Decided]], delta: float) -> dict[str, Any]:
    """Coverage of the requests that are for an adapter; error among routed ones, its bound; who decided."""
    routed = [(b, j) for b, j in rows if j.routed]
    wrong = sum(j.routed != b.row.label for b, j in routed)
    deciders = sorted({j.classifier for _, j in routed})
    return {
        "coverage": _share([bool(j.routed) for b, j in rows if b.row.label]),
        "routed": len(routed),
        "errors": wrong,
        "error": wrong / len(routed) if routed else 0.0,
        "error_bound": upper_bound(wrong, len(routed), delta),
        "decided_by": {name: sum(j.classifier == name for _, j in routed) for name in deciders},
    }


def ood_report(strange: Sequence[Decided], known: Sequence[Decided], delta: float) -> dict[str, Any] | None:
    """Share of strange requests that is routed, its upper bound, and how well novelty tells them apart."""
    if not strange:
        return None
    routed = sum(bool(j.routed) for j in strange)
    novelty = (np.array([j.novelty for j in part]) for part in (strange, known))
    return {
        "rows": len(strange),
        "routed": routed,
        "share": routed / len(strange),
        "share_bound": upper_bound(routed, len(strange), delta),
        "auroc": auroc(*novelty) if known else None,
    }


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0


def _of_label(rows: Sequence[tuple[Ballot, Decided]], label: str) -> dict[str, Any]:
    own = _counts([r for r in rows if r[0].row.label == label])
    taken = sum(j.routed == label and b.row.label != label for b, j in rows) if label else 0
    return {**own, "taken": taken}


def _counts(rows: Sequence[tuple[Ballot, Decided]]) -> dict[str, Any]:
    """Rows, those right if forced, those routed, and those of them that went wrong."""
    routed = [(b, j) for b, j in rows if j.routed]
    return {
        "rows": len(rows),
        "right": sum(j.forced == b.row.label for b, j in rows),
        "routed": len(routed),
        "errors": sum(j.routed != b.row.label for b, j in routed),
    }


# -- what rows that nothing was fitted on say of a calibration


def held_out_report(
    of: Calibration,
    known: Sequence[Ballot],
    strange: Sequence[Ballot],
    kinds: Mapping[str, Axis],
) -> dict[str, Any]:
    """Accuracy, F1, coverage, error, calibration errors and the test of strange requests."""
    names = tuple(kinds)
    votes = run_cascade(known, of.stages, of.scalers, of.axes, kinds)
    others = run_cascade(strange, of.stages, of.scalers, of.axes, kinds)
    stops = [stage.stop for stage in of.stages]
    there = outcome_at(votes, stops, of.threshold, of.novelty_limit)
    meant = np.array([bool(ballot.row.label) for ballot in known], bool)
    truth = [ballot.row.label for ballot in known if ballot.row.label]
    predicted = [names[c] for c in votes.choice[meant, -1]]
    away = outcome_at(others, stops, of.threshold, of.novelty_limit)
    return {
        "accuracy": float(votes.right[meant, -1].mean()) if meant.any() else 0.0,
        "macro_f1": macro_f1(truth, predicted, sorted(set(truth))),
        "coverage": float(there.routed[meant].mean()) if meant.any() else 0.0,
        "error": there.errors / there.count if there.count else 0.0,
        "stages": {name: int((there.stage[there.routed] == j).sum()) for j, name in enumerate(of.order)},
        "ece": {name: classifier_ece(of, known, j, names) for j, name in enumerate(of.order)},
        "ece_all": ece_with_interval(votes.confidence[:, -1], votes.right[:, -1]),
        "ood_auroc": auroc(others.novelty[:, -1], votes.novelty[meant, -1]) if len(strange) else None,
        "ood_routed": away.count / len(strange) if strange else None,
        "decisions": decision_counts(of, votes, there, names),
    }


def decision_counts(of: Calibration, votes: Run, there: RunOutcome, names: Sequence[str]) -> dict[str, Any]:
    """How often each adapter and the base were chosen, and at which thresholds: what a server compares its
    own decisions with (router/routing/drift.py)."""
    away = ~there.routed
    strange = away & (votes.confidence[:, -1] >= of.threshold) & (votes.novelty[:, -1] > of.novelty_limit)
    chosen = votes.choice[np.arange(len(away)), there.stage][there.routed]
    return {
        "rows": len(away),
        "abstained": int((away & ~strange).sum()),
        "unfamiliar": int(strange.sum()),
        "adapters": {name: int((chosen == place).sum()) for place, name in enumerate(names)},
        "threshold": of.threshold,
        "novelty_limit": of.novelty_limit,
    }


def classifier_ece(
    of: Calibration, ballots: Sequence[Ballot], place: int, names: Sequence[str]
) -> dict[str, Any]:
    """Of one classifier's surest answer, none included, over the rows on which it spoke."""
    labels = (*names, "")
    confidence, right = [], []
    for ballot in ballots:
        vote = ballot.votes[place]
        if spoke(vote):
            chances = of.scalers[vote.classifier].chances(vote.scores, names)
            best = max(range(len(chances)), key=chances.__getitem__)
            confidence.append(chances[best])
            right.append(labels[best] == ballot.row.label)
    return ece_with_interval(np.array(confidence), np.array(right, bool))


def ece_with_interval(confidence: Any, right: Any) -> dict[str, Any]:
    """ECE with its bootstrap interval."""
    rows = len(confidence)
    low, high = bootstrap_interval(lambda drawn: ece(confidence[drawn], right[drawn]), rows)
    return {"ece": ece(confidence, right), "low": low, "high": high, "rows": rows}


# -- measures of a router: plain functions of arrays, none knows of adapters or files


def macro_f1(truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> float:
    """Mean F1 of `labels`; one that is neither true nor said counts 0."""
    pairs = list(zip(truth, predicted, strict=True))
    scores = []
    for label in labels:
        hits = sum(t == s == label for t, s in pairs)
        total = sum(t == label for t, _ in pairs) + sum(s == label for _, s in pairs)
        scores.append(2 * hits / total if total else 0.0)
    return sum(scores) / len(scores) if scores else 0.0


def confusion_table(truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> list[list[int]]:
    """[true label, said label] counts."""
    place = {label: i for i, label in enumerate(labels)}
    table = [[0] * len(labels) for _ in labels]
    for t, s in zip(truth, predicted, strict=True):
        table[place[t]][place[s]] += 1
    return table


def ece(confidence: Array, right: Array) -> float:
    """Expected calibration error over bins of equal mass (Naeini et al., 2015; Nguyen and O'Connor, 2015)."""
    if not len(confidence):
        return 0.0
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, min(BINS, len(order)))
    gaps = [len(p) * abs(float(confidence[p].mean()) - float(right[p].mean())) for p in parts]
    return sum(gaps) / len(order)


def bootstrap_interval(measure: Callable[[Array], float], rows: int, seed: int = 0) -> tuple[float, float]:
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


def area_under(curve: Sequence[tuple[float, float, float]]) -> float:
    """Area under a risk-coverage curve (AURC; Geifman et al., 2019): 0 is best."""
    total, before = 0.0, 0.0
    for _, coverage, risk in curve:
        total += risk * (coverage - before)
        before = coverage
    return total


def coverage_at(curve: Sequence[tuple[float, float, float]], risk: float) -> float:
    """The largest coverage whose error is within `risk`."""
    return max((coverage for _, coverage, error in curve if error <= risk), default=0.0)
