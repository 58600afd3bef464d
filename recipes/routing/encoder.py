"""`python recipes/routing/encoder.py FOLDER OUTPUT`: train the LoRA of the sentence encoder.

The encoder has to place requests for one adapter near each other for adapters that it has never seen. It
learns that from `learning/`, deployments whose adapters differ in task as well as in topic, and from the
train parts of public sets of intents in FOLDER, a checkout of jianguoz/Few-Shot-Intent-Detection: BANKING77
and HWU64 (CC BY 4.0), CLINC150 (CC BY 3.0), SNIPS (CC0). Each step draws adapters, a few of their texts as
examples and others as requests (episodes, as in Vinyals et al. 2016); the chance of an adapter is a softmax
of its smooth maximum over the cosines to its examples. Requests for none of a deployment's adapters have a
cosine of their own, which is learned.

The LoRA is written with a part of the strength that it was trained with: an encoder between the plain and the
tuned one keeps what the plain one knows of other topics (Wortsman et al. 2022).

`--leave-out NAME` does not learn from that set: `benchmarks.public_routing --encoders` judges each set with
an encoder that has not seen it. A training takes about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from router.classifiers.regression import read_background
from router.classifiers.texts import cut_middle
from router.models.base import DEFAULT_ENCODER, fetch_encoder
from router.models.encoder import HEAD, LORA, TAIL, WEIGHTS

HERE = Path(__file__).parent
GENERAL_FILES = [HERE.parents[1] / "plugins" / name for name in ("background.txt", "strangers.txt")]
SETS = {"BANKING77": 1.0, "CLINC150": 1.0, "HWU64": 1.0, "SNIPS": 0.1}  # share of the steps with intents
DEPLOYMENTS = 0.6  # share of all steps that learn from deployments
RANK, ALPHA = 8, 16
STRENGTH = 0.625  # of what is written; 0.5 to 1 differ by a point on validation rows
RATE, WARM_STEPS = 4e-4, 20
INTENTS, REQUESTS = 20, 2  # of a step; of an intent
EXAMPLES = (1, 3, 5)  # of an intent
LEAST_TEXTS = 12  # of an intent
ADAPTER_EXAMPLES, ADAPTER_REQUESTS = (2, 4, 8), 3  # of an adapter
DESCRIBED = 0.7  # share of adapters whose description counts as an example
NONE, GENERAL = 8, 4  # requests for none in one step: of the deployment, of those that classifiers know
SHARPNESS, NEAR = 15.0, 0.45  # at first; the cosine of none of the adapters
MOST_TOKENS = 112
CHUNK = 24  # texts of like length that are read together
LAYERS = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")


def read_intents(folder: Path) -> dict[str, list[str]]:
    """Texts of the train part of a set by intent."""
    found: dict[str, list[str]] = {}
    lines = ((folder / "train" / file).read_text("utf-8").splitlines() for file in ("seq.in", "label"))
    for text, label in zip(*lines, strict=True):
        found.setdefault(label, []).append(text)
    return {label: texts for label, texts in sorted(found.items()) if len(texts) >= LEAST_TEXTS}


@dataclass(slots=True)
class Adapter:
    """One of a deployment."""

    description: str = ""
    examples: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Deployment:
    """Adapters that stand side by side, and requests for none of them."""

    adapters: Mapping[str, Adapter]
    none: Sequence[str]


def read_deployment(path: Path) -> Deployment:
    """A file of `learning/`."""
    adapters: dict[str, Adapter] = {}
    none: list[str] = []
    for row in map(json.loads, path.read_text("utf-8").splitlines()):
        if row["part"] == "none":
            none.append(row["text"])
            continue
        adapter = adapters.setdefault(row["adapter"], Adapter())
        if row["part"] == "adapter":
            adapter.description = row["description"]
        else:
            (adapter.examples if row["part"] == "example" else adapter.requests).append(row["text"])
    return Deployment(adapters, none)


@dataclass(frozen=True, slots=True)
class Episode:
    """Examples of each adapter, and requests with the place of the adapter that each is for, or one more."""

    examples: Sequence[Sequence[str]]
    requests: Sequence[tuple[str, int]]


def episode_of_intents(intents: Mapping[str, Sequence[str]], rng: random.Random) -> Episode:
    """One step's."""
    count = rng.choice(EXAMPLES)
    chosen = rng.sample(sorted(intents), min(len(intents), INTENTS))
    drawn = [rng.sample(intents[name], count + REQUESTS) for name in chosen]
    requests = [(text, i) for i, texts in enumerate(drawn) for text in texts[count:]]
    return Episode([texts[:count] for texts in drawn], requests)


