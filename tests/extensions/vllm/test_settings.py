"""`serve --engine vllm`: what is refused before anything heavy, what is made, what is said of the base."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from router.cli.engines import engine_of
from router.cli.fleet import replica_settings
from router.cli.plugins import host_of
from router.cli.settings import load_settings
from router.cli.summary import base_lines
from router.config import Settings
from router.engine.base import Ability, BaseInfo
from router.errors import ConfigError
from router.extensions.vllm import find_base, make_engine
from router.extensions.vllm.engine import VllmEngine
from router.plugins.tables import SettingsTable


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"engine": "vllm", "quantize": "int8"}, "quantize goes not with the engine vllm"),
        ({"engine": "vllm"}, r"install the extra `vllm`.*docs/vllm.md"),
    ],
)
def test_what_cannot_be_is_told_at_once(monkeypatch: pytest.MonkeyPatch, settings: Any, said: str) -> None:
    monkeypatch.setattr("router.extensions.vllm.link.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=said):
        find_base((), load_settings(settings))


@pytest.mark.parametrize("name", ["vllm_args", "vllm.args"])
def test_arguments_are_for_this_engine_alone(name: str) -> None:
    settings = load_settings({name: "seed=1"})
    host = host_of(settings)
    host.refresh()
    with pytest.raises(ConfigError, match=rf"{name} \(from flag\) is for the engine vllm"):
        engine_of(settings, host)


def test_arguments_reach_the_engine_in_a_replica() -> None:
    settings = load_settings({"engine": "vllm", "replicas": "2", "vllm_args": ["seed=1"]})
    own = json.loads(json.dumps(replica_settings(settings), default=str))
    tables = {name: SettingsTable.of_json(values) for name, values in own["tables"].items()}
    assert tables["vllm"].values == settings.tables["vllm"].values


def test_a_quantised_base_is_vllms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("router.extensions.vllm.link.find_spec", lambda name: name)
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "awq"}}')
    assert find_base((), Settings(engine="vllm", model=str(tmp_path))) == tmp_path


def test_nothing_of_vllm_is_imported_before_the_start() -> None:
    assert isinstance(make_engine((), Settings(engine="vllm")), VllmEngine)
    code = (
        "import sys, router.extensions.vllm.link; print({'vllm', 'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_what_the_engine_cannot_do_is_said() -> None:
    info = BaseInfo("b", "d", "A", "bfloat16", "cpu", 100, 10, {}, abilities=frozenset({Ability.ACTIVATED}))
    assert (
        "cannot",
        "hidden states, the same answer in every batch, probabilities of choices, priors of choices",
    ) in base_lines(info)
    assert "cannot" not in dict(base_lines(BaseInfo("b", "d", "A", "bfloat16", "cpu", 100, 10, {})))


def test_a_base_without_a_chat_template_is_warned_of():
    info = BaseInfo("b", "d", "A", "bfloat16", "cpu", 100, 10, {})
    assert "warning" not in dict(base_lines(info))
    assert "no chat template" in dict(base_lines(replace(info, chat_template=False)))["warning"]
