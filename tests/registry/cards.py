"""Report cards for adapter folders of the tiny base."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from router.registry.registry import Registry
from tests.registry.life import drop
from tests.registry.tiny import BASE


def interval(value: float, spread: float = 0.05) -> dict[str, float]:
    return {"value": value, "low": round(value - spread, 6), "high": round(value + spread, 6)}


def card(
    weights_sha256: str = "ab" * 32, score: float = 0.8, gain: float = 0.3, **more: Any
) -> dict[str, Any]:
    """A report card as `adapters evaluate` writes it, as far as the gate reads it."""
    return {
        "schema": 2,
        "adapter": {"name": "m", "version": "1.0", "weights_sha256": weights_sha256},
        "base": {"model": BASE.name, "digest": BASE.digest},
        "data": {"file": "m.test.jsonl", "sha256": "cd" * 32},
        "metric": "exact match",
        "arms": {"adapter": {"score": interval(score)}},
        "gains": {"adapter - base": {"score": interval(gain)}},
        "regressions": [],
        **more,
    }


def worse(what: str = "loss on legal rows", worse: bool = True) -> dict[str, Any]:
    """An entry of `regressions`."""
    return {"what": what, **interval(0.3), "margin": 0.1, "worse": worse}


def weights_of(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def hand_in(folder: Path, **changes: Any) -> Path:
    """Write a report about the weights that are in the folder, as evaluation does: in one step."""
    part = folder / ".report.part"
    part.write_text(json.dumps(card(**{"weights_sha256": weights_of(folder), **changes})))
    return part.replace(folder / "report.json")


def routed(registry: Registry) -> list[str]:
    return [f"{p.name}@{p.version}" for p in registry.profiles()]


def version(root: Path, number: str, examples: int = 0, **report: Any) -> Path:
    """`m` in that version with weights of its own, so many routing examples, and a report if one is given."""
    folder = drop(root, "m", number, float(number), folder=f"m/{number}", examples=examples)
    if report:
        hand_in(folder, **report)
    return folder
