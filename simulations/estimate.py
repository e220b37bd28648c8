"""How long a comparison will take, from a few optimizer steps timed here on random scans."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from common.config.run_config import RunConfig
from common.machine import usable_cpus
from simulations.plan import PRETRAINING, USE, Plan

PROBE_STEPS = {"classification": 5, "generation": 16}  # a GAN's lazy penalties come every 16
SLOW_STEP, SLOW_STEPS = 1.0, 4  # seconds: beyond, so many steps have to do
VERY_SLOW_STEP = 10.0  # seconds: beyond, the first step has to do
# Seconds beside the optimizer steps, as seen on two cores: start of Flower and Ray; or a process,
# its imports and loading; and what one site's messages and share of the average cost a round, as
# seen with the GAN `tiny-32-federated`.
FEDERATED_OVERHEAD = 35.0
ROUND_OVERHEAD = 0.4
CELL_OVERHEAD = 8.0
USUAL_IMAGES = 100  # of a site whose steps are told as epochs, of its images


def estimate_seconds(plan: Plan, sites: int, base: Mapping[str, Any]) -> float:
    """Estimate a comparison's time.

    Parameters
    ----------
    plan : Plan
    sites : int
    base : mapping
        Run-config values under the plan's own.
    """
    steps: dict[tuple[Any, ...], float] = {}
    total, threads = 0.0, 1
    for stage in plan.stages():
        seconds = []
        for cell in stage:
            config = plan.config(cell, base)
            threads = config.run.threads
            # All that a step is timed with: strategies take no part.
            alike = (
                *(config.task, config.study, config.model, config.training),
                *(config.data.size, config.run.threads, config.privacy.is_on),
            )
            if alike not in steps:
                steps[alike] = step_seconds(config, sites)
            # Equal images in every arm: each costs as many steps of one site as there are sites.
            trainings = 1 if cell.arm == "local" and plan.local == "poor" else sites
            if cell.arm == USE:  # beside the federated classifier
                trainings += _use_trainings(plan, sites)
            messages = cell.arm == "federated" and not plan.in_place
            federated = messages or cell.arm in (PRETRAINING, USE)
            overhead = CELL_OVERHEAD
            if federated:
                overhead = FEDERATED_OVERHEAD + ROUND_OVERHEAD * config.run.rounds * sites
            each = config.run.rounds * config.local_steps(USUAL_IMAGES)
            seconds.append(steps[alike] * each * trainings + overhead)
        lanes = max(1, usable_cpus() // threads)
        total += max(sum(seconds) / lanes, max(seconds))
    return total


def _use_trainings(plan: Plan, sites: int) -> int:
    """Count the classifiers of one site's scans: a generator an arm gives pictures."""
    from simulations.synthetic_use import trainings

    return trainings(len(plan.arms), sites)


def step_seconds(config: RunConfig, sites: int) -> float:
    """Time optimizer steps of one site, after one that warms up if it is not very slow."""
    import torch

    from common.tasks.task import SiteContext, load_task

    task = load_task(config.task)
    torch.set_num_threads(config.run.threads)
    place = SiteContext("0", tuple(str(k) for k in range(sites)), torch.device("cpu"))
    model, data = task.build_model(config, place), _random_images(config, place.sites)
    count = PROBE_STEPS[config.task]

    def run(steps: int) -> float:
        some = config.replace({"training.local-epochs": 0, "training.local-steps": steps})
        began = time.perf_counter()
        task.fit(model, data, some, place=place, round_number=1, private={})
        return (time.perf_counter() - began) / steps

    warm = run(1)
    if warm > VERY_SLOW_STEP:
        return warm
    return run(count if warm < SLOW_STEP else min(count, SLOW_STEPS))


def _random_images(config: RunConfig, sites: tuple[str, ...]) -> Any:
    """Make a batch of noise, as the task would load it."""
    from common.config.run_config import OF_SLICES
    from common.data.dataset import Dataset, InMemory
    from common.imaging.slices import LEVELS_MM
    from common.tasks.classifier_networks import heights_mm
    from common.training.gan_presets import stylegan2

    draws, study = np.random.default_rng(0), config.read_study()
    classes = study.label.classes.names
    count = max(config.training.batch_size, len(classes))
    pictures, side = study.images.view == "picture", config.data.size
    shape: tuple[int, ...] = (study.images.channels, side, side) if pictures else (1, *[side] * 3)
    if config.task == "generation" or config.model.classifier in OF_SLICES:
        side = stylegan2(config).resolution
        # Of a classifier's stacks: a generator sees their slices one by one.
        heights = heights_mm(config) if config.task == "classification" else ()
        shape = (1, len(heights), side, side) if heights else (study.images.channels, side, side)
    labels = np.arange(count) % len(classes)
    conditions = tuple(
        {
            **{name: known.names[0] for name, known in study.condition_columns},
            study.label.column: classes[label],
            "height": f"{LEVELS_MM[k % len(LEVELS_MM)]:g}",
            "site": sites[k % len(sites)],
        }
        for k, label in enumerate(labels)
    )
    images = draws.random((count, *shape), np.float32)
    return Dataset(InMemory(images), labels, tuple(map(str, range(count))), conditions)
