"""The weights file: its header, tensor names, and numbers."""

from __future__ import annotations

import copy
import itertools
import json
import struct
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load
from safetensors.numpy import save as save_safetensors

from router.engine.base import TensorData
from router.registry.format import tensors
from router.registry.format.artifact import FolderRules, read_artifact, validate_folder
from router.registry.format.tensors import (
    LENGTH_BYTES,
    SiteTensors,
    TensorEntry,
    header_length,
    is_finite,
    is_zero,
    match_sites,
    parse_header,
)
from router.registry.format.untrusted import FolderFindings
from tests.registry.format.bad_headers import BAD, ONE
from tests.registry.tiny import BASE, PREFIX, SITES, header_of, lora_tensors, pack, safetensors, write_adapter


def check(file: bytes, size: int | None = None) -> tuple[Mapping[str, TensorEntry] | None, list[str]]:
    found = FolderFindings()
    size = len(file) if size is None else size
    length = header_length(file[:LENGTH_BYTES], size, found)
    header = None if length is None else parse_header(file[: LENGTH_BYTES + length], size, found)
    assert (header is None) == found.refused
    return header, [f.code for f in found]


def test_a_file_written_by_safetensors_is_read_as_it_reads_it():
    tensors = lora_tensors()
    tensors["half"] = np.ones((2, 3), np.float16)
    file = save_safetensors(tensors, metadata={"format": "pt"})
    header, codes = check(file)
    assert codes == []
    assert header is not None
    assert header.keys() == tensors.keys()
    for name, value in load(file).items():
        entry = header[name]
        assert entry.shape == value.shape
        assert file[entry.start : entry.end] == value.tobytes()


def test_first_bytes_are_no_magic_while_the_length_is_believable():
    data = b"".join(value.tobytes() for value in lora_tensors().values())
    text = json.dumps(header_of(lora_tensors())).encode()
    for padding in range(256):  # 0x80 begins a pickle, too
        assert check(pack(text + b" " * padding, data))[1] == []


@pytest.mark.parametrize(("file", "code"), BAD.values(), ids=BAD)
def test_bad_headers_are_refused(file, code):
    header, codes = check(file)
    assert header is None
    assert codes == [code]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.slow
@given(st.sampled_from(["dtype", "shape", "data_offsets", "more"]), json_values)
def test_any_value_anywhere_is_refused_or_harmless(field, value):
    header = copy.deepcopy(ONE)
    header["t"][field] = value
    parsed, _ = check(pack(header, b"\0" * 16))
    assert parsed is None or [t.end - t.start for t in parsed.values()] == [16]


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data):
    assert check(data)[0] is None


@given(st.integers(0, 3_000), st.integers(1, 255))
def test_one_changed_byte_never_gives_spans_outside_the_file(at, flip):
    file = bytearray(safetensors(lora_tensors()))
    file[at % len(file)] ^= flip
    header, _ = check(bytes(file))
    if header is not None:
        spans = sorted((t.start, t.end) for t in header.values())
        assert spans[0][0] == LENGTH_BYTES + int.from_bytes(file[:LENGTH_BYTES], "little")
        assert spans[-1][1] == len(file)
        assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))


# -- from tensors to modules of the base, and their numbers


TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SPECIAL = {  # largest finite, smallest above zero, minus zero, infinity, minus infinity, two NaNs
    "F32": (0x7F7FFFFF, 1, 0x80000000, 0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF),
    "F16": (0x7BFF, 1, 0x8000, 0x7C00, 0xFC00, 0x7C01, 0xFFFF),
    "BF16": (0x7F7F, 1, 0x8000, 0x7F80, 0xFF80, 0x7F81, 0xFFFF),
}


def tensor(dtype: str, *bits: int) -> TensorData:
    code = "I" if dtype == "F32" else "H"
    return TensorData(dtype, (len(bits),), memoryview(struct.pack(f"<{len(bits)}{code}", *bits)))


