"""Replicas in a real Ray, in a network that has loopback only: Ray listens on all interfaces.

Ray is installed on first use, some 250 MB, and kept in the user's cache folder, where it is not here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from router.folders import cache_folder

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
SITE = cache_folder() / "clients" / "ray"
MARK = "LORA_TEST_SCENARIO"
ALONE = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


@pytest.fixture(scope="module", autouse=True)
def _possible() -> None:
    if find_spec("ray") is None and not (SITE / "ray").is_dir():
        install = (sys.executable, "-m", "pip", "install", "-q", "--target", str(SITE), "ray>=2.60,<3")
        if subprocess.run(install, check=False).returncode:
            pytest.skip("ray cannot be installed")
    if subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespaces here (unshare --net)")


def facts(name: str, module: str = "tests.replicas.ray_scenarios") -> dict[str, Any]:
    """What the scenario found; whatever it left behind in its network is ended."""
    command = [*ALONE, sys.executable, "-m", module, name]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", ""), str(SITE)]))
    mark = uuid.uuid4().hex
    environment = os.environ | {"PYTHONPATH": paths, MARK: mark}
    child = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        out, err = child.communicate(timeout=300)
    finally:
        for process in begun(mark):
            process.kill()
    assert child.returncode == 0, err[-4000:]
    lines = [line for line in out.splitlines() if line.startswith("{")]  # Ray may say something, too
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def begun(mark: str) -> list[psutil.Process]:
    """Processes of the scenario, by id: `ray stop` would end everybody's Ray."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found.append(process)
        except psutil.Error:
            continue
    return found


STARTED = {"127.0.0.2:50060": "", "127.0.0.3:50060": ""}


def test_a_killed_replica_comes_back_and_replicas_outlive_ray() -> None:
    found = facts("killed")
    assert found["started"] == found["again"] == STARTED
    assert found["before"] == 2
    assert found["ends"] == ["UNAVAILABLE", "stop"]
    for when in ("after the kill", "without the store", "without Ray", "later"):
        assert found[when] == 12, when
    assert found["lost"] == 1  # the one that was killed


def test_a_lost_node_and_its_return() -> None:
    assert facts("node_lost") == {"started": STARTED, "text": "[base] one two three"}
