"""How fast StyleGAN2-ADA trains here: seconds a phase, and the share of what the machine can do.

Machines differ, so beside seconds stands a figure that travels: the floating-point operations of
an iteration, divided by its seconds and by the rate of a large float32 matrix product measured in
the same process, just before and after. Each configuration is measured in a process of its own, so
that one's memory is not counted as another's.
"""

from __future__ import annotations

import multiprocessing
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from common.errors import ConfigError
from common.machine import processor

SIZES = ("32/4096/64/16", "64/8192/128/16", "128/8192/128/8", "64/16384/512/4")
PRECISIONS = ("float32", "bfloat16")
P = 0.3  # ADA's strength: fixed, so that every iteration costs the same
MATRIX = 2048  # sides of the product that gives the peak
LABELS = {"sex": ("F", "M")}
PHASES = {  # the share of iterations that have each; average: of G, without gradients
    "generator": 1.0,
    "discriminator": 1.0,
    "r1": 1 / 16,
    "path": 1 / 4,
    "average": 1.0,
}


@dataclass(frozen=True)
class Case:
    """What is measured.

    Parameters
    ----------
    size : str
        ``resolution/channel base/channel maximum/batch``.
    precision : str
        float32, bfloat16 or float16.
    device : str
        auto, cpu or cuda.
    threads : int
        CPU threads.
    repeats : int
        How often each phase is timed.
    """

    size: str
    precision: str
    device: str
    threads: int
    repeats: int

    def numbers(self) -> tuple[int, int, int, int]:
        """Resolution, channel base, channel maximum and batch.

        Raises
        ------
        ConfigError
            If the text is not four numbers.
        """
        if not re.fullmatch(r"\d+/\d+/\d+/\d+", self.size):
            raise ConfigError(
                f"--size {self.size}: accepted is RESOLUTION/CHANNEL-BASE/CHANNEL-MAX/BATCH, "
                f"for example {SIZES[0]}"
            )
        resolution, base, most, batch = map(int, self.size.split("/"))
        return resolution, base, most, batch


@dataclass(frozen=True)
class Speed:
    """What was measured; times are medians over the repeats.

    Parameters
    ----------
    seconds : dict of str to float
        Of each phase, with its optimizer step if it has one.
    iteration_seconds : float
        Of an iteration: each phase by the share of iterations that have it.
    images_per_second, seconds_per_1000_images : float
    gflop : float
        Of an iteration, matrix products and convolutions with their derivatives, counted by
        PyTorch (two a multiply and add).
    peak_gflops : float
        Float32 matrix product of 2048³ in the same process, GFLOP a second.
    share_of_peak : float
        ``gflop / iteration_seconds / peak_gflops``.
    memory_gib : float
        Largest resident memory of the process, Python and libraries included.
    gpu_memory_gib : float or None
    """

    size: str
    precision: str
    device: str
    threads: int
    seconds: dict[str, float]
    iteration_seconds: float
    images_per_second: float
    seconds_per_1000_images: float
    gflop: float
    peak_gflops: float
    share_of_peak: float
    memory_gib: float
    gpu_memory_gib: float | None


def bench(cases: list[Case]) -> Iterator[Speed]:
    """Measure one case after another, each in a fresh process.

    Raises
    ------
    ConfigError
        For a size that is none, or that no network can have; before anything is measured.
    """
    from common.training.gan_state import resolve_device

    for case in cases:
        _config(case).architecture(LABELS)
        resolve_device(case.device)
    spawn = multiprocessing.get_context("spawn")
    for case in cases:
        with ProcessPoolExecutor(1, mp_context=spawn) as process:
            yield process.submit(measure, case).result()


def measure(case: Case) -> Speed:
    """Time the phases of one case in this process, on a GPU with cuDNN's fastest algorithms."""
    import torch

    from simulations.options import computing_with

    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or _on_cuda(case)
    try:
        with computing_with(case.threads):
            return _measure(case)
    finally:
        torch.backends.cudnn.benchmark = before


