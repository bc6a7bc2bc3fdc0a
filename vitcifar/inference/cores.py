"""How many cores this process may really use, so that onnxruntime starts as many threads and no more.

Left to itself onnxruntime counts the machine's cores, which inside a container or under `taskset` are not ours.
"""

import math
import os
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")
QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cores() -> int:
    """Physical cores among the CPUs that this process may run on, cut to the container's quota; at least 1."""
    try:
        cpus = os.sched_getaffinity(0)
    except AttributeError:  # only Linux tells
        return max(1, (os.cpu_count() or 2) // 2)
    cores = len({_siblings(cpu) for cpu in cpus})
    return max(1, min(cores, _quota()))


def _siblings(cpu: int) -> str:
    """The hyper-threads of the core that a CPU belongs to, as the kernel lists them: equal text, same core."""
    try:
        return (CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _quota() -> int:
    """The container's share in whole cores, rounded up; a large number without one."""
    try:
        quota, period = QUOTA.read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):
        return 1 << 16
