"""A soak that is over soon, the one of ten minutes, and servers that leak."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.__main__ import soak
from tests.soak.leaks import LEAKS
from tests.soak.server import bad
from tests.soak.world import World

pytestmark = pytest.mark.slow


@pytest.mark.long
@pytest.mark.timeout(300)
def test_all_parts_work_together(tmp_path: Path) -> None:
    """Too short to say what grows, but for tasks that a server leaks on purpose."""
    outcome = soak(World(tmp_path / "world"), 10.0, leak="tasks", idle=1.0, quiet=True)
    assert outcome.problems == []
    assert bad(outcome.counts) == 0
    for kind in ("generate", "leave", "route"):
        assert outcome.counts[f"{kind} ok"] > 0
    assert "tasks" in outcome.growing
    assert not {"leases", "slots"} & set(outcome.growing)
    assert {row["what"] for row in outcome.table()} >= {"rss_mb", "fds", "threads", "kv", "lag_ms"}


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_nothing_grows_in_ten_minutes(tmp_path: Path) -> None:
    outcome = soak(World(tmp_path / "world"), 600.0)
    assert outcome.problems == []
    assert outcome.growing == []
    assert outcome.good


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("leak", [name for name in LEAKS if name])
def test_a_server_that_leaks_is_found_out(leak: str, tmp_path: Path) -> None:
    outcome = soak(World(tmp_path / "world"), 40.0, leak=leak, idle=5.0, quiet=True)
    assert leak in {name.removesuffix("_mb") for name in outcome.growing}
