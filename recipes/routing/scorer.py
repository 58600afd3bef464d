"""`python recipes/routing/scorer.py WORK`: train router/classifiers/fewshot.safetensors, which gives
chances to adapters with a few examples each, by a network.

WORK has the LoRA of each training of encoder.py. The vectors of a deployment come from the one that left it
out, since those of texts that an encoder learned from lie better than others. Each episode draws adapters of
one deployment or of two, 3 to 28 of their texts as examples, and asks other texts of theirs, requests for
none, and requests for adapters that were not drawn, which are for none then. Some descriptions are left out.
The deployments of encoder.HELD_BACK are not learned from; of them the script prints how many requests come to
the right adapter, with eight examples.

It takes about ten minutes on two cores, most of it the vectors, which are kept in WORK.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads would wait for each other

import numpy as np
import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

from encoder import FOLDS, HELD_BACK, Deployment, fold_of, general_requests, learning  # noqa: E402

from router.classifiers import fewshot  # noqa: E402
from router.classifiers.caches import VectorCache  # noqa: E402
from router.classifiers.texts import whole_first_last  # noqa: E402
from router.cli.plugins import load_plugins  # noqa: E402
from router.models.base import fetch_encoder  # noqa: E402
from router.models.encoder import WEIGHTS, Reader, SentenceEncoder  # noqa: E402
from router.types import AdapterProfile  # noqa: E402

COUNTS = (3, 4, 6, 8, 8, 8, 10, 12, 16, 24)  # examples of an adapter
SHAKE = 2  # so many more or fewer of one adapter
SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8, 8)  # adapters of one deployment
PAIRED = 0.15  # share of the episodes with all adapters of two deployments
UNDESCRIBED = 0.15  # share of adapters without description
SWAPPED = 0.25  # share of adapters whose examples are not those that their owner wrote
ASKED = {"known": 80, "none": 40, "others": 12}  # most requests of an episode
LEFT = 6  # texts of an adapter that are not examples, at least
HIDDEN, DROPOUT = 32, 0.1
RATE, DECAY, EPOCHS, BATCH = 2e-3, 1e-2, 6, 512
NETWORKS = 4
Array = np.ndarray[Any, Any]
Batch = tuple[
    Array, Array, Array, Array
]  # features of adapters, of the request, which are there, the right one


class Known(Reader):
    """A reader of texts whose vectors are there already."""

    def __init__(self, vectors: dict[str, Array]) -> None:
        super().__init__(lambda: lambda texts: np.stack([vectors[text] for text in texts]))
        self._vectors = vectors

    def lately(self, texts: Collection[str]) -> dict[str, Array]:
        """Of requests."""
        return {text: self._vectors[text] for text in texts}

    def learned(self, texts: Iterable[str]) -> Iterator[tuple[str, Array]]:
        """Of what is learned from."""
        return ((text, self._vectors[text]) for text in texts)


def reader_of(work: Path, fold: int) -> Reader:
    """Of the encoder that did not learn from the deployments of a fold."""
    lora = work / str(fold)
    kept = VectorCache(work / f"vectors{fold}.sqlite", str((lora / WEIGHTS).stat().st_mtime_ns))
    return Reader(lambda: SentenceEncoder(fetch_encoder(), lora=lora), kept, str(lora))


def known(work: Path, fold: int, deployments: Sequence[Deployment]) -> Known:
    """Vectors of all that these deployments and the general requests have."""
    texts = set(general_requests())
    for one in deployments:
        texts |= {*one.none, *one.described.values(), *(text for all in one.texts.values() for text in all)}
    reader = reader_of(work, fold)
    reader.warmup()
    pieces = {piece for text in texts for piece in whole_first_last(text)}
    return Known(dict(reader.learned(pieces)))


@cache
def embedding() -> Any:
    """The class of the classifier."""
    registrations = load_plugins([ROOT / "plugins"]).registrations()
    (found,) = (type(one.classifier) for one in registrations if one.name == "embedding")
    return found


@dataclass(frozen=True, slots=True)
class Episode:
    """Adapters with examples, and requests with the adapter's name or ""."""

    profiles: tuple[AdapterProfile, ...]
    asked: list[tuple[str, str]]

    def batch(self, reader: Reader) -> Batch:
        """What the network gets of it; requests whose adapter is not among the nearest are left out."""
        classifier = embedding()(reader)
        classifier.fit(self.profiles)
        of_adapters, of_request, chosen = classifier.features([text for text, _ in self.asked])
        names = [profile.name for profile in self.profiles]
        owners = np.array([names.index(name) if name else -2 for _, name in self.asked])
        found = chosen == owners[:, None]
        right = np.where(owners == -2, fewshot.MOST, found.argmax(1))
        usable = (owners == -2) | found.any(1)
        return of_adapters[usable], of_request[usable], chosen[usable] >= 0, right[usable]


