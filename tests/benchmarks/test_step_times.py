from __future__ import annotations

import pytest

from benchmarks.fleet_model import Costs
from benchmarks.step_times import Step, compared, fit, predicted

COSTS = Costs(0.0115, 0.00047, 0.0006, 0.00016, 0.051)


def test_the_line_through_steps_is_found_again() -> None:
    steps = [
        Step(rows, adapters, prompt, 0.01 + 0.001 * rows + 0.0004 * adapters + 0.0002 * prompt)
        for rows in (1, 4, 16)
        for adapters in (0, 1, 4)
        for prompt in (0, 90, 500)
        for _ in range(5)
    ]
    late = [Step(1, 0, 0, 1.0)]  # somebody else had the core
    line, off = fit([*steps, *late])
    expected = {"base": 0.01, "row": 0.001, "adapter": 0.0004, "token": 0.0002}
    assert line == pytest.approx(expected, rel=1e-6)
    assert off < 1e-9


def test_a_closed_loop_is_predicted_and_compared() -> None:
    said = predicted(COSTS, clients=8, adapters=4, memory=4, seconds=1.0)
    assert said["in memory"] == pytest.approx(1.0)
    row = compared("few", 8, 4, 4, {name: value * 2 for name, value in said.items()}, said)
    assert row["off by"] == pytest.approx(-0.5)
