"""How many CPUs this process has to itself."""

from __future__ import annotations

import os
from pathlib import Path

#: Where a container's CPU quota stands (cgroup v2).
_QUOTA = "/sys/fs/cgroup/cpu.max"


def available_cpus(quota_file: str = _QUOTA) -> int:
    """
    Return how many CPUs this process may keep busy, at least 1.

    Affinity counts, and so does a container's quota (``quota_file``, cgroup
    v2), rounded up: a quota of 1.5 CPUs on a host of 64 is 2.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        quota, period = Path(quota_file).read_text(encoding="ascii").split()
        return max(1, min(count, -(-int(quota) // int(period))))
    except (OSError, ValueError):
        return count
