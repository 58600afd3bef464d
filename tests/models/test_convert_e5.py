"""A small model in the format of the multilingual encoder's file becomes a folder that transformers reads."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from router.models import convert_e5
from router.models.convert_e5 import BLOCK, F32, Q4_0, main

HIDDEN, WIDE = 32, 64
PIECES = {
    "<s>": 0.0,
    "<pad>": 0.0,
    "</s>": 0.0,
    "<unk>": 0.0,
    "▁": -3.0,
    "▁hi": -2.0,
    "a": -4.0,
    "<mask>": 0.0,
}
ROWS = len(PIECES)
SHAPES = {
    "emb.word": (ROWS, HIDDEN),
    "emb.pos": (16, HIDDEN),
    "emb.type": (2, HIDDEN),
    "emb.ln.w": (HIDDEN,),
    "emb.ln.b": (HIDDEN,),
    **{f"l0.{name}.w": (HIDDEN, HIDDEN) for name in ("q", "k", "v", "ao")},
    "l0.fi.w": (WIDE, HIDDEN),
    "l0.fo.w": (HIDDEN, WIDE),
    **{f"l0.{name}.b": (HIDDEN,) for name in ("q", "k", "v", "ao", "fo", "aln", "oln")},
    **{f"l0.{name}.w": (HIDDEN,) for name in ("aln", "oln")},
    "l0.fi.b": (WIDE,),
}


def packed(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[int, bytes, np.ndarray]:
    """Kind, bytes and values of a tensor: matrices of weights in blocks."""
    if len(shape) == 1 or shape[0] in (16, 2):
        values = rng.standard_normal(shape).astype("<f4")
        return F32, values.tobytes(), values
    nibbles = rng.integers(0, 16, (int(np.prod(shape)) // BLOCK, BLOCK), dtype=np.uint8)
    scales = np.full(len(nibbles), 0.0625, "<f2")
    halves = nibbles[:, : BLOCK // 2] | nibbles[:, BLOCK // 2 :] << 4
    data = b"".join(s.tobytes() + row.tobytes() for s, row in zip(scales, halves, strict=True))
    return Q4_0, data, ((nibbles.astype(np.float32) - 8) * 0.0625).reshape(shape)


@pytest.fixture
def file(tmp_path):
    text = [piece.encode() for piece in PIECES]
    offsets = np.cumsum([0, *map(len, text)]).astype("<u4")
    head = b"E5S1" + struct.pack("<I7ifi", 1, HIDDEN, 1, 2, WIDE, ROWS, 16, 2, 1e-12, BLOCK)
    head += struct.pack("<5iQ", ROWS, 0, 2, 1, 3, int(offsets[-1])) + offsets.tobytes()
    head += np.array(list(PIECES.values()), "<f4").tobytes() + b"".join(text)
    head += struct.pack("<iI", 1, 5) + struct.pack("<IB", 1, 0)
    rng = np.random.default_rng(0)
    tensors = {name: packed(rng, shape) for name, shape in SHAPES.items()}
    place = len(head) + 4 + sum(2 + len(name) + 21 for name in tensors)
    listed, body = struct.pack("<i", len(tensors)), b""
    for name, (kind, data, values) in tensors.items():
        listed += struct.pack("<H", len(name)) + name.encode()
        listed += struct.pack("<BIQQ", kind, values.size, place + len(body), len(data))
        body += data
    path = tmp_path / "small.bin"
    path.write_bytes(head + listed + body)
    return path, {name: values for name, (_, _, values) in tensors.items()}


def test_weights_and_tokens_are_those_of_the_file(file, tmp_path, capsys):
    path, values = file
    main(path, tmp_path / "made")
    assert capsys.readouterr().out.splitlines()[-1] == f"{convert_e5._STEPS}/{convert_e5._STEPS}"
    model = AutoModel.from_pretrained(tmp_path / "made", dtype=torch.float32)
    state = model.state_dict()
    np.testing.assert_allclose(state["embeddings.word_embeddings.weight"], values["emb.word"])
    np.testing.assert_allclose(state["encoder.layer.0.output.dense.weight"], values["l0.fo.w"])
    np.testing.assert_allclose(state["encoder.layer.0.attention.self.key.bias"], values["l0.k.b"], rtol=0.01)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "made")
    assert tokenizer.tokenize("hi\t a\x01a ｈｉ") == ["▁hi", "▁", "a", "a", "▁hi"]
    assert tokenizer("hi")["input_ids"] == [0, 5, 2]


@pytest.mark.parametrize("change", [lambda b: b"GGUF" + b[4:], lambda b: b[:200]])
def test_another_file_is_refused(file, tmp_path, change):
    path, _ = file
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"small\.bin is no model|shorter"):
        main(path, tmp_path / "made")
