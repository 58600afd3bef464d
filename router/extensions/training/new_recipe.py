"""From a file of one's own to the folder of a new recipe.

The folder has recipe.toml with its reasons, as the data decides it, and the splits.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain, zip_longest
from pathlib import Path
from statistics import median

from router.errors import ConfigError, FailedPrecondition
from router.extensions.training.base import load_tokenizer
from router.extensions.training.data import Example, Rendering, TrainingRow
from router.extensions.training.export import toml_string
from router.extensions.training.files import write_file
from router.extensions.training.recipe import PromptTable, Recipe, RecipeBase
from router.extensions.training.rows import (
    Columns,
    PromptPair,
    Split,
    labels_of,
    read_pairs,
    require_enough,
    split_rows,
)
from router.names import NAME_RULE, is_name

LONGEST_ROW = 1024  # tokens of prompt and answer; longer rows make a laptop's training a matter of days
SHORT_ANSWER = 12  # words
SHOWN_LABELS = 300  # characters of a list of labels that the system text can hold
EXAMPLES = 128  # routing examples
EXAMPLE_CHARACTERS = 400
GENERIC = {"prompt", "response", "completion", "question", "answer", "instruction", "input", "output", "text"}
RECIPE = "recipe.toml"
TEMPLATE = """\
# How the adapter {name} is trained. Written by `lora-router adapters new` and yours to change;
# every key is explained in docs/training.md. Paths are relative to this file.

