"""Pictures out of a trained generator: which latent, which label, how far from the average.

From Python, in three lines::

    from common.training.gan_sampling import load_generator, sample
    generator, about = load_generator("out")
    images = sample(generator, 64, {"sex": "female"}, truncation=0.7, seed=0)  # (64, 1, R, R)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from common.errors import ConfigError
from common.models.architecture import Architecture, encode_labels
from common.seeding import derive_seed
from common.studies.vocabulary import normalise
from common.training.gan_checkpoint import load_generator

if TYPE_CHECKING:
    from common.models.stylegan2 import Generator

__all__ = [
    "combinations",
    "known_labels",
    "latents",
    "load_generator",
    "sample",
    "sample_batches",
    "sample_rows",
    "wanted_labels",
]

BATCH = 16  # pictures at a time; always as many, so that a picture's bits do not depend on how many


def wanted_labels(architecture: Architecture, words: Sequence[str]) -> dict[str, str]:
    """Read labels as people write them: ``F``, or ``sex=F`` where a value alone is not clear.

    Raises
    ------
    ConfigError
        For a label that the generator was not trained with, or two for one kind; it names those
        that are accepted.
    """
    kinds = dict(architecture.labels)
    accepted = ", ".join(f"{kind}={value}" for kind in kinds for value in kinds[kind])
    found: dict[str, str] = {}
    for word in words:
        if not kinds:
            raise ConfigError(f"label '{word}': this generator was trained without labels")
        kind, equals, value = word.partition("=")
        if not equals:
            value = word
            having = [name for name, values in kinds.items() if word in values]
            if len(having) > 1:
                raise ConfigError(
                    f"label '{word}': {' and '.join(having)} have it. Write {having[0]}={word}"
                )
            kind = having[0] if having else ""
        if value not in kinds.get(kind, ()):
            raise ConfigError(f"label '{word}': accepted are {accepted}")
        if found.get(kind, value) != value:
            raise ConfigError(f"labels {kind}={found[kind]} and {kind}={value}: accepted is one")
        found[kind] = value
    return found


def known_labels(architecture: Architecture, told: Mapping[str, str]) -> dict[str, str]:
    """Return of what is told of an image, by any kind's name, the labels that a generator knows."""
    values = {normalise(kind): value for kind, value in told.items()}
    return {
        kind: values[normalise(kind)]
        for kind, known in architecture.labels
        if values.get(normalise(kind)) in known
    }


def combinations(
    architecture: Architecture, fixed: Mapping[str, str] | None = None
) -> list[dict[str, str]]:
    """Every combination of label values, those of ``fixed`` held; ``[{}]`` without labels."""
    choices = [
        [(kind, value) for value in values if (fixed or {}).get(kind, value) == value]
        for kind, values in architecture.labels
    ]
    return [dict(chosen) for chosen in itertools.product(*choices)]


def latents(architecture: Architecture, numbers: Sequence[int], seed: int) -> Tensor:
    """Latents z, (len(numbers), z_dim): picture k's depends on the seed and on k alone."""
    rows = []
    for number in numbers:
        draws = torch.Generator().manual_seed(derive_seed(seed, purpose="latent", picture=number))
        rows.append(torch.randn(architecture.z_dim, generator=draws))
    return torch.stack(rows)


def sample(
    generator: Generator,
    count: int,
    labels: Mapping[str, str] | None = None,
    *,
    truncation: float = 1.0,
    seed: int = 0,
) -> np.ndarray:
    """Draw pictures.

    Parameters
    ----------
    generator : Generator
    count : int
    labels : mapping of str to str, optional
        ``{"sex": "female"}``. A kind that is not named takes all its values in turn.
    truncation : float
        ψ of the truncation trick: 1 leaves w as it is, 0 gives the average picture.
    seed : int

    Returns
    -------
    np.ndarray
        (count, C, R, R) float32, about [-1, 1].

    Raises
    ------
    ConfigError
        For a label that the generator does not know.
    """
    fixed = wanted_labels(
        generator.architecture, [f"{kind}={value}" for kind, value in (labels or {}).items()]
    )
    turns = combinations(generator.architecture, fixed)
    rows = [turns[number % len(turns)] for number in range(count)]
    return sample_rows(generator, rows, range(count), truncation=truncation, seed=seed)


def sample_rows(
    generator: Generator,
    rows: Sequence[Mapping[str, str]],
    numbers: Sequence[int],
    *,
    truncation: float = 1.0,
    seed: int = 0,
    on_picture: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Draw one picture a row of labels, with the latent of that number; see :func:`sample`.

    ``on_picture`` is told how many pictures each batch has added.
    """
    size = generator.architecture.resolution
    images = np.empty((len(rows), generator.architecture.channels, size, size), np.float32)
    done = 0
    for made in sample_batches(generator, rows, numbers, truncation=truncation, seed=seed):
        images[done : done + len(made)] = made
        done += len(made)
        if on_picture:
            on_picture(len(made))
    return images


def sample_batches(
    generator: Generator,
    rows: Sequence[Mapping[str, str]],
    numbers: Sequence[int],
    *,
    truncation: float = 1.0,
    seed: int = 0,
) -> Iterator[np.ndarray]:
    """Draw the pictures of :func:`sample_rows` a few at a time, for more than memory holds.

    Yields
    ------
    np.ndarray
        (n, C, R, R) float32, n at most ``BATCH``, in the order of the rows.
    """
    architecture = generator.architecture
    device = next(generator.parameters()).device
    for start in range(0, len(rows), BATCH):
        stop = min(start + BATCH, len(rows))
        # The last batch is filled up: one of another size may round in another way.
        place = [min(k, stop - 1) for k in range(start, start + BATCH)]
        z = latents(architecture, [numbers[k] for k in place], seed).to(device)
        conditions = encode_labels(architecture, [rows[k] for k in place]).to(device)
        with torch.no_grad():  # not around the yield: whoever consumes may want gradients
            made = generator(z, conditions, truncation=truncation)
        yield made[: stop - start].float().cpu().numpy()
