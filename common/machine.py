"""The machine this process runs on: how many CPUs it may use, and what they are called."""

from __future__ import annotations

import platform


def usable_cpus() -> int:
    """Count the CPUs that this process may use, which a container or a batch system may limit."""
    from joblib import cpu_count

    return cpu_count()


def processor() -> str:
    """Name the machine's processor, as far as the system tells."""
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123  no path of a user's
            names = [line.partition(":")[2].strip() for line in file if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
