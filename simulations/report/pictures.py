"""Pictures for the page: grids that runs left behind, grids of real slices, as data URIs.

Only a model's ``grids/`` are read, which hold nothing but generated pictures: no file on the sites'
own side of a comparison is opened.
"""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from common.errors import FedscanError, FileError
from common.reading import LARGEST_PICTURE, read_bytes, read_json
from common.studies.study import read_study
from simulations.report import samples
from simulations.report.words import mapping

if TYPE_CHECKING:
    from PIL.Image import Image

WIDEST = 1200  # pixels: beyond that a grid's file grows and the page shows no more of it
MOST_PIXELS = 2**26  # of a picture that is read
STAGES = 6  # pictures of how rounds go by

Picture = dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """What a trained model left: its summary, and a grid of pictures a validated round."""

    arm: str
    strategy: str
    seed: int
    trained_on: str
    summary: Mapping[str, Any] = field(default_factory=dict)
    grids: Mapping[int, Path] = field(default_factory=dict)
    root: Path | None = None  # the folder that is reported

    @property
    def shown_round(self) -> int | None:
        """The round of the released generator, else the last there is a grid of."""
        best = self.summary.get("best_round")
        return best if best in self.grids else max(self.grids, default=None)


def trained_model(folder: Path, *key: Any, root: Path) -> Trained:
    """Read what is in the folder of one model, below the root; whatever is missing is left out.

    Raises
    ------
    FileError
        Its summary cannot be read.
    """
    try:
        summary = read_json(folder / "summary.json", root)
    except FileNotFoundError:
        summary = {}
    found = {}
    for path in sorted((folder / "grids").glob("round-*.png")):
        if match := re.fullmatch(r"round-(\d{1,9})", path.stem):
            found[int(match[1])] = path
    return Trained(*key, summary=summary, grids=found, root=root)


def trained_models(folder: Path, results: pd.DataFrame) -> list[Trained]:
    """Find the folders of all models of a comparison that ended well, in order of seeds."""
    columns = ["seed", "arm", "strategy", "trained_on"]
    keys = results.loc[results["status"] == "done", columns].dropna().drop_duplicates()
    cells, models = folder / "cells", []
    for seed, arm, strategy, trained_on in sorted(keys.itertuples(index=False)):
        cell = "-".join(filter(None, (arm, strategy, f"seed{int(seed)}")))
        path = cells / cell / trained_on
        if {"", ".."} & {*Path(cell).parts, trained_on} or path.parent.parent != cells:
            continue  # a name in a table is no way out of the folder
        models.append(trained_model(path, arm, strategy, int(seed), trained_on, root=folder))
    return models


def stages(model: Trained, most: int = STAGES) -> list[int]:
    """Choose the first round, the last, the released one and some between, more of the early."""
    known = sorted(model.grids)
    if not known:
        return []
    places = np.unique(np.geomspace(1, len(known), min(most, len(known))).round().astype(int)) - 1
    return sorted({model.shown_round, *(known[place] for place in places)})


@dataclass(frozen=True)
class Rows:
    """Which rows of a generator's grid are wanted: those of a site, one row for each class.

    Parameters
    ----------
    side : int
        Pixels of an image.
    classes, sites : tuple of str
        In the order of the rows, which are of every site of one class, then of the next.
    site : str
    """

    side: int
    classes: tuple[str, ...]
    sites: tuple[str, ...]
    site: str

    def of(self, picture: Image) -> Image:
        """Cut them out; of a grid with other rows, return all of it."""
        from PIL import Image

        from common.imaging.pictures import pitch

        each, total = pitch(self.side), len(self.classes) * len(self.sites)
        top = picture.height - total * each
        if not 0 <= top < each or len(self.sites) < 2:
            return picture
        at = self.sites.index(self.site)
        kept = [(0, top)]
        for k in range(at, total, len(self.sites)):
            kept.append((top + k * each, top + (k + 1) * each))
        sheet = Image.new("RGB", (picture.width, top + len(self.classes) * each))
        below = 0
        for upper, lower in kept:
            sheet.paste(picture.crop((0, upper, picture.width, lower)), (0, below))
            below += lower - upper
        return sheet


