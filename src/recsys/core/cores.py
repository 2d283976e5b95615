"""Number of cores that this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

# Time that a control group may run in each period, in microseconds: "max 100000" or "150000 100000".
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cores(quota: Path = _QUOTA) -> int:
    """Return the number of cores that the process may run on, at least 1.

    A container sees all cores of its machine, but may use fewer: those of its CPU set, and the time of its quota.

    Args:
        quota: file of the quota of the control group (version 2); a missing one is no limit.
    """
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    try:
        most, period = quota.read_text().split()
        return min(cores, max(1, math.ceil(int(most) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):
        return cores
