"""From a file of one's own to a recipe with its data, step by step, and how long training will take here."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean

from router.errors import ConfigError
from router.extensions.training.base import LoadedBase, load_base
from router.extensions.training.batch import Example, Rendering, rows_of_step
from router.extensions.training.data import TrainingRow
from router.extensions.training.new.rows import (
    Columns,
    PromptPair,
    read_pairs,
    require_enough,
    split_rows,
)
from router.extensions.training.new.writing import (
    LONGEST_ROW,
    RecipeRequest,
    counts,
    default_system,
    judged_by,
    labels_of,
    make_plan,
    recipe_toml,
    refuse_to_overwrite,
    write_folder,
)
from router.extensions.training.recipe import TEXT_METRICS, PromptTable, Recipe
from router.extensions.training.run import add_lora
from router.extensions.training.trainer import Trainer
from router.names import NAME_RULE, VERSION_RULE, is_name, is_version

TIMED_STEPS = 4  # the first warms up, the last ends with an evaluation, the faster one of the others counts
TIMED_ROWS = 32  # of the validation split
Say = Callable[[str], None]


def new_recipe(wish: RecipeRequest, *, device: str = "auto", say: Say = print) -> Path:
    """Write recipe.toml and data/*.jsonl into the wished folder; returns the recipe's path.

    Loads the base to count tokens and, with `wish.timing`, to time some steps. Raises ConfigError (name,
    data, columns, too few rows, one answer for all), FailedPrecondition (files are there already),
    ResourceExhausted (disk full).
    """
    _check(wish)
    refuse_to_overwrite(wish.folder, wish.force)
    said = Columns(wish.prompt_column, wish.response_column, wish.group_column)
    pairs, columns, found = read_pairs(wish.data, said, say, wish.header)
    require_enough(len(pairs), found, wish.data.name)
    if len(answers := {pair.response for pair in pairs}) == 1:
        raise ConfigError(
            f"{wish.data.name}: every row has the answer {answers.pop()[:80]!r}, so there is nothing to "
            f"learn; is {columns.response!r} the column of answers? --response-column names another"
        )
    return _write(wish, pairs, columns, device, say)


def _check(wish: RecipeRequest) -> None:
    if not is_name(wish.name):
        raise ConfigError(f"{wish.name!r} is no adapter name: {NAME_RULE}")
    if not is_version(wish.version):
        raise ConfigError(f"{wish.version!r} is no version: {VERSION_RULE}")
    if wish.metric and wish.metric not in TEXT_METRICS:
        raise ConfigError(f"--metric {wish.metric!r} is not known here: {', '.join(TEXT_METRICS)}")


def _write(wish: RecipeRequest, pairs: Sequence[PromptPair], columns: Columns, device: str, say: Say) -> Path:
    """The part that needs the base: its tokenizer for the length of rows, its speed for the time."""
    labels = labels_of(split_rows(pairs)["train"])
    system = wish.system or default_system(labels, columns)
    say(f"loading {wish.model} to count tokens")
    base = load_base(wish.model, device)
    encoded = _encode(wish, pairs, system, base, say)
    made = split_rows(list(encoded))
    plan = make_plan(made, list(encoded.values()), labels, wish.steps, wish.metric)
    say(f"split: {counts(made)}; {judged_by(plan)}: {plan.metric}")
    text = recipe_toml(wish, system, plan, made)
    recipe = Recipe.model_validate(tomllib.loads(text))
    files = write_folder(wish.folder, text, made, wish.force)
    say("wrote " + ", ".join(str(path) for path in files))
    train, valid = ([encoded[pair] for pair in made[name]] for name in ("train", "valid"))
    if not wish.timing:
        return files[0]
    say(f"timing {TIMED_STEPS} steps (--no-timing leaves this out)")
    seconds = estimate_seconds(recipe, base, train, valid)
    say(f"training takes about {in_words(seconds)} here ({plan.steps} steps), less if it stops early")
    return files[0]


def _encode(
    wish: RecipeRequest, pairs: Sequence[PromptPair], system: str, base: LoadedBase, say: Say
) -> dict[PromptPair, Example]:
    """Tokens of every row that is not too long."""
    rendering = Rendering.of(base.tokenizer, PromptTable(system=system).as_template())
    encoded = {pair: rendering.example(TrainingRow(pair.prompt, pair.response, "")) for pair in pairs}
    fitting = {pair: example for pair, example in encoded.items() if len(example) <= LONGEST_ROW}
    if dropped := len(encoded) - len(fitting):
        say(f"left out: {dropped} longer than {LONGEST_ROW} tokens")
    require_enough(len(fitting), len(pairs), wish.data.name)
    return fitting


def estimate_seconds(
    recipe: Recipe, base: LoadedBase, train: Sequence[Example], valid: Sequence[Example]
) -> float:
    """Seconds of the whole run, by a few steps of it; early stopping is left aside.

    `base` is not fit for use afterwards.
    """
    plan = recipe.train.model_copy(update={"steps": TIMED_STEPS, "eval_every": TIMED_STEPS})
    trainer = Trainer(add_lora(base.model, recipe), train, valid[:TIMED_ROWS], plan, base.device)
    trainer.run(lambda _: True)
    clock = [record["seconds"] for record in trainer.progress.history]
    took = [later - earlier for earlier, later in pairwise(clock)]
    lengths = [len(example) for example in train]
    tokens = [
        sum(lengths[row] for row in rows_of_step(number, lengths, plan.batch, plan.seed))
        for number in range(2, TIMED_STEPS + 1)
    ]
    per_token = min(seconds / count for seconds, count in zip(took[:-1], tokens[:-1], strict=True))
    judging = max(0.0, took[-1] - per_token * tokens[-1]) / len(valid[:TIMED_ROWS])
    evaluations = math.ceil(recipe.train.steps / recipe.train.eval_every)
    row = per_token * mean(lengths)
    return recipe.train.steps * min(plan.batch, len(train)) * row + evaluations * len(valid) * judging


def in_words(seconds: float) -> str:
    """Rounded to what such an estimate is worth."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
