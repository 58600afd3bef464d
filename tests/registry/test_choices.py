"""What operators chose, on the disk: read again, damaged, not saved."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from router.errors import NotSaved
from router.registry import choices as choosing
from router.registry import state
from router.registry.choices import MOST_SERVED, Choice, DefaultChoices, FormerDefault, choice_of
from router.types import Override

MADE = Override("1.1", "me", 1.5, "why", "no report")


def choose(choices: DefaultChoices, name: str, version: str = "", override: Override | None = None) -> None:
    """Saved and taken, as the registry does it."""
    choice = choices.with_default(name, version, override)
    choices.save(name, choice)
    choices.take(name, choice)


def read(folder: Path) -> DefaultChoices:
    choices = DefaultChoices(folder, [folder])
    choices.read()
    return choices


def test_choices_survive(tmp_path):
    choose(DefaultChoices(tmp_path, [tmp_path]), "medical", "1.0.0")
    again = read(tmp_path)
    assert (again.get("medical").version, again.get("legal")) == ("1.0.0", Choice())
    assert json.loads((tmp_path / "defaults.json").read_text())["adapters_dirs"] == [str(tmp_path)]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"defaults": []}', '{"defaults": {"a": 1}}', "\xff"])
def test_a_damaged_file_counts_as_empty_and_is_said(tmp_path, damage, caplog):
    (tmp_path / "defaults.json").write_text(damage, "latin-1")
    choices = read(tmp_path)
    assert not choices.entries()
    assert "lost" in caplog.text or damage == '{"defaults": []}'
    choose(choices, "a", "1")
    assert read(tmp_path).get("a").version == "1"


def test_overrides_go_with_the_choice(tmp_path):
    choices = DefaultChoices(tmp_path, [])
    choose(choices, "a", "1.1", MADE)
    choose(choices, "b", "2.0", replace(MADE, version="2.0", weights_sha256="ab"))
    again = read(tmp_path)
    assert again.get("a").override == MADE
    choose(again, "a", "1.0")
    choose(again, "b")
    choose(again, "never chosen")
    assert read(tmp_path).entries() == {"a": Choice(version="1.0").model_dump()}


@pytest.mark.parametrize("damage", [{"time": "now"}, {"by": 3}, {"version": None}, {"time": True}])
def test_of_several_choices_the_damaged_one_is_lost(tmp_path, damage, caplog):
    choices = DefaultChoices(tmp_path, [])
    choose(choices, "a", "1.1", MADE)
    choose(choices, "b", "2.0")
    document = json.loads((tmp_path / "defaults.json").read_text())
    document["defaults"]["a"]["override"] |= damage
    (tmp_path / "defaults.json").write_text(json.dumps(document))
    again = read(tmp_path)
    assert (again.get("a"), again.get("b").version) == (Choice(), "2.0")
    assert "the default version of a set earlier is lost: override." in caplog.text


def test_what_was_the_default_survives_and_is_bounded(tmp_path):
    choices = DefaultChoices(tmp_path, [])
    for number in range(MOST_SERVED + 2):
        choices.replaced("m", str(number), FormerDefault(weights_sha256="ab", routed=number % 2 == 0))
    assert (choices.unsaved, choices.moved) == (True, {"m"})
    choices.write()
    served = read(tmp_path).get("m").served
    assert "1" not in served
    assert served["2"] == FormerDefault(weights_sha256="ab", routed=True)


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_choice_that_cannot_be_saved_is_no_choice(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    choices = DefaultChoices(tmp_path / "file/x", [])
    with pytest.raises(NotSaved, match=r"defaults\.json"):
        choose(choices, "a", "1")
    assert choices.get("a").version == ""
    assert "default a@1 is not set: cannot write" in caplog.text


def test_the_book_says_what_was_not_saved(tmp_path, monkeypatch, caplog):
    choices = DefaultChoices(tmp_path, [])
    choose(choices, "a", "1.0")
    monkeypatch.setattr(choosing, "write_atomically", full)
    choices.went_back(MADE)
    with pytest.raises(NotSaved, match="No space"):
        choose(choices, "a", "1.1", MADE)
    assert choices.get("a") == Choice(version="1.0")
    lines = [json.loads(line)["action"] for line in (tmp_path / "overrides.jsonl").read_text().splitlines()]
    said = ["not overruled: went back", "overruled"]
    assert lines == [*said, *(f"not saved: {action}" for action in said)]
    assert "gate of a@1.1 overruled (by me: why); it found: no report" in caplog.messages
    monkeypatch.setattr(state.os, "fsync", full)
    with pytest.raises(NotSaved):
        choose(choices, "a", "1.1", MADE)


@pytest.mark.parametrize(
    "value", [[], {"version": 3}, {"override": {"by": 1}}, {"served": {"1": {}}}, {"first": 0}]
)
def test_what_another_edge_says_is_taken_whole_or_not(value: Any):
    choices = DefaultChoices(Path("/nowhere"), [])
    choices.agree("m", {"version": "1", "override": asdict(MADE), "first": "0.9"})
    before = choices.get("m")
    assert before == Choice(version="1", override=MADE, first="0.9")
    with pytest.raises(ValueError, match=r"\w"):
        choices.agree("m", value)
    assert choices.get("m") == before
    choices.agree("m", None)
    assert choices.get("m") == Choice(first="0.9")
    assert choice_of({}) == Choice()
