from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from router.extensions.training.base import load_base
from router.extensions.training.data import load_splits
from router.extensions.training.evaluation.subject import (
    AnsweringEngine,
    ComparedArm,
    EvaluationSubject,
    Questions,
    encode_questions,
    load_subject,
    read_manifest,
    worked_examples,
)
from router.extensions.training.recipe import load_recipe
from router.extensions.training.run import train
from tests.extensions.training.tiny import recipe_text, save_base, write_data

# The engine without its native operations, which do not take the tiny base's narrow heads.
PLAIN = {"LORA_ROUTER_NATIVE": "false", "LORA_ROUTER_THREADS": "1"}  # more threads are slower here


@pytest.fixture(scope="module", autouse=True)
def plain_operations() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PLAIN.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recipes/, its data and adapters/colours, trained for a few steps."""
    root = tmp_path_factory.mktemp("evaluated")
    recipes = root / "recipes"
    recipes.mkdir()
    write_data(recipes)
    (recipes / "colours.toml").write_text(recipe_text(save_base(root / "base"), steps=12))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PLAIN.items():
            patch.setenv(name, value)
        train(recipes / "colours.toml", root / "adapters" / "colours", work=root / "work", device="cpu")
    return root


@pytest.fixture(scope="module")
def staged(
    trained: Path,
) -> Iterator[tuple[EvaluationSubject, AnsweringEngine, dict[ComparedArm, Questions]]]:
    recipe = load_recipe(trained / "recipes" / "colours.toml")
    splits = load_splits(recipe.data)
    folder = trained / "adapters" / "colours"
    base = load_base(recipe.base.model, "cpu")
    answering = AnsweringEngine(base)
    subject = load_subject(folder, read_manifest(folder), base)
    shots = worked_examples(splits.train, 3)
    assert [row.response for row in shots] == ["red", "blue", "green"]
    yield (
        subject,
        answering,
        {arm: encode_questions(arm, splits.test, subject.rendering, shots) for arm in ComparedArm},
    )
    answering.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever needs the tiny base needs transformers, which takes seconds to load."""
    for item in items:
        if {"trained"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
