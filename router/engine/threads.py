"""How many threads compute, and where they must not wait for each other."""

from __future__ import annotations

import math
import os
from pathlib import Path

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
