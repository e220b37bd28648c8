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

from common.errors import FileError
from common.reading import LARGEST_PICTURE, read_bytes, read_json
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


def embedded(path: Path, root: Path | None) -> Picture:
    """Read a picture below a root, as large as it is good for.

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
        return encoded(picture.convert("RGB"))
    except FileError:
        raise
    except Exception:  # Pillow raises anything at all
        raise FileError(path, "is no whole PNG", remedy) from None


def real_slices(stacks: Mapping[str, np.ndarray]) -> Picture | None:
    """Lay sites' slices out like a generator's pictures: one row for each sex and site.

    None where no site's slices were kept in that layout.
    """
    from common.imaging.pictures import grid

    by_site = {site: samples.rows(np.asarray(stack, float)) for site, stack in stacks.items()}
    found = {
        f"{sex} {site}": rows[sex]
        for sex in samples.SEXES
        for site, rows in by_site.items()
        if sex in rows
    }
    sides = {row.shape[-1] for row in found.values()}
    if len(sides) != 1:
        return None
    return encoded(grid(list(found.values()), names=list(found), captions=samples.CAPTIONS))


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
