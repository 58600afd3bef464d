"""Answers under churn, and an engine that mixes them up."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.answers import alike, answers
from tests.soak.server import bad
from tests.soak.world import World

pytestmark = pytest.mark.slow


@pytest.mark.timeout(300)
def test_every_answer_is_its_callers(tmp_path: Path) -> None:
    outcome = answers(World(tmp_path / "world"), 400, processes=1, clients=8)
    assert outcome.problems == []
    assert outcome.answers >= 400
    assert {"explicit", "classified", "abstained"} <= set(outcome.reasons)


@pytest.mark.timeout(300)
def test_answers_that_are_mixed_up_are_noticed(tmp_path: Path) -> None:
    outcome = answers(World(tmp_path / "world"), 100, "--mixed-up", "20", processes=1, clients=8)
    assert outcome.counts["generate wrong"] + outcome.counts["stream wrong"] >= 3
    assert all("the answer is" in problem for problem in outcome.problems)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("real", "count"), [(False, 20_000), (True, 1_000)])
def test_very_many_answers_are_their_callers(real: bool, count: int, tmp_path: Path) -> None:
    outcome = answers(World(tmp_path / "world", real), count)
    assert outcome.problems == []
    assert bad(outcome.counts) == 0
    assert outcome.answers >= count
    assert outcome.alike < 0.05


def test_pairs_that_are_alike_are_counted() -> None:
    assert alike([]) == alike(["a"]) == alike(["a", "b"]) == 0.0
    assert alike(["a", "a", "b"]) == pytest.approx(1 / 3)
