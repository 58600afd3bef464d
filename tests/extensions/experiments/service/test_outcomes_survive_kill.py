"""kill -9 of the server in the middle of outcomes, again and again: nothing that was acknowledged is lost."""

from __future__ import annotations

import pytest

from benchmarks.outcome_intake import databases, killed


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kind", "kills"),
    [("sqlite", 1), *(pytest.param(kind, 20, marks=pytest.mark.long) for kind in ("sqlite", "postgresql"))],
)
async def test_nothing_acknowledged_is_lost_and_nothing_is_counted_twice(kind: str, kills: int) -> None:
    with databases(None) as urls:
        url = next((url for url in urls if url.startswith(kind)), None)
        if url is None:
            pytest.skip("no PostgreSQL here: apt-get install postgresql")
        found = await killed(url, units=300, batch=100, rate=5000, kills=kills, seed=7)
    assert found["outcomes"] >= 100 * kills
    assert (found["lost"], found["counted_twice"], found["whole"]) == (0, 0, True)
