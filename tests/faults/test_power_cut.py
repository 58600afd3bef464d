"""A power cut in the middle of writing loses nothing that was acknowledged; a control shows that it would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.machine import ALONE, need_loop_devices
from tests.faults.served import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def after_cuts(folder: Path, cuts: int, synchronous: str) -> dict[str, Any]:
    need_loop_devices()
    command = [sys.executable, "-m", "tests.faults.power_cuts", str(folder), str(cuts), synchronous]
    done = subprocess.run(
        [*ALONE, 'exec "$@"', "sh", *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("cuts", [5, pytest.param(100, marks=pytest.mark.long)])
def test_nothing_acknowledged_is_lost(tmp_path: Path, cuts: int) -> None:
    found = after_cuts(tmp_path, cuts, "FULL")
    lost = {name: found[name] for name in ("lost", "choices_lost", "lines_lost", "unusable")}
    assert not any(lost.values()), lost
    assert found["cuts"] == cuts
    assert found["acknowledged"] >= 20 * cuts


@pytest.mark.long
def test_the_cut_would_show_a_loss(tmp_path: Path) -> None:
    """Without waiting for the disk, the same cuts lose what was acknowledged."""
    assert after_cuts(tmp_path, 20, "OFF")["lost"] > 0
