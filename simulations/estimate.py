"""How long a comparison will take, from a few optimizer steps timed here on random scans."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from common.config import RunConfig
from common.machine import usable_cpus
from simulations.plan import PRETRAINING, USE, Plan

PROBE_STEPS = {"classification": 5, "generation": 16}  # a GAN's lazy penalties come every 16
SLOW_STEP = 1.0  # seconds: beyond, fewer steps have to do
SLOW_STEPS = 4
# Seconds beside the optimizer steps, as seen on two cores: start of Flower and Ray; or a process,
# its imports and loading; and what one site's messages and share of the average cost a round, as
# seen with the GAN `tiny-32-federated`.
FEDERATED_OVERHEAD = 35.0
ROUND_OVERHEAD = 0.4
CELL_OVERHEAD = 8.0


def estimate_seconds(plan: Plan, sites: int, base: Mapping[str, Any]) -> float:
    """Estimate a comparison's time.

    Parameters
    ----------
    plan : Plan
    sites : int
    base : mapping
        Run-config values under the plan's own.
    """
    steps: dict[RunConfig, float] = {}
    total, threads = 0.0, 1
    for stage in plan.stages():
        seconds = []
        for cell in stage:
            config = plan.config(cell, base)
            threads = config.threads
            alike = config.model_copy(update={"seed": 0})
            if alike not in steps:
                steps[alike] = step_seconds(alike, sites)
            # Equal images in every arm: each costs as many steps of one site as there are sites.
            trainings = 1 if cell.arm == "local" and plan.local == "poor" else sites
            if cell.arm == USE:  # beside the federated classifier
                trainings += _use_trainings(plan, sites)
            federated = cell.arm in ("federated", PRETRAINING, USE)
            overhead = CELL_OVERHEAD
            if federated:
                overhead = FEDERATED_OVERHEAD + ROUND_OVERHEAD * config.num_server_rounds * sites
            seconds.append(steps[alike] * config.total_steps * trainings + overhead)
        lanes = max(1, usable_cpus() // threads)
        total += max(sum(seconds) / lanes, max(seconds))
    return total


def _use_trainings(plan: Plan, sites: int) -> int:
    """Count the classifiers of one site's scans: a generator an arm gives pictures."""
    from simulations.synthetic_use import trainings

    return trainings(len(plan.arms), sites)


def step_seconds(config: RunConfig, sites: int) -> float:
    """Time optimizer steps of one site, after some that warm up."""
    import torch

    from common.tasks import Place, load_task

    task = load_task(config.task)
    torch.set_num_threads(config.threads)
    place = Place("0", tuple(str(k) for k in range(sites)), torch.device("cpu"))
    model, data = task.build_model(config, place), _random_scans(config, place.sites)
    count = PROBE_STEPS[config.task]

    def run(steps: int) -> float:
        some = config.model_copy(update={"local_steps": steps})
        began = time.perf_counter()
        task.fit(model, data, some, place=place, round_number=1, private={})
        return (time.perf_counter() - began) / steps

    warm = run(1)
    return run(count if warm < SLOW_STEP else min(count, SLOW_STEPS))


def _random_scans(config: RunConfig, sites: tuple[str, ...]) -> Any:
    """Make a batch of noise, as the task would load it."""
    from common.config import OF_SLICES
    from common.imaging.prepare import ImageSet
    from common.imaging.slices import LEVELS_MM, SEX, SliceSet
    from common.tasks.generation_networks import gan_config
    from common.tasks.stacks import heights_mm

    draws, levels = np.random.default_rng(0), len(LEVELS_MM)
    count = max(config.batch_size, 2)  # both sexes
    if config.task == "classification":
        shape: tuple[int, ...] = (config.image_size,) * 3
        if config.classifier in OF_SLICES:
            side = gan_config(config).resolution
            shape = (len(heights_mm(config)), side, side)
        images = draws.random((count, *shape), np.float32)
        return ImageSet(images, np.arange(count) % 2, ())
    gan = gan_config(config)
    images = draws.uniform(-1, 1, (count, gan.channels, gan.resolution, gan.resolution))
    labels = tuple(
        {
            "sex": list(SEX.values())[k % 2],
            "height": f"{LEVELS_MM[k % levels]:g}",
            "site": sites[k % len(sites)],
        }
        for k in range(count)
    )
    heights = np.array([LEVELS_MM[k % levels] for k in range(count)])
    return SliceSet(images.astype(np.float32), labels, tuple(map(str, range(count))), heights)
