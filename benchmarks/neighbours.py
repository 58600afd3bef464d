"""`python -m benchmarks.neighbours`: would the nearest training rows improve the answers of label adapters?

The adapter's log-probability of each label is joined with votes of the k nearest training rows, by the
vectors of three sentence encoders. Validation rows only: k, the width of the votes and their weight are
chosen on four fifths of them and scored on the last, in turn, ten times over. Beside it stand the likeliest
label instead of the greedy answer, and a fitted prior of each label, also as it is served. `--keep FOLDER`
keeps what the models say, so that the next run takes seconds; without that it takes about half an hour on two
cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer

from benchmarks.report import write
from router.extensions.training.data import Rendering, TrainingRow, load_splits
from router.extensions.training.evaluation.calibration import scores_of
from router.extensions.training.evaluation.exam import ReadyBases
from router.extensions.training.evaluation.subject import Answerer, read_manifest
from router.extensions.training.labels import (
    FOLDS,
    LEAST_GAIN,
    REPEATS,
    FittedLabels,
    fit_labels,
    held_out,
    label_tree,
    places_of,
    prior_of,
)
from router.extensions.training.recipe import load_recipe
from router.models.base import resolve_model
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


def chosen(right: Floats) -> Floats:
    """How often each row is right [rows] where the setting is chosen on other rows: mean of the repeats.

    `right` is [settings, rows]; of equal settings the first is taken.
    """
    found = np.zeros(right.shape[1])
    for seed in range(REPEATS):
        for inside, outside in held_out(right.shape[1], seed):
            found[outside] += right[right[:, inside].mean(1).argmax(), outside]
    return found / REPEATS


def gain(ours: Floats, theirs: Floats) -> str:
    """The difference of two shares of right answers, with its standard error by rows."""
    apart = ours - theirs
    return f"{apart.mean():+.3f} (se {apart.std(ddof=1) / np.sqrt(len(apart)):.3f})"


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


def with_prior(data: Answered) -> Floats:
    """How often each row is right [rows] with each label's prior, fitted and weighed on other rows."""
    found = np.zeros(len(data.gold))
    for seed in range(REPEATS):
        for inside, outside in held_out(len(data.gold), seed):
            bias = prior_of(data.scores[inside], data.gold[inside])
            rights = [
                ((data.scores[inside] + w * bias).argmax(1) == data.gold[inside]).mean() for w in PRIORS
            ]
            best = PRIORS[int(np.argmax(rights))]
            found[outside] += (data.scores[outside] + best * bias).argmax(1) == data.gold[outside]
    return found / REPEATS


def biased(name: str, data: Answered) -> FittedLabels:
    """Greedy answers with each label's prior as a bias where the tree of labels branches: what is served."""
    recipe = load_recipe(ROOT / "recipes" / f"{name}.toml")
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(recipe.base.model))
    rendering = Rendering.of(tokenizer, read_manifest(ROOT / "adapters" / name).prompt)
    found = fit_labels(data.scores, data.gold, label_tree(rendering, recipe.generation.choices))
    if found is None:
        raise RuntimeError("too few validation rows")
    return found


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
        plain, joined, best_gain = [], [], -1.0
        for name in ADAPTERS:
            data = kept(folder / f"{name}.npz", Answered, lambda name=name: answered(name, bases))
            greedy = np.asarray(data.greedy == data.gold, float)
            likeliest = np.asarray(data.scores.argmax(1) == data.gold, float)
            corrected, served = with_prior(data), biased(name, data)
            plain.append(
                {
                    "adapter": name,
                    "validation rows": len(data.gold),
                    "greedy answer": float(greedy.mean()),
                    "likeliest label": float(likeliest.mean()),
                    "its gain": gain(likeliest, greedy),
                    "likeliest with a prior of each label": float(corrected.mean()),
                    "gain": gain(corrected, greedy),
                    "greedy with a prior": served.corrected,
                    "over greedy by the same logits": f"{served.corrected - served.without:+.3f} "
                    f"(se {served.error:.3f})",
                }
            )
            for number, (encoder, load) in enumerate(ENCODERS.items()):
                near = kept(folder / f"{name}-{number}.npz", Near, lambda n=name, e=load: nearest(n, e()))
                alone, both = with_neighbours(data, near)
                joint = chosen(both)
                best_gain = max(best_gain, float((joint - corrected).mean()))
                joined.append(
                    {
                        "adapter": name,
                        "encoder": encoder,
                        "neighbours alone": float(chosen(alone).mean()),
                        "adapter and neighbours": float(joint.mean()),
                        "gain over the greedy answer": gain(joint, greedy),
                        "over the prior": gain(joint, corrected),
                    }
                )
    notes = [
        f"Shares of right answers on validation rows. Settings are chosen on {FOLDS - 1} of {FOLDS} parts of "
        f"the rows and scored on the last, in turn, {REPEATS} times over.",
        "`greedy with a prior`: each label's prior is a bias of the tokens that lead to it, and nothing is "
        "read beside the answer. Adapters have one from a gain of "
        f"{LEAST_GAIN:.2f} on.",
        f"k: {COUNTS}; width of votes, in cosine: {WIDTHS}; their weight beside the adapter: {WEIGHTS}.",
        f"Neighbours are worth their memory from a gain of {GAIN:.2f} over the prior on. The most here is "
        f"{best_gain:+.3f}: they are {'' if best_gain >= GAIN else 'not '}worth it.",
        "Weight 0 is among the settings, so that the likeliest label alone may be chosen.",
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
