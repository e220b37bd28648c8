"""The networks that a generation run's configuration asks for, and pictures from a released one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from common.config.run_config import RunConfig
from common.data.site_data import plane_heights_mm
from common.errors import FedscanError
from common.models.architecture import Architecture
from common.models.stylegan2 import Generator, build
from common.studies.sections import HEIGHT, SITE
from common.tasks.task import SiteContext, State
from common.training.gan_presets import stylegan2
from common.training.gan_sampling import sample_batches

if TYPE_CHECKING:
    from common.data.dataset import Dataset
    from common.studies.study import Study

GENERATOR = "generator."  # begins the names of its tensors in a shared or released state


def architecture(config: RunConfig, sites: Sequence[str]) -> Architecture:
    """Return the networks' sizes: all sites must have the same labels, also those they lack."""
    return stylegan2(config).architecture(known_labels(config.read_study(), sites))


def known_labels(study: Study, sites: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return all values that each kind of label can have, whoever is there."""
    values = {column: known.names for column, known in study.condition_columns}
    if heights := plane_heights_mm(study):  # of pictures, a column may have that name
        values[HEIGHT] = tuple(f"{level:g}" for level in heights)
    values[SITE] = tuple(sites)
    return values


def generator_of(released: State, config: RunConfig, place: SiteContext) -> Generator:
    """Build the released generator, on the place's device."""
    networks = architecture(config, place.sites)
    generator = build(networks, 0)[0]
    load_released(generator, released)
    return generator.eval().requires_grad_(False).to(place.device)


def load_released(generator: Generator, released: State) -> None:
    """Take over a released state, strictly; noise constants stay the run's own."""
    state = {name.removeprefix(GENERATOR): tensor for name, tensor in released.items()}
    constants = {k: v for k, v in generator.state_dict().items() if k not in state}
    try:
        if unlike := [name for name in constants if not name.endswith(".noise")]:
            raise RuntimeError(f"missing: {', '.join(unlike[:3])}")
        generator.load_state_dict({**constants, **state}, strict=True)
    except RuntimeError as error:
        raise FedscanError(f"the released generator does not fit its networks: {error}") from None


def pictures(
    generator: Generator, data: Dataset, seed: int, chosen: Sequence[int] | None = None
) -> Iterator[np.ndarray]:
    """Make a picture with the labels of each image, or of those chosen, a few at a time.

    Yields
    ------
    np.ndarray
        (n, C, R, R); a picture does not depend on which others are made.
    """
    kinds = [kind for kind, _ in generator.architecture.labels]
    numbers = range(len(data)) if chosen is None else [int(k) for k in chosen]
    rows = [{k: v for k, v in data.conditions[n].items() if k in kinds} for n in numbers]
    yield from sample_batches(generator, rows, numbers, seed=seed)
