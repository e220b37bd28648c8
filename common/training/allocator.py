"""Memory that training frees and asks for again a moment later, kept in the process.

A training step makes and drops tensors of tens of MB. glibc gives each of them back to the system
and the next one is fresh pages, which the system must clear one by one: a quarter of the time of a
StyleGAN2 iteration of 64 pixels (`fedscan bench-gan`, with and without).
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # mallopt(3)
_LARGEST = 2**31 - 1  # of a C int


def keep_freed_memory() -> bool:
    """Tell the C library to keep what is freed until the process ends.

    Returns
    -------
    bool
        Whether it could be told: only glibc, that is most Linux systems, listens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _LARGEST))
