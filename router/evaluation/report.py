"""The report card: what was measured, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from router.evaluation.arms import Arm
from router.evaluation.measure import Measured

SCHEMA = 2
SAMPLES = 12  # answers shown


def report_card(
    facts: Mapping[str, Any],
    arms: Mapping[Arm, Measured],
    sections: Mapping[str, Any],
    shown: Sequence[Any],
) -> dict[str, Any]:
    """`report.json`, as docs/training.md describes it.

    `facts` say what was measured on what; `sections` are what was found beside the scores.
    """
    adapter = arms[Arm.ADAPTER]
    return {
        "schema": SCHEMA,
        **facts,
        "arms": {arm.value: _arm(measured) for arm, measured in arms.items()},
        "gains": {
            f"adapter - {arm.value}": _gain(adapter, other)
            for arm, other in arms.items()
            if arm is not Arm.ADAPTER
        },
        **sections,
        "samples": list(shown),
    }


def _arm(measured: Measured) -> dict[str, Any]:
    return {
        "score": measured.score.rounded(),
        "format_blind": measured.blind.rounded(),
        **({"likeliest_label": measured.ranked.rounded()} if measured.ranked else {}),
        "parts": {name: part.rounded() for name, part in measured.parts.items()},
        "loss_per_gold_token": round(measured.loss.value, 6),
        "prompt_tokens": round(measured.prompt_tokens, 1),
        "answer_tokens": round(measured.answer_tokens, 1),
    }


def _gain(adapter: Measured, other: Measured) -> dict[str, Any]:
    ranked = adapter.ranked.minus(other.ranked) if adapter.ranked and other.ranked else None
    return {
        "score": adapter.score.minus(other.score).rounded(),
        "format_blind": adapter.blind.minus(other.blind).rounded(),
        **({"likeliest_label": ranked.rounded()} if ranked else {}),
        "loss_per_gold_token": adapter.loss.minus(other.loss).rounded(),
    }
