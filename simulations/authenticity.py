"""Authenticity of a run's generator: distances of images to their projections, with a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from common.errors import ConfigError
from common.evaluation.authenticity import GENERATED, GROUPS, HELD_OUT, TRAINING
from common.files import csv_of, write_atomically, write_json
from common.seeding import derive_seed
from simulations import console
from simulations.gan.generate import HEIGHT, new_folder
from simulations.trained import read_trained
from simulations.trained_sites import chosen_sites, open_if_any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from common.evaluation.extractor import Extractor
    from simulations.trained import Trained

TABLE, ABOUT, FIGURE = "authenticity.csv", "authenticity.json", "authenticity.png"
STRIPS, LATENTS = "strips.png", "latents.safetensors"
PATIENTS = (TABLE, FIGURE, STRIPS, LATENTS)  # of single patients, or leading back to pictures
SPLITS = {TRAINING: "train", HELD_OUT: "test"}
SPACES = ("w", "w+")
SHOWN = 4  # pictures of each group, in the strips
Reached = dict[str, dict[int, tuple[float, np.ndarray]]]  # distance and picture by space and number
DASHES = dict(zip(GROUPS, ("-", "--", ":"), strict=True))


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Parameters
    ----------
    run : Path
        Folder of a run or of a training.
    out : Path
        Folder to make.
    sites : tuple of str
        Of those on which it was trained; all of them where none is named.
    count : int
        Images a group, at most.
    spaces : tuple of {"w", "w+"}
    seeds : int
        Searches an image; the closest counts.
    steps : int
        Of each search.
    extractor : str
        Name or file; ``auto``: the run's.
    cohort : Path, optional
        Where the sites' data are, if they are no longer where they were.
    seed : int
        Decides which images are chosen and generated, and all searches.
    device : str
    """

    run: Path
    out: Path
    sites: tuple[str, ...] = ()
    count: int = 50
    spaces: tuple[str, ...] = SPACES
    seeds: int = 2
    steps: int = 100
    extractor: str = "auto"
    cohort: Path | None = None
    seed: int = 0
    device: str = "auto"


def measure(request: Request) -> dict[str, Any]:
    """Project training, held-out and generated images, and write what came of it.

    Returns
    -------
    dict
        What ``authenticity.json`` holds.

    Raises
    ------
    ConfigError
        For a run, a site, an extractor or a folder that cannot be used, before any work.
    """
    if not request.spaces or set(request.spaces) - set(SPACES):
        raise ConfigError(f"--space {','.join(request.spaces)}: accepted are w and w+")
    trained = read_trained(request.run, request.cohort, request.device)
    trained.generator()
    which = ", on whose images the generator was trained"
    asked = chosen_sites(request.sites, trained.training_sites, which)
    sites = _with_both_groups(trained, asked)
    extractor = trained.extractor(request.extractor)
    chosen, pictures, conditions = choose(trained, sites, request.count, request.seed)
    new_folder(request.out)
    table, latents, reached = _project(trained, request, extractor, chosen, pictures, conditions)
    description = {
        "weights": trained.weights_hash,
        "extractor": extractor.identity(),
        "steps": request.steps,
        "seeds": request.seeds,
        "seed": request.seed,
        "sites": list(sites),
        "spaces": summarize(table, request.seed),
        "stays": list(PATIENTS),
    }
    _write(request.out, table, latents, description)
    _write_strips(request.out / STRIPS, table, pictures, reached)
    return description


def _with_both_groups(trained: Trained, sites: Sequence[str]) -> tuple[str, ...]:
    """Leave out sites that lack images of a group, and name them.

    Raises
    ------
    ConfigError
        None is left.
    """
    kept = []
    for site in sites:
        lacking = [s for s in SPLITS.values() if not open_if_any(trained, site, s)]
        if lacking:
            words = f"Note: site '{site}' has no image of split '{lacking[0]}': it is left out"
            console.err.print(words, markup=False, soft_wrap=True)
        else:
            kept.append(site)
    if not kept:
        raise ConfigError(f"sites {', '.join(sites)}: none has training and test images")
    return tuple(kept)


