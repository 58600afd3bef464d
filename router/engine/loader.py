"""The base as it comes from disk: its config, weights and identity, and the device and dtype for it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from router.engine.checkpoint import (
    CLASSES,
    HEAD,
    NO_PARAMETERS,
    BaseFiles,
    Tensor,
    ends_of,
    open_files,
    parameters,
)
from router.engine.decoder import DecoderShape, plain_config
from router.engine.weights import DTYPES, FileWeights, ModuleWeights, WeightSource
from router.errors import ConfigError
from router.models.importing import import_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


log = logging.getLogger(__name__)
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_PLAIN = frozenset((*_DTYPES.values(), torch.float64))


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What came from disk: the model in its checkpoint's dtype, on the CPU."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str


def load_model(source: str | Path, name: str) -> LoadedModel:
    """Any causal language model that transformers loads; no code from the checkpoint runs."""
    import_transformers()
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(source, name)
    with _as_config_error(name):
        model: Any = AutoModelForCausalLM.from_pretrained(source, dtype="auto", trust_remote_code=False)
    return LoadedModel(model.eval().requires_grad_(False), tokenizer, name)


def load_tokenizer(source: str | Path, name: str, config: Any = None) -> PreTrainedTokenizerBase:
    """Transformers' tokenizer. It would read the `config` by itself; where that is known it need not.

    Raises ConfigError.
    """
    import_transformers()
    from transformers import AutoTokenizer

    with _as_config_error(name):
        return AutoTokenizer.from_pretrained(source, config=config, trust_remote_code=False)


@contextmanager
def _as_config_error(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {name!r} cannot be loaded: {error}") from error


class LoadedBase:
    """A base that is in memory. It is taken apart when its weights are packed.

    `config` is as transformers has it, `architecture` is transformers' class, `vocabulary` counts the logits
    of a token; `ends` are the tokens that end an answer as the generation config says.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        model: Any = loaded.model
        self._model, self._digest = model, base_digest(model)
        self.name, self.config, self.tokenizer = loaded.name, model.config, loaded.tokenizer
        self.architecture, self.ends = type(model).__name__, end_tokens(model)
        self.vocabulary = int(model.get_output_embeddings().weight.shape[0])
        self.parameters = sum(p.numel() for p in model.parameters())

    def weights(self, device: torch.device, dtype: torch.dtype) -> WeightSource:
        """The model's own, for packed layers."""
        return ModuleWeights(self.whole(device, dtype))

    def whole(self, device: torch.device, dtype: torch.dtype) -> Any:
        """The model, placed."""
        place(self._model, device, dtype)
        return self._model

    def digest(self) -> str:
        """The base's identity, `base_digest`, as it was before anything was placed."""
        return self._digest


class StoredBase:
    """The same of safetensors files of a known shape, which are read when the weights are packed."""

    def __init__(self, files: BaseFiles, name: str, config: Any) -> None:
        """Raises ConfigError where the files do not fit the config."""
        self.name, self.config, self._files = name, config, files
        self.architecture = CLASSES[config.model_type]
        check_layers(name, config.num_hidden_layers, len(files.tensors))
        self._shapes = DecoderShape.of(config).weights()
        check_shapes(name, self._shapes, {weight: own.shape for weight, own in files.tensors.items()})
        self.vocabulary = int(config.vocab_size)
        self.parameters = sum(map(prod, self._shapes.values()))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Read when it is first asked for. Raises ConfigError where it cannot be loaded."""
        named = names_its_tokenizer(self._files.folder)
        return load_tokenizer(self._files.folder, self.name, self.config if named else None)

    @property
    def ends(self) -> frozenset[int]:
        """Of generation_config.json, else of the config."""
        if (self._files.folder / "generation_config.json").is_file():
            with _as_config_error(self.name):
                return ends_of(self._files.folder)
        return _tokens(self.config.eos_token_id)

    def weights(self, device: torch.device, dtype: torch.dtype) -> WeightSource:
        """Those in the files."""
        own = {name: self._files.tensors[name] for name in self._shapes}
        loaded = self.config.dtype
        if not isinstance(loaded, torch.dtype):
            loaded = DTYPES[next(iter(own.values())).dtype]
        return FileWeights(own, loaded, dtype, device)

    def whole(self, device: torch.device, dtype: torch.dtype) -> Any:
        """As transformers loads it."""
        model: Any = load_model(self._files.folder, self.name).model
        place(model, device, dtype)
        return model

    def digest(self) -> str:
        """Computed beside everything else; waits for it. Raises ConfigError for files that changed."""
        return self._files.digest(self._shapes.keys())


OpenBase = LoadedBase | StoredBase  # of which everything is known but its weights


def open_base(folder: Path, name: str, files: BaseFiles | None = None) -> OpenBase:
    """The base in a folder; its weights are read later where `CLASSES` has its type, else now.

    `files`: the same folder's, where they are open already.
    """
    config: Any = plain_config(folder)
    if config is None:
        import_transformers()
        from transformers import AutoConfig

        with _as_config_error(name):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.model_type in CLASSES:
        files = files or open_files(folder, name)
    if files is None or not is_plain(files.tensors, config):
        return LoadedBase(load_model(folder, name))
    return StoredBase(files, name, config)


def names_its_tokenizer(folder: Path) -> bool:
    """Whether tokenizer_config.json names the class, so that nothing but the type of the base matters."""
    try:
        said: Any = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and bool(said.get("tokenizer_class")) and "auto_map" not in said


def is_plain(tensors: Mapping[str, Tensor], config: Any) -> bool:
    """Whether it is known what transformers makes of them: numbers of one dtype, and one head."""
    kinds = {tensor.dtype for tensor in tensors.values()}
    one = len(kinds) == 1 or isinstance(config.dtype, torch.dtype)
    return one and kinds <= DTYPES.keys() and not (config.tie_word_embeddings and HEAD in parameters(tensors))


def check_layers(name: str, layers: int, weights: int) -> None:
    """Raises ConfigError where so few weights cannot be of so many layers, before anything is made for each
    layer."""
    if layers > weights:
        raise ConfigError(
            f"model {name!r} cannot be loaded: its config says {layers} layers, and its files hold "
            f"{weights} weights"
        )


def check_shapes(
    name: str, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises ConfigError where a weight is missing or has another shape than the config says."""
    where = f"model {name!r} cannot be loaded: "
    if missing := [weight for weight in wanted if weight not in found]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConfigError(f"{where}its files do not hold {missing[0]}{more}")
    for weight, shape in wanted.items():
        if found[weight] != shape:
            given, said = list(found[weight]), list(shape)
            raise ConfigError(f"{where}{weight} has shape {given}, and by config.json it has {said}")
    unused = [weight for weight in found if weight not in wanted and not weight.endswith(NO_PARAMETERS)]
    if unused := [weight for weight in unused if weight != HEAD]:
        log.warning("%d weights of the base are not used, such as %s", len(unused), unused[0])


