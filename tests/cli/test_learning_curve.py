from pathlib import Path

import pytest


@pytest.fixture
def calls(monkeypatch):
    """What `learning_curve` is asked; it answers at once."""
    made = []

    def measure(recipe, fractions, **options):
        made.append((recipe, fractions, options))
        return Path("adapters/medical/data_need.json")

    monkeypatch.setattr("router.evaluation.learning_curve.learning_curve", measure)
    return made


def test_it_passes_its_flags_and_says_what_is_next(cli, calls):
    done = cli(
        "adapters", "learning-curve", "recipes/medical.toml", "--fractions", "0.2, 0.5", "--device", "cpu"
    )
    assert done.code == 0
    assert "lora-router adapters evaluate adapters/medical" in done.out
    options = {"output": None, "work": Path("runs"), "device": "cpu"}
    assert calls == [(Path("recipes/medical.toml"), [0.2, 0.5], options)]


def test_two_fractions_are_the_default(cli, calls):
    cli("adapters", "learning-curve", "recipes/medical.toml", "-o", "here")
    assert calls[0][1] == [0.1, 0.3]
    assert calls[0][2]["output"] == Path("here")


def test_fractions_that_are_no_numbers_are_a_misuse(cli, calls):
    done = cli("adapters", "learning-curve", "recipes/medical.toml", "--fractions", "a tenth")
    assert done.code == 2
    assert "must be numbers with commas, such as 0.1,0.3" in done.err
    assert calls == []


def test_a_recipe_that_is_not_there_is_a_misuse(cli):
    done = cli("adapters", "learning-curve", "none.toml")
    assert (done.code, done.err) == (2, "lora-router: recipe none.toml is not there\n")
