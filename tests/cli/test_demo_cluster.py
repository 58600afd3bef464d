from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from router.cli.demo_cluster import ALONE, MARK, everything_ended, marked, places_of
from router.folders import cache_folder
from router.replicas.ray import ENVIRONMENT

ROOT = Path(__file__).parents[2]
SITE = cache_folder() / "clients" / "ray"  # where tests/replicas/test_ray.py puts it


def test_places_are_what_the_edge_logged() -> None:
    lines = [
        '{"event": "goes to a replica", "response_id": "r1", "replica": "0"}',
        '{"event": "listening", "grpc": "127.0.0.1:1"}',
        "what a library printed",
        '{"half a line',
        '{"event": "goes to a replica", "response_id": "r2", "replica": "1"}',
        '{"event": "goes to a replica", "response_id": "r1", "replica": "1"}',
    ]
    assert places_of(lines) == {"r1": ["0", "1"], "r2": ["1"]}


def test_whatever_was_started_is_ended_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = [sys.executable, "-c", "import sys; print('up', flush=True); sys.stdin.read()"]
    for name in (*ENVIRONMENT, "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", MARK):
        monkeypatch.setenv(name, "")  # and as it was afterwards
    stays = subprocess.Popen(waiting, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with everything_ended() as mark:
        goes = subprocess.Popen(
            waiting, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert goes.stdout is not None
        goes.stdout.readline()
        assert marked(mark) == marked(mark, "sys.stdin.read()") == [goes.pid]
        assert marked(mark, "ray::") == []
    assert goes.wait(10) < 0
    assert stays.poll() is None
    stays.communicate()
    goes.communicate()


@pytest.mark.long
@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_the_demo_answers_though_a_replica_is_killed() -> None:
    if find_spec("ray") is None and not (SITE / "ray").is_dir():
        pytest.skip("ray is not here: tests/replicas/test_ray.py installs it")
    if subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespaces here (unshare --net)")
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", ""), str(SITE)]))
    command = [sys.executable, "-m", "router.cli.demo_cluster"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "killed a replica" in done.stdout
    assert "two again after" in done.stdout
    head = next(line for line in done.stdout.splitlines() if line.startswith("ASKED"))
    column = slice(head.index("REPLICA"), head.index("ANSWER", head.index("REPLICA")))
    first = done.stdout[done.stdout.index(head) :].partition("\n\n")[0].splitlines()[1:]
    assert len({line[column].strip() for line in first}) == 2
