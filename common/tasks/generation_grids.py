"""Grids of a released generator's pictures: rows are classes and sites, columns heights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from common.config.run_config import RunConfig
from common.imaging.pictures import write_grid
from common.models.architecture import Architecture
from common.models.stylegan2 import Generator
from common.seeding import derive_seed
from common.tasks.generation_networks import generator_of
from common.tasks.task import SiteContext, State
from common.training.gan_sampling import combinations, sample_rows

COLUMNS = 10  # pictures in a row


def illustrate(
    folder: Path, released: State, config: RunConfig, *, round_number: int, place: SiteContext
) -> None:
    """Write ``grids/round-NNNN.png``: classes and sites by heights, with fixed latents.

    The rows and columns are those of the labels there are; of them, a person is one latent.
    """
    generator = generator_of(released, config, place)
    known = {column: values.names for column, values in config.read_study().condition_columns}
    rows, names, captions = grid_rows(generator.architecture, known)
    flat = [one for row in rows for one in row]
    # Without names all rows are of one kind, and each shows people of its own.
    people = [
        (k + (0 if names else number * len(row))) // _heights(generator)
        for number, row in enumerate(rows)
        for k in range(len(row))
    ]
    seed = derive_seed(config.run.seed, purpose="grid")
    images = sample_rows(generator, flat, people, seed=seed)
    parts = np.split(images, np.cumsum([len(row) for row in rows])[:-1])
    path = folder / "grids" / f"round-{round_number:04d}.png"
    write_grid(path, parts, names=names, captions=captions)


def grid_rows(
    networks: Architecture, known: Mapping[str, Sequence[str]]
) -> tuple[list[list[dict[str, str]]], list[str], list[str]]:
    """Lay out a grid: labels of each row's pictures, names of rows, captions of columns.

    Values are in the study's order where it names them (``known``); networks have them sorted.
    """
    order = {**dict(networks.labels), **known}
    place = {(kind, value): k for kind, values in order.items() for k, value in enumerate(values)}
    heights = dict(networks.labels).get("height", ("",))
    others = dict.fromkeys(
        tuple((kind, value) for kind, value in row.items() if kind != "height")
        for row in combinations(networks)
    )
    others = sorted(others, key=lambda row: [place[one] for one in row])
    people = max(1, COLUMNS // len(heights))
    columns = [{"height": h} if h else {} for _ in range(people) for h in heights]
    rows = [[{**dict(other), **column} for column in columns] for other in others]
    names = [" ".join(value for _, value in other) for other in others]
    if not any(names):  # a few rows of the same kind
        rows, names = [columns] * 4, []
    captions = [f"{column['height']} mm" if column else "" for column in columns]
    return rows, names, captions if any(captions) else []


def _heights(generator: Generator) -> int:
    return len(dict(generator.architecture.labels).get("height", ("",)))
