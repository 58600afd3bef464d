"""How many threads compute, and how torch's own pools stay out of each other's way.

torch's OpenMP makes a pool of threads for every thread that has used a parallel operation. As soon as all
of them together are more than there are CPUs, each parallel region begins with a wake-up by the system: some
40 microseconds, hundreds of times a step. So only the engine's thread has a pool: what loads the base does it
in a thread that ends, and its pool with it; what packs adapters does it alone. (Native operations have a team
of their own, which knows of no pools.)
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from pathlib import Path

import torch

_QUOTAS = (("/sys/fs/cgroup/cpu.max", ""), ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "cpu.cfs_period_us"))


def usable_cpus() -> int:
    """CPUs that this process may use: what its affinity leaves, and no more than its cgroup pays for."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_cpus()
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def cgroup_cpus(root: Path = Path("/")) -> float | None:
    """CPUs of this process's cgroup, such as 0.5; None if it is not limited."""
    for quota, period in _QUOTAS:
        path = root / quota.lstrip("/")
        try:
            words = path.read_text().split()
            if period:
                words.append(path.with_name(period).read_text())
            if words[0] in ("max", "-1"):
                return None
            return int(words[0]) / int(words[1])
        except (OSError, ValueError, IndexError, ZeroDivisionError):
            continue
    return None


def in_ending_thread(task: Callable[[], None]) -> None:
    """Run it in a thread of its own and wait; what it raises is raised here."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            task()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="engine-start", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def use_one_thread() -> None:
    """torch in this thread computes alone, in others as before."""
    usual = torch.get_num_threads()
    if usual == 1:
        return
    torch.set_num_threads(1)
    # torch gives threads to come the number that was set last, wherever: so it is put back, elsewhere.
    restore = threading.Thread(target=torch.set_num_threads, args=(usual,))
    restore.start()
    restore.join()
