"""CPUs that may be used, and torch's pools."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from router.engine import threads
from router.engine.threads import cgroup_cpus, in_ending_thread, usable_cpus, use_one_thread


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 0.5),
        ({"sys/fs/cgroup/cpu.max": "350000 100000\n"}, 3.5),
        ({"sys/fs/cgroup/cpu.max": "nonsense\n"}, None),
        ({"sys/fs/cgroup/cpu.max": ""}, None),
        ({"sys/fs/cgroup/cpu.max": "1 0\n"}, None),
        ({}, None),
        (
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            1.5,
        ),
        (
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_what_a_cgroup_pays_for(tmp_path: Path, files: dict[str, str], cpus: float | None) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert cgroup_cpus(tmp_path) == cpus


@pytest.mark.parametrize(("quota", "cpus"), [(None, 4), (0.5, 1), (2.5, 3), (64.0, 4)])
def test_usable_cpus(monkeypatch: pytest.MonkeyPatch, quota: float | None, cpus: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(threads, "cgroup_cpus", lambda: quota)
    assert usable_cpus() == cpus


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_affinity_to_one_core() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from router.engine.threads import usable_cpus; print(usable_cpus())"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said.strip() == "1"


def test_one_thread_is_for_the_calling_thread_only() -> None:
    seen: dict[str, int] = {}

    def inside() -> None:
        use_one_thread()
        seen["inside"] = torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for task in (inside, lambda: seen.update(later=torch.get_num_threads())):
            thread = threading.Thread(target=task)
            thread.start()
            thread.join()
        assert (seen["inside"], seen["later"], torch.get_num_threads()) == (1, 2, 2)
    finally:
        torch.set_num_threads(before)


def test_a_task_in_an_ending_thread_raises_here_and_leaves_no_thread() -> None:
    ran: list[threading.Thread] = []

    def fine() -> None:
        ran.append(threading.current_thread())

    def bad() -> None:
        fine()
        raise KeyboardInterrupt

    in_ending_thread(fine)
    with pytest.raises(KeyboardInterrupt):
        in_ending_thread(bad)
    assert all(thread is not threading.current_thread() and not thread.is_alive() for thread in ran)
