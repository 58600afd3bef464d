"""From a recipe to an adapter folder: the run, what a person sees of it, and its checkpoints.

Ctrl-C is a request: the step in progress is finished and saved, and a resumed run goes on as if
it had never stopped.
"""

from __future__ import annotations

import hashlib
import io
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load

from router.cli.settings import load_settings
from router.engine.base import last_occurrence
from router.errors import ConfigError, FailedPrecondition, InvalidRequest
from router.extensions.training.base import (
    LoadedBase,
    cast_weights,
    describe_machine,
    faster_dtype,
    load_base,
)
from router.extensions.training.data import Example, Rendering, Splits, load_splits
from router.extensions.training.evaluation import require_extra
from router.extensions.training.evaluation.subject import templates_here
from router.extensions.training.export import Trained, export, manifest_text
from router.extensions.training.files import write_file
from router.extensions.training.recipe import WEIGHTS, Recipe, load_recipe
from router.extensions.training.trainer import Progress, Trainer
from router.registry.format.manifest import parse_manifest
from router.registry.format.untrusted import MAX_INVOCATION_TOKENS, Severity

LINE_SECONDS = 15.0  # between two lines of a log, at most about so long


@dataclass(frozen=True, slots=True)
class Material:
    """A recipe with everything it names, loaded."""

    recipe: Recipe
    splits: Splits
    base: LoadedBase
    rendering: Rendering
    train: list[Example]
    valid: list[Example]
    invocation: list[int]  # tokens from which on the adapter is to act; none: from the beginning


def train(
    file: Path,
    output: Path | None = None,
    *,
    resume: bool = False,
    work: Path = Path("runs"),
    device: str = "auto",
) -> Path:
    """Train an adapter by the recipe in `file` and return its folder, `output` or adapters/NAME.

    A second version has a recipe of its own: NAME-SOMETHING.toml makes adapters/NAME-SOMETHING.
    A checkpoint in `work`/NAME, or NAME-SOMETHING, is written at every evaluation and on Ctrl-C (which then
    raises KeyboardInterrupt); with `resume` the run goes on from it as if it had never stopped.
    Raises ConfigError (recipe or data), FailedPrecondition (diverged; checkpoint of another run;
    `output` is something else), ResourceExhausted (disk full).
    """
    require_extra("training")  # hours of training must not end without it
    recipe = load_recipe(file)
    name = recipe.adapter.name
    if file.stem.startswith(f"{name}-"):
        name = file.stem
    output, checkpoint = output or Path("adapters") / name, work / name / "checkpoint.pt"
    note(f"{output.name}: reading the rows, loading {recipe.base.model}")
    material = prepare(recipe, device)
    base = material.base
    note(
        f"{len(material.train)} training and {len(material.valid)} validation rows; "
        f"{recipe.train.steps} steps of {recipe.train.batch} rows on {base.device}, "
        f"an evaluation every {recipe.train.eval_every}"
    )
    torch.manual_seed(recipe.train.seed)
    model = add_lora(base.model, recipe, material.invocation)
    start = start_from(model, recipe)
    dtype = faster_dtype(model, base.device)
    cast_weights(model, dtype)
    trainer = Trainer(model, material.train, material.valid, recipe.train, base.device)
    mark = fingerprint(recipe, material.train, material.valid, base.digest, start)
    if resume and (state := load_checkpoint(checkpoint, mark)) is not None:
        trainer.load_state_dict(state)
    _train(trainer, checkpoint, mark)
    trainer.keep_best()
    cast_weights(model, torch.bfloat16)
    model.eval()
    facts = _facts(material) | {"arithmetic": str(dtype).removeprefix("torch.")}
    facts |= {"start_sha256": start} if start else {}
    rows = material.splits.valid
    export(Trained(model, recipe, base, material.rendering, rows, trainer.progress, facts), output)
    checkpoint.unlink(missing_ok=True)
    return output


def prepare(recipe: Recipe, device: str) -> Material:
    """Check the data, then load the base and encode the rows."""
    splits = load_splits(recipe.data)
    base = load_base(recipe.base.model, device)
    rendering = Rendering.of(base.tokenizer, recipe.prompt.as_template())
    check_manifest(recipe, base)
    encoded = rendering.examples(splits.train)
    train = [example for example in encoded if len(example) <= recipe.data.max_tokens]
    if not train:
        raise ConfigError(f"every row of data.train is longer than data.max_tokens={recipe.data.max_tokens}")
    valid = rendering.examples(splits.valid)
    invocation = encode_invocation(recipe.lora.invocation, rendering, [*train, *valid])
    return Material(recipe, splits, base, rendering, train, valid, invocation)


def check_manifest(recipe: Recipe, base: LoadedBase) -> None:
    """Raises ConfigError for what a server would refuse in the manifest: before the training."""
    text = manifest_text(recipe, base.name, base.digest)
    _, findings = parse_manifest(text.encode(), recipe.adapter.name)
    if refused := [str(finding) for finding in findings if finding.severity is Severity.REFUSE]:
        raise ConfigError("; ".join(refused))
    try:
        templates_here(load_settings()).check(recipe.generation.as_constraint())
    except InvalidRequest as error:
        raise ConfigError(f"[generation] {error.message}") from error


def encode_invocation(text: str, rendering: Rendering, examples: Sequence[Example]) -> list[int]:
    """Tokens of an invocation, which all prompts must have. Raises ConfigError."""
    tokens = rendering.encoder.encode_template_text(text)
    if len(tokens) > MAX_INVOCATION_TOKENS:
        raise ConfigError(
            f"lora.invocation has {len(tokens)} tokens, at most {MAX_INVOCATION_TOKENS} are served"
        )
    for example in examples if tokens else ():
        if last_occurrence(example.prompt, tuple(tokens)) < 0:
            end = rendering.tokenizer.decode(example.prompt[-8:])
            raise ConfigError(
                f"lora.invocation: no {text!r} (tokens {tokens}) in a prompt that ends with {end!r}, so the "
                "adapter would never act on it; take what the base's template writes before an answer"
            )
    return tokens


