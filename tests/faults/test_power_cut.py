"""A power cut in the middle of writing loses nothing that was acknowledged; a control shows that it would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.machine import ALONE, need_loop_devices
from tests.faults.served import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def after_cuts(folder: Path, cuts: int, what: str, care: str = "careful") -> dict[str, int]:
    need_loop_devices()
    command = [sys.executable, "-m", "tests.faults.power_cuts", str(folder), str(cuts), what, care]
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


@pytest.mark.parametrize("cuts", [3, pytest.param(100, marks=pytest.mark.long)])
@pytest.mark.parametrize("what", ["outcomes", "choices", "audit"])
def test_nothing_acknowledged_is_lost(tmp_path: Path, what: str, cuts: int) -> None:
    found = after_cuts(tmp_path, cuts, what)
    assert (found["cuts"], found["lossy"], found["unusable"]) == (cuts, 0, 0)
    assert found["acknowledged"] >= cuts


@pytest.mark.long
@pytest.mark.parametrize("what", ["outcomes", "choices", "audit"])
def test_the_cuts_would_show_a_loss(tmp_path: Path, what: str) -> None:
    """Of a writer that does not wait for the disk, the same cuts lose what was acknowledged."""
    found = after_cuts(tmp_path, 10, what, "careless")
    assert found["lossy"] + found["unusable"] > 0
