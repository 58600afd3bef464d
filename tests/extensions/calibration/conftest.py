"""Requests with votes that a known distribution drew, by classifiers that are wrongly sure."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest

from router.calibration.model import Axes, Calibration, axes_of, binding_of
from router.calibration.targets import Goal
from router.extensions.calibration.fit import Setting, calibrate
from router.extensions.calibration.rows import Ballot, DataRow
from router.types import AdapterProfile, Vote

PROFILES = (
    AdapterProfile("code", "1", task="code-generation"),
    AdapterProfile("legal", "1", domain="legal"),
    AdapterProfile("medical", "1", domain="medical"),
    AdapterProfile("qa", "1", task="question-answering"),
)
NAMES = tuple(p.name for p in PROFILES)


class World:
    """Draws ballots. `cheap` and `dear` are classifiers; the second knows more."""

    names, profiles = NAMES, PROFILES
    skill: ClassVar = {"cheap": 2.8, "dear": 4.0}
    heat: ClassVar = {"cheap": 3.0, "dear": 0.4}  # how much too sure they are

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._drawn = 0

    def ballots(self, count: int, none: float = 0.0) -> list[Ballot]:
        """`none` is the share of requests that are for no adapter."""
        return [self._ballot(self._rng.random() < none) for _ in range(count)]

    def _ballot(self, none: bool) -> Ballot:
        rng = self._rng
        label = len(NAMES) if none else int(rng.integers(len(NAMES)))
        votes = []
        for name, skill in self.skill.items():
            if name == "cheap" and rng.random() < 0.2:
                votes.append(Vote(name, declined=True))
                continue
            truth = rng.normal(size=len(NAMES) + 1)
            truth[label] += skill
            logits = truth * skill * self.heat[name]
            chances = np.exp(logits - logits.max())
            chances /= chances.sum()
            votes.append(Vote(name, {n: float(c) for n, c in zip(NAMES, chances, strict=False)}))
        self._drawn += 1
        return Ballot(DataRow(f"request {self._drawn}", (*NAMES, "")[label], "drawn"), tuple(votes))


@pytest.fixture
def world() -> World:
    return World(7)


@pytest.fixture
def worlds() -> type[World]:
    return World


@pytest.fixture
def setting_of() -> Any:
    """A Setting for the world's adapters and classifiers."""

    def make(goal: Goal | None = None, **axes: Any) -> Setting:
        binding = binding_of(PROFILES, {"cheap": "cheap/1", "dear": "dear/1"}, "base")
        return Setting(("cheap", "dear"), axes_of(PROFILES), Axes(**axes), goal or Goal(), binding)

    return make


@pytest.fixture(scope="session")
def made() -> dict[str, Calibration]:
    """One calibration for several tests."""
    return {}


@pytest.fixture
def calibration(made: dict[str, Calibration], setting_of: Any) -> Calibration:
    if "one" not in made:
        world = World(7)
        made["one"] = calibrate(world.ballots(600, none=0.1), world.ballots(300, none=1.0), setting_of())
    return made["one"]
