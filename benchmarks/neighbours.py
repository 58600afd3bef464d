"""`python -m benchmarks.neighbours`: would the nearest training rows improve the answers of label adapters?

The adapter's log-probability of each label is joined with votes of the k nearest training rows, by the
vectors of three sentence encoders. Validation rows only: k, the width of the votes and their weight are
chosen on four fifths of them and scored on the last, in turn, ten times over. Beside it stand the likeliest
label instead of the greedy answer, and a fitted prior of each label. `--keep FOLDER` keeps what the models
say, so that the next run takes seconds; without that it takes about half an hour on two cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import write
from router.extensions.training.data import Rendering, TrainingRow, load_splits
from router.extensions.training.evaluation.calibration import scores_of
from router.extensions.training.evaluation.exam import ReadyBases
from router.extensions.training.evaluation.subject import Answerer, read_manifest
from router.extensions.training.labels import places_of
from router.extensions.training.recipe import load_recipe
from router.models.encoder import LORA, PREFIX, SentenceEncoder, fetch_encoder, fetch_multilingual
from router.types import LabelSettings, SamplingParams

ROOT = Path(__file__).parents[1]
ADAPTERS = ("medical", "financial", "legal")
ENCODERS: dict[str, Callable[[], SentenceEncoder]] = {
    "all-MiniLM-L6 with the router's LoRA": lambda: SentenceEncoder(fetch_encoder(), lora=LORA),
    "all-MiniLM-L6": lambda: SentenceEncoder(fetch_encoder()),
    "multilingual-e5-small": lambda: SentenceEncoder(fetch_multilingual(), PREFIX),
}
COUNTS, WIDTHS = (1, 3, 5, 10, 20, 50), (0.02, 0.05, 0.1, 1.0)
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0)
PRIORS = (0.0, 0.1, 0.3, 1.0)  # weights of the logarithm of (share among right labels / mean probability)
FLOOR = 0.01  # of a vote: a label that no neighbour has is not impossible
FOLDS, REPEATS = 5, 10
GAIN = 0.02  # of the share of right answers, from which on neighbours are worth their memory

Floats = NDArray[np.float64]
Labels = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Answered:
    """The validation rows of an adapter: log-probabilities [rows, labels], right and answered labels."""

    scores: Floats
    gold: Labels
    greedy: Labels


@dataclass(frozen=True, slots=True)
class Near:
    """Likeness [rows, K] of the K nearest training rows to each row, and their labels."""

    likeness: Floats
    labels: Labels


def answered(name: str, bases: ReadyBases) -> Answered:
    """By the engine that serves."""
    recipe = load_recipe(ROOT / "recipes" / f"{name}.toml")
    folder = ROOT / "adapters" / name
    manifest, rows = read_manifest(folder), load_splits(recipe.data).valid
    ready = bases.ready(recipe.base.model)
    rendering = Rendering.of(ready.plain.tokenizer, manifest.prompt)
    digest = ready.engine.load(folder)
    constraint, choices = recipe.generation.as_constraint(), recipe.generation.choices
    params = SamplingParams(recipe.generation.max_tokens, constraint=constraint)
    answerer = Answerer(ready.engine, params, digest, LabelSettings())
    given = answerer.answers([rendering.prompt(row.prompt) for row in rows], name)
    ready.engine.unload(digest)
    found = [answer.labels for answer in given if answer.labels is not None]
    gold = places_of([row.response for row in rows], choices)
    return Answered(scores_of(found, choices), gold, places_of([one.text for one in given], choices))


def nearest(name: str, encoder: SentenceEncoder) -> Near:
    """Of the training rows, by the cosine of vectors."""
    recipe = load_recipe(ROOT / "recipes" / f"{name}.toml")
    splits = load_splits(recipe.data)
    known, asked = vectors(splits.train, encoder), vectors(splits.valid, encoder)
    likeness = asked @ known.T
    order = np.argsort(-likeness, 1)[:, : max(COUNTS)]
    labels = places_of([row.response for row in splits.train], recipe.generation.choices)
    return Near(np.take_along_axis(likeness, order, 1), labels[order])


def vectors(rows: Sequence[TrainingRow], encoder: SentenceEncoder) -> Floats:
    """Unit vectors [rows, size] of what is asked about, without the instruction that all rows share."""
    texts = [row.bare or row.prompt for row in rows]
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    found = np.zeros((len(texts), 384))
    for start in range(0, len(order), 64):
        places = order[start : start + 64]
        found[places] = encoder([texts[place] for place in places])
    return found


def votes(near: Near, labels: int, count: int, width: float) -> Floats:
    """Shares [rows, labels] of the votes of the `count` nearest; a vote falls with distance over `width`."""
    likeness = near.likeness[:, :count]
    weights = np.exp((likeness - likeness[:, :1]) / width)
    shares = np.zeros((len(likeness), labels))
    rows = np.repeat(np.arange(len(likeness)), count)
    known = near.labels[:, :count].ravel()
    np.add.at(shares, (rows[known >= 0], known[known >= 0]), weights.ravel()[known >= 0])
    return np.asarray(shares / weights.sum(1, keepdims=True))


def prior(scores: Floats, gold: Labels) -> Floats:
    """Logarithm of how much oftener each label is right than the adapter says, smoothed by one row each."""
    counts = np.bincount(gold[gold >= 0], minlength=scores.shape[1])
    return np.log((counts + 1) / (np.exp(scores).sum(0) + 1))


Settings = tuple[Any, ...]


def held_out(rows: int, seed: int) -> Iterator[tuple[Labels, Labels]]:
    """Rows to choose by, and rows to score."""
    order = np.random.default_rng(seed).permutation(rows)
    for fold in np.array_split(order, FOLDS):
        yield np.setdiff1d(order, fold), fold


def chosen(right: Floats) -> tuple[float, float]:
    """The share of right answers where the setting is chosen on other rows: mean of the repeats, and their
    standard deviation. `right` is [settings, rows]; of equal settings the first is taken.
    """
    found = []
    for seed in range(REPEATS):
        hits = 0.0
        for inside, outside in held_out(right.shape[1], seed):
            hits += right[right[:, inside].mean(1).argmax(), outside].sum()
        found.append(hits / right.shape[1])
    return float(np.mean(found)), float(np.std(found))


def with_neighbours(data: Answered, near: Near) -> tuple[Floats, Floats]:
    """Whether each row is right [settings, rows]: of neighbours alone, and joined with the adapter."""
    labels = data.scores.shape[1]
    grid = list(product(COUNTS, WIDTHS))
    shares = [votes(near, labels, count, width) for count, width in grid]
    alone = np.array([(one.argmax(1) == data.gold) for one in shares], float)
    joined = [
        ((data.scores + weight * np.log(one + FLOOR)).argmax(1) == data.gold)
        for weight in WEIGHTS
        for one in shares
    ]
    return alone, np.array(joined, float)


def with_prior(data: Answered) -> float:
    """The share of right answers with each label's prior, fitted and weighed on other rows."""
    found = []
    for seed in range(REPEATS):
        hits = 0
        for inside, outside in held_out(len(data.gold), seed):
            bias = prior(data.scores[inside], data.gold[inside])
            rights = [
                ((data.scores[inside] + w * bias).argmax(1) == data.gold[inside]).mean() for w in PRIORS
            ]
            best = PRIORS[int(np.argmax(rights))]
            hits += ((data.scores[outside] + best * bias).argmax(1) == data.gold[outside]).sum()
        found.append(hits / len(data.gold))
    return float(np.mean(found))


