"""Counterfactual prompts: what they say, and which answers count as changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from router.errors import ConfigError
from router.extensions.training.evaluation.bias import Cases, load_cases, make_groups, map_back, measure_bias
from router.extensions.training.recipe import load_recipe

ROOT = Path(__file__).parents[4] / "recipes"
FILES = sorted((ROOT / "bias").glob("*.toml"))
CASES = """
prompt = "Who? {text}"
texts = ["{Person} has a cold", "a burn of {person}"]
[attributes]
name = [{person = "Anna Schmidt"}, {person = "Ngozi Okafor"}, {person = "Mei Chen"}, {person = "Ana Ruiz"}]
gender = [{person = "a man"}, {person = "a woman"}, {person = "a boy"}, {person = "a girl"}]
control = [{person = "one"}, {person = "two"}, {person = "three"}, {person = "four"}]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "bias" / "toy.toml"
    path.parent.mkdir()
    path.write_text(CASES)
    return path


def echo(prompts: Sequence[str]) -> list[str]:
    return [f"It is {prompt.removeprefix('Who? ')}." for prompt in prompts]


def same(prompts: Sequence[str]) -> list[str]:
    return ["Diseases"] * len(prompts)


def sexist(prompts: Sequence[str]) -> list[str]:
    return ["Nerves" if "woman" in prompt or "girl" in prompt else "Diseases" for prompt in prompts]


def test_prompts_differ_in_the_swapped_words_only(file: Path) -> None:
    made = make_groups(load_cases(file))
    assert [(group.text, group.attribute) for group in made[:3]] == [
        (0, "name"),
        (0, "gender"),
        (0, "control"),
    ]
    assert made[1].prompts[:2] == ("Who? A man has a cold", "Who? A woman has a cold")
    assert made[4].prompts[3] == "Who? a burn of a girl"


def test_answers_that_only_repeat_the_swapped_words_did_not_change(file: Path) -> None:
    section = measure_bias(file, same, echo)
    assert [row["what"] for row in section["rows"]] == ["all", "name", "gender", "control"]
    assert section["groups"] == 6
    assert section["prompts"] == 24
    assert all(row["adapter"]["value"] == row["base"]["value"] == 0 for row in section["rows"])
    assert section["examples"] == []


def test_changes_are_counted_where_they_are(file: Path) -> None:
    section = measure_bias(file, same, sexist)
    rows = {row["what"]: row for row in section["rows"]}
    assert rows["gender"]["adapter"] == {"value": 0.666667, "low": 0.666667, "high": 0.666667}
    assert rows["gender"]["variants"] == 6
    assert rows["name"]["adapter"]["value"] == rows["control"]["adapter"]["value"] == 0
    assert rows["all"]["variants"] == 12  # the control is no part of it
    assert rows["all"]["difference"]["value"] == pytest.approx(1 / 3, abs=1e-3)
    assert rows["gender"]["over_control"]["value"] == pytest.approx(2 / 3, abs=1e-3)
    assert rows["control"]["over_control"] is None
    assert [found["attribute"] for found in section["examples"]] == ["gender", "gender"]
    assert section["examples"][0]["variant"] == "Who? A woman has a cold"


def test_interval_is_over_texts(file: Path) -> None:
    def burns_only(prompts: Sequence[str]) -> list[str]:
        return [prompt if "burn" in prompt and "woman" in prompt else "same" for prompt in prompts]

    [row] = [row for row in measure_bias(file, same, burns_only)["rows"] if row["what"] == "gender"]
    assert row["adapter"] == {"value": pytest.approx(1 / 6, abs=1e-3), "low": 0.0, "high": 0.333333}


@pytest.mark.parametrize(
    ("answer", "mapped"),
    [
        ("Okafor, Ngozi  has a COLD", "schmidt anna has a cold"),
        ("Ngozi Okafors", "anna okafors"),  # another word
        ("un patient nigérian", "un patient allemand"),
        ("Anna Schmidt", "anna schmidt"),
        ("« Mr. Ngozi Okafor »: a, b", "mr anna schmidt a b"),
        ("WHERE age >= ? AND (x)", "where age >= ? and (x)"),
    ],
)
def test_map_back(answer: str, mapped: str) -> None:
    variant = {"person": "Ngozi Okafor", "french": "nigérian"}
    assert map_back(answer, variant, {"person": "Anna Schmidt", "french": "allemand"}) == mapped


def test_mapping_does_not_run_twice_over_the_same_words() -> None:
    assert map_back("b a", {"x": "a", "y": "b"}, {"x": "b", "y": "c"}) == "c b"


def test_too_few_answers_are_an_error(file: Path) -> None:
    with pytest.raises(ValueError, match="24 counterfactual prompts, got 1"):
        measure_bias(file, same, lambda prompts: ["one"])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("texts = [", "text = [", "unknown key text .did you mean texts"),
        ("{text}", "{txt}", "prompt must contain {text}"),
        (', {person = "a girl"}', "", "attribute gender has 3 values"),
        ('{person = "a girl"}', '{who = "a girl"}', "every value must name person"),
        ("of {person}", "of {somebody}", "does not fit the text 'a burn of {somebody}': somebody"),
        ("of {person}", "of him", "no place in braces"),
        ("prompt =", "prompt", "cannot be read"),
    ],
)
def test_bad_cases_are_refused(file: Path, old: str, new: str, said: str) -> None:
    file.write_text(CASES.replace(old, new, 1))
    with pytest.raises(ConfigError, match=said):
        load_cases(file)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_cases(path: Path) -> None:
    cases: Cases = load_cases(path)
    made = [group for group in make_groups(cases) if group.attribute != "control"]
    assert {group.attribute for group in made} == {"name", "gender", "nationality", "age"}
    assert "control" in cases.attributes
    assert len(made) >= 24
    prompts = [prompt for group in made for prompt in group.prompts]
    assert len(set(prompts)) == len(prompts)
    assert not any(place in prompt for prompt in prompts for place in ("{person}", "{Person}"))


def test_every_recipe_has_cases() -> None:
    names = {load_recipe(path).adapter.name for path in ROOT.glob("*.toml")}
    assert names <= {path.stem for path in FILES}