def episode(deployments: Sequence[Deployment], rng: random.Random) -> Episode:
    """One of a random kind."""
    paired = rng.random() < PAIRED
    chosen = rng.sample(deployments, 2 if paired else 1)
    every = [(one, name) for one in chosen for name in one.texts]
    drawn = every if paired else rng.sample(every, rng.choice(SIZES))
    count = rng.choice(COUNTS)
    profiles, asked = list[AdapterProfile](), list[tuple[str, str]]()
    for i, (one, name) in enumerate(drawn):
        own, size = one.texts[name], count + rng.randint(-SHAKE, SHAKE)
        if rng.random() < SWAPPED:
            own = rng.sample(own, len(own))
        # The owner's own examples come first in a file.
        examples = own[: min(max(3, size), len(own) - LEFT)]
        said = "" if rng.random() < UNDESCRIBED else one.described[name]
        profiles.append(AdapterProfile(str(i), "1.0.0", description=said, examples=tuple(examples)))
        asked += [(text, str(i)) for text in own if text not in examples]
    none = [(text, "") for one in chosen for text in one.none]
    others = [(text, "") for one, name in every if (one, name) not in drawn for text in one.texts[name]]
    groups = {"known": asked, "none": none, "others": others}
    requests = [
        pair for kind, rows in groups.items() for pair in rng.sample(rows, min(ASKED[kind], len(rows)))
    ]
    return Episode(tuple(profiles), requests)


def held_back(one: Deployment, count: int = 8) -> Episode:
    """The first examples of each adapter; all other texts are asked."""
    profiles = tuple(
        AdapterProfile(name, "1.0.0", description=one.described[name], examples=tuple(texts[:count]))
        for name, texts in one.texts.items()
    )
    asked = [(text, name) for name, texts in one.texts.items() for text in texts[10:]]
    return Episode(profiles, asked + [(text, "") for text in one.none])


