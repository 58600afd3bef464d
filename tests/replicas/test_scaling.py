from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from router.replicas.membership import FleetLoad, LoadScaler, ScalingRules

ROWS = 10
RULES = ScalingRules()


class Simulated:
    """A fleet that needs `start_seconds` for each new replica, and a look every second."""

    def __init__(self, size: int, least: int, most: int, start_seconds: int = 20) -> None:
        self.size, self.least, self.most = size, least, most
        self.start_seconds, self.up_at = start_seconds, 0
        self.drain_seconds, self.gone_at = 5, 0
        self.scaler, self.now = LoadScaler(), 0
        self.changes: list[tuple[int, int]] = []  # when, by how much

    def run(self, seconds: int, demand: Callable[[int], float]) -> None:
        for _ in range(seconds):
            self.now += 1
            jobs = round(demand(self.now))
            running = min(jobs, self.size * ROWS)
            load = FleetLoad(running, jobs - running, ROWS)
            leaving = int(self.now < self.gone_at)
            by = self.scaler.look(
                self.now,
                self.size,
                load,
                self.least,
                self.most,
                starting=self.now < self.up_at,
                leaving=leaving,
            )
            if by:
                self.size += by
                self.changes.append((self.now, by))
                assert not leaving or by > 0
                if by > 0:
                    self.up_at = self.now + self.start_seconds
                else:
                    self.gone_at = self.now + self.drain_seconds


def test_up_within_seconds_and_down_within_minutes() -> None:
    fleet = Simulated(2, 2, 8)
    fleet.run(30, lambda now: 5)
    assert fleet.changes == []
    fleet.run(15, lambda now: 25)  # five wait
    assert fleet.changes == [(fleet.changes[0][0], 1)]
    assert fleet.changes[0][0] - 30 <= 12
    fleet.run(600, lambda now: 5)
    assert fleet.size == 2
    (_, up), (down_at, down) = fleet.changes
    assert (up, down) == (1, -1)
    assert down_at - 45 >= RULES.down_seconds


def test_a_slow_start_is_not_answered_by_more_of_them() -> None:
    fleet = Simulated(1, 1, 10, start_seconds=300)
    fleet.run(290, lambda now: 100)
    assert fleet.size == 2


def test_one_that_drains_for_long_holds_up_nobody_who_is_needed() -> None:
    fleet = Simulated(3, 1, 3)
    fleet.drain_seconds = 600
    fleet.run(int(RULES.down_seconds) + 20, lambda now: 2)
    assert fleet.size == 2
    fleet.run(300, lambda now: 100)
    assert fleet.size == 2  # three are still there
    fleet.run(300, lambda now: 100)
    assert fleet.size == 3


def test_a_moment_is_no_load() -> None:
    fleet = Simulated(2, 1, 8)
    fleet.run(300, lambda now: 40 if now % 60 < 2 else 12)
    assert fleet.changes == []


def test_jobs_that_wait_beside_free_rows_count() -> None:
    scaler = LoadScaler()
    load = FleetLoad(6, 8, ROWS)
    looks = [scaler.look(now, 2, load, 1, 8, starting=False, leaving=0) for now in range(15)]
    assert looks.count(1) == 1


def test_after_a_start_that_failed_there_is_a_pause_that_grows() -> None:
    scaler = LoadScaler()
    tried: list[int] = []
    for now in range(1000):
        if scaler.look(now, 1, FleetLoad(10, 90, ROWS), 1, 8, starting=False, leaving=0) > 0:
            tried.append(now)
            scaler.failed(now)
    gaps = [after - before for before, after in pairwise(tried)]
    assert gaps[:3] == [60, 120, 240]
    scaler.came()
    assert scaler.failed(1000.0) == 60


@settings(max_examples=60, deadline=None)
@given(
    bounds=st.tuples(st.integers(1, 6), st.integers(0, 6)),
    jobs=st.integers(0, 150),
    start_seconds=st.integers(1, 120),
)
def test_a_steady_load_comes_to_rest_and_is_answered_in_one_direction(
    bounds: tuple[int, int], jobs: int, start_seconds: int
) -> None:
    least, most = bounds[0], bounds[0] + bounds[1]
    for size in (least, most):
        fleet = Simulated(size, least, most, start_seconds)
        fleet.run(2500, lambda now: jobs)
        assert least <= fleet.size <= most
        assert len({by for _, by in fleet.changes}) <= 1
        assert all(at < 2200 for at, _ in fleet.changes)  # at rest
        assert fleet.size == most or jobs < RULES.full * fleet.size * ROWS
        assert fleet.size == least or jobs > RULES.roomy * (fleet.size - 1) * ROWS


@settings(max_examples=60, deadline=None)
@given(
    low=st.integers(0, 100),
    high=st.integers(0, 100),
    period=st.integers(2, 170),
    noise=st.lists(st.integers(-5, 5), min_size=7, max_size=7),
)
def test_a_load_that_swings_is_not_followed_up_and_down(
    low: int, high: int, period: int, noise: list[int]
) -> None:
    fleet = Simulated(1, 1, 8)

    def demand(now: int) -> float:
        return max(0, (high if now % period < period / 2 else low) + noise[now % 7])

    fleet.run(2000, demand)
    turns = [one for one, other in pairwise(fleet.changes) if one[1] != other[1]]
    assert len(turns) <= 1
    assert 1 <= fleet.size <= 8


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 400), st.integers(0, 200)), max_size=12))
def test_whatever_comes_the_bounds_hold_and_a_turn_takes_its_time(phases: list[tuple[int, int]]) -> None:
    fleet = Simulated(3, 2, 6)
    for seconds, jobs in phases:
        fleet.run(seconds, lambda now, jobs=jobs: jobs)  # type: ignore[misc]
        assert 2 <= fleet.size <= 6
    for (before, _), (at, by) in pairwise(fleet.changes):
        assert at - before >= (RULES.up_seconds if by > 0 else RULES.down_seconds)
