"""The base as its files say it, and bases that only vLLM serves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from router.engine.loader import base_digest
from router.errors import ConfigError
from router.extensions.vllm.base import read_base
from router.models import resolve_model
from tests.engine import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("base")
    tiny.model("qwen3").save_pretrained(made)
    tiny.tokenizer().save_pretrained(made)
    return made


def said(folder: Path, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text()) | more
    return found


def test_what_is_read_is_what_the_loaded_model_has(folder: Path) -> None:
    base = read_base(str(folder))
    assert base.digest == base_digest(tiny.model("qwen3"))
    assert (base.architecture, base.vocabulary) == ("Qwen3ForCausalLM", tiny.VOCABULARY)
    assert base.ends == {257}
    assert base.sites["model.layers.1.mlp.down_proj"] == (64, 96)
    assert base.size_bytes > 0


def test_a_quantised_base_has_the_same_layers(folder: Path, tmp_path: Path) -> None:
    plain = read_base(str(folder))
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    quantised = said(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    (tmp_path / "config.json").write_text(json.dumps(quantised))
    with pytest.raises(ConfigError, match="quantised"):
        resolve_model(str(tmp_path))
    assert read_base(str(tmp_path)).sites == plain.sites


def test_a_base_without_safetensors_is_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ConfigError, match="no safetensors"):
        read_base(str(tmp_path))
