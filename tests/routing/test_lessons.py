"""What classifiers learn from."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.classifiers.regression import lessons_of, spread_evenly
from router.types import AdapterProfile

TEA = AdapterProfile("tea", "1", examples=("brew tea", " "), negative_examples=("a tea towel",))
BARE = AdapterProfile("bare", "1")


@pytest.fixture
def background(tmp_path: Path) -> Path:
    path = tmp_path / "background.txt"
    path.write_text("# general\nhello\n\n# tea drinks\nWhich tea is green?\n")
    return path


def test_examples_negatives_and_background(background: Path) -> None:
    learned = lessons_of([TEA, BARE, AdapterProfile("ale", "1", examples=("draw ale",))], background)
    assert learned is not None
    assert learned.names == ("tea", "ale", "")
    assert learned.texts == ("brew tea", "a tea towel", "draw ale", "hello")
    assert learned.allowed.tolist() == [[1, 0, 0], [0, 1, 1], [0, 1, 0], [0, 0, 1]]


def test_nothing_to_learn(background: Path) -> None:
    assert lessons_of([BARE], background) is None


def test_many_examples_are_thinned_evenly() -> None:
    texts = [f"t{i}" for i in range(100)]
    assert spread_evenly(texts, 4) == ["t0", "t25", "t50", "t75"]
    assert spread_evenly(texts, 1000) == texts
