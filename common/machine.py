"""The machine this process runs on: its CPUs, and whether its memory was too little."""

from __future__ import annotations

import multiprocessing
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from common.errors import causes

_NO_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "memory pressure",  # of Ray
    "alloc_failed",  # of cuBLAS and cuDNN
)
Given, Made = TypeVar("Given"), TypeVar("Made")


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


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error, or what it followed from, says that memory was not to be had.

    PyTorch raises a RuntimeError for that, of which only the words tell; on a GPU one of a kind of
    its own, or whatever its libraries say.
    """
    for told in causes(error):
        words = str(told).lower()
        if isinstance(told, MemoryError) or type(told).__name__ == "OutOfMemoryError":
            return True
        if isinstance(told, RuntimeError | OSError) and any(one in words for one in _NO_MEMORY):
            return True
    return False


def one_thread() -> None:
    """Keep a process's linear algebra to one thread; the initializer of a pool's processes.

    Threads of several such processes would wait for one another, and threaded sums may come in
    another order.
    """
    import numpy  # noqa: F401  a library that is loaded later would not be limited
    import scipy.linalg  # noqa: F401
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)


def in_processes(
    function: Callable[[Given], Made], work: Sequence[Given], workers: int, chunk: int
) -> Iterator[Made]:
    """Map a function over work in order, in processes of one thread each; one works in this one."""
    from threadpoolctl import threadpool_limits

    if workers <= 1:
        with threadpool_limits(1):
            yield from map(function, work)
        return
    with ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),  # safe whatever threads the caller has
        initializer=one_thread,
    ) as executor:
        yield from executor.map(function, work, chunksize=chunk)