def choose(
    trained: Trained, sites: Sequence[str], count: int, seed: int
) -> tuple[pd.DataFrame, np.ndarray, list[dict[str, str]]]:
    """Choose training and held-out images, matched, and generate as many.

    They are matched by hospital, class and, of slices, height.

    Returns
    -------
    DataFrame
        One row for each image: ``group``, ``site``, ``class``, ``person`` (a number) and ``row``,
        its number in the site's split, or of the generated image.
    np.ndarray
        Pictures (N, C, R, R) in [-1, 1].
    list of dict
        Of each, the labels that the generator knows.

    Raises
    ------
    ConfigError
        There are no two images alike in hospital and class in the two groups.
    """
    from common.evaluation.authenticity import choose_matched
    from common.training.gan_sampling import known_labels, sample_rows

    generator = trained.generator()
    data = {(site, name): trained.open(site, s) for site in sites for name, s in SPLITS.items()}
    groups = {
        name: pd.concat([_listed(trained, site, name) for site in sites], ignore_index=True)
        for name in SPLITS
    }
    found = choose_matched(groups[TRAINING], groups[HELD_OUT], count, seed)
    if not len(found[0]):
        raise ConfigError(
            f"sites {', '.join(sites)}: no training and test image share a hospital and a class"
        )
    chosen = pd.concat(
        [groups[name].iloc[index] for name, index in zip(SPLITS, found, strict=True)],
        ignore_index=True,
    )
    pictures, conditions = [], []
    for one in chosen.itertuples():
        images = data[one.site, one.group]
        pictures.append(images.take([one.row]) * 2 - 1)
        told = images.conditions[one.row] if images.conditions else {}
        conditions.append(known_labels(generator.architecture, told))
    labels = conditions[: len(found[0])]  # the mix of the training images
    pictures.append(sample_rows(generator, labels, range(len(labels)), seed=seed))
    made = chosen[: len(labels)].assign(group=GENERATED, row=range(len(labels)))
    made["site"] = [one.get("site", "") for one in labels]
    made["person"] = [("", GENERATED, k) for k in range(len(labels))]
    made["class"] = made["class"].where(
        [name in one.values() for name, one in zip(made["class"], labels, strict=True)], ""
    )
    chosen = pd.concat([chosen, made], ignore_index=True)
    chosen["person"] = pd.factorize(chosen["person"])[0]
    columns = ["group", "site", "class", "person", "row"]
    return chosen[columns], np.concatenate(pictures), conditions + labels


def _listed(trained: Trained, site: str, group: str) -> pd.DataFrame:
    """Images of one split of a site, with their stratum."""
    rows = trained.rows(site, SPLITS[group])
    rows = rows[rows["label"] != ""]
    heights = rows[HEIGHT] if HEIGHT in rows else [""] * len(rows)
    return pd.DataFrame(
        {
            "group": group,
            "site": site,
            "class": rows["label"],
            "person": [(site, group, one) for one in rows["person"]],
            "row": rows.index,
            "stratum": [(site, *one) for one in zip(rows["label"], heights, strict=True)],
        }
    )


def _project(
    trained: Trained,
    request: Request,
    extractor: Extractor,
    chosen: pd.DataFrame,
    pictures: np.ndarray,
    conditions: list[dict[str, str]],
) -> tuple[pd.DataFrame, np.ndarray, Reached]:
    """Project every picture into every space with every seed.

    Returns
    -------
    DataFrame
        ``chosen``, repeated, with ``space``, ``seed`` and ``distance``.
    np.ndarray
        w of each of its rows, (rows, num_ws, w_dim).
    dict
        By space and picture, what was reached and how far it is, of those in the strips.
    """
    import torch

    from common.models.architecture import encode_labels
    from common.training.projector import project_many

    generator = trained.generator()
    labels = encode_labels(generator.architecture, conditions)
    targets = torch.from_numpy(pictures)
    shown = set(_shown(chosen))
    tables, latents, reached = [], [], {space: {} for space in request.spaces}
    total = len(chosen) * len(request.spaces) * request.seeds * request.steps
    with console.steps("Projecting", total) as bar:
        for space in request.spaces:
            for seed in range(request.seeds):
                note = f"{space.upper()}, search {seed + 1} of {request.seeds}"
                found = project_many(
                    generator,
                    targets,
                    extractor.perceptual_distance,
                    space=space,
                    steps=request.steps,
                    seed=derive_seed(request.seed, search=seed),
                    labels=labels,
                    waypoints=2,
                    on_step=lambda _, apart, note=note: bar.advance(len(apart), note),
                )
                distances = []
                for number, one in enumerate(found):
                    distances.append(one.distance)
                    latents.append(one.ws.numpy())
                    best = reached[space].get(number, (np.inf,))[0]
                    if number in shown and one.distance < best:
                        reached[space][number] = (one.distance, one.reconstruction.numpy())
                tables.append(chosen.assign(space=space, seed=seed, distance=distances))
    return pd.concat(tables, ignore_index=True), np.stack(latents), reached


