"""The report card as plain values, written as report.json and REPORT.md into the adapter's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from router.engine.base import BaseInfo
from router.extensions.training.base import LoadedBase, describe_machine
from router.extensions.training.data import TrainingRow
from router.extensions.training.evaluation.exam import MeasuredArm
from router.extensions.training.evaluation.subject import ComparedArm
from router.extensions.training.files import write_file
from router.registry.format.manifest import Manifest
from router.types import Constraint

SCHEMA = 2
SAMPLES = 12  # answers shown


def report_card(
    facts: Mapping[str, Any],
    arms: Mapping[ComparedArm, MeasuredArm],
    sections: Mapping[str, Any],
    samples: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    """`report.json`, as docs/training.md describes it.

    `facts` say what was measured on what; `sections` are what was found beside the scores.
    """
    adapter = arms[ComparedArm.ADAPTER]
    return {
        "schema": SCHEMA,
        **facts,
        "arms": {arm.value: _arm(measured, arm) for arm, measured in arms.items()},
        "gains": {
            f"adapter - {arm.value}": _gain(adapter, other)
            for arm, other in arms.items()
            if arm is not ComparedArm.ADAPTER
        },
        **sections,
        "samples": list(samples),
    }


def whose(manifest: Manifest, weights_sha256: str, base: LoadedBase) -> dict[str, Any]:
    """The adapter and the base that a report is about."""
    return {
        "adapter": {
            "name": manifest.name,
            "version": manifest.version,
            "weights_sha256": weights_sha256,
        },
        "base": {"model": base.name, "digest": base.digest},
    }


def measured_by(
    device: torch.device, engine: BaseInfo, constraint: Constraint | None = None
) -> dict[str, Any]:
    """The machine, and the base as it answered: each answer held to `constraint`."""
    held = {} if constraint is None else {"constraint": constraint.kind}
    return {
        "machine": describe_machine(device),
        "engine": {"dtype": engine.dtype, "weights": engine.weights, "kernels": engine.kernels, **held},
    }


def first_samples(
    rows: Sequence[TrainingRow], answers: Mapping[ComparedArm, Sequence[str]]
) -> list[dict[str, str]]:
    """The first rows with what each arm answered: not picked."""
    return [
        {
            "prompt": row.prompt,
            "gold": row.response,
            **{arm.value: texts[place] for arm, texts in answers.items()},
        }
        for place, row in enumerate(rows[:SAMPLES])
    ]


def write_report(folder: Path, report: Mapping[str, Any], page: str) -> None:
    """Raises ResourceExhausted when the disk is full."""
    text = json.dumps(report, ensure_ascii=False, indent=1) + "\n"
    write_file(folder / "report.json", text.encode())
    write_file(folder / "REPORT.md", page.encode())


def _arm(measured: MeasuredArm, arm: ComparedArm) -> dict[str, Any]:
    return {
        "score": measured.score.rounded(),
        "format_blind": measured.blind.rounded(),
        **({"likeliest_label": measured.ranked.rounded()} if measured.ranked else {}),
        "parts": {name: part.rounded() for name, part in measured.parts.items()},
        "loss_per_gold_token": round(measured.loss.value, 6),
        "prompt_tokens": round(measured.prompt_tokens, 1),
        "answer_tokens": round(measured.answer_tokens, 1),
        **({"rows": list(measured.rows)} if arm is ComparedArm.ADAPTER else {}),
    }


def _gain(adapter: MeasuredArm, other: MeasuredArm) -> dict[str, Any]:
    ranked = adapter.ranked.minus(other.ranked) if adapter.ranked and other.ranked else None
    return {
        "score": adapter.score.minus(other.score).rounded(),
        "format_blind": adapter.blind.minus(other.blind).rounded(),
        **({"likeliest_label": ranked.rounded()} if ranked else {}),
        "loss_per_gold_token": adapter.loss.minus(other.loss).rounded(),
    }
