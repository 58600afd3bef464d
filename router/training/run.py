"""From a recipe to an adapter folder."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from router.errors import ConfigError
from router.training import checkpoint
from router.training.base import LoadedBase, load_base
from router.training.batch import Example
from router.training.data import Splits, load_splits
from router.training.export import Trained, export
from router.training.interrupt import interruptible
from router.training.machine import describe_machine
from router.training.probes import choose_probes
from router.training.recipe import Recipe, load_recipe
from router.training.rendering import Rendering
from router.training.shown import Shown
from router.training.trainer import Progress, Trainer


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asks for."""

    recipe: Path
    output: Path
    checkpoint: Path
    resume: bool
    changed: Recipe | None = None  # what to train instead of the recipe as it stands
    again: str = ""  # the command that goes on after Ctrl-C, if not `adapters train`


@dataclass(frozen=True, slots=True)
class Material:
    """A recipe with everything it names, loaded."""

    recipe: Recipe
    splits: Splits
    base: LoadedBase
    rendering: Rendering
    train: list[Example]
    valid: list[Example]


def prepare(recipe: Recipe, device: str) -> Material:
    """Check the data, then load the base and encode the rows."""
    splits = load_splits(recipe.data)
    base = load_base(recipe.base.model, device)
    rendering = Rendering.of(base.tokenizer, recipe.prompt.as_template())
    encoded = rendering.examples(splits.train)
    train = [example for example in encoded if len(example) <= recipe.data.max_tokens]
    if not train:
        raise ConfigError(f"every row of data.train is longer than data.max_tokens={recipe.data.max_tokens}")
    return Material(recipe, splits, base, rendering, train, rendering.examples(splits.valid))


def run(asked: Request, device: str) -> None:
    """Train and export; see `router.training.train`."""
    material = prepare(asked.changed or load_recipe(asked.recipe), device)
    recipe, base = material.recipe, material.base
    torch.manual_seed(recipe.train.seed)
    model = add_lora(base.model, recipe)
    trainer = Trainer(model, material.train, material.valid, recipe.train, base.device)
    mark = checkpoint.fingerprint(recipe, material.train, material.valid, base.digest)
    if asked.resume and (state := checkpoint.load(asked.checkpoint, mark)) is not None:
        trainer.load_state_dict(state)
    _train(trainer, asked, mark)
    trainer.keep_best()
    model.eval()
    probes = choose_probes(model, material.rendering, material.splits.valid, recipe.evaluation.probes)
    export(
        Trained(model, recipe, base.name, base.digest, probes, trainer.progress, _facts(material)),
        asked.output,
    )
    asked.checkpoint.unlink(missing_ok=True)


def add_lora(model: Any, recipe: Recipe) -> Any:
    """The base with fresh LoRA weights in its own dtype: what is evaluated is what is saved."""
    from peft import LoraConfig, get_peft_model

    lora = recipe.lora
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:
        raise ConfigError(f"lora.targets: {error}") from error


def _train(trainer: Trainer, asked: Request, mark: str) -> None:
    plan = trainer.plan
    with interruptible() as stop, Shown(asked.output.name, plan.steps) as shown:

        def after_step(done: Progress) -> bool:
            shown.update(done)
            if stop.is_set() or done.step % plan.eval_every == 0:
                checkpoint.save(asked.checkpoint, trainer.state_dict(), mark)
            return not stop.is_set()

        trainer.run(after_step)
        if stop.is_set():
            command = asked.again or _again(asked)
            shown.say(f"stopped and saved after step {trainer.progress.step}; go on with: {command}")
            raise KeyboardInterrupt


def _again(asked: Request) -> str:
    """The command that goes on, with the folders that were asked for."""
    folder = asked.checkpoint.parent
    words = ["lora-router", "adapters", "train", str(asked.recipe), "--resume"]
    if asked.output != Path("adapters") / folder.name:
        words += ["--output", str(asked.output)]
    if folder.parent != Path("runs"):
        words += ["--work", str(folder.parent)]
    return shlex.join(words)


def _facts(material: Material) -> dict[str, Any]:
    splits = {name: len(getattr(material.splits, name)) for name in ("train", "valid", "test")}
    return {
        "rows": splits,
        "rows_left_out": len(material.splits.train) - len(material.train),
        "base_digest": material.base.digest,
        "settings": {name: getattr(material.recipe, name).model_dump() for name in ("lora", "train")},
        **describe_machine(material.base.device),
    }