def _shown(chosen: pd.DataFrame) -> list[int]:
    """Numbers of the pictures in the strips."""
    return [k for name in GROUPS for k in chosen.index[chosen["group"] == name][:SHOWN]]


def summarize(table: pd.DataFrame, seed: int = 0) -> dict[str, Any]:
    """Judge each space, over all sites and at each.

    Parameters
    ----------
    table : DataFrame
        As ``authenticity.csv``.
    seed : int
        Of the bootstrap.
    """
    found = {}
    for space, rows in table.groupby("space", sort=False):
        real = rows[rows["group"] != GENERATED]
        found[space] = _judged(rows, seed)
        found[space]["sites"] = {
            site: _judged(own, seed) for site, own in real.groupby("site") if site
        }
    return found


def _judged(rows: pd.DataFrame, seed: int) -> dict[str, Any]:
    from common.evaluation.authenticity import judge

    images = ["group", "site", "row"]
    wide = rows.pivot(index=images, columns="seed", values="distance")
    person = rows.drop_duplicates(images).set_index(images)["person"]
    present = [name for name in GROUPS if name in wide.index.get_level_values("group")]
    return judge(
        {name: wide.loc[name].to_numpy() for name in present},
        {name: person.loc[name].loc[wide.loc[name].index].tolist() for name in present},
        seed=seed,
    )


def _write(
    out: Path, table: pd.DataFrame, latents: np.ndarray, description: dict[str, Any]
) -> None:
    """Write all but the strips; nobody but the owner reads them."""
    from safetensors.numpy import save

    write_atomically(out / TABLE, csv_of(table))
    about = {"rows": f"w[k] is of line k of {TABLE}, counted from 0 after its header"}
    write_atomically(out / LATENTS, save({"w": latents}, about))
    write_atomically(out / FIGURE, draw(table, description["spaces"]))
    write_json(out / ABOUT, description)


def _write_strips(
    path: Path,
    table: pd.DataFrame,
    pictures: np.ndarray,
    reached: Reached,
) -> None:
    """Write pictures above what was reached in each space; captions tell group and distances."""
    from common.imaging.pictures import write_grid

    numbers = _shown(table.iloc[: len(pictures)])
    rows = [
        pictures[numbers],
        *(np.stack([one[k][1] for k in numbers]) for one in reached.values()),
    ]
    captions = [
        "\n".join(
            [table["group"][k], *(f"{s.upper()} {one[k][0]:.3g}" for s, one in reached.items())]
        )
        for k in numbers
    ]
    names = ["image (stays\nat the site)", *(space.upper() for space in reached)]
    write_grid(path, rows, names=names, captions=captions)


def draw(table: pd.DataFrame, spaces: dict[str, Any]) -> bytes:
    """Draw the distribution of each group's distances in each space; a PNG."""
    import io

    import matplotlib as mpl
    from matplotlib.figure import Figure

    from simulations.report.charts import STYLE

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6 * len(spaces), 3.8), layout="constrained")
        panels = figure.subplots(1, len(spaces), squeeze=False)[0]
        for axes, (space, found) in zip(panels, spaces.items(), strict=True):
            _draw_space(axes, table[table["space"] == space], space, found)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=150)
    return file.getvalue()


def _draw_space(axes: Axes, rows: pd.DataFrame, space: str, found: dict[str, Any]) -> None:
    from simulations.report.looks import COLOURS

    colours = dict(zip(GROUPS, ("local", "fedavg", "other"), strict=True))
    best = rows.groupby(["group", "site", "row"])["distance"].min()
    for name in GROUPS:
        look = {"color": COLOURS[colours[name]], "linestyle": DASHES[name]}
        axes.ecdf(best.loc[name].to_numpy(), label=name, linewidth=1.6, **look)
    auroc = found["auroc"]
    told = "AUROC –" if auroc is None else f"AUROC {auroc['mean']:.2f}"
    if auroc and auroc["low"] is not None:
        told += f" ({auroc['low']:.2f} to {auroc['high']:.2f})"
    axes.set_title(f"{space.upper()}: {found['verdict']}\n{told}", fontsize=11)
    axes.set_xlabel("distance to the projection")
    axes.set_ylabel("share of images")
    axes.legend(frameon=False)
