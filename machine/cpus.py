"""How many CPUs and how much memory this process has to itself."""

from __future__ import annotations

import os
import resource
import sys
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


def resident_bytes() -> int:
    """Return the memory this process holds now; its highest so far where now is not told."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
