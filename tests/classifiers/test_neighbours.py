"""The nearest examples of many adapters, on vectors round one direction for each adapter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from router.classifiers.neighbours import NearestExamples

SIZE, ADAPTERS, EACH, GENERAL = 96, 400, 6, 400


def unit(rows: Any) -> Any:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


CENTRES = unit(np.random.default_rng(0).normal(size=(ADAPTERS + GENERAL, SIZE)))


def near(owners: Any, seed: int) -> Any:
    """A vector near each owner's centre; behind those of adapters come general topics."""
    noise = np.random.default_rng(seed).normal(size=(len(owners), SIZE))
    return unit(CENTRES[owners] + 0.06 * noise)


@pytest.fixture(scope="module")
def fitted() -> NearestExamples:
    owners = np.append(np.repeat(np.arange(ADAPTERS), EACH), ADAPTERS + np.arange(GENERAL))
    return NearestExamples.fit(near(owners, 1), np.where(owners < ADAPTERS, owners, -1))


def test_requests_go_to_the_adapter_whose_examples_are_near(fitted: NearestExamples) -> None:
    asked = np.arange(0, ADAPTERS, 7)
    chances = np.stack([fitted.chances(vector, ADAPTERS + 1) for vector in near(asked, 2)])
    assert chances.sum(axis=1) == pytest.approx(1)
    assert (chances.argmax(axis=1) == asked).mean() > 0.95
    assert (chances[np.arange(len(asked)), asked] > fitted.level).mean() > 0.8


def test_requests_on_general_topics_go_to_none(fitted: NearestExamples) -> None:
    asked = ADAPTERS + np.arange(0, GENERAL, 7)
    best = [fitted.chances(vector, ADAPTERS + 1)[:-1].max() for vector in near(asked, 3)]
    assert (np.array(best) < fitted.level).mean() > 0.9


def test_a_few_rows_are_enough() -> None:
    rows = near(np.array([0, 0, 1, 1, ADAPTERS]), 4)
    fitted = NearestExamples.fit(rows, np.array([0, 0, 1, 1, -1]))
    assert fitted.chances(rows[0], 3).argmax() == 0
    assert fitted.chances(rows[3], 3).argmax() == 1
