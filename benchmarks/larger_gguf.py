"""The random weights of a shape as GGUF files for llama.cpp: as they are, and in its own 8 and 4 bits.

`python -m benchmarks.larger_gguf quantise LIBRARIES FROM TO KIND` has llama.cpp's own code make the smaller
files, in a process of its own, since a fault in it ends the process.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.contestants import ours
from benchmarks.larger_shapes import Shape, make_room
from router.engine.checkpoint import tensors_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

AS_THEY_ARE = "bf16"
KINDS = {"q8_0": 7, "q4_k_m": 15}  # llama.cpp's numbers of file types (`llama_ftype` in llama.h)
SHARES = {"q8_0": 0.54, "q4_k_m": 0.33}  # of the bytes in bfloat16, about
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def made(shape: Shape, base: Path, kind: str, libraries: Path) -> Path:
    """The file of that kind, written on first use. Raises RuntimeError where llama.cpp cannot make it."""
    plain = base.parent / f"{base.name}-{AS_THEY_ARE}.gguf"
    if not plain.exists():
        part = plain.with_suffix(".part")
        make_room(plain, shape.weight_bytes)
        write(shape, base, part)
        part.rename(plain)
    if kind == AS_THEY_ARE:
        return plain
    small = base.parent / f"{base.name}-{kind}.gguf"
    if not small.exists():
        part = small.with_suffix(".part")
        make_room(small, int(shape.weight_bytes * SHARES[kind]))
        command = ours("larger_gguf", "quantise", str(libraries), str(plain), str(part), kind)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(f"llama.cpp wrote no {kind}: {last}")
        part.rename(small)
    return small


def write(shape: Shape, base: Path, file: Path) -> None:
    """All weights as they are in one file; norms in float32, as llama.cpp wants them."""
    import gguf

    writer = gguf.GGUFWriter(file, shape.kind)
    _facts(writer, shape, base)
    plain, wide = gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType.F32
    weights = list(pieces(shape, base))
    for name, size, _ in weights:
        is_norm = len(size) == 1
        writer.add_tensor_info(
            name,
            size,
            np.dtype(np.float32),
            math.prod(size) * (4 if is_norm else 2),
            wide if is_norm else plain,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, _, values in weights:
        writer.write_tensor_data(values())
    writer.close()


def _facts(writer: Any, shape: Shape, base: Path) -> None:
    """Sizes and tokenizer."""
    import gguf

    config = json.loads((base / "config.json").read_text())
    writer.add_name(shape.name)
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(shape.vocabulary)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    tokenizer = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    words = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].__getitem__)
    special = {entry["content"] for entry in tokenizer["added_tokens"] if entry["special"]}
    kinds = [gguf.TokenType.CONTROL if word in special else gguf.TokenType.NORMAL for word in words]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words)
    writer.add_token_types(kinds)
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])


def pieces(shape: Shape, base: Path) -> Iterator[tuple[str, tuple[int, ...], Any]]:
    """Name and size of each tensor, and what reads its values."""
    if shape.kind == "llama":
        yield "rope_freqs.weight", (shape.head_dim // 2,), lambda: _slower(shape, base)
    for name, tensor in tensors_of(base).items():

        def values(tensor: Any = tensor, name: str = name) -> NDArray[Any]:
            found = np.frombuffer(b"".join(map(bytes, tensor.blocks())), np.uint16).reshape(tensor.shape)
            if len(tensor.shape) == 1:
                return (found.astype(np.uint32) << 16).view(np.float32)
            heads = {"q_proj": shape.heads, "k_proj": shape.kv_heads}.get(name.split(".")[-2], 0)
            return _neighbours(found, heads) if heads and shape.kind == "llama" else found

        yield _name(name), tensor.shape, values


def _name(name: str) -> str:
    """As GGUF has it."""
    known = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in known:
        return known[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def _neighbours(weight: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows in the order of the layout `llama`: the two that are rotated together lie side by side."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def _slower(shape: Shape, base: Path) -> NDArray[np.float32]:
    """By how much each frequency of the rotary positions is divided, as `llama3` of config.json says."""
    config = json.loads((base / "config.json").read_text())
    rope = config["rope_scaling"]
    steps = np.arange(0, shape.head_dim, 2) / shape.head_dim
    turns = rope["original_max_position_embeddings"] / (2 * math.pi * config["rope_theta"] ** steps)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / (kept + (1 - kept) / rope["factor"])).astype(np.float32)


class _Parameters(ctypes.Structure):
    """The beginning of llama.cpp's `llama_model_quantize_params`, with room for what follows."""

    _fields_ = (("threads", ctypes.c_int32), ("kind", ctypes.c_int32), ("rest", ctypes.c_char * 504))


def quantise(libraries: Path, source: Path, into: Path, kind: str) -> None:
    """By the code of llama.cpp's own `llama-quantize`."""
    for name in ("libggml-base", "libggml", "libllama"):
        found = sorted(libraries.glob(f"{name}.*so*"))
        loaded = ctypes.CDLL(str(found[0]), mode=ctypes.RTLD_GLOBAL)
        if name == "libggml":
            loaded.ggml_backend_load_all_from_path(str(libraries).encode())
    loaded.llama_model_quantize_default_params.restype = _Parameters
    parameters = loaded.llama_model_quantize_default_params()
    parameters.threads, parameters.kind = len(os.sched_getaffinity(0)), KINDS[kind]
    failed = loaded.llama_model_quantize(str(source).encode(), str(into).encode(), ctypes.byref(parameters))
    if failed:
        raise SystemExit(f"llama_model_quantize returned {failed}")


if __name__ == "__main__":
    quantise(Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5])
