"""Numbers of a recipe that fit the data: how long, how large, judged by what."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from statistics import median

from router.training.batch import Example
from router.training.new.cleaning import Pair
from router.training.new.columns import Columns
from router.training.new.splitting import Split

LONGEST_ROW = 1024  # tokens of prompt and answer; longer rows make a laptop's training a matter of days
CLOSED_LIST = 50  # distinct answers, at most, of a choice between labels
LABEL_WORDS = 8
SHORT_ANSWER = 12  # words
SHOWN_LABELS = 300  # characters of a list of labels that the system text can hold
EXAMPLES = 128  # routing examples
EXAMPLE_CHARACTERS = 400
GENERIC = {"prompt", "response", "completion", "question", "answer", "instruction", "input", "output", "text"}


@dataclass(frozen=True, slots=True)
class Plan:
    """What the data decides."""

    steps: int
    batch: int
    eval_every: int
    max_tokens: int  # of a row
    answer_tokens: int
    metric: str
    labels: tuple[str, ...]  # of a choice; else empty
    examples: tuple[str, ...]


def make_plan(
    split: Split, encoded: Sequence[Example], labels: tuple[str, ...], steps: int, metric: str
) -> Plan:
    """`encoded` are all rows; `steps` 0 and `metric` "" are decided here."""
    train = split["train"]
    batch = 16 if len(train) >= 200 else 8
    steps = steps or _steps(len(train), batch)
    return Plan(
        steps=steps,
        batch=batch,
        eval_every=max(1, math.ceil(steps / 6)),
        max_tokens=max(8, *map(len, encoded)),
        answer_tokens=max(len(example.answer) for example in encoded) + 4,
        metric=metric or guess_metric(train, labels),
        labels=labels,
        examples=_routing_examples(train, labels),
    )


def labels_of(train: Sequence[Pair]) -> tuple[str, ...]:
    """The labels, commonest first, if the answers are a choice between few and short ones; else none."""
    counts = Counter(pair.response for pair in train)
    few = len(counts) <= min(CLOSED_LIST, len(train) // 4)
    short = all(len(label.split()) <= LABEL_WORDS for label in counts)
    return tuple(label for label, _ in counts.most_common()) if few and short else ()


def default_system(labels: Sequence[str], columns: Columns) -> str:
    """A choice is listed, so that the base has its chance too; else the columns' names say what is wanted."""
    listed = ", ".join(sorted(labels))
    if labels and len(listed) <= SHOWN_LABELS:
        return f"Answer with one of these and nothing else: {listed}."
    asked, wanted = (name.replace("_", " ").lower() for name in (columns.prompt, columns.response))
    return "" if {asked, wanted} & GENERIC else f"Given the {asked}, answer with the {wanted}."


def guess_metric(train: Sequence[Pair], labels: Sequence[str]) -> str:
    """By the form of the answers: a choice, a few words, or a text."""
    if labels:
        return "exact_match"
    words = median(len(pair.response.split()) for pair in train)
    return "token_f1" if words <= SHORT_ANSWER else "rouge_l"


def _steps(rows: int, batch: int) -> int:
    """Three times through small data, once through large; early stopping ends it sooner."""
    epochs = 3.0 if rows <= 1000 else max(1.0, 3000 / rows)
    return min(400, max(30, math.ceil(epochs * rows / batch)))


def _routing_examples(train: Sequence[Pair], labels: Sequence[str]) -> tuple[str, ...]:
    """Prompts as they are asked, in turn for each label, none of them long."""
    prompts = [pair for pair in train if len(pair.prompt) <= EXAMPLE_CHARACTERS]
    if not labels:
        return tuple(pair.prompt for pair in prompts[:EXAMPLES])
    shelves = [[pair.prompt for pair in prompts if pair.response == label] for label in labels]
    turns = chain.from_iterable(zip_longest(*shelves))
    return tuple([prompt for prompt in turns if prompt is not None][:EXAMPLES])
