"""kill -9 of the server in the middle of outcomes, twenty times: nothing that was acknowledged is lost."""

from __future__ import annotations

import pytest

from benchmarks.outcome_intake import databases, killed

KILLS = 20


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_nothing_acknowledged_is_lost_and_nothing_is_counted_twice(kind: str) -> None:
    with databases(None) as urls:
        url = next((url for url in urls if url.startswith(kind)), None)
        if url is None:
            pytest.skip("no PostgreSQL here: apt-get install postgresql")
        found = await killed(url, units=300, batch=100, rate=5000, kills=KILLS, seed=7)
    assert found["outcomes"] >= 100 * KILLS
    assert (found["lost"], found["counted_twice"], found["whole"]) == (0, 0, True)