def kept(file: Path, kind: type, make: Callable[[], Any]) -> Any:
    """What a model says, from the file where it was kept."""
    if not file.is_file():
        made = make()
        np.savez(file, **{name: getattr(made, name) for name in kind.__slots__})
    with np.load(file) as arrays:
        return kind(**{name: arrays[name] for name in kind.__slots__})


def main() -> None:
    """Print the tables and write them to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="folder for what the models say")
    arguments = parser.parse_args()
    with TemporaryDirectory() as temporary, ReadyBases("cpu") as bases:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        plain, joined = [], []
        for name in ADAPTERS:
            data = kept(folder / f"{name}.npz", Answered, lambda name=name: answered(name, bases))
            plain.append(
                {
                    "adapter": name,
                    "validation rows": len(data.gold),
                    "greedy answer": float((data.greedy == data.gold).mean()),
                    "likeliest label": float((data.scores.argmax(1) == data.gold).mean()),
                    "with a prior of each label": with_prior(data),
                }
            )
            for number, (encoder, load) in enumerate(ENCODERS.items()):
                near = kept(folder / f"{name}-{number}.npz", Near, lambda n=name, e=load: nearest(n, e()))
                alone, both = with_neighbours(data, near)
                (share, deviation), base = chosen(both), plain[-1]["greedy answer"]
                joined.append(
                    {
                        "adapter": name,
                        "encoder": encoder,
                        "neighbours alone": chosen(alone)[0],
                        "adapter and neighbours": share,
                        "sd of repeats": deviation,
                        "gain over the greedy answer": share - base,
                        "the best setting by all rows": float(both.mean(1).max()),
                    }
                )
    notes = [
        f"Shares of right answers on validation rows. Settings are chosen on {FOLDS - 1} of {FOLDS} parts of "
        f"the rows and scored on the last, in turn, {REPEATS} times over.",
        f"k: {COUNTS}; width of votes, in cosine: {WIDTHS}; their weight beside the adapter: {WEIGHTS}.",
        f"Neighbours are worth it from a gain of {GAIN:.2f} on.",
    ]
    print(
        write(
            "neighbours",
            "Label adapters, with the nearest training rows.",
            plain,
            notes,
            {"Neighbours": joined},
        )
    )


if __name__ == "__main__":
    main()
