"""GGUF files of bases and adapters for llama.cpp: weights as they are, and in its own 8 and 4 bits."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import llama_cpp
from benchmarks.contestants import Missing
from benchmarks.larger_shapes import make_room
from router.engine.checkpoint import tensors_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

AS_THEY_ARE = "bf16"
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
Config = Mapping[str, Any]


def made(base: Path, kind: str, into: Path) -> Path:
    """The file of that kind in the folder `into`, written on first use. Raises Missing."""
    size = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    plain = into / f"{base.name}-{AS_THEY_ARE}.gguf"
    into.mkdir(parents=True, exist_ok=True)
    try:
        if not plain.exists():
            make_room(plain, size)
            part = plain.with_suffix(".part")
            write(base, part)
            part.rename(plain)
        if kind == AS_THEY_ARE:
            return plain
        small = into / f"{base.name}-{kind}.gguf"
        if not small.exists():
            make_room(small, int(size * SHARES[kind]))
            part = small.with_suffix(".part")
            quantise = str(llama_cpp.program(llama_cpp.QUANTIZE))
            command = [quantise, str(plain), str(part), kind.upper()]
            subprocess.run(command, capture_output=True, text=True, check=True)
            part.rename(small)
        return small
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise Missing(f"llama.cpp wrote no {kind}: {last}") from error
    except OSError as error:
        raise Missing(str(error)) from error


def write(base: Path, file: Path) -> None:
    """All weights as they are in one file; norms in float32, as llama.cpp wants them."""
    import gguf

    config = _config(base)
    writer = gguf.GGUFWriter(file, config["model_type"])
    _facts(writer, config, base)
    plain, wide = gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType.F32
    weights = list(pieces(base))
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


def adapter(base: Path, folder: Path, file: Path) -> Path:
    """A PEFT folder of plain LoRA for that base as a file, in float32 as llama.cpp's converter writes it."""
    import gguf
    from safetensors.torch import load_file

    config, said = _config(base), _config(folder, "adapter_config.json")
    writer = gguf.GGUFWriter(file, config["model_type"])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(said["lora_alpha"]))
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        site, part, _ = name.removeprefix("base_model.model.").rsplit(".", 2)
        values = tensor.float().numpy()
        if part == "lora_B":
            values = _turned(config, f"{site}.weight", values)
        writer.add_tensor(f"{_name(f'{site}.weight')}.{part.lower()}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def pieces(base: Path) -> Iterator[tuple[str, tuple[int, ...], Any]]:
    """Name and size of each tensor, and what reads its values."""
    config = _config(base)
    if config.get("rope_scaling"):
        yield "rope_freqs.weight", (_head_dim(config) // 2,), lambda: _slower(config)
    for name, tensor in tensors_of(base).items():

        def values(tensor: Any = tensor, name: str = name) -> NDArray[Any]:
            found = np.frombuffer(b"".join(map(bytes, tensor.blocks())), np.uint16).reshape(tensor.shape)
            if len(tensor.shape) == 1:
                return (found.astype(np.uint32) << 16).view(np.float32)
            return _turned(config, name, found)

        yield _name(name), tensor.shape, values


def _config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name).read_text())
    return found


def _head_dim(config: Config) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _facts(writer: Any, config: Config, base: Path) -> None:
    """Sizes and tokenizer."""
    import gguf

    head = _head_dim(config)
    writer.add_name(base.name)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float((config.get("rope_parameters") or config)["rope_theta"]))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
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


def _name(name: str) -> str:
    """As GGUF has it."""
    known = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in known:
        return known[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def _turned(config: Config, name: str, rows: NDArray[Any]) -> NDArray[Any]:
    """Outputs in the order of the layout `llama`: the two that are rotated together lie side by side."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}.get(
        name.split(".")[-2], 0
    )
    if not heads or config["model_type"] != "llama":
        return rows
    halves = rows.reshape(heads, 2, -1, rows.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _slower(config: Config) -> NDArray[np.float32]:
    """By how much each frequency of the rotary positions is divided, as `llama3` of config.json says."""
    rope = config["rope_scaling"]
    head = _head_dim(config)
    steps = np.arange(0, head, 2) / head
    turns = rope["original_max_position_embeddings"] / (2 * math.pi * config["rope_theta"] ** steps)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / (kept + (1 - kept) / rope["factor"])).astype(np.float32)
