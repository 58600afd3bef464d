"""Writes a complete adapter folder in one step."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from router.registry.format.probes import Probe
from router.training.curves import draw_curves
from router.training.files import new_folder
from router.training.manifest import manifest_text
from router.training.recipe import Recipe
from router.training.trainer import Progress


@dataclass(frozen=True, slots=True)
class Trained:
    """What a finished run has to show; `model` holds the best weights."""

    model: Any
    recipe: Recipe
    base_name: str
    base_digest: str
    probes: Sequence[Probe]
    progress: Progress
    facts: Mapping[str, Any]  # hardware, versions, row counts: the first line of the log


def export(trained: Trained, target: Path) -> None:
    """Write the folder as PEFT would, in bfloat16, with manifest, probes, log and curves.

    Raises FailedPrecondition if `target` is something else, ResourceExhausted on a full disk.
    """
    with new_folder(target, marker="adapter_config.json") as folder:
        _save_weights(trained, folder)
        manifest = manifest_text(trained.recipe, trained.base_name, trained.base_digest)
        (folder / "adapter.toml").write_text(manifest, encoding="utf-8")
        _write_lines(folder / "probes.jsonl", map(asdict, trained.probes))
        _write_lines(folder / "train_log.jsonl", [trained.facts, *trained.progress.history])
        draw_curves(trained.progress.history, trained.progress.best_step, folder / "curves.png")


def _save_weights(trained: Trained, folder: Path) -> None:
    config = trained.model.peft_config["default"]
    config.base_model_name_or_path = trained.base_name
    config.target_modules = sorted(config.target_modules)  # a set: its order would differ from run to run
    trained.model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card


def _write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")
