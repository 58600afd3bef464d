import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from router.errors import ConfigError
from tests.cli.tiny import write_adapter, write_base
from tests.commands import cli, own_folder

__all__ = ["cli", "own_folder"]


@pytest.fixture
def calls(monkeypatch):
    """What training and evaluation are asked; they answer at once."""
    made = []

    def train(recipe, output=None, **options):
        made.append((recipe, output, options))
        return output or Path("adapters/medical")

    def evaluate(names, *, say, **options):
        made.append((names, options))
        say("measuring")
        return [{"name": name} for name in names]

    monkeypatch.setattr("router.extensions.training.run.train", train)
    monkeypatch.setattr("router.extensions.training.evaluation.evaluate", evaluate)
    return made


def test_train_passes_its_flags_and_says_what_is_next(cli, calls):
    done = cli("adapters", "train", "recipes/medical.toml", "--resume", "-o", "out/medical")
    assert done.code == 0
    assert "lora-router adapters validate out/medical" in done.out
    options = {"resume": True, "work": Path("runs"), "device": "auto"}
    assert calls == [(Path("recipes/medical.toml"), Path("out/medical"), options)]


def test_evaluate_prints_its_progress(cli, calls):
    done = cli("adapters", "evaluate", "adapters/a", "adapters/b", "--rows", "20")
    assert (done.code, done.out) == (0, "measuring\n")
    options = {"adapters": Path("adapters"), "rows": 20, "device": "auto"}
    assert calls == [(["adapters/a", "adapters/b"], options)]


def test_evaluate_goes_by_the_settings(cli, calls, monkeypatch):
    monkeypatch.setenv("LORA_ROUTER_DEVICE", "cuda:1")
    assert cli("adapters", "evaluate", "adapters/a").code == 0
    assert calls[0][1]["device"] == "cuda:1"
    monkeypatch.setenv("LORA_ROUTER_QUANTIZE", "int3")
    done = cli("adapters", "evaluate", "adapters/a")
    assert done.code == 2
    assert "quantize (from environment)" in done.err
    assert len(calls) == 1


def test_evaluate_json_keeps_stdout_clean(cli, calls):
    done = cli("adapters", "evaluate", "adapters/a", "--json")
    assert json.loads(done.out) == [{"name": "adapters/a"}]
    assert done.err == "measuring\n"


def test_a_bad_recipe_is_a_misuse(cli, monkeypatch):
    def refuse(*_, **__):
        raise ConfigError("recipe.toml: train.steps must be 1 or more")

    monkeypatch.setattr("router.extensions.training.run.train", refuse)
    done = cli("adapters", "train", "recipe.toml")
    assert (done.code, done.err) == (2, "lora-router: recipe.toml: train.steps must be 1 or more\n")


# -- convert


@pytest.fixture
def pickled(own_folder, monkeypatch):
    monkeypatch.setenv("LORA_ROUTER_MODEL", str(write_base(own_folder / "tiny-base")))
    folder = write_adapter(own_folder / "in")
    weights = folder / "adapter_model.safetensors"
    torch.save(load_file(weights), folder / "adapter_model.bin")
    weights.unlink()
    return folder


def test_a_pickled_folder_becomes_one_that_is_valid(cli, pickled):
    done = cli("adapters", "convert", pickled, "adapters/m")
    assert done.code == 0, done.err
    assert done.out.splitlines()[:2] == ["read adapter_model.bin", "adapters/m"]
    assert cli("adapters", "validate", "adapters/m").code == 0
    again = cli("adapters", "convert", pickled, "adapters/m")
    assert again.code == 1
    assert "name another folder, or remove it first" in again.err


def test_what_cannot_be_served_either_way_is_not_written(cli, pickled, own_folder):
    config = pickled / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"peft_type": "LOHA"}))
    done = cli("adapters", "convert", pickled, "adapters/m")
    assert done.code == 1
    assert "cannot be served, converted either" in done.err
    assert not (own_folder / "adapters" / "m").exists()