@pytest.mark.parametrize("dtype", SPECIAL)
def test_special_values(dtype):
    largest, smallest, minus_zero, *not_finite = SPECIAL[dtype]
    assert is_finite(tensor(dtype, largest, smallest, minus_zero, 0))
    assert is_zero(tensor(dtype, 0, minus_zero))
    assert not is_zero(tensor(dtype, 0, smallest))
    assert [is_finite(tensor(dtype, 0, bits)) for bits in not_finite] == [False] * 4


@given(st.sampled_from(sorted(TORCH)), st.lists(st.integers(0, 0xFFFF), min_size=2, max_size=9))
def test_every_value_is_judged_as_torch_judges_it(dtype, bits):
    data = tensor(dtype, *(b * 65_537 if dtype == "F32" else b for b in bits))
    seen = torch.frombuffer(bytearray(data.data), dtype=TORCH[dtype])
    assert is_finite(data) == bool(torch.isfinite(seen).all())
    assert is_zero(data) == bool((seen == 0).all())


def test_the_last_of_several_chunks_is_looked_at(monkeypatch):
    monkeypatch.setattr(tensors, "CHUNK", 3)
    assert not is_finite(tensor("F16", *[0] * 6, 0x7C00))
    assert not is_zero(tensor("F16", *[0] * 6, 1))


@pytest.mark.parametrize(
    ("zeroed", "codes"), [("lora_B", ["no-effect"]), ("lora_A", ["no-effect"]), ("0.mlp", [])]
)
def test_only_an_adapter_that_changes_nothing_anywhere_is_refused(zeroed, codes, tmp_path):
    values = {name: t * np.float32(-0.0) if zeroed in name else t for name, t in lora_tensors().items()}
    folder = write_adapter(tmp_path / "a", weights=safetensors(values))
    assert [f.code for f in validate_folder(folder, FolderRules(BASE)).findings] == codes


A, B = ".lora_A.weight", ".lora_B.weight"


def match(*names: str, sites: list[str] | None = None) -> tuple[SiteTensors, FolderFindings]:
    found = FolderFindings()
    entries = {name: TensorEntry(name, "F32", (1, 1), 0, 4) for name in names}
    return match_sites(entries, list(SITES) if sites is None else sites, found), found


def both(module: str) -> tuple[str, str]:
    return module + A, module + B


Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    "module",
    [
        "base_model.model.model._orig_mod.layers.0.self_attn.q_proj",
        "base_model.model._orig_mod.model.layers.0.self_attn.q_proj",
        "_orig_mod.base_model.model.model.layers.0.self_attn.q_proj",
        "_fsdp_wrapped_module.base_model.model.model.layers.0._fsdp_wrapped_module.self_attn.q_proj",
        "base_model.model.base_model.model.model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.q_proj",
        "layers.0.self_attn.q_proj",
        "base_model.model.layers.0.self_attn.q_proj",
        "base_model.model.model.model.layers.0.self_attn.q_proj",
        "base_model.model.language_model.model.layers.0.self_attn.q_proj",
        "base_model.model.model.language_model.layers.0.self_attn.q_proj",
    ],
)
def test_known_wrappers_are_undone_and_that_is_said(module):
    tensors, found = match(*both(module))
    assert tensors.pairs.keys() == {Q}
    (note,) = found
    assert note.code == "keys-normalised"
    assert module in note.message
    assert f"-> '{Q}'" in note.message


@pytest.mark.parametrize(
    "module",
    [
        "base_model.model.model.layers.0.self_attn.q_proj2",
        "base_model.model.model.layers.0.self_attn.q_pro",
        "base_model.model.model.layers.00.self_attn.q_proj",
        "base_model.model.encoder.model.layers.0.self_attn.q_proj",
        "base_model.model.q_proj",
        "self_attn.q_proj",
        "base_model.model.model.layers.0.self_attn.Q_proj",
        "",
    ],
)
def test_nothing_is_matched_by_part_of_a_name(module):
    tensors, found = match(*both(module))
    assert tensors.pairs == {}
    assert [f.code for f in found] == ["keys-unmatched"]


