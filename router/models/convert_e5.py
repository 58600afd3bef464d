"""multilingual-e5-small in 4-bit blocks to a plain transformers folder:
`python -m router.models.convert_e5 FILE.bin FOLDER`.

The file, little-endian: the magic `E5S1` and a version (u32); hidden size, layers, heads, intermediate size,
rows of the embedding, positions and token types (i32 each), epsilon (f32), weights in a block (i32). Then the
tokenizer: its number of pieces and the ids of begin, end, pad and unknown (i32 each), bytes of all pieces
(u64), offsets (u32, one more than pieces), scores (f32), the pieces in UTF-8; the number of code points that
are normalised (i32), the bytes of that table (u32), and the table. Then the number of tensors (i32) and for
each a name (u16 length), a kind (u8: 0 is f32, 1 is Q4_0), its size (u32), its offset in the file and its
bytes (u64 each). A Q4_0 block is a scale (f16) and 32 weights in 16 bytes: w = scale * (nibble - 8), low
nibbles are the first 16 weights.

Runs in a process of its own; prints `done/total` lines for the parent's progress bar.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

MAGIC = b"E5S1"
BLOCK = 32  # weights
F32, Q4_0 = 0, 1  # kinds of tensors
_STEPS = 3
_Q4_0_BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", BLOCK // 2)])
# SentencePiece's `nmt_nfkc` is NFKC beside these: control characters go, others become spaces.
_DROPPED = r"[\x01-\x08\x0b\x0e-\x1f\x7f\x{8f}\x{9f}]"
_SPACES = r"[\t\n\x0c\r\x{1680}\x{200b}-\x{200f}\x{2028}\x{2029}\x{2581}\x{feff}\x{fffd}]"
_MODULES = {  # of a layer: names in the file and in BertModel
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


class _Cursor:
    """Reads values one after the other. Raises ValueError at the end of the file."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def read(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack("<" + form, self.bytes(struct.calcsize("<" + form)))
        return found

    def bytes(self, count: int) -> bytes:
        part = self.data[self.place : self.place + count]
        if len(part) != count:
            raise ValueError("the file is shorter than its header says")
        self.place += count
        return part


def main(file: Path, into: Path) -> None:
    """Write bfloat16 safetensors, config and tokenizer. Raises ValueError if it is another kind of file."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    _step(0)
    cursor = _Cursor(file.read_bytes())
    if cursor.bytes(4) != MAGIC or cursor.read("I") != (1,):
        raise ValueError(f"{file.name} is no model in 4-bit blocks of a known version")
    hidden, layers, heads, intermediate, rows, positions, kinds, epsilon, block = cursor.read("7ifi")
    if block != BLOCK:
        raise ValueError(f"{file.name} has blocks of {block} weights, expected {BLOCK}")
    config = BertConfig(
        vocab_size=rows,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=positions,
        type_vocab_size=kinds,
        layer_norm_eps=float(f"{epsilon:.3g}"),  # 1e-12 is not a float32
        hidden_act="gelu",
        dtype=torch.bfloat16,
    )
    tokenizer = _tokenizer(cursor, positions)
    _step(1)
    tensors = _tensors(cursor)
    model = BertModel(config).to(torch.bfloat16)
    model.load_state_dict(dict(_named(tensors, layers, hidden)))
    _step(2)
    model.save_pretrained(into)
    tokenizer.save_pretrained(into)
    facts = {"file": file.name, "license": "mit", "dtype": "bfloat16"}
    (into / "source.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    _step(3)


def _tokenizer(cursor: _Cursor, positions: int) -> Any:
    """XLM-RoBERTa's: SentencePiece unigrams behind NFKC."""
    count, begin, end, pad, unknown = cursor.read("5i")
    (size,) = cursor.read("Q")
    offsets, scores = cursor.read(f"{count + 1}I"), cursor.read(f"{count}f")
    text = cursor.bytes(size)
    pieces = [text[a:b].decode() for a, b in pairwise(offsets)]
    _, normalised = cursor.read("iI")
    cursor.bytes(normalised)  # NFKC and the two patterns above say the same
    made = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=unknown))
    made.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(_DROPPED), ""),
            normalizers.Replace(Regex(_SPACES), " "),
            normalizers.NFKC(),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    marks = [(pieces[begin], begin), (pieces[end], end)]
    made.post_processor = processors.TemplateProcessing(
        single=f"{pieces[begin]} $A {pieces[end]}", special_tokens=marks
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=pieces[begin],
        eos_token=pieces[end],
        cls_token=pieces[begin],
        sep_token=pieces[end],
        pad_token=pieces[pad],
        unk_token=pieces[unknown],
        mask_token=pieces[-1],
        model_max_length=positions,
        model_input_names=["input_ids", "attention_mask"],
    )


def _tensors(cursor: _Cursor) -> dict[str, NDArray[np.float32]]:
    """All tensors by their names in the file, flat."""
    (count,) = cursor.read("i")
    found: dict[str, NDArray[np.float32]] = {}
    for _ in range(count):
        (length,) = cursor.read("H")
        name = cursor.bytes(length).decode()
        kind, size, offset, size_in_bytes = cursor.read("BIQQ")
        data = cursor.data[offset : offset + size_in_bytes]
        values = {F32: _floats, Q4_0: _unpacked}[kind](data)
        if values.size != size:
            raise ValueError(f"tensor {name} has {values.size} values, expected {size}")
        found[name] = values
    return found


def _floats(data: bytes) -> NDArray[np.float32]:
    return np.frombuffer(data, "<f4").astype(np.float32)


def _unpacked(data: bytes) -> NDArray[np.float32]:
    """Of blocks."""
    blocks = np.frombuffer(data, _Q4_0_BLOCK)
    both = np.concatenate([blocks["nibbles"] & 15, blocks["nibbles"] >> 4], axis=1)
    values: NDArray[np.float32] = (both.astype(np.float32) - 8) * blocks["scale"].astype(np.float32)[:, None]
    return values.reshape(-1)


def _named(
    tensors: Mapping[str, NDArray[np.float32]], layers: int, hidden: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors with their names and shapes in BertModel."""

    def tensor(name: str, wide: int = 0) -> torch.Tensor:
        values = torch.from_numpy(tensors[name])
        return values.reshape(-1, wide) if wide else values

    yield "pooler.dense.weight", torch.zeros(hidden, hidden)  # nothing reads what it makes
    yield "pooler.dense.bias", torch.zeros(hidden)
    yield "embeddings.word_embeddings.weight", tensor("emb.word", hidden)
    yield "embeddings.position_embeddings.weight", tensor("emb.pos", hidden)
    yield "embeddings.token_type_embeddings.weight", tensor("emb.type", hidden)
    yield "embeddings.LayerNorm.weight", tensor("emb.ln.w")
    yield "embeddings.LayerNorm.bias", tensor("emb.ln.b")
    for layer in range(layers):
        for short, module in _MODULES.items():
            weight, bias = f"l{layer}.{short}.w", f"l{layer}.{short}.b"
            wide = 0 if short.endswith("ln") else tensors[weight].size // tensors[bias].size
            yield f"encoder.layer.{layer}.{module}.weight", tensor(weight, wide)
            yield f"encoder.layer.{layer}.{module}.bias", tensor(bias)


def _step(done: int) -> None:
    sys.stdout.write(f"{done}/{_STEPS}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
