"""The report card: what was measured, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from router.evaluation.arms import Arm
from router.evaluation.bootstrap import Estimate, Resampled
from router.evaluation.forced import Forced
from router.evaluation.measure import Measured

SCHEMA = 1
SAMPLES = 12  # answers shown


def report_card(
    facts: Mapping[str, Any], arms: Mapping[Arm, Measured], gap: Mapping[str, Forced], shown: Sequence[Any]
) -> dict[str, Any]:
    """`report.json`. `facts` says what was measured on what; `gap` is the adapter on each split."""
    adapter = arms[Arm.ADAPTER]
    others = {arm: measured for arm, measured in arms.items() if arm is not Arm.ADAPTER}
    return {
        "schema": SCHEMA,
        **facts,
        "arms": {arm.value: _arm(measured) for arm, measured in arms.items()},
        "gains": {
            f"adapter - {arm.value}": {
                "score": _estimate(adapter.score.minus(other.score)),
                "format_blind": _estimate(adapter.blind.minus(other.blind)),
                **_ranked(adapter.ranked.minus(other.ranked) if adapter.ranked and other.ranked else None),
            }
            for arm, other in others.items()
        },
        "splits": {name: asdict(forced) for name, forced in gap.items()},
        "samples": list(shown),
    }


def _arm(measured: Measured) -> dict[str, Any]:
    return {
        "score": _estimate(measured.score),
        "format_blind": _estimate(measured.blind),
        **_ranked(measured.ranked),
        "loss_per_gold_token": round(measured.loss, 4),
        "prompt_tokens": round(measured.prompt_tokens, 1),
        "answer_tokens": round(measured.answer_tokens, 1),
        "parts": {name: _estimate(part) for name, part in measured.parts.items()},
    }


def _ranked(value: Resampled | Estimate | None) -> dict[str, Any]:
    return {} if value is None else {"likeliest_label": _estimate(value)}


def _estimate(value: Resampled | Estimate) -> dict[str, float]:
    estimate = value.estimate() if isinstance(value, Resampled) else value
    return {name: round(number, 4) for name, number in asdict(estimate).items()}
