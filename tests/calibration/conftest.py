"""A calibration that nobody fitted."""

from __future__ import annotations

import pytest

from router.calibration.model import Axes, Calibration, Stage, TemperatureScaler, binding_of
from router.types import AdapterProfile

PROFILES = (AdapterProfile("code", "1", task="code-generation"), AdapterProfile("legal", "1", domain="legal"))


@pytest.fixture
def calibration() -> Calibration:
    return Calibration(
        scalers={"cheap": TemperatureScaler(1.5), "dear": TemperatureScaler(0.7, -0.2)},
        stages=(
            Stage({"cheap": 0.8}, pairs={"cheap": {"code": {"code": 0.3, "legal": -0.1}}}),
            Stage({"cheap": 0.4, "dear": 1.1}, bias={"task": 0.1}, novelty={"dear": 0.9}, stop=0.8),
        ),
        threshold=0.7,
        novelty_limit=0.5,
        target=0.05,
        delta=0.05,
        ood_target=0.05,
        axes=Axes(),
        binding=binding_of(PROFILES, {"cheap": "cheap/1", "dear": "dear/1"}, "base"),
        report={},
        profiles=PROFILES,
        learned={"legal": ("May I?",)},
    )
