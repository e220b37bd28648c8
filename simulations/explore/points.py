"""Points of an exploration: real, generated and projected images, with what is known of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from common.errors import ConfigError
from common.seeding import derive_seed
from common.studies.sections import SITE
from common.studies.vocabulary import normalise
from simulations import console
from simulations.folders import in_words
from simulations.trained_sites import open_if_any

if TYPE_CHECKING:
    from common.evaluation.extractor import Extractor
    from simulations.trained import Trained

REAL, GENERATED, PROJECTED = KINDS = ("real", "generated", "projected")
SPLITS = ("train", "val", "test")
UNSEEN = "unseen"  # in place of "train", of sites on whose images the generator was not trained
ABOUT = ("kind", "class", "site", "split")
AUTHENTICITY, AUDIT = "authenticity.csv", "authenticity.json"
LATENTS, PROJECTIONS = "latents.safetensors", "projections.json"
GROUPS = {"training": "train", "held-out": "test"}  # of `fedscan authenticity`, with their splits


@dataclass(frozen=True)
class Points:
    """Images and where they lie.

    Parameters
    ----------
    table : DataFrame
        One row for each image: ``kind``, ``class``, ``site``, ``split``, ``person`` and the study's
        other conditions; of real and projected images ``row``, the number in the site's split, else
        −1. Images to train on of a site that did not train have split ``unseen``.
    images : np.ndarray
        (N, C, R, R) in [-1, 1].
    ws : np.ndarray
        (N, D) float32; NaN of real images, which have none.
    """

    table: pd.DataFrame
    images: np.ndarray
    ws: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[Points]) -> Points:
        """Put points together, in the order given."""
        table = pd.concat([one.table for one in parts], ignore_index=True)
        return cls(
            table.fillna(""),
            np.concatenate([one.images for one in parts]),
            np.concatenate([one.ws for one in parts]),
        )

    def subset(self, chosen: np.ndarray) -> Points:
        """Return the points of a mask or of indices."""
        table = self.table.iloc[np.arange(len(self.table))[chosen]].reset_index(drop=True)
        return Points(table, self.images[chosen], self.ws[chosen])

    def of(self, *kinds: str) -> Points:
        """Return the points of some kinds."""
        return self.subset(self.table["kind"].isin(kinds).to_numpy())


def real_points(trained: Trained, sites: Sequence[str], count: int, seed: int) -> Points:
    """Draw real images, as many from each split of each site as it has, or an equal share.

    Raises
    ------
    ConfigError
        The sites have no images.
    """
    cells = [(site, split) for site in sites for split in SPLITS]
    opened = {cell: data for cell in cells if (data := open_if_any(trained, *cell))}
    cells = list(opened)
    if not cells:
        raise ConfigError(f"sites {', '.join(sites)}: none has an image")
    rng = np.random.default_rng(derive_seed(seed, purpose="real images explored"))
    orders = [rng.permutation(len(opened[cell])) for cell in cells]
    turns = ((k, n) for n in range(max(map(len, orders))) for k in range(len(cells)))
    chosen: dict[int, list[int]] = {}
    for k, n in (turn for turn in turns if turn[1] < len(orders[turn[0]])):
        if sum(map(len, chosen.values())) == count:
            break
        chosen.setdefault(k, []).append(int(orders[k][n]))
    tables, images = [], []
    with console.steps("Reading images", count) as bar:
        for k, rows in sorted(chosen.items()):
            site, split = cells[k]
            tables.append(listed(trained, site, split, rows).assign(kind=REAL))
            images.append(opened[cells[k]].take(rows) * 2 - 1)
            bar.advance(len(rows), f"{site}, {split}")
    table = pd.concat(tables, ignore_index=True).fillna("")
    stack = np.concatenate(images).astype(np.float32)
    width = trained.generator().architecture.w_dim
    return Points(table, stack, np.full((len(stack), width), np.nan, np.float32))


def listed(trained: Trained, site: str, split: str, rows: Sequence[int]) -> pd.DataFrame:
    """Tell what is known of some images of a split."""
    known = trained.rows(site, split).iloc[list(rows)]
    told = known.drop(columns=["label", "image"]).reset_index(drop=True)
    label = trained.study.label.column
    told = told.drop(columns=[c for c in told if normalise(c) == normalise(label)])
    return told.assign(
        **{"class": known["label"].to_numpy(), "site": site, "row": list(rows)},
        split=UNSEEN if split == "train" and site not in trained.training_sites else split,
        person=[f"{site}/{split}/{one}" for one in known["person"]],
    )


def generated_points(trained: Trained, like: pd.DataFrame, count: int, seed: int) -> Points:
    """Generate images with the labels of real ones, in turn, as far as the generator knows them."""
    from common.latent.walks import latents_of, synthesize

    generator = trained.generator()
    label = trained.study.label.column
    known = known_of(trained, like)
    rows = [known[k % len(known)] for k in range(count)]
    ws = latents_of(generator, rows, range(count), seed)
    with console.steps("Generating", count) as bar:
        images = synthesize(generator, ws, bar.advance)
    table = table_of(rows, label).assign(
        kind=GENERATED, person=[f"generated/{k}" for k in range(count)]
    )
    return Points(table, images, ws)


def table_of(rows: Sequence[dict[str, str]], label: str) -> pd.DataFrame:
    """Tell of generated images what their labels say."""
    told = pd.DataFrame(
        {
            "class": [_value(row, label) for row in rows],
            "site": [row.get(SITE, "") for row in rows],
            "split": "",
            "row": -1,
        }
    )
    others = {kind for row in rows for kind in row} - {SITE}
    for kind in sorted(kind for kind in others if normalise(kind) != normalise(label)):
        told[kind] = [row.get(kind, "") for row in rows]
    return told


def known_of(trained: Trained, table: pd.DataFrame) -> list[dict[str, str]]:
    """Return the labels of each image of a table that the generator knows."""
    from common.training.gan_sampling import known_labels

    architecture, label = trained.generator().architecture, trained.study.label.column
    rows = table.rename(columns={"class": label}).to_dict("records")
    return [known_labels(architecture, row) for row in rows]


def _value(row: dict[str, str], label: str) -> str:
    return next((v for k, v in row.items() if normalise(k) == normalise(label)), "")


def projected_points(
    trained: Trained, real: Points, extractor: Extractor, count: int, steps: int, seed: int
) -> Points:
    """Project the first real images of each split of each site into W."""
    import torch

    from common.models.architecture import encode_labels
    from common.training.projector import project_many

    generator = trained.generator()
    turn = real.table.groupby(["site", "split"]).cumcount()
    chosen = real.subset(np.sort(np.argsort(turn.to_numpy(), kind="stable")[:count]))
    known = known_of(trained, chosen.table)
    with console.steps("Projecting", steps * len(known)) as bar:
        found = list(
            project_many(
                generator,
                torch.from_numpy(chosen.images),
                extractor.perceptual_distance,
                steps=steps,
                seed=seed,
                labels=encode_labels(generator.architecture, known),
                waypoints=2,
                on_step=lambda _, apart: bar.advance(len(apart)),
            )
        )
    images = np.stack([one.reconstruction.numpy() for one in found])
    ws = np.stack([one.ws[0].numpy() for one in found])
    return Points(chosen.table.assign(kind=PROJECTED), images, ws)


def read_projections(trained: Trained, folder: Path) -> Points:
    """Read what ``fedscan authenticity`` or ``fedscan project`` has projected into W.

    Raises
    ------
    ConfigError
        The folder is of neither, or of another generator, or of other data, or holds nothing in W.
    FedscanError
        Its files are damaged.
    """
    from common.latent.walks import synthesize
    from common.reading import read_json

    readers = {AUDIT: _of_authenticity, PROJECTIONS: _of_project}
    names = [name for name in readers if (folder / name).is_file()]
    if not names:
        raise ConfigError(
            f"--projections {folder}: accepted is a folder of `fedscan authenticity` or of "
            "`fedscan project`"
        )
    with in_words(folder, "Project the images anew"):
        if read_json(folder / names[0]).get("weights") != trained.weights_hash:
            raise ConfigError(
                f"--projections {folder}: they are of another generator, or of this one before its "
                "training went on. Accepted are those of the weights that are explored"
            )
        table, ws = readers[names[0]](trained, folder)
    if not len(ws):
        raise ConfigError(f"--projections {folder}: nothing was projected into W: use --space w")
    return Points(table.assign(kind=PROJECTED), synthesize(trained.generator(), ws), ws)


def _of_authenticity(trained: Trained, folder: Path) -> tuple[pd.DataFrame, np.ndarray]:
    from safetensors.numpy import load

    from common.reading import LARGEST_PICTURE, read_bytes

    table = pd.read_csv(folder / AUTHENTICITY, keep_default_na=False)
    ws = load(read_bytes(folder / LATENTS, limit=8 * LARGEST_PICTURE))["w"]
    if len(ws) != len(table):
        raise ConfigError(f"--projections {folder}: its files are not of one another")
    kept = table[(table["space"] == "w") & table["group"].isin(GROUPS)]
    closest = kept.sort_values("distance").drop_duplicates(["group", "site", "row"]).sort_index()
    lost = set(closest["site"]) - set(trained.sites)
    if lost:
        raise ConfigError(f"--projections {folder}: site '{min(lost)}' is none of the run's")
    for (site, group), own in closest.groupby(["site", "group"]):
        if not own["row"].between(0, len(trained.rows(site, GROUPS[group])) - 1).all():
            raise ConfigError(
                f"--projections {folder}: site '{site}' has fewer images than were projected. "
                "Its data have changed since, or --cohort names others"
            )
    parts = [
        (own.index, listed(trained, site, GROUPS[group], own["row"].tolist()))
        for (site, group), own in closest.groupby(["site", "group"], sort=False)
    ]
    if not parts:
        return pd.DataFrame(), np.empty((0, ws.shape[-1]))
    order = np.concatenate([index for index, _ in parts])
    return pd.concat([one for _, one in parts], ignore_index=True).fillna(""), ws[order, 0]


def _of_project(trained: Trained, folder: Path) -> tuple[pd.DataFrame, np.ndarray]:
    from safetensors.numpy import load

    from common.reading import LARGEST_PICTURE, read_bytes, read_json

    about = read_json(folder / PROJECTIONS)
    found = about["projections"] if about.get("space") == "w" else []
    ws = [
        load(read_bytes(folder / Path(one["folder"]).name / "w.safetensors", limit=LARGEST_PICTURE))
        for one in found
    ]
    table = table_of([one.get("labels", {}) for one in found], trained.study.label.column)
    table["person"] = [f"projected/{k}" for k in range(len(found))]
    return table, np.array([one["w"][0] for one in ws])


def attribute_values(trained: Trained, table: pd.DataFrame, column: str) -> list[str]:
    """Look up a column of the sites' tables for real or projected images; "" where it is unknown.

    Raises
    ------
    ConfigError
        No site has such a column.
    """
    if column in table.columns:
        return table[column].astype(str).tolist()
    found, known = [""] * len(table), False
    bids = trained.study.images.storage == "bids"
    for (site, split), own in table[table["row"] >= 0].groupby(["site", "split"]):
        values = _column(trained, site, column)
        known = known or values is not None
        files = trained.rows(site, "train" if split == UNSEEN else split)["image"]
        for place, row in zip(own.index, own["row"], strict=True):
            path = files.iloc[row].relative_to(trained.folders[site])
            found[place] = (values or {}).get(path.parts[0] if bids else path.as_posix(), "")
    if not known:
        raise ConfigError(
            f"--attribute {column}: no site's table has this column for the projected images"
        )
    return found


def require_column(trained: Trained, sites: Sequence[str], column: str) -> None:
    """Refuse a column that neither the study nor any site's table has.

    Raises
    ------
    ConfigError
    """
    study = [*ABOUT, *(name for name, _ in trained.study.condition_columns)]
    if column not in study and all(_column(trained, site, column) is None for site in sites):
        raise ConfigError(f"--attribute {column}: no site's table has this column")


def _column(trained: Trained, site: str, column: str) -> dict[str, str] | None:
    """Return a column of a site's table by participant or by file; None where there is none."""
    from common.data.tables import listed_file, read_site_table
    from common.studies.site_mapping import load_site_mapping

    images, folder = trained.study.images, trained.folders[site]
    bids = images.storage == "bids"
    key = "participant_id" if bids else images.file
    sheet = read_site_table(
        folder,
        "participants.tsv" if bids else images.table,
        site=site,
        required=[key],
        optional=[column],
        mapping=load_site_mapping(folder, site),
    )
    if normalise(column) not in sheet.columns:
        return None
    of_key, of_column = (sheet.columns.index(normalise(one)) for one in (key, column))
    rows = [cells for _, cells in reversed(sheet.rows) if cells[of_key]]  # the first row counts
    return {
        row[of_key] if bids else listed_file(row[of_key], trained.study): row[of_column]
        for row in rows
    }
