"""Processes that nobody ends but we: the keeper acts when its pipe is closed, on those it was told of."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.extensions.vllm import keeper
from router.extensions.vllm.process import LONGEST, Environment, Processes, environment


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_at_the_end_of_its_input_it_kills_and_removes(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    folder = tmp_path / "ours"
    folder.mkdir()
    keeper.main([f"folder {folder}\n", f"process {sleeper.pid}\n", "process 999999999\n"])
    assert sleeper.wait(5) == -9
    assert not folder.exists()


def test_another_process_of_the_same_number_is_left_alone(sleeper: subprocess.Popen[bytes]) -> None:
    keeper.end({sleeper.pid: "12345"})
    assert sleeper.poll() is None
    keeper.end({sleeper.pid: keeper.begun(sleeper.pid)})
    assert sleeper.wait(5) == -9


def test_what_is_begun_meanwhile_is_found_and_ended(sleeper: subprocess.Popen[bytes]) -> None:
    processes = Processes()
    with processes.beginning():
        ours = subprocess.Popen(["sh", "-c", "sleep 60 & kill -STOP $$"])  # does not end by itself
        while not keeper.children_of(ours.pid):
            pass
        below = keeper.children_of(ours.pid)
    processes.end_workers()
    processes.close()
    assert ours.wait(5) in (-9, 137)
    assert [pid for pid in below if keeper.begun(pid)] == []
    assert sleeper.poll() is None
    assert not processes.folder.exists()


def test_sockets_have_a_short_path_in_a_temporary_folder_with_a_long_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 80)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    processes = Processes()
    assert processes.folder.parent == deep
    assert len(str(processes.sockets)) <= LONGEST
    processes.close()
    assert not processes.folder.exists()
    assert not processes.sockets.exists()


@pytest.mark.parametrize("whole_tree", [False, True])
def test_a_killed_server_leaves_nothing_behind(whole_tree: bool) -> None:
    """Neither processes nor folder nor shared memory, also where all below it is killed at once."""
    shares = (
        "import sys, time; from multiprocessing.shared_memory import SharedMemory\n"
        "memory = SharedMemory(create=True, size=100); print(memory.name, flush=True); time.sleep(60)"
    )
    code = (
        "import os, subprocess, sys, time; from router.extensions.vllm.process import Processes\n"
        "from multiprocessing import get_context\n"
        "p = Processes()\n"
        "with p.beginning():\n"
        "    lock = get_context('spawn').Lock()\n"
        f"    child = subprocess.Popen([sys.executable, '-c', {shares!r}], stdout=-1, text=True)\n"
        "    name = child.stdout.readline().strip()\n"
        "print(child.pid, p.folder, name, 'sem.' + lock._semlock.name[1:], flush=True); time.sleep(60)"
    )
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    pid, folder, *names = server.stdout.readline().split()
    shared = [Path("/dev/shm", name) for name in names]
    assert all(path.exists() for path in shared)
    descriptor = os.pidfd_open(int(pid))
    for victim in keeper.children_of(server.pid) if whole_tree else ():
        os.kill(victim, signal.SIGKILL)
    server.kill()
    server.wait()
    server.stdout.close()
    ended, _, _ = select.select([descriptor], [], [], 10)
    os.close(descriptor)
    assert ended
    for _ in range(500):
        if not Path(folder).exists() and not any(path.exists() for path in shared):
            break
        time.sleep(0.01)
    assert not Path(folder).exists()
    assert not any(path.exists() for path in shared)


def test_what_they_inherit_is_taken_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    wanted = environment(tmp_path, "info", 1)
    assert "HF_HUB_OFFLINE" not in wanted  # said by the user
    assert wanted["VLLM_LOGGING_STREAM"] == "ext://sys.stderr"
    assert wanted["VLLM_RPC_BASE_PATH"] == wanted["TMPDIR"] == str(tmp_path)
    assert wanted["VLLM_CPU_OMP_THREADS_BIND"].isdigit()
    before = dict(os.environ)
    with Environment({"VLLM_X": "1", "HF_HUB_OFFLINE": "1"}) as ours:
        os.environ["LD_PRELOAD"] = "libx.so"
        os.environ["MORE"] = "1"
    assert os.environ == before | {"VLLM_X": "1"}  # which vLLM reads at every step
    ours.take_back()
    assert os.environ == before
