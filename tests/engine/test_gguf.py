"""GGUF files as bases: their header is not trusted, and blocks answer as the numbers they stand for."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from router.config import Settings
from router.engine import gguf as reader
from router.engine.gguf import read_gguf
from router.engine.gguf_base import GgufBase
from router.engine.loader import base_digest, load_tokenizer, open_base
from router.engine.torch_engine import TorchEngine
from router.errors import ConfigError
from router.models import resolve_model
from tests.engine import tiny
from tests.engine.gguf_files import KINDS, MIXED, write

PROMPT = list(b"an answer from a file of blocks")
ALL_BF16 = dict.fromkeys(MIXED, KINDS.BF16)


def engine(file: Path, **settings: Any) -> TorchEngine:
    values = {"dtype": "float32", "device": "cpu", "cache_tokens": 2048, "model": str(file)}
    made = TorchEngine(Settings(**(values | settings)))
    made.start()
    return made


@pytest.mark.parametrize("native", [False, True], ids=["torch", "native"])
@pytest.mark.parametrize("kind", ["llama", "llama-bias", "qwen2", "qwen3"])
async def test_base_and_adapter_answer_as_with_the_numbers_of_the_blocks(kind, native, tmp_path: Path):
    served = write(tmp_path / "base.gguf", kind, MIXED)
    tuned = tiny.save_adapter(kind, tmp_path / "a", target_modules=["q_proj", "k_proj", "down_proj"])
    made = engine(tmp_path / "base.gguf", native=native)
    try:
        assert made.info.kernels.startswith("packed")
        assert made.info.precision == "float32, weights Q4_0+Q4_1+Q8_0"
        artifact = tiny.artifact(tmp_path / "a", made)
        await made.load(artifact)
        for name, weight in tuned.get_base_model().named_parameters():
            if "lora_" not in name:
                weight.data = served[name.replace(".base_layer", "")]
        ends = frozenset({tiny.SHAPE["eos_token_id"]})
        for adapter in (artifact.digest, None):
            found, _ = await tiny.answer(made, PROMPT, adapter, max_tokens=12)
            if adapter is None:
                with tuned.disable_adapter():
                    assert found == tiny.greedy(tuned, PROMPT, found, 12, ends)
            else:
                assert found == tiny.greedy(tuned, PROMPT, found, 12, ends)
    finally:
        made.close()


async def test_frequencies_of_llama_3_are_those_of_its_config(tmp_path: Path, monkeypatch):
    """A file has them as factors, config.json as the rule they are made by."""
    rule = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rule |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    config = tiny.LlamaConfig(**tiny.SHAPE, rope_parameters=rule)
    monkeypatch.setitem(tiny.CONFIGS, "llama3", lambda: config)
    model = tiny.model("llama3")
    plain = 1.0 / 10000.0 ** (torch.arange(0, 16, 2) / 16)
    factors = plain / model.model.rotary_emb.inv_freq
    write(tmp_path / "base.gguf", "llama3", ALL_BF16, extra={"rope_freqs.weight": factors})
    made = engine(tmp_path / "base.gguf", native=False)
    try:
        found, _ = await tiny.answer(made, PROMPT, max_tokens=12)
        model.bfloat16().float()
        assert found == tiny.greedy(model, PROMPT, found, 12, frozenset({257}))
    finally:
        made.close()


def test_the_digest_is_the_checkpoints_where_nothing_was_lost(tmp_path: Path):
    for kind in ("llama", "qwen2"):
        write(tmp_path / f"{kind}.gguf", kind, ALL_BF16)
        base = open_base(tmp_path / f"{kind}.gguf", kind)
        assert base.digest() == base_digest(tiny.model(kind))
        assert base.stored == ""


def test_an_adapter_of_the_checkpoint_is_accepted_where_the_operator_says_so(tmp_path: Path):
    file, origin = tmp_path / "base.gguf", base_digest(tiny.model("qwen2"))
    write(file, "qwen2", MIXED)
    own, made = engine(file, native=False), engine(file, native=False, quantized_from=origin)
    try:
        assert own.info.digest != origin
        assert made.info.digest == origin
        kinds = "Q4_0+Q4_1+Q8_0"
        assert own.info.served_digest == f"{own.info.digest}+{kinds}"
        assert made.info.served_digest == f"{origin}+{kinds}-{own.info.digest[:12]}"
    finally:
        own.close()
        made.close()


def test_4_bits_stay_4_bits_in_memory(tmp_path: Path):
    write(tmp_path / "base.gguf", "llama", MIXED | {"ffn_down": KINDS.Q4_1, "token_embd": KINDS.Q8_0})
    made = engine(tmp_path / "base.gguf", native=True, dtype="bfloat16")
    try:
        blocks = sum(t.size for t in read_gguf(tmp_path / "base.gguf").tensors.values() if len(t.shape) > 1)
        norms = 2 * 5 * 64
        assert made.info.size_bytes == blocks + norms  # the table of embeddings is the head
    finally:
        made.close()


@pytest.mark.parametrize("settings", [{"quantize": "int4"}, {"quantized_from": "0" * 63}])
def test_settings_that_do_not_fit_are_refused(settings, tmp_path: Path):
    write(tmp_path / "base.gguf", "llama", MIXED)
    with pytest.raises((ConfigError, ValueError), match="quantize"):
        engine(tmp_path / "base.gguf", **settings)


def test_a_base_in_numbers_is_quantized_from_nothing(tmp_path: Path):
    write(tmp_path / "base.gguf", "qwen2", ALL_BF16)
    origin = base_digest(tiny.model("qwen2"))
    engine(tmp_path / "base.gguf", quantized_from=origin).close()  # it says what is so
    with pytest.raises(ConfigError, match=f"leave out quantized_from.*{origin}"):
        engine(tmp_path / "base.gguf", quantized_from="0" * 64)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path):
    write(tmp_path / "base.gguf", "llama", MIXED)
    base = GgufBase(tmp_path / "base.gguf", "b")
    base.digest()
    with (tmp_path / "base.gguf").open("ab") as opened:
        opened.write(b"0")
    with pytest.raises(ConfigError, match="changed"):
        base.digest()


# -- names and tokenizers


def test_a_file_is_a_base_by_its_path(tmp_path: Path):
    write(tmp_path / "base.gguf", "llama", MIXED)
    assert resolve_model(str(tmp_path / "base.gguf")) == tmp_path / "base.gguf"


def test_the_tokenizer_is_that_of_the_checkpoint(tmp_path: Path):
    write(tmp_path / "base.gguf", "llama", MIXED, tokenizer__chat_template="{{ messages[0].content }}")
    found, own = load_tokenizer(tmp_path / "base.gguf", "b"), tiny.tokenizer()
    text = "Zwei Sätze, <end>: 12 345!"
    assert found(text)["input_ids"] == own(text)["input_ids"]
    assert found.decode(found(text)["input_ids"]) == own.decode(own(text)["input_ids"])
    assert (found.eos_token_id, found.pad_token_id, found.bos_token_id) == (257, 256, None)
    assert found.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "a"


def test_pieces_of_sentencepiece_merge_by_score(tmp_path: Path):
    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    words += ["\u2581", "a", "b", "c", "ab", "bc", "\u2581ab"]
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer = gguf.GGUFWriter(tmp_path / "t.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * 259 + [-9.0, -9.0, -9.0, -9.0, -2.0, -1.0, -3.0])
    writer.add_token_types(
        [gguf.TokenType.UNKNOWN, control, control, *[gguf.TokenType.BYTE] * 256, *[normal] * 7]
    )
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    tokenizer = load_tokenizer(tmp_path / "t.gguf", "t")
    assert tokenizer.tokenize("ab abc") == ["\u2581ab", "\u2581", "a", "bc"]
    assert tokenizer("ab\u00e9")["input_ids"] == [1, 265, 3 + 0xC3, 3 + 0xA9]
    assert tokenizer.decode(tokenizer("ab abc")["input_ids"], skip_special_tokens=True) == "ab abc"


# -- what is not served, and what is no file


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"general__architecture": "gemma"},
            "architecture 'gemma', and from GGUF llama, mistral",
        ),
        ({"tokenizer__ggml__pre": "future"}, "tokenizer.ggml.pre = 'future'"),
        ({"llama__rope__scaling__type": "yarn"}, "rotary positions by 'yarn'"),
        ({"llama__rope__freq_base": "high"}, "llama.rope.freq_base is str"),
        ({"llama__block_count": 1 << 20}, "its config says 1048576 layers, and its files hold 20 weights"),
    ],
)
def test_facts_that_are_not_served_are_refused(change, said, tmp_path: Path):
    write(tmp_path / "base.gguf", "llama", MIXED, **change)
    with pytest.raises(ConfigError, match=said):
        GgufBase(tmp_path / "base.gguf", "b").tokenizer  # noqa: B018


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"blk.0.ffn_gate_exps.weight": torch.zeros(2, 32)}, "the tensor 'blk.0.ffn_gate_exps.weight'"),
        ({"blk.7.attn_q.weight": torch.zeros(2, 32)}, "layers.7.self_attn.q_proj.weight, which llama"),
        ({"rope_freqs.weight": torch.zeros(8)}, "no factor"),
        ({"rope_freqs.weight": torch.ones(7)}, "does not fit heads of 16"),
    ],
)
def test_tensors_that_are_not_served_are_refused(extra, said, tmp_path: Path):
    write(tmp_path / "base.gguf", "llama", MIXED, extra=extra)
    with pytest.raises(ConfigError, match=said):
        GgufBase(tmp_path / "base.gguf", "b")


def header(tensors: int = 0, facts: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, facts)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def info(name: bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


ALIGNMENT = header(facts=1) + text(b"general.alignment") + struct.pack("<II", 4, 0)
MANY = header(tensors=1) + text(b"t") + struct.pack("<I", 1 << 30) + bytes(30)
HOSTILE = {
    "empty": (b"", "cannot be read"),
    "another file": (b"PK\3\4" + bytes(40), "does not begin with GGUF"),
    "version 1": (header(version=1), "version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648"),
    "cut": (header()[:10], "ends inside"),
    "tensors without end": (header(tensors=1 << 60), "1152921504606846976 tensors"),
    "facts without end": (header(facts=1 << 40), "1099511627776 facts"),
    "long key": (header(facts=1) + struct.pack("<Q", 1 << 50) + bytes(30), "bytes of text"),
    "no UTF-8": (header(facts=1) + text(b"\xff\xfe") + bytes(20), "UTF-8"),
    "no such type": (header(facts=1) + text(b"k") + struct.pack("<I", 77) + bytes(9), "type 77"),
    "array of arrays": (header(facts=1) + text(b"k") + struct.pack("<IIQ", 9, 9, 1), "array of type 9"),
    "array without end": (header(facts=1) + text(b"k") + struct.pack("<IIQ", 9, 10, 1 << 61), "entries"),
    "texts without end": (header(facts=1) + text(b"k") + struct.pack("<IIQ", 9, 8, 1 << 20), "entries"),
    "a fact twice": (header(facts=2) + 2 * (text(b"k") + struct.pack("<IB", 0, 1)), "'k' twice"),
    "a bad alignment": (ALIGNMENT, "alignment of 0"),
    "many dimensions": (MANY, "dimensions"),
    "a size of 0": (header(tensors=1) + info(b"t", (0, 4), 0, 0), "shape"),
    "a size without end": (header(tensors=1) + info(b"t", (1 << 63, 1 << 63), 0, 0), "shape"),
    "an unknown kind": (header(tensors=1) + info(b"t", (32,), 99, 0), "type 99"),
    "half a block": (header(tensors=1) + info(b"t", (33,), 2, 0), "multiple of 32"),
    "outside": (header(tensors=1) + info(b"t", (32,), 0, 1 << 62), "not whole"),
    "between lines": (header(tensors=1) + info(b"t", (1,), 0, 8) + bytes(99), "not whole"),
    "a tensor twice": (header(tensors=2) + 2 * info(b"t", (1,), 0, 0) + bytes(99), "'t' twice"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "said"), HOSTILE.values(), ids=HOSTILE)
def test_a_header_that_does_not_fit_is_refused(data, said, tmp_path: Path):
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(ConfigError, match=f"x.gguf.*{said}"):
        read_gguf(tmp_path / "x.gguf")


def test_every_beginning_of_a_file_is_refused(tmp_path: Path):
    write(tmp_path / "base.gguf", "llama", MIXED)
    whole = (tmp_path / "base.gguf").read_bytes()
    for end in [*range(0, 900, 7), *range(900, len(whole), 4999), len(whole) - 1]:
        (tmp_path / "cut.gguf").write_bytes(whole[:end])
        with pytest.raises(ConfigError):
            read_gguf(tmp_path / "cut.gguf")


def test_changed_bytes_raise_nothing_else(tmp_path: Path):
    write(tmp_path / "base.gguf", "llama", MIXED)
    whole = bytearray((tmp_path / "base.gguf").read_bytes())
    rng = torch.Generator().manual_seed(0)
    for place, value in torch.randint(0, 1 << 16, (300, 2), generator=rng).tolist():
        changed = bytearray(whole)
        changed[place % 7000] = value & 255
        (tmp_path / "changed.gguf").write_bytes(changed)
        try:
            base = GgufBase(tmp_path / "changed.gguf", "b")
            base.digest()
            base.tokenizer  # noqa: B018
        except ConfigError:
            pass


def test_the_limits_of_lists_hold(tmp_path: Path, monkeypatch):
    write(tmp_path / "base.gguf", "llama", MIXED)
    monkeypatch.setattr(reader, "MOST_ENTRIES", 100)
    with pytest.raises(ConfigError, match="258 entries"):
        read_gguf(tmp_path / "base.gguf")
