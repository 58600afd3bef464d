"""One adapter is loaded and unloaded by many at once, while it is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.server import bad
from tests.soak.storm import Storm, storm
from tests.soak.world import World

pytestmark = pytest.mark.slow
GROWTH_MB = 20.0


def check(found: Storm, acts: int) -> None:
    """Nothing failed and nothing is left."""
    assert found.errors == []
    assert found.problems == []
    assert found.acts == acts
    assert bad(found.counts) == 0
    assert found.counts["generate ok"] > 0
    assert (found.leases, found.exit_code) == (0, 0)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_small_storm(tmp_path: Path) -> None:
    check(storm(World(tmp_path / "world"), 4, 16), 4 * 16 * 2)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_storm(tmp_path: Path) -> None:
    found = storm(World(tmp_path / "world"), 32, 1024)
    check(found, 32 * 1024 * 2)
    assert found.growth_mb <= GROWTH_MB
