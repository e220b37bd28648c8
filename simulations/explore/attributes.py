"""Labels of latents, from which directions are found: conditions, detectors, people's tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from common.data.tables import NOT_TOLD
from common.errors import ConfigError
from common.seeding import derive_seed
from simulations import console
from simulations.explore.points import Points, attribute_values, require_column

if TYPE_CHECKING:
    from common.latent.artefacts import Detector
    from simulations.trained import Trained

MOST_VALUES = 12  # of a column of text
LEAST_ACCURACY = 0.6  # of a detector on phantoms; below, its labels are mostly chance
EXTREME = 3  # a detector's labels: the highest and the lowest third of its scores


@dataclass(frozen=True)
class Labels:
    """Latents with and without something.

    Parameters
    ----------
    name : str
    source : {"conditions", "detector", "table"}
        Where the labels come from.
    ws : (N, D) float32
    positive : (N,) bool
    persons : list of str, optional
        Whose images they are, of projected ones.
    """

    name: str
    source: str
    ws: NDArray
    positive: NDArray[np.bool_]
    persons: list[str] | None = None


def condition_names(labels: Sequence[tuple[str, Sequence[str]]]) -> Iterator[tuple[str, str, str]]:
    """Yield the name, kind and value of each direction of a generator's labels."""
    for kind, values in labels:
        for value in values if len(values) > 2 else values[1:]:
            yield f"{kind}={value}", kind, value


def require_known(
    trained: Trained,
    sites: Sequence[str],
    attributes: Sequence[str],
    without: Sequence[str],
    detected: Sequence[str],
) -> None:
    """Refuse columns that no table has, and names that no direction will have.

    Raises
    ------
    ConfigError
    """
    for column in attributes:
        require_column(trained, sites, column)
    labels = trained.generator().architecture.labels
    known = [*(name for name, _, _ in condition_names(labels)), *detected]
    beginnings = tuple(f"{column}{sign}" for column in attributes for sign in "=>")
    for name in without:
        if name not in known and not name.startswith(beginnings):
            accepted = [*known, *(f"{beginning}…" for beginning in beginnings)]
            raise ConfigError(f"--without {name}: accepted is one of {', '.join(accepted)}")


def of_conditions(trained: Trained, count: int, seed: int) -> Iterator[Labels]:
    """Yield labels that the generator was told, all combinations in turn."""
    rows, ws = _latents(trained, count, seed)
    for name, kind, value in condition_names(trained.generator().architecture.labels):
        yield Labels(name, "conditions", ws, np.array([row[kind] == value for row in rows]))


def of_detectors(
    trained: Trained, detectors: Mapping[str, Detector], count: int, seed: int
) -> Iterator[Labels]:
    """Yield what detectors find on generated images.

    Of each detector the third of the images with the highest scores against the third with the
    lowest, as InterFaceGAN takes the most certain.
    """
    from common.latent.artefacts import scores
    from common.latent.walks import synthesize

    used = {name: one for name, one in detectors.items() if one.accuracy >= LEAST_ACCURACY}
    if not used:
        return
    _, ws = _latents(trained, count, seed)
    with console.steps("Generating for the detectors", count) as bar:
        images = synthesize(trained.generator(), ws, bar.advance)
    for name, found in zip(used, scores(used.values(), images).T, strict=True):
        order = np.argsort(found, kind="stable")
        part = count // EXTREME
        chosen = np.concatenate([order[:part], order[-part:]])
        yield Labels(name, "detector", ws[chosen], np.repeat([False, True], part))


def attribute_labels(
    trained: Trained, projected: Points, columns: Sequence[str]
) -> Iterator[Labels]:
    """Yield what the sites' tables say of projected images.

    A column of numbers is parted at its median, one of words into each of its values.

    Raises
    ------
    ConfigError
        No site has such a column, or it has one value, or too many.
    """
    for column in columns:
        cells = np.array(attribute_values(trained, projected.table, column), dtype=object)
        known = np.array([str(cell).strip().lower() not in NOT_TOLD for cell in cells])
        persons = projected.table["person"][known].tolist()
        ws, cells = projected.ws[known], cells[known].astype(str)
        values = sorted(set(cells))
        if len(values) < 2:
            raise ConfigError(f"--attribute {column}: it has fewer than two values")
        if len(values) > 2 and (numbers := _numbers(cells)) is not None:
            median = float(np.median(numbers))
            name = f"{column}>{median:g}"
            yield Labels(name, "table", ws, numbers > median, persons)
            continue
        if len(values) > MOST_VALUES:
            raise ConfigError(
                f"--attribute {column}: {len(values)} values; accepted are numbers, or up to "
                f"{MOST_VALUES} words"
            )
        for value in values if len(values) > 2 else values[1:]:
            yield Labels(f"{column}={value}", "table", ws, cells == value, persons)


def _numbers(cells: NDArray) -> NDArray[np.float64] | None:
    try:
        numbers = cells.astype(float)
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None


def _latents(trained: Trained, count: int, seed: int) -> tuple[list[dict[str, str]], NDArray]:
    """Draw latents w of all combinations of labels in turn."""
    from common.latent.walks import latents_of
    from common.training.gan_sampling import combinations

    generator = trained.generator()
    turns = combinations(generator.architecture)
    rows = [turns[k % len(turns)] for k in range(count)]
    return rows, latents_of(
        generator, rows, range(count), derive_seed(seed, purpose="latents of directions")
    )
