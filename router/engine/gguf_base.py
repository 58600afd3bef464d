"""A GGUF file as a base: config, weights and identity. `gguf_tokenizer` has the tokenizer.

Blocks of few bits are packed as they are; what is stored as numbers, and a table of embeddings in blocks that
is not the head, too, goes to the engine's dtype.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from router.engine.beside import beside
from router.engine.blocks import FORMS, Q8_0, BlockWeight
from router.engine.checkpoint import CLASSES, HEAD, float32_of, stored_as
from router.engine.decoder import EMBED, NORM, DecoderShape, PlainConfig, layer_name
from router.engine.gguf import PLAIN, GgufFile, GgufTensor, read_gguf
from router.engine.gguf_tokenizer import tokenizer_of
from router.engine.ops import Linear, Ops
from router.engine.weights import WeightSource, joined, joined_bias
from router.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SERVED = ("llama", "mistral", "qwen2", "qwen3")
FREQUENCIES = "rope_freqs.weight"
_WHOLE = {"token_embd.weight": EMBED, "output_norm.weight": NORM, "output.weight": HEAD}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_MOST = 1 << 20  # of any size in a config
_AT_ONCE = 1 << 24  # bytes hashed at once
_TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class GgufBase:
    """`OpenBase` of a GGUF file."""

    def __init__(self, path: Path, name: str) -> None:
        """Raises ConfigError for a file that cannot be served."""
        from router.engine.loader import check_layers, check_shapes

        self.name, self._path = name, path
        self._file = read_gguf(path)
        self._stamp = _stamp(path)
        self._tensors = {_known(own.name, path): own for own in self._file.tensors.values()}
        frequencies = self._tensors.pop(FREQUENCIES, None)
        config: Any = config_of(self._file, tied=HEAD not in self._tensors)
        self.config = config
        if frequencies is not None:
            config.rope_parameters["frequency_factors"] = self._factors(frequencies)
        check_layers(name, config.num_hidden_layers, len(self._tensors))
        self._shape = DecoderShape.of(config)
        self._shapes = self._shape.weights()
        check_shapes(name, self._shapes, {weight: own.shape for weight, own in self._tensors.items()})
        if unused := [weight for weight in self._tensors if weight not in self._shapes]:
            raise ConfigError(f"model {name!r} has {unused[0]}, which {config.model_type} does not have")
        self.architecture = CLASSES[config.model_type]
        self.vocabulary = self._shape.vocabulary
        self.parameters = sum(map(prod, self._shapes.values()))
        self._hashed = beside(self._hash, "base digest")

    @property
    def stored(self) -> str:
        """The kinds of blocks that linear layers are stored in: "Q4_K+Q6_K"; empty where there are none."""
        kinds = {own.kind_name for own in self._tensors.values() if len(own.shape) > 1 and own.kind in FORMS}
        return "+".join(sorted(kinds))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Made of the file's vocabulary when it is first asked for."""
        made = tokenizer_of(self._file)
        if len(made) > self.vocabulary:
            raise ConfigError(
                f"{self._path.name} has {len(made)} tokens and embeds {self.vocabulary} of them"
            )
        return made

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that the file calls the end of a text or of a turn."""
        facts = (self._file.facts.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot"))
        return frozenset(fact for fact in facts if isinstance(fact, int) and 0 <= fact < self.vocabulary)

    def weights(self, device: torch.device, dtype: torch.dtype) -> WeightSource:
        """Those in the file."""
        return GgufWeights(self._path, self._tensors, self._order, device, dtype)

    def whole(self, device: torch.device, dtype: torch.dtype) -> Any:
        """Raises ConfigError: only packed layers read blocks."""
        raise ConfigError(
            f"model {self.name!r} cannot be served from GGUF, since its layers are not packed: "
            "give the checkpoint that it was made of"
        )

    def digest(self) -> str:
        """That of the same weights in safetensors where all are stored as numbers; blocks count as bytes."""
        digest = self._hashed.result()
        if _stamp(self._path) != self._stamp:
            raise ConfigError(f"{self._path.name} changed while it was read: start again")
        return digest

    def _order(self, name: str) -> torch.Tensor | None:
        """The rows of a weight in transformers' order; None where they lie so.

        llama.cpp puts the two halves that rotary positions turn side by side, in files of Llama alone.
        """
        heads = {"q_proj": self._shape.heads, "k_proj": self._shape.kv_heads}.get(name.split(".")[-2])
        if heads is None or self._file.facts["general.architecture"] != "llama":
            return None
        rows = torch.arange(heads * self._shape.head_dim)
        return rows.view(heads, -1, 2).transpose(1, 2).flatten()

    def _factors(self, own: GgufTensor) -> list[float]:
        half = self.config.head_dim // 2
        if own.shape != (half,) or own.kind_name != "F32":
            raise ConfigError(f"{self._path.name}: {FREQUENCIES} does not fit heads of {2 * half} numbers")
        factors: list[float] = np.frombuffer(_bytes(self._path, own), np.float32).tolist()
        if not all(0 < factor < float("inf") for factor in factors):
            raise ConfigError(f"{self._path.name}: {FREQUENCIES} holds what is no factor")
        return factors

    def _hash(self) -> str:
        total = hashlib.sha256()
        for name, own in sorted(self._tensors.items()):
            kind = f" {own.kind_name}" if own.kind in FORMS else ""
            total.update(f"{name} {own.shape}{kind}\n".encode())
            data = _bytes(self._path, own)
            if own.kind in PLAIN:
                order = self._order(name)
                if order is not None:
                    data = data.reshape(len(order), -1)[order.numpy()].reshape(-1)
                for start in range(0, len(data), _AT_ONCE):
                    part = memoryview(data[start : start + _AT_ONCE])  # type: ignore[arg-type]
                    plain = own.kind_name == "BF16"
                    total.update(part if plain else stored_as("BF16", float32_of(own.kind_name, part)))
            else:
                total.update(data.data)
        return total.hexdigest()


class GgufWeights:
    """`WeightSource` of a GGUF file."""

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, GgufTensor],
        order: Callable[[str], torch.Tensor | None],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """`tensors` by transformers' names; `order`: the rows of one in transformers' order, or None."""
        self._path, self._tensors, self._order = path, tensors, order
        self._device, self._dtype = device, dtype

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def tensor(self, name: str) -> torch.Tensor:
        """Read whole, in the engine's dtype."""
        own = self._tensors[name]
        if own.kind in FORMS:
            return self._blocks(name).widened(self._dtype).view(own.shape).to(self._device)
        read = torch.from_numpy(_bytes(self._path, own)).view(_TORCH[own.kind_name]).view(own.shape)
        order = self._order(name)
        return (read if order is None else read[order]).to(self._device, self._dtype)

    def linear(self, modules: Sequence[str], ops: Ops, quantize: str) -> tuple[Linear, int]:
        """Blocks as they are, and numbers in the engine's dtype; of both together all are made numbers."""
        names = [f"{module}.weight" for module in modules]
        weights = [self._blocks(name) for name in names if self._tensors[name].kind in FORMS]
        if len(weights) < len(names) or not all(map(_is_exact, weights)):
            return ops.pack_linear(*joined(self, modules)), 0
        bias = joined_bias(self, modules, [weight.out for weight in weights])
        saved = sum(
            prod(self._tensors[name].shape) * self._dtype.itemsize - weight.nbytes
            for name, weight in zip(names, weights, strict=True)
        )
        return ops.pack_blocks(weights, bias, self._dtype), saved

    def close(self) -> None:
        """Nothing stays open."""

    def _blocks(self, name: str) -> BlockWeight:
        own = self._tensors[name]
        form, order = FORMS[own.kind], self._order(name)
        blocks = torch.from_numpy(_bytes(self._path, own)).view(own.shape[0], -1)
        return BlockWeight(form, blocks if order is None else blocks[order])


