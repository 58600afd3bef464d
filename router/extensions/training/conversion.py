"""Adapter folders that cannot be served as they are, made ones that can, where nothing changes by that.

Pickled weights become a safetensors file. A tokenizer whose only new token is for padding, and whole matrices
that equal the base's, are left out. All else is refused.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from router.engine.checkpoint import tensors_of
from router.errors import AdapterRejected, ConfigError
from router.extensions.training.files import new_folder
from router.registry.format.folder import CONFIG, MANIFEST, PROBES, RESAVE, WEIGHTS

Tensors = dict[str, torch.Tensor]
PICKLE = "adapter_model.bin"
PREFIX = "base_model.model."
WRAPPERS = (".modules_to_save", ".original_module", ".base_layer", ".default")
TIED = {"lm_head.weight": "model.embed_tokens.weight"}  # stored once where the base shares them
# What torch and safetensors raise for damaged files.
UNREADABLE = (
    OSError,
    SafetensorError,
    RuntimeError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
)
Check = Callable[[Path], None]


@dataclass(frozen=True, slots=True)
class ConversionBase:
    """The base that the adapter is for: the folder with its weights, and its rows of tokens."""

    folder: Path
    vocabulary: int

    def weight(self, name: str) -> torch.Tensor | None:
        """A weight in float32; None if there is no such one."""
        tensors = tensors_of(self.folder)
        known = name if name in tensors else TIED.get(name, "")
        if known not in tensors:
            return None
        with safe_open(tensors[known].file, "pt") as opened:
            weight: torch.Tensor = opened.get_tensor(known)
        return weight.float()


def convert(source: Path, target: Path, base: ConversionBase, check: Check) -> list[str]:
    """Write `source`, changed as far as it must be, as the folder `target`; returns what was done.

    `check` may raise for the folder that was made. Raises ConfigError (no adapter folder, damaged files) and
    AdapterRejected, with the reason, for what cannot be converted exactly; nothing is written then.
    """
    if source.resolve() == target.resolve():
        raise ConfigError(f"{source} stays as it is: name another folder to write to")
    if not (source / CONFIG).is_file():
        raise ConfigError(f"{source} has no {CONFIG}: not an adapter folder as PEFT saves it")
    config = _json(source / CONFIG)
    tensors, done = read_weights(source)
    padding = _padding_only(source, base.vocabulary)
    done += _drop_copies(tensors, config, base, padding)
    if padding:
        done.append(
            f"left out the tokenizer: its only new token, {padding}, pads batches and is in no prompt"
        )
    with new_folder(target, marker=CONFIG) as folder:
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name in (MANIFEST, PROBES):
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        check(folder)
    return done or ["nothing had to be changed: it could be served as it was"]


def read_weights(source: Path) -> tuple[Tensors, list[str]]:
    """All weights of an adapter folder, and what to report about their file.

    A pickle is read by torch with `weights_only`, which makes tensors and runs nothing.
    """
    if (source / WEIGHTS).is_file():
        return _load(source / WEIGHTS), []
    if (source / PICKLE).is_file():
        return _load(source / PICKLE), [f"read {PICKLE}"]
    raise ConfigError(f"{source} has neither {WEIGHTS} nor {PICKLE}: no adapter folder")


def _load(path: Path) -> Tensors:
    try:
        found = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{path} is damaged, or holds more than weights, and what a pickle holds is never run here; "
            f"{RESAVE}"
        ) from error
    except UNREADABLE as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ConfigError(f"{path} is no table of weights by name")
    return {str(name): value for name, value in found.items()}


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is damaged: it is no JSON object")
    return value


# -- whole matrices, and tokens that a trainer added


def _drop_copies(tensors: Tensors, config: dict[str, Any], base: ConversionBase, padding: str) -> list[str]:
    """Whole matrices that are the base's own, but for rows of an unused pad token."""
    copies = [name for name in tensors if ".lora_" not in name and name.endswith(".weight")]
    for name in copies:
        known = name.removeprefix(PREFIX)
        for wrapper in WRAPPERS:
            known = known.replace(f"{wrapper}.", ".")
        own, copy = base.weight(known), tensors[name].float()
        if own is None:
            raise AdapterRejected(f"{known} is saved whole, and the base has no such weights")
        same_rows = copy.shape == own.shape or (
            bool(padding) and copy.shape[1:] == own.shape[1:] and copy.shape[0] > own.shape[0]
        )
        if not same_rows:
            raise AdapterRejected(
                f"{known} is saved whole with {copy.shape[0]} rows, the base has {own.shape[0]}: rows for "
                "new tokens cannot be served over a shared base; train again with the base's own vocabulary"
            )
        if not torch.equal(copy[: own.shape[0]], own):
            raise AdapterRejected(
                f"{known} is saved whole and differs from the base's (modules_to_save): only LoRA weights "
                "can be served over a shared base; train again without it"
            )
        del tensors[name]
    config["modules_to_save"] = None
    return [f"left out {len(copies)} whole matrices that are the base's own"] if copies else []


def _padding_only(source: Path, vocabulary: int) -> str:
    """The pad token, if it is the one token that the folder's tokenizer has beyond the base's; else empty.

    Raises AdapterRejected for other tokens: prompts may hold them, and the base has no rows for them.
    """
    if not (source / "tokenizer.json").is_file():
        return ""
    added = _json(source / "tokenizer.json").get("added_tokens") or []
    new = [
        str(one.get("content"))
        for one in added
        if isinstance(one, dict) and isinstance(number := one.get("id"), int) and number >= vocabulary
    ]
    pads = set()
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (source / name).is_file():
            pad = _json(source / name).get("pad_token")
            pads.add(pad.get("content") if isinstance(pad, dict) else pad)
    if other := [token for token in new if token not in pads]:
        raise AdapterRejected(
            f"the tokenizer has new tokens that are not for padding ({', '.join(map(repr, other[:5]))}), and "
            f"the base has {vocabulary} rows: train again with the base's own tokenizer"
        )
    return new[0] if new else ""
