"""`python recipes/routing/encoder.py WORK`: train the LoRA of the sentence encoder, in router/models.

The encoder has to place requests for one adapter near each other for adapters that it has never seen. It
learns that from the deployments in `learning/`: each step draws adapters of one deployment, a few of their
texts as examples and others as requests, and requests for none of them (episodes, as in Vinyals et al. 2016).
The chance of an adapter is a softmax of its smooth maximum over the cosines to its examples; "none" has a
cosine of its own, which is learned.

The LoRA is the average of three trainings. Each leaves out another third of the deployments, and its own LoRA
stays in WORK: scorer.py and general.py read each deployment with the one that has not learned from it.

Prints the loss, and for the deployments named by --check how many requests have an example of the right
adapter nearest. A training takes about eight minutes on one core; `--folds 0 --threads 1` does one of them.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from router.classifiers.texts import cut_middle
from router.models.base import fetch_encoder
from router.models.encoder import HEAD, LORA, TAIL, WEIGHTS

HERE = Path(__file__).parent
FOLDS = 3  # trainings; each leaves out another third of the deployments
HELD_BACK = (  # not learned from by scorer.py; general.py fits the weights of votes with them
    "museum",
    "game_publisher",
    "payment_gateway",
    "secondary_school",
    "bank",
    "customs_broker",
    "home_app",
    "railway",
    "cloud_hosting_provider",
    "newspaper",
    "pharma_lab",
    "supermarket",
)
RANK = 8
RATE, WARM_STEPS = 4e-4, 15
EXAMPLES, REQUESTS = (2, 4, 6), 3  # of an adapter in one step
NONE, GENERAL = 10, 5  # requests for none in one step: of the deployment, of those that classifiers know
MOST_TOKENS = 112
CHUNK = 24  # texts of like length that are read together
DESCRIBED = 0.7  # share of adapters whose description counts as an example in a step
MIXED = 0.3  # share of steps whose adapters are of two deployments
LAYERS = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")


@dataclass(frozen=True, slots=True)
class Deployment:
    """Texts and description of each adapter, and requests for none."""

    name: str
    texts: dict[str, list[str]]
    described: dict[str, str]
    none: list[str]


def read_learning(path: Path) -> Deployment:
    """A file of `learning/`."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts: dict[str, list[str]] = {}
    for row in rows:
        if row["part"] in ("example", "request"):
            texts.setdefault(row["adapter"], []).append(row["text"])
    described = {row["adapter"]: row["description"] for row in rows if row["part"] == "adapter"}
    return Deployment(path.stem, texts, described, [row["text"] for row in rows if row["part"] == "none"])


def learning() -> list[Deployment]:
    """All deployments of `learning/`, by name."""
    return [read_learning(path) for path in sorted((HERE / "learning").glob("*.jsonl"))]


def fold_of(place: int) -> int:
    """Of the deployment at a place of `learning()`: the training that leaves it out."""
    return place % FOLDS


class Trainee:
    """The encoder with a LoRA, a sharpness and the cosine of "none" that are learned together."""

    def __init__(self) -> None:
        folder = fetch_encoder()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(LAYERS), bias="none")
        # No dropout: each text is read about twice. Eager attention is the faster one on short texts.
        plain = AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.model: Any = get_peft_model(plain, config)
        self.log_sharpness = torch.nn.Parameter(torch.tensor(2.3))
        self.none = torch.nn.Parameter(torch.tensor(0.35))

    def vectors(self, texts: Sequence[str]) -> torch.Tensor:
        """[texts, 384] unit vectors."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        parts = [self._read([texts[i] for i in order[at : at + CHUNK]]) for at in range(0, len(order), CHUNK)]
        places = torch.empty(len(order), dtype=torch.long)
        places[torch.tensor(order)] = torch.arange(len(order))
        return torch.cat(parts)[places]

    def _read(self, texts: Sequence[str]) -> torch.Tensor:
        cut = [cut_middle(text, HEAD, TAIL) for text in texts]
        batch = self.tokenizer(
            cut, padding=True, truncation=True, max_length=MOST_TOKENS, return_tensors="pt"
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = self.model(**batch).last_hidden_state.float()
        mask = batch["attention_mask"].unsqueeze(-1)
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)

    def loss(
        self, adapters: Sequence[tuple[str, Sequence[str]]], none: Sequence[str], rng: random.Random
    ) -> torch.Tensor:
        """Cross-entropy of one step on adapters, each with its description and its texts."""
        count, examples, requests = rng.choice(EXAMPLES), list[str](), list(none)
        owners, labels = list[int](), [len(adapters)] * len(none)
        for i, (description, texts) in enumerate(adapters):
            drawn = rng.sample(texts, min(len(texts), count + REQUESTS))
            said = [*drawn[:count], description] if rng.random() < DESCRIBED else drawn[:count]
            examples += said
            owners += [i] * len(said)
            requests += drawn[count:]
            labels += [i] * len(drawn[count:])
        vectors = self.vectors([*examples, *requests])
        cosines = vectors[len(examples) :] @ vectors[: len(examples)].T
        sharpness, owner = self.log_sharpness.exp(), torch.tensor(owners)
        logits = [
            torch.logsumexp(sharpness * cosines[:, owner == i], 1) - math.log(max(1, owners.count(i)))
            for i in range(len(adapters))
        ]
        logits.append((sharpness * self.none).expand(len(requests)))
        target = torch.tensor(labels)
        return torch.nn.functional.cross_entropy(torch.stack(logits, 1), target, label_smoothing=0.05)

    def save(self, folder: Path) -> None:
        """In PEFT's format, in bfloat16."""
        self.model.save_pretrained(folder)
        tensors = {name: tensor.bfloat16() for name, tensor in load_file(folder / WEIGHTS).items()}
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})
        (folder / "README.md").unlink(missing_ok=True)