def embedded(path: Path, root: Path | None, rows: Rows | None = None) -> Picture:
    """Read a picture below a root, as large as it is good for; of a grid, some rows.

    Raises
    ------
    FileError
        It cannot be read, or is no PNG of at most ``MOST_PIXELS``.
    """
    from PIL import Image

    remedy = "Delete it to report without it"
    raw = read_bytes(path, root, limit=LARGEST_PICTURE, remedy=remedy)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # judged here
            picture = Image.open(io.BytesIO(raw), formats=["PNG"])
        if picture.width * picture.height > MOST_PIXELS:
            raise FileError(path, f"has more than {MOST_PIXELS:,} pixels", remedy)
        whole = picture.convert("RGB")
        return encoded(rows.of(whole) if rows else whole)
    except FileError:
        raise
    except Exception:  # Pillow raises anything at all
        raise FileError(path, "is no whole PNG", remedy) from None


def real_images(stacks: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Picture | None:
    """Lay sites' images out like a generator's pictures: one row for each class and site.

    None where no site's images were kept in that layout, or the study cannot be read.
    """
    from common.imaging.pictures import grid

    try:
        study = read_study(str(config.get("study", "brain-sex")))
    except FedscanError:
        return None
    by_site = {
        site: samples.rows(np.asarray(stack, float), study) for site, stack in stacks.items()
    }
    found = {
        f"{name} {site}": rows[name]
        for name in study.label.classes.names
        for site, rows in by_site.items()
        if name in rows
    }
    if len({row.shape[1:] for row in found.values()}) != 1:
        return None
    captions = samples.captions(study)
    return encoded(grid(list(found.values()), names=list(found), captions=captions))


def strip(images: np.ndarray) -> Picture:
    """Put a site's sample images side by side, three a row.

    Parameters
    ----------
    images : (K, S, S) or (K, S, S, 3) floats in [0, 1]
        Axis 0 points to the right, axis 1 to the front or up: so it is drawn.

    Returns
    -------
    dict
        As :func:`encoded` gives it. A pixel is 4 × 4 where it would be small else, as smoothing
        would hide differences in resolution.
    """
    from PIL import Image

    stack = np.nan_to_num(np.asarray(images, dtype=float)).clip(0, 1)
    upright = stack.swapaxes(1, 2)[:, ::-1]
    columns = min(3, len(upright))
    unused = [(0, -len(upright) % columns)] + [(0, 0)] * (upright.ndim - 1)
    padded = np.pad(upright, unused)
    rows = [
        np.concatenate(padded[at : at + columns], axis=1) for at in range(0, len(padded), columns)
    ]
    sheet = np.concatenate(rows)
    times = 4 if upright.shape[2] <= 100 else 1
    sheet = sheet.repeat(times, axis=0).repeat(times, axis=1)
    return encoded(Image.fromarray((255 * sheet).round().astype(np.uint8)))


def encoded(picture: Image) -> Picture:
    """Return a picture's data URI and size; grey where it has no colour, to be smaller."""
    from PIL import Image

    pixels = np.asarray(picture)
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        picture = picture.convert("L")
    if picture.width > WIDEST:
        height = max(1, round(picture.height * WIDEST / picture.width))
        picture = picture.resize((WIDEST, height), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    uri = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return {"uri": uri, "width": picture.width, "height": picture.height}


def extractors(models: list[Trained]) -> list[str]:
    """Names, with the begin of the hash, of all that judged the models' pictures."""
    found = []
    for model in models:
        one = mapping(mapping(model.summary.get("generation")).get("extractor"))
        if one.get("name"):
            found.append(f"{one['name']} ({str(one.get('hash', '–'))[:12]})")
    return list(dict.fromkeys(found))