def test_unmatched_names_are_given_with_their_nearest_modules():
    names = [name for i in range(2, 6) for name in both(f"{PREFIX}model.layers.{i}.self_attn.q_proj")]
    _, found = match(*names)
    (refusal,) = found
    assert "8 tensors match no module" in refusal.message
    assert "layers.2.self_attn.q_proj.lora_A.weight" in refusal.message
    assert "and 5 more" in refusal.message
    assert "nearest modules of the base: model.layers." in refusal.message


def test_nothing_is_said_to_be_normalised_if_not_everything_fits():
    _, found = match(*both(Q), *both(f"{PREFIX}other"))
    assert [f.code for f in found] == ["keys-unmatched"]


def test_two_names_for_one_tensor_are_refused():
    _, found = match(*both(PREFIX + Q), *both(Q))
    assert [f.code for f in found if f.severity == "refuse"] == ["keys-ambiguous"] * 2


def test_a_name_that_could_be_two_modules_is_refused():
    _, found = match(*both("x.q_proj"), sites=["x.q_proj", "model.x.q_proj"])
    assert [f.code for f in found] == ["keys-unmatched"]


def test_a_base_that_is_wrapped_itself_matches_as_it_is():
    site = "model.language_model.layers.0.q_proj"
    tensors, found = match(*both(PREFIX + site), sites=[site, "model.layers.0.q_proj"])
    assert (list(tensors.pairs), list(found)) == ([site], [])


@pytest.mark.parametrize("part", [A, B])
def test_half_a_lora_is_refused(part):
    _, found = match(f"{PREFIX}{Q}{part}")
    (refusal,) = found
    assert refusal.code == "keys-unpaired"
    assert f"q_proj{part}" in refusal.message


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        (f"{PREFIX}{Q}.lora_magnitude_vector.weight", "tensor-unsupported", "DoRA"),
        (f"{PREFIX}{Q}.lora_B.bias", "tensor-unsupported", "lora_bias"),
        (f"{PREFIX}model.embed_tokens.lora_embedding_A", "tensor-unsupported", "embedding"),
        (f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta", "tensor-unsupported", "tokens"),
        (f"{PREFIX}model.layers.0.mlp.experts.base_layer.lora_A.weight", "keys-unmatched", "experts"),
        ("something", "keys-unmatched", "'something'"),
    ],
)
def test_other_tensors_are_refused_for_what_they_are(name, code, words):
    _, found = match(name)
    assert code in [f.code for f in found]
    assert words in " ".join(f.message for f in found)


@pytest.mark.parametrize(
    "ending", [".weight", ".base_layer.weight", ".modules_to_save.default.weight", ".original_module.weight"]
)
def test_whole_matrices_are_set_apart_by_module(ending):
    tensors, found = match(f"{PREFIX}lm_head{ending}")
    assert (list(tensors.full), list(found)) == (["lm_head"], [])


def test_shapes_must_be_those_of_the_base(tmp_path):
    wide = {site: (out, into * 2) for site, (out, into) in SITES.items()}
    folder = write_adapter(tmp_path / "a", weights=safetensors(lora_tensors(sites=wide)))
    (refusal,) = validate_folder(folder, FolderRules(BASE)).refusals
    assert refusal.code == "shape-mismatch"
    assert "is 24x16 in the base, the adapter has A [4, 32] and B [24, 4]" in refusal.message
    assert "and 3 more" in refusal.message


def test_a_name_inside_another_names_another_site(tmp_path):
    sites = {"model.a": (4, 16), "model.a2": (8, 16)}
    base = type(BASE)(**{**{f: getattr(BASE, f) for f in BASE.__slots__}, "sites": sites})
    tensors = lora_tensors(sites=sites)
    folder = write_adapter(tmp_path / "x", {"target_modules": ["a", "a2"]}, safetensors(tensors))
    artifact, _ = read_artifact(folder, FolderRules(base))
    for site in sites:
        assert bytes(artifact.sites[site].b.data) == tensors[f"{PREFIX}{site}{B}"].tobytes()