def drawn(
    deployments: Sequence[Deployment], rng: random.Random
) -> tuple[list[tuple[str, list[str]]], list[str]]:
    """Description and texts of up to eight adapters, and texts for none of them."""
    chosen = rng.sample(deployments, 2 if rng.random() < MIXED else 1)
    adapters = [(one.described[name], texts) for one in chosen for name, texts in one.texts.items()]
    none = rng.sample(chosen[0].none, NONE) + rng.sample(general_requests(), GENERAL)
    return rng.sample(adapters, min(8, len(adapters))), none


@cache
def general_requests() -> list[str]:
    """What the classifiers that are shipped know of requests for nobody."""
    plugins = HERE.parents[1] / "plugins"
    files = [plugins / "background.txt", plugins / "strangers.txt"]
    lines = [line for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line.strip() and not line.startswith("# ")]


def nearest_right(trainee: Trainee, name: str) -> float:
    """Share of a deployment's test requests whose smooth maximum is largest for the right adapter."""
    folder, owners, examples = HERE / name, list[str](), list[str]()
    for path in sorted((folder / "adapters").glob("*/adapter.toml")):
        manifest = tomllib.loads(path.read_text(encoding="utf-8"))
        examples += manifest["routing"]["examples"]
        owners += [manifest["adapter"]["name"]] * len(manifest["routing"]["examples"])
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    trainee.model.eval()
    with torch.no_grad():
        cosines = trainee.vectors([row["text"] for row in rows]) @ trainee.vectors(examples).T
    trainee.model.train()
    names, sharpness = sorted(set(owners)), float(trainee.log_sharpness.exp())
    columns = [[i for i, owner in enumerate(owners) if owner == one] for one in names]
    scores = torch.stack([torch.logsumexp(sharpness * cosines[:, some], 1) for some in columns], 1)
    found = [names[i] for i in scores.argmax(1).tolist()]
    return sum(one == row["adapter"] for one, row in zip(found, rows, strict=True)) / len(rows)


def train(deployments: Sequence[Deployment], steps: int, seed: int, check: Sequence[str]) -> Trainee:
    """One training; prints its loss, and how often the right adapter is nearest in those of `check`."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    trainee = Trainee()
    weights = [p for p in trainee.model.parameters() if p.requires_grad]
    groups = [
        {"params": weights, "lr": RATE, "weight_decay": 0.01},
        {"params": [trainee.log_sharpness, trainee.none], "lr": 5e-3},
    ]
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARM_STEPS) * max(0.05, 1 - step / steps)
    )
    for step in range(1, steps + 1):
        adapters, none = drawn(deployments, rng)
        loss = trainee.loss(adapters, none, rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 10 == 0 or step == steps:
            print(f"seed {seed}, step {step} of {steps}: loss {float(loss):.3f}", flush=True)
    for name in check:
        print(f"{name}: {nearest_right(trainee, name):.3f} of the requests have the right adapter nearest")
    return trainee


def average(folders: Sequence[Path], output: Path) -> None:
    """Write the LoRA whose product is the mean of theirs: their matrices side by side. Averages of trainings
    generalise better than one of them (Wortsman et al. 2022)."""
    tensors = [load_file(folder / WEIGHTS) for folder in folders]
    joined = {}
    for name in tensors[0]:
        down = ".lora_A." in name
        parts = torch.cat([one[name].float() for one in tensors], 0 if down else 1)
        joined[name] = (parts if down else parts / len(folders)).bfloat16().contiguous()
    config = json.loads((folders[0] / "adapter_config.json").read_text(encoding="utf-8"))
    config.update(r=RANK * len(folders), lora_alpha=2 * RANK * len(folders))
    output.mkdir(exist_ok=True)
    (output / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file(joined, output / WEIGHTS, {"format": "pt"})


def main() -> None:
    """Train and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder for the LoRA of each training")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(FOLDS)))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=LORA)
    parser.add_argument("--check", nargs="*", default=["company", "hospital"], help="never software_vendor")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    deployments = learning()
    for fold in asked.folds:
        learned = [one for i, one in enumerate(deployments) if fold_of(i) != fold]
        trained = train(learned, asked.steps, fold, asked.check)
        trained.save(asked.work / str(fold))
    folders = [asked.work / str(fold) for fold in range(FOLDS)]
    if all((folder / WEIGHTS).is_file() for folder in folders):
        average(folders, asked.output)


if __name__ == "__main__":
    main()
