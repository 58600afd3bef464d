"""Writes a complete adapter folder in one step: weights as PEFT saves them, manifest, probes and log."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from router.extensions.training.base import LoadedBase
from router.extensions.training.data import Rendering, TrainingRow
from router.extensions.training.evaluation.subject import Answerer, AnsweringEngine
from router.extensions.training.files import new_folder
from router.extensions.training.labels import LEAST_ROWS, ask_labels, fit_temperature, places_of
from router.extensions.training.probes import choose_probes
from router.extensions.training.recipe import Recipe
from router.extensions.training.trainer import Progress
from router.types import SamplingParams


@dataclass(frozen=True, slots=True)
class Trained:
    """What a finished run has to show; `model` holds the best weights."""

    model: Any
    recipe: Recipe
    base: LoadedBase
    rendering: Rendering
    valid: Sequence[TrainingRow]
    progress: Progress
    facts: Mapping[str, Any]  # hardware, versions, row counts: the first line of the log


def export(trained: Trained, target: Path) -> None:
    """Write the folder as PEFT would, in bfloat16, with manifest, probes and log.

    The model is taken off its base. Raises FailedPrecondition if `target` is something else,
    ResourceExhausted on a full disk, AdapterRejected for what no server would take.
    """
    with new_folder(target, marker="adapter_config.json") as folder:
        _save_weights(trained, folder)
        _write_manifest(trained, folder, None)
        engine = AnsweringEngine(replace(trained.base, model=trained.model.unload()))
        try:
            _fit_and_probe(trained, folder, engine)
        finally:
            engine.close()
        write_lines(folder / "train_log.jsonl", [trained.facts, *trained.progress.history])


def _fit_and_probe(trained: Trained, folder: Path, engine: AnsweringEngine) -> None:
    """What the engine that serves finds: the temperature of the choices, then probes."""
    recipe, constraint = trained.recipe, trained.recipe.generation.as_constraint()
    params = SamplingParams(stop=recipe.generation.stop, constraint=constraint)
    if constraint is not None and constraint.choices and len(trained.valid) >= LEAST_ROWS:
        answerer = Answerer(engine, params, engine.load(folder))
        scores = ask_labels(answerer, trained.rendering, trained.valid, constraint)
        gold = places_of([row.response for row in trained.valid], constraint.choices)
        _write_manifest(trained, folder, fit_temperature(scores, gold))
    answerer = Answerer(engine, params, engine.load(folder))
    probes = choose_probes(answerer, trained.rendering, trained.valid, recipe.evaluation.probes)
    write_lines(folder / "probes.jsonl", map(asdict, probes))


def _write_manifest(trained: Trained, folder: Path, temperature: float | None) -> None:
    manifest = manifest_text(trained.recipe, trained.base.name, trained.base.digest, temperature)
    (folder / "adapter.toml").write_text(manifest, encoding="utf-8")


def _save_weights(trained: Trained, folder: Path) -> None:
    config = trained.model.peft_config["default"]
    config.base_model_name_or_path = trained.base.name
    config.target_modules = sorted(config.target_modules)  # a set: its order would differ from run to run
    trained.model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")


# -- adapter.toml


def manifest_text(recipe: Recipe, base_name: str, base_digest: str, temperature: float | None = None) -> str:
    """The manifest; values that the recipe leaves at nothing are left out. `temperature` is of the labels."""
    tables = {
        "adapter": recipe.adapter.model_dump(),
        "base": {"model": base_name, "digest": base_digest},
        "prompt": recipe.prompt.model_dump(),
        "generation": recipe.generation.given(),
        **({} if temperature is None else {"labels": {"temperature": temperature}}),
        "routing": recipe.routing.model_dump(),
    }
    return toml_text(tables)


def toml_text(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Tables of texts, numbers and lists of texts as TOML; empty texts are left out."""
    return "\n".join("\n".join(_table(name, values)) + "\n" for name, values in tables.items())


def _table(name: str, values: Mapping[str, Any]) -> Iterator[str]:
    yield f"[{name}]"
    for key, value in values.items():
        if isinstance(value, tuple | list):
            yield (
                f"{key} = ["
                + "".join(f"\n  {toml_string(item)}," for item in value)
                + ("\n]" if value else "]")
            )
        elif isinstance(value, str):
            if value:
                yield f"{key} = {toml_string(value)}"
        elif isinstance(value, bool):
            yield f"{key} = {str(value).lower()}"
        else:
            yield f"{key} = {value!r}"


def toml_string(text: str) -> str:
    """A TOML basic string."""
    # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
