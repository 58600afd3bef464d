"""Stages: what is learned of the votes together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from router.calibration.model import Axis, Stage, TemperatureScaler, pool_votes
from router.extensions.calibration.rows import Ballot, DataRow
from router.extensions.calibration.stages import fit_stage
from router.types import Vote

KINDS = {"code": Axis.TASK, "legal": Axis.DOMAIN, "medical": Axis.DOMAIN}
SCALERS = {"guess": TemperatureScaler()}


def vote(said: str, sure: float = 0.7, names: Sequence[str] = tuple(KINDS)) -> Vote:
    rest = (1 - sure) / len(names)
    return Vote("guess", {name: sure if name == said else rest for name in names})


def ballots(count: int) -> list[Ballot]:
    """A classifier that says code for what is medical, and else is right."""
    labels = [("code", "legal", "medical", "")[i % 4] for i in range(count)]
    told = {"medical": "code", "code": "code", "legal": "legal", "": ""}
    sure = {"code": 0.9, "medical": 0.6}
    return [
        Ballot(DataRow(f"row {i}", label), (vote(told[label], sure.get(label, 0.7)),))
        for i, label in enumerate(labels)
    ]


def share(rows: int) -> np.ndarray:
    return np.full(rows, 1 / rows)


def test_what_one_adapter_is_told_for_may_mean_another() -> None:
    stage = fit_stage(ballots(2000), SCALERS, ("guess",), KINDS, share(2000))
    half_sure = pool_votes(stage, SCALERS, [vote("code", 0.6)], KINDS).chances
    sure = pool_votes(stage, SCALERS, [vote("code", 0.9)], KINDS).chances
    assert half_sure["medical"] > 0.6 > half_sure["code"]
    assert sure["code"] > 0.6 > sure["medical"]


def test_few_rows_teach_adapters_little_of_their_own() -> None:
    few, many = (fit_stage(ballots(n), SCALERS, ("guess",), KINDS, share(n)) for n in (40, 4000))
    sizes = [max(abs(w) for t in s.pairs["guess"].values() for w in t.values()) for s in (few, many)]
    assert sizes[0] < sizes[1] / 3


def test_many_adapters_share_their_weights() -> None:
    kinds = {f"a{i}": Axis.DOMAIN for i in range(30)}
    rows = [
        Ballot(DataRow(f"row {i}", f"a{i % 30}"), (vote(f"a{i % 30}", names=tuple(kinds)),))
        for i in range(300)
    ]
    stage = fit_stage(rows, SCALERS, ("guess",), kinds, share(300))
    assert (stage.own, stage.pairs) == ({}, {})
    assert stage.weights["guess"] > 0


def test_pooling_adds_what_each_adapter_has_of_its_own() -> None:
    plain = Stage({"guess": 1.0})
    before = pool_votes(plain, SCALERS, [vote("code")], KINDS)
    own = Stage({"guess": 1.0}, own={"legal": np.log(2.0), "": np.log(3.0)})
    after = pool_votes(own, SCALERS, [vote("code")], KINDS)
    ratio = before.chances["code"] / after.chances["code"]
    assert after.chances["legal"] * ratio == pytest.approx(2 * before.chances["legal"])
    assert after.none * ratio == pytest.approx(3 * before.none)
    pairs = Stage({"guess": 1.0}, pairs={"guess": {"code": {"medical": -1.0}}})
    moved = pool_votes(pairs, SCALERS, [vote("code", 0.7)], KINDS)
    ratio = before.chances["code"] / moved.chances["code"]
    assert moved.chances["medical"] * ratio == pytest.approx(before.chances["medical"] / 0.7)


def test_an_adapter_that_a_stage_does_not_know_gets_nothing_of_its_own() -> None:
    stage = Stage({"guess": 1.0}, own={"gone": 5.0}, pairs={"guess": {"gone": {"code": 5.0}}})
    plain = Stage({"guess": 1.0})
    votes = [vote("code")]
    assert pool_votes(stage, SCALERS, votes, KINDS) == pool_votes(plain, SCALERS, votes, KINDS)
