"""A checkpoint: all that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import torch

from router.errors import FailedPrecondition
from router.training.batch import Example
from router.training.files import write_file
from router.training.recipe import Recipe


def fingerprint(recipe: Recipe, train: list[Example], valid: list[Example], base: str) -> str:
    """sha256 over everything that decides the weights: settings, encoded rows, base digest."""
    parts = [recipe.lora.model_dump(), recipe.train.model_dump(), base]
    rows = [[example.prompt, example.answer] for example in (*train, *valid)]
    return hashlib.sha256(json.dumps([*parts, rows]).encode()).hexdigest()


def save(path: Path, state: dict[str, Any], mark: str) -> None:
    """Write a checkpoint in one step."""
    buffer = io.BytesIO()
    torch.save({"fingerprint": mark, "rng": torch.get_rng_state(), "state": state}, buffer)
    write_file(path, buffer.getvalue())


def load(path: Path, mark: str) -> dict[str, Any] | None:
    """The saved state, or None if there is none. Raises FailedPrecondition if it is another run's."""
    if not path.is_file():
        return None
    try:
        saved = torch.load(path, weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise FailedPrecondition(f"checkpoint {path} is damaged: delete it and train afresh") from error
    if saved["fingerprint"] != mark:
        raise FailedPrecondition(
            f"checkpoint {path} belongs to another recipe, data or base: delete it, or train without --resume"
        )
    torch.set_rng_state(saved["rng"])
    state: dict[str, Any] = saved["state"]
    return state
