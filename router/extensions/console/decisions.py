"""A decision of routing in words, and as data for the playground's script."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router.names import model_name, model_of
from router.v1 import inference_pb2 as pb

MOST_SCORES = 3  # of a classifier, the highest first
WHY: Mapping[int, tuple[str, str, str]] = {  # reason, as a few words, as a sentence
    pb.DECISION_REASON_EXPLICIT: ("named", "as asked for", "The request names the adapter."),
    pb.DECISION_REASON_HINT: (
        "hint",
        "the only one for the domain or task",
        "The domain or task of the request leaves one adapter.",
    ),
    pb.DECISION_REASON_CLASSIFIED: (
        "classified",
        "a classifier is sure",
        "A classifier is sure enough.",
    ),
    pb.DECISION_REASON_ABSTAINED: (
        "abstained",
        "no adapter reaches the threshold",
        "No classifier is sure enough of an adapter: the base answers.",
    ),
    pb.DECISION_REASON_FALLBACK: (
        "fallback",
        "no classifier could vote",
        "No classifier could vote: the base answers.",
    ),
}


def line_of(decision: pb.Decision) -> str:
    """Why, in a few words, such as `classifiers agree, 0.93`."""
    words = WHY.get(decision.reason, ("", "", ""))[1]
    sure = f", {decision.confidence:.2f}"
    if decision.continuity == "kept":
        words = "as in the turn before"
    elif decision.reason == pb.DECISION_REASON_CLASSIFIED:
        words = agreement(decision) + sure
    elif decision.reason == pb.DECISION_REASON_ABSTAINED and decision.threshold:
        words += f"{sure} of {decision.threshold:.2f}"
    if decision.continuity == "switched":
        words += f", switched from {model_name(decision.previous)}"
    if decision.experiment:
        words += f", experiment {decision.experiment}, arm {decision.arm}"
    return words


def agreement(decision: pb.Decision) -> str:
    """How many of the classifiers that voted name the chosen adapter first."""
    name = model_name(decision.adapter).partition("@")[0]
    first = [
        max(vote.scores, key=lambda one: (vote.scores[one], one)) for vote in decision.votes if vote.scores
    ]
    agreed = first.count(name)
    if len(first) < 2:
        return f"{decision.classifier or 'the classifier'} is sure"
    return "classifiers agree" if agreed == len(first) else f"{agreed} of {len(first)} classifiers agree"


def decision_json(decision: pb.Decision) -> dict[str, Any]:
    """All of it, with its votes."""
    word, _, why = WHY.get(decision.reason, ("", "", ""))
    return {
        "model": model_of(decision),
        "adapter": decision.adapter,
        "digest": decision.digest,
        "reason": word,
        "line": line_of(decision),
        "why": why,
        "note": decision.note,
        "confidence": decision.confidence,
        "threshold": decision.threshold,
        "classifier": decision.classifier,
        "experiment": decision.experiment,
        "arm": decision.arm,
        "calibration": decision.calibration,
        "seconds": decision.route_latency.ToTimedelta().total_seconds(),
        "votes": [vote_json(vote) for vote in decision.votes],
    }


def vote_json(vote: pb.Vote) -> dict[str, Any]:
    """One classifier's, its highest scores first."""
    scores = sorted(vote.scores.items(), key=lambda pair: (-pair[1], pair[0]))
    return {
        "classifier": vote.classifier,
        "scores": scores[:MOST_SCORES],
        "more": max(0, len(scores) - MOST_SCORES),
        "declined": vote.declined,
        "error": vote.error,
        "evidence": vote.evidence,
        "seconds": vote.latency.ToTimedelta().total_seconds(),
    }
