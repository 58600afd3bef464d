"""How much training data an adapter needs: it is trained again on parts of its data, and each part is scored.

`learning_curve` measures and keeps data_need.json; `data_need` makes a section of a report out of it.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router.errors import ConfigError
from router.extensions.training.base import describe_machine, load_base
from router.extensions.training.data import Rendering, Splits, load_splits
from router.extensions.training.evaluation import require_extra
from router.extensions.training.evaluation.metrics import METRICS, score_answers
from router.extensions.training.evaluation.scoring import Task, resample
from router.extensions.training.evaluation.subject import (
    Answerer,
    AnsweringEngine,
    EvaluationSubject,
    check_base,
    read_manifest,
)
from router.extensions.training.files import write_file
from router.extensions.training.recipe import Recipe, load_recipe
from router.extensions.training.run import TrainingRequest, run
from router.types import SamplingParams

FILE = "data_need.json"
SCHEMA = 1
COMMAND = "lora-router adapters learning-curve RECIPE"
FRACTIONS = (0.1, 0.3)
MOST_POINTS = 9
LEAST_STEPS = 60  # a schedule needs some steps to warm up and to cool down
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """One learning curve: what is trained, on which base, and where its points are kept."""

    recipe_file: Path
    recipe: Recipe
    splits: Splits
    digest: str  # of the base
    work: Path
    device: str
    command: str


def learning_curve(
    recipe: Path,
    fractions: Sequence[float] = FRACTIONS,
    *,
    output: Path | None = None,
    work: Path = Path("runs"),
    device: str = "auto",
    say: Say = print,
) -> Path:
    """Train by `recipe` on each fraction of its training rows, score each on the test split.

    Writes data_need.json into the adapter's folder, `output` or adapters/NAME, and returns its path. Steps
    shrink in proportion, but not below 60 (or the recipe's own); all other settings stay. What is done
    already is kept in `work` and not done again, and an interrupted training goes on.

    Raises ConfigError (recipe, data, fractions, no adapter there), AdapterRejected (the adapter is of
    another base), and what `router.extensions.training.train` raises.
    """
    parts = _checked(fractions)
    require_extra("a learning curve")
    loaded = load_recipe(recipe)
    folder = output or Path("adapters") / loaded.adapter.name
    model, digest = _base_of(folder, loaded, device)
    place, command = work / loaded.adapter.name / "learning-curve", _command(recipe, parts, output)
    curve = LearningCurve(recipe, loaded, load_splits(loaded.data), digest, place, device, command)
    points = [_point(curve, fraction, say) for fraction in parts]
    write_file(folder / FILE, _as_json(_contents(curve, model, points)))
    return folder / FILE


def _checked(fractions: Sequence[float]) -> list[float]:
    wrong = [value for value in fractions if not 0 < value < 1]
    if wrong or not fractions or len(fractions) > MOST_POINTS:
        got = ", ".join(map(str, fractions)) or "none"
        raise ConfigError(
            f"fractions must be 1 to {MOST_POINTS} numbers above 0 and below 1, such as 0.1,0.3; got {got} "
            "(the whole data is the adapter itself: adapters evaluate measures it)"
        )
    return sorted(set(fractions))


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


def _point(curve: LearningCurve, fraction: float, say: Say) -> dict[str, Any]:
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
        asked = TrainingRequest(
            curve.recipe_file, adapter, folder / "checkpoint.pt", True, recipe, curve.command
        )
        run(asked, curve.device)
    say(f"{fraction:.0%} of the training rows: asking {len(curve.splits.test)} test rows")
    point = {"fraction": fraction, "rows": len(load_splits(recipe.data).train), "steps": recipe.train.steps}
    point |= _score(curve, recipe, adapter)
    write_file(kept, _as_json(point))
    say(f"{fraction:.0%} of the training rows: {_shown(curve, point)}")
    return point


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


def _score(curve: LearningCurve, recipe: Recipe, adapter: Path) -> dict[str, Any]:
    """The recipe's metric on the whole test split, answered as `adapters evaluate` has it answered."""
    base, test = load_base(recipe.base.model, curve.device), curve.splits.test
    rendering = Rendering.of(base.tokenizer, recipe.prompt.as_template())
    generation = recipe.generation
    limits = SamplingParams(
        generation.max_tokens, stop=generation.stop, constraint=generation.as_constraint()
    )
    answering = AnsweringEngine(base)
    try:
        answerer = Answerer(answering, limits, answering.load(adapter))
        texts = [row.prompt for row in test]
        given = answerer.answers([rendering.prompt(text) for text in texts], "test rows", texts)
    finally:
        answering.close()
    task = Task(recipe.evaluation.metric, test, (), limits.max_tokens)
    score = resample(score_answers(task, [answer.text for answer in given]).score, len(test))
    machine = describe_machine(base.device)
    return {"asked": len(test), "score": score.rounded(), "machine": machine}


def _shown(curve: LearningCurve, point: dict[str, Any]) -> str:
    metric = METRICS[curve.recipe.evaluation.metric]
    return f"{metric.title} {point['score']['value']:.{metric.digits}f} on {point['asked']} test rows"


def _contents(curve: LearningCurve, model: str, points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of data_need.json."""
    return {
        "schema": SCHEMA,
        "adapter": curve.recipe.adapter.name,
        "base": {"model": model, "digest": curve.digest},
        "data": {**data_hashes(curve.recipe), "rows": len(curve.splits.train)},
        "settings": settings_of(curve.recipe),
        "metric": curve.recipe.evaluation.metric,
        "points": list(points),
        "command": curve.command,
    }


def _as_json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()


def data_hashes(recipe: Recipe) -> dict[str, str]:
    """sha256 of each split's file."""
    files: dict[str, Path] = {name: getattr(recipe.data, name) for name in ("train", "valid", "test")}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """What decides weights and answers, apart from base and data: as JSON would give it back."""
    tables = {name: getattr(recipe, name).model_dump(mode="json") for name in ("lora", "train", "prompt")}
    tables["generation"] = recipe.generation.given(mode="json")
    tables["data"] = {"max_tokens": recipe.data.max_tokens, "fraction": recipe.data.fraction}
    tables["evaluation"] = {"metric": recipe.evaluation.metric}
    return tables


# -- what a report says of it


def data_need(
    subject: EvaluationSubject, recipe: Recipe, full: Mapping[str, float], row_count: int
) -> dict[str, Any]:
    """The learning curve from the adapter's folder, with the whole adapter as its last point.

    `full` is the adapter's score on `row_count` test rows, {"value", "low", "high"}.

    Returns {"metric", "digits", "points": [{"fraction", "rows", "steps", "asked", "score"}], "date"}, or
    {"missing": COMMAND} if the curve was not measured yet. Raises ConfigError as `read_curve` does.
    """
    curve = read_curve(subject, recipe)
    if curve is None:
        return {"missing": COMMAND}
    whole = {
        "rows": curve["data"]["rows"],
        "steps": recipe.train.steps,
        "asked": row_count,
        "score": dict(full),
    }
    names = ("fraction", "rows", "steps", "asked", "score")
    points = [{name: point[name] for name in names} for point in curve["points"]]
    return {
        "metric": METRICS[recipe.evaluation.metric].title,
        "digits": METRICS[recipe.evaluation.metric].digits,
        "points": [*points, {"fraction": 1.0, **whole}],
        "date": max(point["machine"]["date"] for point in curve["points"]),
        **_since(curve["settings"], recipe),
    }


def _since(then: Mapping[str, Any], recipe: Recipe) -> dict[str, list[str]]:
    """Settings of answers that came after the curve was measured: {"since": [names]}, or nothing."""
    new = [name for name in recipe.generation.given() if name not in then["generation"]]
    return {"since": [f"generation.{name}" for name in new]} if new else {}


def read_curve(subject: EvaluationSubject, recipe: Recipe) -> dict[str, Any] | None:
    """The contents of data_need.json, None if it is not there.

    Raises ConfigError if it cannot be read, or was measured on another base, on other data or with other
    settings than the recipe's: then it says nothing about this adapter.
    """
    file = subject.folder / FILE
    if not file.is_file():
        return None
    again = f"measure it again: {COMMAND}"
    try:
        curve: dict[str, Any] = json.loads(file.read_bytes())
        digest, data, settings = curve["base"]["digest"], curve["data"], curve["settings"]
        known = curve["schema"] == SCHEMA and curve["points"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is not what adapters learning-curve writes ({error}); {again}") from error
    if not known:
        raise ConfigError(f"{file} is of another version or holds no point; {again}")
    if digest != subject.base.digest:
        raise ConfigError(f"{file} was measured on another base ({curve['base'].get('model')}); {again}")
    if changed := [name for name, sha256 in data_hashes(recipe).items() if data.get(name) != sha256]:
        raise ConfigError(f"{file} was measured on other data ({', '.join(changed)} differs); {again}")
    if changed := _differences(settings, settings_of(recipe)):
        raise ConfigError(f"{file} was measured with other settings ({', '.join(changed)}); {again}")
    return curve


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Settings that stand in both with other values: a setting that is new since has its default."""
    return [
        f"{table}.{name}"
        for table, values in then.items()
        for name, value in values.items()
        if name in now.get(table, {}) and now[table][name] != value
    ]
