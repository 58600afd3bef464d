"""The store is filled before a long run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.experiment import AT_ONCE, begin_experiment, fill_store, store_bytes
from tests.soak.server import serving
from tests.soak.world import World

LEAST = 1 << 20


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_store_grows_to_what_was_asked_for(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    world.lay_out()
    with serving(world) as server:
        begin_experiment(world, server)
        before = store_bytes(world)
        assert fill_store(world, server, before) == 0
        assert fill_store(world, server, before + LEAST) >= AT_ONCE
        assert store_bytes(world) >= before + LEAST
