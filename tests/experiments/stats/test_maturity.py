"""Guardrails judge equally complete arms: a small version of the simulation `maturity`."""

from __future__ import annotations

import pytest

from benchmarks.experiment_truth.maturity import FOUND_CELLS, HARM_CELLS, WITHIN_CELLS, shown

A_DAY, RUNS, DAYS = 2500, 3, 16


@pytest.mark.slow
@pytest.mark.parametrize("cell", [*WITHIN_CELLS, *HARM_CELLS[:1]], ids=lambda cell: cell.name)
def test_nothing_wrong_is_shown_of_arms_that_are_unlike_in_speed_alone(cell):
    assert shown(cell, A_DAY, RUNS, 1, DAYS)[cell.wrong] == 0


@pytest.mark.slow
def test_harm_of_the_last_days_of_a_window_is_found():
    assert shown(FOUND_CELLS[0], A_DAY, RUNS, 2, DAYS)["harm"] == 1
