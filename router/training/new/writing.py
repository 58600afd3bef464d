"""Writes the folder: recipe.toml with its reasons as comments, and the three splits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from router.errors import FailedPrecondition
from router.training.files import write_file
from router.training.manifest import toml_string
from router.training.new.cleaning import Pair
from router.training.new.plan import Plan
from router.training.new.splitting import Split

RECIPE = "recipe.toml"

TEMPLATE = """\
# How the adapter {name} is trained. Written by `lora-router adapters new` and yours to change;
# every key is explained in docs/training.md. Paths are relative to this file.

[adapter]
name = {name_}
version = {version}
description = {description}
domain = {domain}
task = {task}

[base]
model = {model}

[data]
# {source}: {rows}. {split_by}.
train = "data/train.jsonl"
valid = "data/valid.jsonl"
test = "data/test.jsonl"
max_tokens = {max_tokens}  # the longest row, prompt and answer; longer ones would be left out

[prompt]
# Stands before every request, in training as in serving.
system = {system}
template = "{{prompt}}"

[lora]
rank = 8
alpha = 16

[train]
steps = {steps}  # {epochs:.1f} times through the training rows
batch = {batch}
learning_rate = 1e-3
seed = 7
eval_every = {eval_every}  # steps; the weights that do best on the validation rows are kept
patience = 3  # evaluations without a gain, then it stops
select = {select}

[evaluation]
metric = {metric}  # {why}
probes = 4

[generation]
max_tokens = {answer_tokens}  # the longest answer in the data, and a little

[routing]
# What such requests look like, so that they find their way here unasked. These are prompts of the training
# rows; put in some in your users' own words, and requests that should go elsewhere as negative_examples.
examples = {examples}
negative_examples = []
keywords = []
"""


@dataclass(frozen=True, slots=True)
class Identity:
    """What the person said about the adapter."""

    name: str
    version: str
    domain: str
    task: str
    model: str
    system: str
    source: str  # name of the data file
    group_column: str


def recipe_toml(who: Identity, plan: Plan, split: Split) -> str:
    """The text of recipe.toml."""
    quoted = {name: toml_string(getattr(who, name)) for name in ("version", "domain", "task", "model")}
    by = f"column {who.group_column!r}: its rows stand together" if who.group_column else "prompt"
    return TEMPLATE.format(
        **quoted,
        name=who.name,
        name_=toml_string(who.name),
        description=toml_string(f"Trained on {who.source}."),
        source=_comment(who.source),
        rows=counts(split),
        split_by=_comment(f"Split by a hash of the {by}"),
        max_tokens=plan.max_tokens,
        system=toml_string(who.system),
        steps=plan.steps,
        epochs=plan.steps * plan.batch / len(split["train"]),
        batch=plan.batch,
        eval_every=plan.eval_every,
        select=toml_string("exact" if plan.metric == "exact_match" else "loss"),
        metric=toml_string(plan.metric),
        why=judged_by(plan),
        answer_tokens=plan.answer_tokens,
        examples=_array(plan.examples),
    )


def counts(split: Split) -> str:
    """`480 train, 60 valid, 60 test`."""
    return ", ".join(f"{len(rows)} {name}" for name, rows in split.items())


def judged_by(plan: Plan) -> str:
    """Why this metric, for a person."""
    return f"the answers are a choice of {len(plan.labels)}" if plan.labels else "the answers are free text"


def write_folder(folder: Path, recipe: str, split: Split, force: bool) -> list[Path]:
    """Write recipe and data; returns the paths, the recipe first.

    Raises FailedPrecondition where one of the files is there and `force` is not asked for.
    """
    data = {folder / "data" / f"{name}.jsonl": _lines(rows) for name, rows in split.items()}
    files = {folder / RECIPE: recipe.encode(), **data}
    refuse_to_overwrite(folder, force)
    for path in reversed(files):  # the recipe last: where it stands, its data does
        write_file(path, files[path])
    return list(files)


def refuse_to_overwrite(folder: Path, force: bool) -> None:
    """Raises FailedPrecondition for a file that stands where one would be written."""
    wanted = [folder / RECIPE, *(folder / "data" / f"{name}.jsonl" for name in ("train", "valid", "test"))]
    if not force and (there := [path for path in wanted if path.exists()]):
        raise FailedPrecondition(
            f"{there[0]} exists already; choose another --output, or --force to replace it"
        )


def _lines(pairs: Sequence[Pair]) -> bytes:
    rows = [{"prompt": pair.prompt, "response": pair.response, "group": pair.group} for pair in pairs]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _array(texts: Sequence[str]) -> str:
    return "[" + "".join(f"\n  {toml_string(text)}," for text in texts) + "\n]" if texts else "[]"


def _comment(text: str) -> str:
    """On one line, without control characters, which TOML refuses in comments."""
    return "".join(char if char.isprintable() else "?" for char in text)