def add_lora(model: Any, recipe: Recipe, invocation: Sequence[int] = ()) -> Any:
    """The base with fresh LoRA weights in its own dtype: what is evaluated is what is saved."""
    from peft import LoraConfig, get_peft_model

    lora = recipe.lora
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        task_type="CAUSAL_LM",
        alora_invocation_tokens=list(invocation) or None,
    )
    try:
        return get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:
        raise ConfigError(f"lora.targets: {error}") from error


def start_from(model: Any, recipe: Recipe) -> str:
    """Give the model the weights of `lora.start`; the sha256 of their file, "" where there is none.

    Raises ConfigError for a file that is no such thing, and for weights of another rank or other layers.
    """
    if recipe.lora.start is None:
        return ""
    file = recipe.lora.start / WEIGHTS
    try:
        data = file.read_bytes()
        weights = load(data)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"lora.start: {file} cannot be read: {error}") from error
    wanted = {key: tuple(value.shape) for key, value in get_peft_model_state_dict(model).items()}
    found = {key: tuple(value.shape) for key, value in weights.items()}
    if wanted != found:
        key = min(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
        raise ConfigError(
            f"lora.start: {key} is {_shape(found.get(key))} in {recipe.lora.start} and "
            f"{_shape(wanted.get(key))} here: rank and targets have to be those of what it starts from"
        )
    set_peft_model_state_dict(model, weights)
    return hashlib.sha256(data).hexdigest()


def _shape(shape: tuple[int, ...] | None) -> str:
    return "not there" if shape is None else " x ".join(map(str, shape))


def _train(trainer: Trainer, checkpoint: Path, mark: str) -> None:
    plan = trainer.plan
    display = Display(plan.steps)
    with interruptible() as stop:

        def after_step(done: Progress) -> bool:
            display.update(done)
            if stop.is_set() or done.step % plan.eval_every == 0:
                save_checkpoint(checkpoint, trainer.state_dict(), mark)
            return not stop.is_set()

        trainer.run(after_step)
        if stop.is_set():
            step = trainer.progress.step
            note(f"stopped and saved after step {step}; go on with the same command and --resume")
            raise KeyboardInterrupt


def _facts(material: Material) -> dict[str, Any]:
    splits = {name: len(getattr(material.splits, name)) for name in ("train", "valid", "test")}
    return {
        "rows": splits,
        "rows_left_out": len(material.splits.train) - len(material.train),
        "base_digest": material.base.digest,
        "settings": {name: getattr(material.recipe, name).model_dump() for name in ("lora", "train")},
        **describe_machine(material.base.device),
    }


# -- what a person sees, and Ctrl-C


def note(text: str) -> None:
    """One line on stderr, at once."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


class Display:
    """A line on stderr for the first step and each evaluation, and where there was none for LINE_SECONDS."""

    def __init__(self, steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._steps, self._clock = steps, clock
        self._began = self._line_at = clock()
        self._done = 0  # steps of this run, which may have been resumed

    def update(self, done: Progress) -> None:
        """One more step was made."""
        last, now = done.history[-1], self._clock()
        self._done += 1
        if "valid_loss" in last:
            kept = "kept" if done.best_step == done.step else f"best was step {done.best_step}"
            note(
                f"step {done.step}: train {last['loss']:.3f}, validation {last['valid_loss']:.3f} nats, "
                f"{last['valid_exact']:.1%} exact ({kept})"
            )
        elif self._done == 1 or now - self._line_at >= LINE_SECONDS:
            left = (now - self._began) / self._done * (self._steps - done.step)
            note(f"step {done.step} of {self._steps}: train {last['loss']:.3f}, about {left:.0f} s left")
        else:
            return
        self._line_at = now


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; a second one kills as usual.

    Outside the main thread, where Python allows no handler, the event is never set by a signal.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _: object) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    try:
        for number in before:
            signal.signal(number, ask)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -- checkpoints


def fingerprint(
    recipe: Recipe, train: list[Example], valid: list[Example], base: str, start: str = ""
) -> str:
    """sha256 over everything that decides the weights: settings, encoded rows, digests of base and start."""
    parts = [recipe.lora.model_dump(), recipe.train.model_dump(), base, *([start] if start else [])]
    rows = [[example.prompt, example.answer] for example in (*train, *valid)]
    return hashlib.sha256(json.dumps([*parts, rows]).encode()).hexdigest()


def save_checkpoint(path: Path, state: dict[str, Any], mark: str) -> None:
    """Write a checkpoint in one step."""
    buffer = io.BytesIO()
    torch.save({"fingerprint": mark, "rng": torch.get_rng_state(), "state": state}, buffer)
    write_file(path, buffer.getvalue())


def load_checkpoint(path: Path, mark: str) -> dict[str, Any] | None:
    """The saved state, or None if there is none. Raises FailedPrecondition if it is another run's."""
    if not path.is_file():
        return None
    try:
        saved = torch.load(path, weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise FailedPrecondition(f"checkpoint {path} is damaged: delete it and train afresh") from error
    if saved["fingerprint"] != mark:
        raise FailedPrecondition(
            f"checkpoint {path} belongs to another recipe, data or base: delete it, or train without --resume"
        )
    torch.set_rng_state(saved["rng"])
    state: dict[str, Any] = saved["state"]
    return state