def episode_of_deployment(of: Deployment, general: Sequence[str], rng: random.Random) -> Episode:
    """One step's."""
    count = rng.choice(ADAPTER_EXAMPLES)
    examples, requests = [], []
    for i, (_, adapter) in enumerate(sorted(of.adapters.items())):
        own = rng.sample(adapter.examples, min(count, len(adapter.examples)))
        described = [adapter.description] if rng.random() < DESCRIBED else []
        examples.append(own + described)
        requests += [(text, i) for text in rng.sample(adapter.requests, ADAPTER_REQUESTS)]
    none = rng.sample(of.none, NONE) + rng.sample(general, GENERAL)
    return Episode(examples, requests + [(text, len(examples)) for text in none])


class Trainee:
    """The encoder with a LoRA, and a sharpness that is learned with it."""

    def __init__(self) -> None:
        folder = fetch_encoder()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(LAYERS), bias="none")
        # No dropout: each text is read about twice. Eager attention is the faster one on short texts.
        plain = AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.model: Any = get_peft_model(plain, config)
        self.log_sharpness = torch.nn.Parameter(torch.tensor(math.log(SHARPNESS)))
        self.near = torch.nn.Parameter(torch.tensor(NEAR))

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

    def loss(self, episode: Episode) -> torch.Tensor:
        """Cross-entropy of one step."""
        examples = [text for texts in episode.examples for text in texts]
        vectors = self.vectors([*examples, *(text for text, _ in episode.requests)])
        sharp = self.log_sharpness.exp()
        cosines = vectors[len(examples) :] @ vectors[: len(examples)].T
        parts = torch.split(sharp * cosines, [len(texts) for texts in episode.examples], dim=1)
        logits = [torch.logsumexp(part, 1) - math.log(part.shape[1]) for part in parts]
        target = torch.tensor([place for _, place in episode.requests])
        if int(target.max()) == len(parts):
            logits.append(sharp * self.near.expand(len(target)))
        return torch.nn.functional.cross_entropy(torch.stack(logits, 1), target, label_smoothing=0.05)

    def save(self, folder: Path) -> None:
        """In PEFT's format, in bfloat16, with STRENGTH."""
        self.model.save_pretrained(folder)
        tensors = {name: tensor.bfloat16() for name, tensor in load_file(folder / WEIGHTS).items()}
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})
        path = folder / "adapter_config.json"
        changed = {"lora_alpha": ALPHA * STRENGTH, "base_model_name_or_path": DEFAULT_ENCODER}
        config = json.loads(path.read_text(encoding="utf-8")) | changed
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (folder / "README.md").unlink(missing_ok=True)


def train(
    sets: Sequence[tuple[Mapping[str, Sequence[str]], float]],
    deployments: Sequence[Deployment],
    general: Sequence[str],
    steps: int,
) -> Trainee:
    """One training on sets with their shares; prints its loss."""
    rng = random.Random(0)
    torch.manual_seed(0)
    trainee = Trainee()
    weights = [p for p in trainee.model.parameters() if p.requires_grad]
    weights += [trainee.log_sharpness, trainee.near]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.01)

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / WARM_STEPS) * max(0.02, 0.5 + 0.5 * math.cos(math.pi * step / steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for step in range(1, steps + 1):
        intents = rng.choices([some for some, _ in sets], [share for _, share in sets])[0]
        if rng.random() < DEPLOYMENTS:
            episode = episode_of_deployment(rng.choice(deployments), general, rng)
        else:
            episode = episode_of_intents(intents, rng)
        loss = trainee.loss(episode)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == steps:
            print(f"step {step} of {steps}: loss {loss.item():.3f}", flush=True)
    return trainee


def main() -> None:
    """Train and write the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path, help=f"the shipped one is {LORA}")
    parser.add_argument("--leave-out", choices=SETS, default="")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    datasets = asked.folder / "Datasets"
    sets = [(read_intents(datasets / name), share) for name, share in SETS.items() if name != asked.leave_out]
    deployments = [read_deployment(path) for path in sorted((HERE / "learning").glob("*.jsonl"))]
    general = [text for path in GENERAL_FILES for text in read_background(path, ())]
    train(sets, deployments, general, asked.steps).save(asked.output)


if __name__ == "__main__":
    main()
