"""The points of a learning curve: trained, scored and kept one by one."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router.errors import ConfigError
from router.evaluation.answering import Answering
from router.evaluation.bootstrap import resample
from router.evaluation.data_need import FILE, SCHEMA, data_hashes, settings_of
from router.evaluation.metrics import Task
from router.evaluation.scoring import METRICS, scores
from router.evaluation.speaker import Speaker
from router.evaluation.subject import check_base, read_manifest
from router.training.base import load_base
from router.training.data import Splits, load_splits
from router.training.files import write_file
from router.training.machine import describe_machine
from router.training.recipe import Recipe, load_recipe
from router.training.rendering import Rendering
from router.training.run import Request, run
from router.types import SamplingParams

LEAST_STEPS = 60  # a schedule needs some steps to warm up and to cool down
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Curve:
    """One learning curve: what is trained, on which base, and where its points are kept."""

    recipe_file: Path
    recipe: Recipe
    splits: Splits
    digest: str  # of the base
    work: Path
    device: str
    command: str


def measure_curve(
    recipe_file: Path, fractions: Sequence[float], output: Path | None, work: Path, device: str, say: Say
) -> Path:
    """See `router.evaluation.learning_curve`."""
    recipe = load_recipe(recipe_file)
    folder = output or Path("adapters") / recipe.adapter.name
    model_name, digest = _base_of(folder, recipe, device)
    command = _command(recipe_file, fractions, output)
    place = work / recipe.adapter.name / "learning-curve"
    curve = Curve(recipe_file, recipe, load_splits(recipe.data), digest, place, device, command)
    points = [_point(curve, fraction, say) for fraction in fractions]
    report = {
        "schema": SCHEMA,
        "adapter": recipe.adapter.name,
        "base": {"model": model_name, "digest": digest},
        "data": {**data_hashes(recipe), "rows": len(curve.splits.train)},
        "settings": settings_of(recipe),
        "metric": recipe.evaluation.metric,
        "points": points,
        "command": command,
    }
    write_file(folder / FILE, _as_json(report))
    return folder / FILE


def scaled(recipe: Recipe, fraction: float) -> Recipe:
    """The recipe on a part of its training rows.

    Steps shrink in proportion, but not below `LEAST_STEPS` or the recipe's own; evaluations come as many
    times as before.
    """
    plan = recipe.train
    steps = max(round(plan.steps * fraction), min(LEAST_STEPS, plan.steps))
    every = max(1, round(plan.eval_every * steps / plan.steps))
    return recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update={"fraction": recipe.data.fraction * fraction}),
            "train": plan.model_copy(update={"steps": steps, "eval_every": every}),
        }
    )


def _base_of(folder: Path, recipe: Recipe, device: str) -> tuple[str, str]:
    """Name and digest of the recipe's base, after a check that the whole adapter is on it."""
    train = "lora-router adapters train RECIPE"
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not there: train the whole adapter first ({train}), or name --output")
    manifest = read_manifest(folder)
    if manifest.name != recipe.adapter.name:
        raise ConfigError(f"{folder} holds {manifest.name}, the recipe is of {recipe.adapter.name}")
    if not manifest.base.digest:
        raise ConfigError(f"{folder}/adapter.toml does not say the digest of its base: train it ({train})")
    base = load_base(recipe.base.model, device)
    check_base(manifest, base)
    return base.name, base.digest


def _command(recipe_file: Path, fractions: Sequence[float], output: Path | None) -> str:
    named = Path(recipe_file.parent.name) / recipe_file.name  # nothing of this machine's own paths
    parts = ",".join(f"{fraction:g}" for fraction in fractions)
    where = f" --output {shlex.quote('/'.join(output.parts[-2:]))}" if output else ""
    return f"lora-router adapters learning-curve {shlex.quote(str(named))} --fractions {parts}{where}"


def _point(curve: Curve, fraction: float, say: Say) -> dict[str, Any]:
    recipe = scaled(curve.recipe, fraction)
    parts = [settings_of(recipe), data_hashes(recipe), curve.digest]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
    folder = curve.work / f"{fraction:g}-{key}"  # another recipe or other data is another folder
    kept = folder / "point.json"
    if kept.is_file():
        point: dict[str, Any] = json.loads(kept.read_bytes())
        say(f"{fraction:.0%} of the training rows: kept from before, {_shown(curve, point)}")
        return point
    adapter = folder / recipe.adapter.name
    if not (adapter / "adapter.toml").is_file():
        say(f"{fraction:.0%} of the training rows: training for {recipe.train.steps} steps")
        asked = Request(curve.recipe_file, adapter, folder / "checkpoint.pt", True, recipe, curve.command)
        run(asked, curve.device)
    say(f"{fraction:.0%} of the training rows: asking {len(curve.splits.test)} test rows")
    point = {"fraction": fraction, "rows": len(load_splits(recipe.data).train), "steps": recipe.train.steps}
    point |= _score(curve, recipe, adapter)
    write_file(kept, _as_json(point))
    say(f"{fraction:.0%} of the training rows: {_shown(curve, point)}")
    return point


def _score(curve: Curve, recipe: Recipe, adapter: Path) -> dict[str, Any]:
    """The recipe's metric on the whole test split, answered as `adapters evaluate` has it answered."""
    base, test = load_base(recipe.base.model, curve.device), curve.splits.test
    rendering = Rendering.of(base.tokenizer, recipe.prompt.as_template())
    limits = SamplingParams(max_tokens=recipe.generation.max_tokens, stop=recipe.generation.stop)
    answering = Answering(base)
    try:
        speaker = Speaker(answering, limits, answering.load(adapter))
        given = speaker.answers([rendering.prompt(row.prompt) for row in test], "test rows")
    finally:
        answering.close()
    task = Task(recipe.evaluation.metric, test, (), limits.max_tokens)
    score = resample(scores(task, [answer.text for answer in given]).score, len(test))
    machine = describe_machine(base.device)
    return {"asked": len(test), "score": score.rounded(), "machine": machine}


def _shown(curve: Curve, point: dict[str, Any]) -> str:
    metric = METRICS[curve.recipe.evaluation.metric]
    return f"{metric.title} {point['score']['value']:.{metric.digits}f} on {point['asked']} test rows"


def _as_json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()
