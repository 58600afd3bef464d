"""The detectors on series whose truth is known, above all those in which something leaks."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.soak.series import BARS, COUNTED, judged, least, memory, slope, sparkline

MINUTES = 10


def course(
    leak_mb_a_minute: float, seconds: int = MINUTES * 60, noise: float = 2.0, warm: float = 30.0
) -> tuple[list[float], list[float]]:
    """A process that grows by `warm` MB in its first minute, and by the leak, with noise and peaks."""
    draw = random.Random(7)
    times = [float(second) for second in range(seconds)]
    values = [
        100
        + warm * min(1.0, at / 60)
        + leak_mb_a_minute * at / 60
        + draw.gauss(0, noise)
        + 40 * (draw.random() < 0.03)
        for at in times
    ]
    return times, values


@given(
    st.floats(-50, 50), st.floats(-1e3, 1e3), st.sets(st.integers(0, 99), max_size=20), st.floats(-1e4, 1e4)
)
def test_a_slope_is_that_of_the_line_whatever_a_fifth_of_the_points_says(
    each: float, start: float, wrong: set[int], peak: float
) -> None:
    values = [start + each * at + (peak if at in wrong else 0.0) for at in range(100)]
    off = slope(range(100), values) - each
    assert abs(off) <= (1e-6 if not wrong else abs(peak) / 30 + 1e-6)


def test_too_few_points_have_no_slope() -> None:
    assert slope([1.0], [2.0]) == slope([], []) == 0.0


@pytest.mark.parametrize("leak", [1.5, 5.0, 100.0])
def test_a_leak_of_memory_is_found(leak: float) -> None:
    verdict = memory(*course(leak))
    assert verdict.grows
    assert verdict.slope == pytest.approx(leak, rel=0.2)


@pytest.mark.parametrize("leak", [0.0, 0.5, -3.0])
def test_warming_up_noise_and_peaks_are_no_leak(leak: float) -> None:
    assert not memory(*course(leak)).grows


def test_a_long_run_may_grow_by_so_much_in_all() -> None:
    hours = 8 * 3600
    assert memory(*course(0.1, hours)).grows  # 48 MB in 8 hours, unseen in ten minutes
    assert not memory(*course(0.1)).grows
    assert not memory(*course(0.02, hours)).grows


@pytest.mark.parametrize("name", COUNTED)
def test_one_thing_left_when_idle_is_found(name: str) -> None:
    idle = {"at": 0.0, "rss_mb": 100.0} | dict.fromkeys(COUNTED, 20.0)
    under_load = [idle | {"at": float(at)} | dict.fromkeys(COUNTED, 50.0) for at in range(60)]
    growing = {v.name for v in judged(under_load, idle, idle | {name: 21.0}) if v.grows}
    assert growing == {name}
    assert not any(v.grows for v in judged(under_load, idle, idle | {name: 19.0}))


def test_every_version_may_have_a_slot() -> None:
    idle = {"at": 0.0, "rss_mb": 100.0} | dict.fromkeys(COUNTED, 6.0)
    samples = [idle | {"at": float(at)} for at in range(60)]
    for slots, grows in ((8.0, False), (9.0, True)):
        assert any(v.grows for v in judged(samples, idle, idle | {"slots": slots}, versions=8)) is grows


def test_idle_is_what_is_least_of_each() -> None:
    assert least([{"a": 3.0, "b": 1.0}, {"a": 2.0, "b": 5.0}]) == {"a": 2.0, "b": 1.0}


def test_a_sparkline_shows_the_course() -> None:
    assert sparkline([]) == ""
    assert sparkline([5.0, 5.0]) == BARS[0] * 2
    assert sparkline([0.0, 1.0]) == BARS[0] + BARS[-1]
    assert len(sparkline([float(n) for n in range(1000)])) == 32
