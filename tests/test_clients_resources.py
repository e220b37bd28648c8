"""A site computes with what it was granted, and gives a GPU's memory back."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from clients import resources
from clients.resources import Grant, compute_device, granted
from common.config.run_config import RunConfig
from common.errors import ConfigError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def cuda(monkeypatch) -> list[tuple]:
    """Pretend that there is a GPU, and write down what is asked of it."""
    calls = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda,
        "set_per_process_memory_fraction",
        lambda fraction, device=None: calls.append(("fraction", fraction)),
    )
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append(("empty",)))
    return calls


def pretend_ray(monkeypatch, *, initialized: bool, share: dict[str, float]) -> None:
    runtime = SimpleNamespace(get_assigned_resources=lambda: share)
    ray = SimpleNamespace(is_initialized=lambda: initialized, get_runtime_context=lambda: runtime)
    monkeypatch.setitem(sys.modules, "ray", ray)


# Threads


@pytest.mark.parametrize("simulated", [True, False])
@pytest.mark.parametrize(
    ("threads", "cpus", "most"), [(2, 1.0, 1), (4, 2.0, 2), (3, 2.5, 2), (2, 0.5, 1)]
)
def test_more_threads_than_granted_are_refused_and_nothing_is_set(
    monkeypatch, simulated, threads, cpus, most
):
    """What a deployed site has is its machine's: no key of the run grants more."""
    pretend_ray(monkeypatch, initialized=simulated, share={})
    with pytest.raises(ConfigError) as caught:
        compute_device(RunConfig.from_flower({"run.threads": threads}), Grant(cpus, 0)).__enter__()
    said = str(caught.value)
    assert f"granted {cpus:g} CPUs" in said
    assert (f'client-resources-num-cpus={threads}"' in said) == simulated
    assert (f"Lower threads to at most {most}" in said) != simulated
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("cpus", [0.0, 0.5, 1.0])
def test_one_thread_is_always_granted(cpus):
    """Ray's shares may be fractions, and a thread cannot."""
    with compute_device(RunConfig.from_flower({"run.threads": 1}), Grant(cpus, 0)) as device:
        assert device == CPU


@pytest.mark.parametrize("cpus", [2.0, 8.0])
def test_threads_are_those_of_the_run_whatever_was_granted(cpus):
    with compute_device(RunConfig.from_flower({"run.threads": 2}), Grant(cpus, 0)):
        assert torch.get_num_threads() == 2


def test_the_c_library_is_told_to_keep_freed_memory(monkeypatch):
    told = []
    monkeypatch.setattr(resources, "keep_freed_memory", lambda: told.append("keep"))
    with compute_device(RunConfig.from_flower({}), Grant(1, 0)):
        assert told == ["keep"]


# Devices


@pytest.mark.parametrize("gpus", [0.0, 0.5, 1.0])
def test_without_cuda_the_device_is_the_cpu(monkeypatch, gpus):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with compute_device(RunConfig.from_flower({}), Grant(1, gpus)) as device:
        assert device == CPU


def test_without_a_share_the_gpu_is_not_touched(cuda):
    with compute_device(RunConfig.from_flower({}), Grant(1, 0)) as device:
        assert device == CPU
    assert cuda == []


def test_run_on_cpus_does_not_touch_the_gpu(cuda):
    with compute_device(RunConfig.from_flower({"run.device": "cpu"}), Grant(1, 1)) as device:
        assert device == CPU
    assert cuda == []


@pytest.mark.parametrize(("share", "fraction"), [(0.25, 0.25), (1.0, 1.0), (2.0, 1.0)])
def test_memory_is_limited_to_the_share_and_freed_after(cuda, share, fraction):
    with compute_device(RunConfig.from_flower({}), Grant(1, share)) as device:
        assert device.type == "cuda"
        assert cuda == [("fraction", fraction)]
    assert cuda == [("fraction", fraction), ("empty",)]


def test_memory_is_freed_also_when_the_work_fails(cuda):
    with pytest.raises(ZeroDivisionError), compute_device(RunConfig.from_flower({}), Grant(1, 0.5)):
        raise ZeroDivisionError
    assert cuda[-1] == ("empty",)


# What is granted


def test_share_is_rays_where_ray_runs(monkeypatch, cuda):
    pretend_ray(monkeypatch, initialized=True, share={"CPU": 2.0, "GPU": 0.25})
    assert granted() == Grant(2.0, 0.25)


def test_what_ray_does_not_name_was_not_granted(monkeypatch, cuda):
    pretend_ray(monkeypatch, initialized=True, share={"CPU": 1.0})
    assert granted() == Grant(1.0, 0.0)


@pytest.mark.parametrize("gpu", [True, False])
def test_without_ray_the_machine_is_the_sites_own(monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(resources, "usable_cpus", lambda: 6)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    assert granted() == Grant(6.0, 1.0 if gpu else 0.0)
    pretend_ray(monkeypatch, initialized=False, share={})  # imported, but nothing was started
    assert granted() == Grant(6.0, 1.0 if gpu else 0.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch can use")
def test_gpu_is_shared_limited_and_given_back():
    total = torch.cuda.get_device_properties(0).total_memory
    share = 0.05
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()  # by tests before this one; not this call's to give back
    try:
        with compute_device(RunConfig.from_flower({}), Grant(1, share)) as device:
            work = torch.ones(2**24, device=device)  # 64 MiB
            assert float(work.sum()) == 2**24
            with pytest.raises(torch.cuda.OutOfMemoryError):
                torch.empty(int(2 * share * total), dtype=torch.uint8, device=device)
            assert torch.cuda.memory_reserved() > before
            del work
        assert torch.cuda.memory_reserved() == before
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