def place(model: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Move the model to `device` in `dtype`; its rotary frequencies stay in float32, as they were loaded.

    In bfloat16 a frequency is up to 0.33 % off, and the angle of a late position by many turns.
    Raises ConfigError for weights that are not plain floating-point numbers: `to` would take float8 or
    integers at face value, without the scales that belong to them.
    """
    for name, parameter in model.named_parameters():
        if parameter.dtype not in _PLAIN:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise ConfigError(
                f"the base's weight {name} is stored as {kind}, which is not served: give a checkpoint in "
                "bfloat16, float16 or float32"
            )
    exact = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name.endswith("inv_freq")
    ]
    model.to(device, dtype)
    for module, name, buffer in exact:
        setattr(module, name, buffer.to(device))


def base_digest(model: nn.Module) -> str:
    """The base's identity, as adapters' manifests pin it: sha256 hex over all parameters.

    Of every parameter name, shape and value count, tied weights once, in the order of names.
    Values are rounded to bfloat16 first, so that a checkpoint has one digest whether it is
    loaded as bfloat16 or as float32. (As float16 too, unless it holds values below 2**-24.)
    Call it on the model as loaded, before any layer is swapped or wrapped.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters(remove_duplicate=True)):
        values = parameter.detach().to(device="cpu", dtype=torch.bfloat16).contiguous()
        digest.update(f"{name} {tuple(values.shape)}\n".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def pick_device(wanted: str) -> torch.device:
    """`auto` takes the first CUDA device, else the CPU. A CUDA device always has its number."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ConfigError(f"device {wanted!r} is not known to torch") from error
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise ConfigError("device cuda was asked for, but this torch sees no CUDA device")
    found, index = torch.cuda.device_count(), device.index or 0
    if index >= found:
        raise ConfigError(
            f"device {wanted} was asked for, but this torch sees {found} CUDA device(s), from 0 on"
        )
    return torch.device("cuda", index)


def use_device(device: torch.device) -> None:
    """For every thread that works on it: kernels, pinned memory and graphs go to the thread's own device."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """`auto` takes bfloat16 where the device multiplies it natively, else float16 (CUDA) or float32."""
    if wanted != "auto":
        return _DTYPES[wanted]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def context_length(config: Any, limit: int) -> int:
    """The base's own limit, or the smaller one that was asked for."""
    own = int(getattr(config, "max_position_embeddings", 0) or 2048)
    return min(own, limit) if limit else own


def end_tokens(model: Any) -> frozenset[int]:
    """Tokens that end an answer as the model's generation config says."""
    return _tokens(getattr(model.generation_config, "eos_token_id", None))


def _tokens(value: int | list[int] | None) -> frozenset[int]:
    if value is None:
        return frozenset()
    return frozenset([value] if isinstance(value, int) else value)