[adapter]
name = {name_}
version = "1.0.0"
description = {description}
domain = ""
task = ""

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
{choices}
[routing]
# What such requests look like, so that they find their way here unasked. These are prompts of the training
# rows; put in some in your users' own words, and requests that should go elsewhere as negative_examples.
examples = {examples}
negative_examples = []
keywords = []
"""


@dataclass(frozen=True, slots=True)
class RecipeRequest:
    """What the command line asks for; what is empty is decided by the data."""

    name: str
    data: Path
    folder: Path
    prompt_column: str = ""
    response_column: str = ""
    group_column: str = ""
    model: str = RecipeBase().model
    steps: int = 0
    force: bool = False


# -- what the data decides


def default_system(labels: Sequence[str], columns: Columns) -> str:
    """That of the rows, if they have one. A choice is listed, so that the base has its chance too; else the
    columns' names say what is wanted.
    """
    if columns.system:
        return columns.system
    listed = ", ".join(sorted(labels))
    if labels and len(listed) <= SHOWN_LABELS:
        return f"Answer with one of these and nothing else: {listed}."
    question, answer = (name.replace("_", " ").lower() for name in (columns.prompt, columns.response))
    unnamed = {"column"} & {name.partition(" ")[0] for name in (question, answer)}
    return (
        "" if unnamed or {question, answer} & GENERIC else f"Given the {question}, answer with the {answer}."
    )


def guess_metric(train: Sequence[PromptPair], labels: Sequence[str]) -> str:
    """By the form of the answers: a choice, a few words, or a text."""
    if labels:
        return "exact_match"
    words = median(len(pair.response.split()) for pair in train)
    return "token_f1" if words <= SHORT_ANSWER else "rouge_l"


def _steps(rows: int, batch: int) -> int:
    """Three times through small data, once through large; early stopping ends it sooner."""
    epochs = 3.0 if rows <= 1000 else max(1.0, 3000 / rows)
    return min(400, max(30, math.ceil(epochs * rows / batch)))


def _routing_examples(train: Sequence[PromptPair], labels: Sequence[str]) -> tuple[str, ...]:
    """Prompts as users send them, in turn for each label, none of them long."""
    prompts = [pair for pair in train if len(pair.prompt) <= EXAMPLE_CHARACTERS]
    if not labels:
        return tuple(pair.prompt for pair in prompts[:EXAMPLES])
    by_label = [[pair.prompt for pair in prompts if pair.response == label] for label in labels]
    turns = chain.from_iterable(zip_longest(*by_label))
    return tuple([prompt for prompt in turns if prompt is not None][:EXAMPLES])


def recipe_toml(
    request: RecipeRequest, system: str, labels: Sequence[str], split: Split, encoded: Sequence[Example]
) -> str:
    """The text of recipe.toml, with numbers that fit the data; `encoded` are all rows."""
    train, metric = split["train"], guess_metric(split["train"], labels)
    batch = 16 if len(train) >= 200 else 8
    steps = request.steps or _steps(len(train), batch)
    by = f"column {request.group_column!r}: its rows stand together" if request.group_column else "prompt"
    return TEMPLATE.format(
        name=request.name,
        name_=toml_string(request.name),
        model=toml_string(request.model),
        description=toml_string(f"Trained on {request.data.name}."),
        source=_comment(request.data.name),
        rows=counts(split),
        split_by=_comment(f"Split by a hash of the {by}"),
        max_tokens=max(8, *map(len, encoded)),
        system=toml_string(system),
        steps=steps,
        epochs=steps * batch / len(train),
        batch=batch,
        eval_every=max(1, math.ceil(steps / 6)),
        select=toml_string("exact" if labels else "loss"),
        metric=toml_string(metric),
        why=judged_by(labels),
        answer_tokens=max(len(example.answer) for example in encoded) + 4,
        choices=choices_line(labels),
        examples=_array(_routing_examples(train, labels)),
    )


def choices_line(labels: Sequence[str]) -> str:
    """Labels that every answer is held to; nothing where answers cannot be constrained here."""
    if not labels or find_spec("llguidance") is None:
        return ""
    comment = "# Every answer is one of these, and a request may ask how likely each is."
    return f"{comment}\nchoices = {_array(sorted(labels))}\n"


def counts(split: Split) -> str:
    """`480 train, 60 valid, 60 test`."""
    return ", ".join(f"{len(rows)} {name}" for name, rows in split.items())


def judged_by(labels: Sequence[str]) -> str:
    """Why this metric, for a person."""
    return f"the answers are a choice of {len(labels)}" if labels else "the answers are free text"


def _array(texts: Sequence[str]) -> str:
    return "[" + "".join(f"\n  {toml_string(text)}," for text in texts) + "\n]" if texts else "[]"


def _comment(text: str) -> str:
    """On one line, without control characters, which TOML refuses in comments."""
    return "".join(char if char.isprintable() else "?" for char in text)


# -- the folder


def write_folder(folder: Path, recipe: str, split: Split) -> list[Path]:
    """Write recipe and data; returns the paths, the recipe first."""
    data = {folder / "data" / f"{name}.jsonl": _lines(rows) for name, rows in split.items()}
    files = {folder / RECIPE: recipe.encode(), **data}
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


def _lines(pairs: Sequence[PromptPair]) -> bytes:
    rows = [{"prompt": pair.prompt, "response": pair.response, "group": pair.group} for pair in pairs]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


Say = Callable[[str], None]


def new_recipe(request: RecipeRequest, say: Say = print) -> Path:
    """Write recipe.toml and data/*.jsonl into the folder of the request; returns the recipe's path.

    Raises ConfigError (name, data, columns, too few rows, one answer for
    all), FailedPrecondition (files are there already), ResourceExhausted (disk full).
    """
    if not is_name(request.name):
        raise ConfigError(f"{request.name!r} is no adapter name: {NAME_RULE}")
    refuse_to_overwrite(request.folder, request.force)
    said = Columns(request.prompt_column, request.response_column, request.group_column)
    pairs, columns, found = read_pairs(request.data, said, say)
    require_enough(len(pairs), found, request.data.name)
    if len(answers := {pair.response for pair in pairs}) == 1:
        raise ConfigError(
            f"{request.data.name}: every row has the answer {answers.pop()[:80]!r}, so there is nothing to "
            f"learn; is {columns.response!r} the column of answers? --response-column names another"
        )
    labels = labels_of(split_rows(pairs)["train"])
    system = default_system(labels, columns)
    say(f"loading the tokenizer of {request.model} to count tokens")
    encoded = _encode(request, pairs, system, say)
    made = split_rows(list(encoded))
    text = recipe_toml(request, system, labels, made, list(encoded.values()))
    metric = Recipe.model_validate(tomllib.loads(text)).evaluation.metric  # what is written can be read
    say(f"split: {counts(made)}; {judged_by(labels)}: {metric}")
    files = write_folder(request.folder, text, made)
    say("wrote " + ", ".join(str(path) for path in files))
    return files[0]


def _encode(
    request: RecipeRequest, pairs: Sequence[PromptPair], system: str, say: Say
) -> dict[PromptPair, Example]:
    """Tokens of every row that is not too long."""
    tokenizer = load_tokenizer(request.model)
    rendering = Rendering.of(tokenizer, PromptTable(system=system).as_template())
    encoded = {pair: rendering.example(TrainingRow(pair.prompt, pair.response, "")) for pair in pairs}
    fitting = {pair: example for pair, example in encoded.items() if len(example) <= LONGEST_ROW}
    if dropped := len(encoded) - len(fitting):
        say(f"left out: {dropped} longer than {LONGEST_ROW} tokens")
    require_enough(len(fitting), len(pairs), request.data.name)
    return fitting