def _measure(case: Case) -> Speed:
    import torch

    from common.training import gan
    from common.training.gan_slices import RealSlices
    from common.training.gan_state import GanTraining, resolve_device

    config = _config(case)
    device = resolve_device(case.device)
    training = GanTraining.start(config, config.architecture(LABELS))
    data = RealSlices(_pictures(config), training.architecture, config, device)
    steps: dict[str, Callable[..., Any]] = {
        "generator": gan.generator_step,
        "discriminator": gan.discriminator_step,
        "r1": gan.r1_step,
        "path": gan.path_length_step,
        "average": lambda training, *_: training.update_average(),
    }

    def run(phase: str, number: int) -> None:
        steps[phase](training, data, gan.Draws(0, number, device))

    gflop = sum(share * _gflop(lambda name=name: run(name, 0)) for name, share in PHASES.items())
    peak = _peak(device)
    times: dict[str, list[float]] = {name: [] for name in PHASES}
    for repeat in range(case.repeats):
        for name, measured in times.items():
            measured.append(_seconds(lambda name=name, n=repeat: run(name, n), device))
    peak = max(peak, _peak(device))
    seconds = {name: statistics.median(measured) for name, measured in times.items()}
    iteration = sum(PHASES[name] * seconds[name] for name in PHASES)
    cuda = device.type == "cuda"
    return Speed(
        size=case.size,
        precision=case.precision,
        device=torch.cuda.get_device_name(device) if cuda else processor(),
        threads=case.threads,
        seconds=seconds,
        iteration_seconds=iteration,
        images_per_second=config.batch_size / iteration,
        seconds_per_1000_images=1000 * iteration / config.batch_size,
        gflop=gflop,
        peak_gflops=peak,
        share_of_peak=gflop / iteration / peak,
        memory_gib=_resident_gib(),
        gpu_memory_gib=torch.cuda.max_memory_allocated(device) / 2**30 if cuda else None,
    )


def as_json(speeds: list[Speed]) -> dict[str, Any]:
    """Return plain values for ``--format json``."""
    from common.provenance import source_hash, versions

    return {
        "speeds": [asdict(speed) for speed in speeds],
        "versions": versions(),
        "source_hash": source_hash(),
    }


def _on_cuda(case: Case) -> bool:
    from common.training.gan_state import resolve_device

    return resolve_device(case.device).type == "cuda"


def _config(case: Case) -> Any:
    from common.training.gan_config import GanConfig

    resolution, base, most, batch = case.numbers()
    return GanConfig.from_mapping(
        {
            "resolution": resolution,
            "channel-base": base,
            "channel-max": most,
            "batch-size": batch,
            "label-kinds": ",".join(LABELS),
            "augment": "fixed",
            "augment-p": P,
            "precision": case.precision,
            "device": case.device,
            "threads": case.threads,
        }
    )


def _pictures(config: Any) -> Any:
    """Noise to train on: the time does not depend on what a picture shows."""
    import numpy as np

    from common.data.dataset import Dataset, InMemory

    count = 4 * config.batch_size
    shape = (count, config.channels, config.resolution, config.resolution)
    images = np.random.default_rng(0).standard_normal(shape, np.float32).clip(-1, 1)
    labels = tuple({"sex": LABELS["sex"][i % 2]} for i in range(count))
    return Dataset(InMemory((images + 1) / 2), np.zeros(count, np.int64), ("",) * count, labels)


def _gflop(run: Callable[[], None]) -> float:
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    class Count(TorchDispatchMode):
        """PyTorch's own counts; its counter hooks into modules, which second derivatives forbid."""

        total = 0

        def __torch_dispatch__(
            self, call: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = call(*args, **(kwargs or {}))
            if count := flop_registry.get(call._overloadpacket):
                self.total += count(*args, **(kwargs or {}), out_val=result)
            return result

    with Count() as counter:
        run()
    return counter.total / 1e9


def _peak(device: Any) -> float:
    """Rate of a large float32 matrix product, GFLOP a second: the best of five."""
    import torch

    matrix = torch.randn(MATRIX, MATRIX, device=device)
    fastest = min(_seconds(lambda: matrix @ matrix, device) for _ in range(6))
    return 2 * MATRIX**3 / fastest / 1e9


def _seconds(run: Callable[[], Any], device: Any) -> float:
    import torch

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


def _resident_gib() -> float:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kB, on macOS bytes
    return most / (2**30 if sys.platform == "darwin" else 2**20)
