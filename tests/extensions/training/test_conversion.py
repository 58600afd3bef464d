"""Adapter folders that cannot be served, as ones that can; what would change answers is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from router.errors import AdapterRejected, ConfigError
from router.extensions.training.conversion import ConversionBase, convert
from router.registry.format.artifact import FolderRules, validate_folder
from tests.cli.tiny import EMBEDDING, write_adapter, write_base

Q = "base_model.model.model.layers.0.self_attn.q_proj"
WHOLE = "base_model.model.model.embed_tokens.modules_to_save.weight"
VOCABULARY = len(EMBEDDING)


@pytest.fixture
def base(tmp_path: Path) -> ConversionBase:
    return ConversionBase(write_base(tmp_path / "base"), VOCABULARY)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "in", manifest='[adapter]\nname = "m"\n')


@pytest.fixture
def made(source: Path, base: ConversionBase, tmp_path: Path) -> Callable[[], list[str]]:
    def run() -> list[str]:
        return convert(source, tmp_path / "out", base, lambda folder: None)

    return run


def rewrite(source: Path, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    tensors = load_file(source / "adapter_model.safetensors") | more
    save_file(tensors, source / "adapter_model.safetensors")
    return tensors


def configure(source: Path, **changes: object) -> None:
    path = source / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tokenizer(source: Path, *tokens: str, pad: str = "<pad>") -> None:
    added = [{"id": VOCABULARY + n, "content": token} for n, token in enumerate(tokens)]
    (source / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    (source / "tokenizer_config.json").write_text(json.dumps({"pad_token": pad}))


def same_weights(one: dict[str, torch.Tensor], folder: Path) -> bool:
    other = load_file(folder / "adapter_model.safetensors")
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_pickle_becomes_safetensors(source: Path, made, tmp_path: Path) -> None:
    tensors = rewrite(source)
    torch.save(tensors, source / "adapter_model.bin")
    (source / "adapter_model.safetensors").unlink()
    assert made() == ["read adapter_model.bin"]
    assert same_weights(tensors, tmp_path / "out")
    assert (tmp_path / "out" / "adapter.toml").is_file()
    assert validate_folder(tmp_path / "out", FolderRules(None)).ok


class Harm:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("harm"),)


def test_a_folder_that_needs_nothing_says_so(source: Path, made, tmp_path: Path) -> None:
    assert made() == ["nothing had to be changed: it could be served as it was"]
    (source / "adapter_config.json").unlink()
    with pytest.raises(ConfigError, match=r"in has no adapter_config\.json"):
        made()


def test_a_pickle_that_runs_code_is_not_loaded(
    source: Path, made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (source / "adapter_model.safetensors").unlink()
    (source / "adapter_model.bin").write_bytes(pickle.dumps({"a": Harm()}, protocol=2))
    with pytest.raises(ConfigError, match="what a pickle holds is never run here"):
        made()
    assert not (tmp_path / "harm").exists()
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_with_a_new_pad_token_is_left_out(source: Path, made, tmp_path: Path) -> None:
    tokenizer(source, "<pad>")
    (said,) = made()
    assert "its only new token, <pad>, pads batches" in said
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_other_new_tokens_are_refused(source: Path, made) -> None:
    tokenizer(source, "<pad>", "<tool>")
    with pytest.raises(AdapterRejected, match=r"not for padding .'<tool>'"):
        made()


@pytest.mark.parametrize("rows", [VOCABULARY, VOCABULARY + 1])
def test_whole_matrices_that_are_the_bases_are_left_out(
    source: Path, made, tmp_path: Path, rows: int
) -> None:
    tensors = rewrite(source)
    whole = torch.from_numpy(np.concatenate([EMBEDDING, np.ones((rows - VOCABULARY, 8), np.float32)]))
    rewrite(source, **{WHOLE: whole})
    configure(source, modules_to_save=["embed_tokens"])
    if rows > VOCABULARY:
        with pytest.raises(AdapterRejected, match="33 rows, the base has 32"):
            made()
        tokenizer(source, "<pad>")
    assert "left out 1 whole matrices that are the base's own" in made()
    assert same_weights(tensors, tmp_path / "out")
    assert validate_folder(tmp_path / "out", FolderRules(None)).ok


def test_whole_matrices_that_differ_are_refused(source: Path, made, tmp_path: Path) -> None:
    rewrite(source, **{WHOLE: torch.from_numpy(EMBEDDING) + 1})
    with pytest.raises(AdapterRejected, match=r"embed_tokens.*differs from the base's .modules_to_save"):
        made()
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_refused_is_not_written(source: Path, base: ConversionBase, tmp_path: Path) -> None:
    def check(folder: Path) -> None:
        raise AdapterRejected("no")

    with pytest.raises(AdapterRejected):
        convert(source, tmp_path / "out", base, check)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "in"]


@pytest.mark.parametrize("data", [b"", b"\x80\x02.", b"garbage" * 10, b"PK\x03\x04" + b"x" * 100])
def test_a_damaged_file_is_named(source: Path, made, data: bytes) -> None:
    (source / "adapter_model.safetensors").unlink()
    (source / "adapter_model.bin").write_bytes(data)
    with pytest.raises(ConfigError, match=r"adapter_model\.bin"):
        made()