def config_of(file: GgufFile, *, tied: bool) -> Any:
    """The config that transformers would have. Raises ConfigError for what is not served."""
    kind: str = file.fact("general.architecture", str)
    if kind not in SERVED:
        known = ", ".join(SERVED)
        raise ConfigError(f"{file.path.name} is of architecture {kind!r}, and from GGUF {known} are served")

    def size(key: str, default: int | None = None) -> int:
        value: int = file.fact(f"{kind}.{key}", int, default)
        if not 0 < value <= (_MOST if key != "context_length" else 1 << 30):
            raise ConfigError(f"{file.path.name}: {kind}.{key} is {value}, out of range")
        return value

    heads, hidden = size("attention.head_count"), size("embedding_length")
    dim = size("attention.key_length", max(1, hidden // heads))
    kv_heads = size("attention.head_count_kv", heads)
    window: Any = file.facts.get(f"{kind}.attention.sliding_window")
    vocabulary = file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else 0
    for key, wanted in (("rope.dimension_count", dim), ("attention.value_length", dim)):
        if size(key, wanted) != wanted:
            raise ConfigError(f"{file.path.name}: {kind}.{key} is not the size of a head")
    if heads % kv_heads or dim % 2 or file.facts.get(f"{kind}.expert_count"):
        raise ConfigError(f"{file.path.name} has heads or experts that are not served")
    return PlainConfig(
        {
            "model_type": "mistral" if window and kind == "llama" else kind,
            "hidden_size": hidden,
            "intermediate_size": size("feed_forward_length"),
            "num_hidden_layers": size("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": dim,
            "vocab_size": vocabulary,
            "max_position_embeddings": size("context_length"),
            "rms_norm_eps": file.fact(f"{kind}.attention.layer_norm_rms_epsilon", float),
            "tie_word_embeddings": tied,
            "attention_bias": "blk.0.attn_output.bias" in file.tensors,
            "mlp_bias": "blk.0.ffn_down.bias" in file.tensors,
            "hidden_act": "silu",
            "sliding_window": window or None,
            "rope_parameters": _rope(file, kind),
            "dtype": torch.bfloat16,
            "_name_or_path": str(file.path),
        }
    )


def _rope(file: GgufFile, kind: str) -> dict[str, Any]:
    """Rotary positions: plain, or linearly scaled. Those of Llama 3 have factors in a tensor."""
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": file.fact(f"{kind}.rope.freq_base", float, 10000.0),
    }
    scaling = file.facts.get(f"{kind}.rope.scaling.type", "none")
    if scaling == "linear":
        rope |= {"rope_type": "linear", "factor": file.fact(f"{kind}.rope.scaling.factor", float)}
    elif scaling != "none":
        raise ConfigError(f"{file.path.name} scales rotary positions by {scaling!r}, and is not served")
    return rope


def _known(name: str, path: Path) -> str:
    """A tensor's name as transformers has it."""
    if name in _WHOLE:
        return _WHOLE[name]
    if name == FREQUENCIES:
        return name
    begin, _, rest = name.partition(".")
    index, _, rest = rest.partition(".")
    part, _, leaf = rest.rpartition(".")
    if begin != "blk" or not index.isdecimal() or part not in _IN_LAYER or leaf not in ("weight", "bias"):
        raise ConfigError(f"{path.name} has the tensor {name[:80]!r}, which no decoder that is served has")
    return f"{layer_name(int(index))}.{_IN_LAYER[part]}.{leaf}"


def _is_exact(weight: BlockWeight) -> bool:
    """Whether the native operations take every number: they have no -128, which llama.cpp never writes."""
    if weight.form is not Q8_0:
        return True
    numbers = weight.blocks.view(-1, Q8_0.size)[:, 2:]
    return not bool((numbers == 128).any())


def _bytes(path: Path, own: GgufTensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    try:
        read = np.fromfile(path, np.uint8, count=own.size, offset=own.start)
    except OSError as error:
        raise ConfigError(f"{path.name} cannot be read: {error}") from error
    if len(read) < own.size:
        raise ConfigError(f"{path.name} became shorter while it was read")
    return read


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when the file does."""
    try:
        s = path.stat()
    except OSError as error:
        raise ConfigError(f"{path.name} cannot be read: {error}") from error
    return (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
