"""How many CPUs a process may use is what its container or batch system says."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from threadpoolctl import threadpool_info

from common.machine import one_thread, processor, usable_cpus


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_one_core_of_many_is_one():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert 1 <= usable_cpus() <= len(allowed)


def test_the_processor_has_a_name():
    assert processor().strip()


def test_processes_of_a_pool_compute_in_one_thread():
    with ProcessPoolExecutor(1, get_context("spawn"), one_thread) as executor:
        libraries = executor.submit(threadpool_info).result()
    assert {one["num_threads"] for one in libraries if one["user_api"] == "blas"} == {1}