class Trainee(torch.nn.Module):
    """fewshot.Network in torch."""

    def __init__(self, own: int, shared: int) -> None:
        super().__init__()
        joint = 2 * HIDDEN + shared

        def layers(inputs: int, outputs: int) -> torch.nn.Sequential:
            first, last = torch.nn.Linear(inputs, HIDDEN), torch.nn.Linear(HIDDEN, outputs)
            return torch.nn.Sequential(first, torch.nn.ReLU(), torch.nn.Dropout(DROPOUT), last)

        self.own, self.adapter = layers(own, HIDDEN), layers(HIDDEN + joint, 1)
        self.none = layers(joint, 1)

    def forward(self, own: torch.Tensor, shared: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """[requests, adapters + 1] logits."""
        seen, mask = torch.relu(self.own(own)), there[..., None]
        most = seen.masked_fill(~mask, -1.0).amax(1)
        mean = (seen * mask).sum(1) / mask.sum(1)
        joint = torch.cat([most, mean, shared], 1)
        spread = joint[:, None].expand(-1, seen.shape[1], -1)
        logits = self.adapter(torch.cat([seen, spread], 2))[..., 0].masked_fill(~there, -1e4)
        return torch.cat([logits, self.none(joint)], 1)


def standards(batch: Batch) -> dict[str, Array]:
    """Means and deviations of the features."""
    own, shared = batch[0][batch[2]], batch[1]
    return {
        "mean": own.mean(0),
        "scale": own.std(0) + 1e-3,
        "request_mean": shared.mean(0),
        "request_scale": shared.std(0) + 1e-3,
    }


def train(batch: Batch, of: dict[str, Array], seed: int) -> Trainee:
    """One network."""
    torch.manual_seed(seed)
    limit = fewshot.LIMIT
    own = torch.tensor(np.clip((batch[0] - of["mean"]) / of["scale"], -limit, limit))
    shared = torch.tensor(np.clip((batch[1] - of["request_mean"]) / of["request_scale"], -limit, limit))
    there, right = torch.tensor(batch[2]), torch.tensor(batch[3])
    net = Trainee(own.shape[2], shared.shape[1])
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=DECAY)
    steps = EPOCHS * (len(own) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1)
    for _ in range(EPOCHS):
        order = torch.randperm(len(own))
        for at in range(0, len(own) - BATCH + 1, BATCH):
            some = order[at : at + BATCH]
            logits = net(own[some], shared[some], there[some])
            loss: Any = torch.nn.functional.cross_entropy(logits, right[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    print(f"network {seed}: loss {float(loss.detach()):.3f}", flush=True)
    return net.eval()


def tensors_of(nets: Sequence[Trainee], of: dict[str, Array]) -> dict[str, torch.Tensor]:
    """In the form of fewshot.Network."""
    made = {name: torch.tensor(value, dtype=torch.float32) for name, value in of.items()}
    for name in ("own", "adapter", "none"):
        for place, layer in enumerate((0, 3)):
            linear = [getattr(net, name)[layer] for net in nets]
            weights = torch.stack([one.weight.detach().T for one in linear])
            made[f"{name}.{place}.weight"] = weights.contiguous()
            made[f"{name}.{place}.bias"] = torch.stack([one.bias.detach()[None] for one in linear])
    return made


def shown(network: fewshot.Network, batches: Sequence[Batch]) -> str:
    """With one threshold for all: the share of right ones where so many strange requests are routed."""
    chances = np.concatenate([network.chances(*batch[:3]) for batch in batches])
    right = np.concatenate([batch[3] for batch in batches])
    best, sure = chances[:, :-1].argmax(1), chances[:, :-1].max(1)
    strange, ok = right == fewshot.MOST, best == right
    said = [f"forced {ok[~strange].mean():.3f}"]
    for share in (0.033, 0.066, 0.1):
        routed = sure > np.quantile(sure[strange], 1 - share)
        some = routed & ~strange
        said.append(f"{share:.1%} strange: {(some & ok).sum() / (~strange).sum():.3f} right, ")
        said[-1] += f"{(some & ~ok).sum() / some.sum():.3f} of routed wrong"
    return "; ".join(said)


def main() -> None:
    """Train and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder with the LoRA of each training")
    parser.add_argument("--episodes", type=int, default=700)
    parser.add_argument("--output", type=Path, default=fewshot.WEIGHTS)
    asked = parser.parse_args()
    batches, checks = list[Batch](), list[Batch]()
    torch.set_num_threads(1)
    deployments = learning()
    for fold in range(FOLDS):
        rng = random.Random(fold)
        mine = [one for i, one in enumerate(deployments) if fold_of(i) == fold]
        reader = known(asked.work, fold, mine)
        learned = [one for one in mine if one.name not in HELD_BACK]
        batches += [episode(learned, rng).batch(reader) for _ in range(asked.episodes // FOLDS)]
        checks += [held_back(one).batch(reader) for one in mine if one.name in HELD_BACK]
        print(f"fold {fold}: {sum(len(batch[3]) for batch in batches)} requests", flush=True)
    joined = tuple(np.concatenate(side) for side in zip(*batches, strict=True))
    batch: Batch = (joined[0], joined[1], joined[2], joined[3])
    of = standards(batch)
    tensors = tensors_of([train(batch, of, seed) for seed in range(NETWORKS)], of)
    network = fewshot.Network({name: tensor.numpy() for name, tensor in tensors.items()})
    print(f"held back, eight examples: {shown(network, checks)}")
    save_file(tensors, asked.output)


if __name__ == "__main__":
    main()
