"""Show that an extractor sees what people see, before its distances are believed.

Held-out real slices are spoilt in ways whose order nobody disputes, and judged against real
training slices as if they were generated. Spoiling each picture (blur, noise, displaced patches,
…) must raise the distances and lower precision; making fewer kinds of pictures (dropped levels,
few participants, copies) must raise the distances and lower recall, but not precision. That one
sex is missing is shown but not judged: nobody sees it in single slices of some 100 people.

All slices here are of phantoms made by code, as are those that the default extractor is trained on:
to pass says nothing yet of real patients' scans. Whoever has a real cohort can give a network
trained on real scans as a file, with ``--extractor``, and can `validate` any extractor on slices of
that cohort.

    python -m common.evaluation.validate_extractor --out validation.png

judges the default extractor on the default phantom cohort; it makes both where they are missing.
The exit code is 0 where it passes, 1 where it does not, 2 where it cannot be tried, as with fewer
held-out participants than features: a Fréchet distance needs one image more than features.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import ConfigError, FedscanError
from common.evaluation import degradations
from common.evaluation.generation import MEASURES, judge_features
from common.files import write_atomically
from common.imaging.slices import SliceSet, load_slices, pool
from common.seeding import derive_seed
from common.sites import PHANTOM_SEED, PHANTOM_TEST, phantom_sites

if TYPE_CHECKING:
    from common.evaluation.extractor import Extractor

QUALITY, DIVERSITY, SHOWN = "quality", "diversity", "shown"  # shown: not expected to be seen
SLACK = 0.05  # precision or recall may rise by this: one SE of a share of 100 participants
DRAWS = 5
HELD = 0.1  # precision may fall by this where only variety is lost


@dataclass(frozen=True)
class Step:
    """How much of what, and the slices: one set, or several where chance decides who is kept."""

    series: str
    kind: str
    level: str
    draws: tuple[np.ndarray, ...]


def steps(real: SliceSet, seed: int = 0) -> Iterator[Step]:
    """Spoil real slices in every way, in order of severity; each series begins unspoilt.

    Parameters
    ----------
    real : SliceSet
        Held-out slices, of all levels of each participant.
    """
    images = real.images

    def rng(series: str) -> np.random.Generator:
        return np.random.default_rng(derive_seed(seed, purpose=series))

    def quality(series: str, spoilt: Sequence[tuple[str, np.ndarray]]) -> Iterator[Step]:
        for level, pictures in [("none", images), *spoilt]:
            yield Step(series, QUALITY, level, (pictures,))

    blurs = (3, 5, 8, 16, 32)
    yield from quality("blur, SD in mm", [(f"{s}", degradations.blur(images, s)) for s in blurs])
    draw = rng("noise")
    noises = (0.025, 0.05, 0.1, 0.2, 0.4)
    spoilt = [(f"{s}", degradations.noise(images, s, draw)) for s in noises]
    yield from quality("noise, SD", spoilt)
    for across in (4, 8):
        draw = rng(f"shuffle {across}")
        shares = (0.125, 0.25, 0.5, 1.0)
        spoilt = [(f"{s}", degradations.shuffle(images, s, draw, across=across)) for s in shares]
        yield from quality(f"displaced patches of {across}x{across}, share", spoilt)
    draw = rng("warp")
    spoilt = [(f"{s}", degradations.warp(images, s, draw)) for s in (5, 10, 20)]
    yield from quality("bent, SD in mm", spoilt)
    spoilt = [(f"{s}", degradations.mosaic(images, s)) for s in (13.5, 27, 54)]
    yield from quality("mosaic, tile in mm", spoilt)
    draw = rng("phases")
    shares = (0.25, 0.5, 1.0)
    spoilt = [(f"{s}", degradations.random_phases(images, s, draw)) for s in shares]
    yield from quality("random phases, share", spoilt)
    yield from _fewer_kinds(real, rng("kinds"))


def _fewer_kinds(real: SliceSet, rng: np.random.Generator) -> Iterator[Step]:
    """Series that lose variety, but in which each picture is real, or smoother than real.

    Within a series all sets are of one size, so that none is nearer for being larger. Whom one
    draw keeps moves a distance as much as how many: so each step is drawn several times.
    """
    heights = np.unique(real.heights_mm)
    own = _people(real)
    everyone = np.arange(len(own))

    def step(
        series: str, level: str, draw: Callable[[], Sequence[int]], kind: str = DIVERSITY
    ) -> Step:
        return Step(series, kind, level, tuple(real.images[draw()] for _ in range(DRAWS)))

    def some(group: np.ndarray, count: int) -> np.ndarray:
        chosen = rng.choice(group, count, replace=False)
        return np.concatenate([own[person] for person in chosen])

    def few_people(count: int) -> np.ndarray:
        return np.resize(some(everyone, count), len(real))  # repeated to the full number

    def few_slices(count: int) -> np.ndarray:
        return np.resize(rng.choice(len(real), count, replace=False), len(real))

    for kept in range(len(heights), 0, -1):  # a slice of each; neighbouring levels, all in turn
        draws = []
        for lowest in range(len(heights)):
            levels = (lowest + np.arange(len(own)) % kept) % len(heights)
            pairs = zip(rng.permutation(everyone), levels, strict=True)
            rows = [own[person][level] for person, level in pairs]
            draws.append(real.images[rows])
        yield Step("levels kept", DIVERSITY, str(kept), tuple(draws))
    for kind, series, judged in (("site", "sites kept", DIVERSITY), ("sex", "sexes kept", SHOWN)):
        values = [real.labels[slices[0]][kind] for slices in own]
        largest = max(sorted(set(values)), key=values.count)
        only = np.flatnonzero(np.array(values) == largest)
        size = len(only) * 4 // 5  # of one site or sex, too, who is kept differs between draws
        yield step(series, "all", partial(some, everyone, size), judged)
        yield step(series, "one", partial(some, only, size), judged)
    for kept in (1, 4, 16):
        yield step("participants kept", f"1/{kept}", partial(few_people, max(1, len(own) // kept)))
    for kept in (1, 4, 16):
        yield step("different slices", f"1/{kept}", partial(few_slices, max(1, len(real) // kept)))
    yield Step("mean of heads", DIVERSITY, "1", (real.images,))
    for heads in (2, 3, 5, 10):
        mixed = degradations.average(real.images, real.heights_mm, heads, rng)
        yield Step("mean of heads", DIVERSITY, f"{heads}", (mixed,))


def _people(slices: SliceSet) -> list[np.ndarray]:
    """Indices of each participant's slices; two sites may have participants of one id."""
    labels = zip(slices.labels, slices.ids, strict=True)
    people = np.array([f"{label['site']}/{name}" for label, name in labels])
    return [np.flatnonzero(people == name) for name in np.unique(people)]


def _too_few(got: str, needed: int) -> ConfigError:
    return ConfigError(
        f"{got} are too few to validate this extractor on: its {needed - 1} features take at "
        f"least {needed} of each. Give more participants, or an extractor of fewer features",
        public="too few slices or participants for the extractor's number of features",
    )


def validate(
    extractor: Extractor, reference: SliceSet, held_out: SliceSet, *, seed: int = 0
) -> list[dict[str, Any]]:
    """Judge every step against the reference.

    Returns
    -------
    list of dict
        ``series``, ``kind``, ``level``, ``n_draws`` and the measures of `judge_features`, each the
        mean over the draws.

    Raises
    ------
    ConfigError
        Too few slices or held-out participants for the extractor's number of features.
    """
    real = extractor.features(reference.images)
    needed = real.shape[1] + 1  # as many images as a covariance of full rank takes
    people = len(_people(held_out))  # some steps take one slice of each
    if min(len(real), people) < needed:
        raise _too_few(f"{len(real)} training slices and {people} held-out participants", needed)
    rows = []
    for step in steps(held_out, seed):
        draws = [
            judge_features(extractor.features(images), real, seed=seed) for images in step.draws
        ]
        fewest = min(map(len, step.draws))
        if fewest < needed:  # many small sites: one of them alone is too small
            raise _too_few(f"{fewest} slices in step '{step.series}: {step.level}'", needed)
        about = {"series": step.series, "kind": step.kind, "level": step.level}
        measured = {name: [one[name] for one in draws] for name in MEASURES}
        means = {
            name: None if None in found else float(np.mean(found))
            for name, found in measured.items()
        }
        rows.append({**about, "n_draws": len(draws), **draws[0], **means})
    return rows


def violations(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What goes against the order that people see: a sentence each, none for a good extractor."""
    found = []
    for series in dict.fromkeys(row["series"] for row in rows):
        own = [row for row in rows if row["series"] == series]
        kind = own[0]["kind"]
        if kind == SHOWN:
            continue
        falling = "precision" if kind == QUALITY else "recall"
        for before, after in pairwise(own):
            at = f"{series}, {before['level']} to {after['level']}"
            for name in ("frechet_distance", "kernel_distance"):
                if not after[name] > before[name]:
                    found.append(f"{at}: {name} {before[name]:.4g} to {after[name]:.4g}")
            if after[falling] > before[falling] + SLACK:
                found.append(f"{at}: {falling} {before[falling]:.2f} to {after[falling]:.2f}")
        if own[-1][falling] > own[0][falling] - HELD:
            found.append(f"{series}: {falling} does not fall")
        if kind == DIVERSITY and own[-1]["precision"] < own[0]["precision"] - HELD:
            found.append(f"{series}: precision falls, where only variety is lost")
    return found


def cohort_slices(
    resolution: int,
    cache: Path,
    sizes: Mapping[str, int] | None = None,
    n_test: int = PHANTOM_TEST,
) -> tuple[SliceSet, SliceSet]:
    """Training slices of a phantom cohort, and held-out ones with as large a share of each site.

    Held-out are the first test participants of each site: with sites in other proportions, even
    real slices would be far from real ones.

    Parameters
    ----------
    resolution : int
    cache : Path
        Where phantoms and prepared scans are kept.
    sizes : mapping of str to int, optional
        Training and validation subjects of each site; by default the default cohort's.
    n_test : int
        Test subjects of each site.
    """
    from common.imaging.phantom_cache import ensure_site

    sizes = phantom_sites(3) if sizes is None else sizes
    train, test = [], []
    for site, n in sizes.items():
        folder = ensure_site(cache, site, n=n, n_test=n_test, seed=PHANTOM_SEED)
        train.append(load_slices(site, folder, "train", resolution=resolution, cache=cache))
        own = load_slices(site, folder, "test", resolution=resolution, cache=cache)
        first = list(dict.fromkeys(own.ids))[: round(n_test * n / max(sizes.values()))]
        test.append(own.subset(np.isin(own.ids, first)))
    return pool(train), pool(test)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as text, in columns; ``x`` is the Fréchet distance over that of the series' start."""
    lines = [
        f"{'':38}{'n':>6}{'Fréchet':>10}{'x':>7}{'kernel':>11}{'precision':>11}{'recall':>8}"
        f"{'density':>9}{'coverage':>10}"
    ]
    series = None
    for row in rows:
        if row["series"] != series:
            series, start = row["series"], row["frechet_distance"]
            lines.append(series)
        lines.append(
            f"    {row['level']:34}{row['n_generated']:6}{row['frechet_distance']:10.2f}"
            f"{row['frechet_distance'] / start:7.1f}{row['kernel_distance']:11.4f}"
            f"{row['precision']:11.2f}{row['recall']:8.2f}{row['density']:9.2f}"
            f"{row['coverage']:10.2f}"
        )
    return "\n".join(lines)


def picture(rows: Sequence[dict[str, Any]], held_out: SliceSet, path: Path, seed: int = 0) -> None:
    """Draw three pictures of every step, with its Fréchet distance: the order to see."""
    from PIL import Image, ImageDraw

    side, shown, height = 96, 3, 128
    every = list(steps(held_out, seed))
    series = list(dict.fromkeys(row["series"] for row in rows))
    columns = max(sum(row["series"] == name for row in rows) for name in series)
    sheet = Image.new("L", (columns * (shown * side + 8), len(series) * height), 255)
    draw = ImageDraw.Draw(sheet)
    counts = dict.fromkeys(series, 0)
    for row, step in zip(rows, every, strict=True):
        left = counts[step.series] * (shown * side + 8)
        top = series.index(step.series) * height
        counts[step.series] += 1
        chosen = step.draws[0][np.linspace(0, len(step.draws[0]) - 1, shown + 2).astype(int)[1:-1]]
        for place, one in enumerate(chosen):
            grey = Image.fromarray(((one[0] + 1) * 127.5).astype(np.uint8)).resize((side, side))
            sheet.paste(grey, (left + place * side, top + 14))
        text = f"{step.series}: {step.level}   Frechet {row['frechet_distance']:.1f}"
        draw.text((left, top), text, fill=0)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    write_atomically(path, file.getvalue())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the validation; returns 1 when the extractor does not pass, and says where.

    Ends the process with 2 when the validation cannot be run, and says why.
    """
    from common.evaluation.extractor import DEFAULT, load_extractor
    from common.paths import cache_dir

    parser = argparse.ArgumentParser(
        prog="python -m common.evaluation.validate_extractor", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--extractor", default=DEFAULT, help="name or file (%(default)s)")
    parser.add_argument("--resolution", type=int, choices=(32, 64, 128), default=32)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--out", type=Path, help="also draw the steps into this PNG file")
    chosen = parser.parse_args(arguments)
    try:
        cache = cache_dir()
        extractor = load_extractor(chosen.extractor, cache)
        reference, held_out = cohort_slices(chosen.resolution, cache)
        rows = validate(extractor, reference, held_out)
    except FedscanError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    faults = violations(rows)
    if chosen.format == "json":
        result = {"extractor": extractor.identity(), "resolution": chosen.resolution}
        text = json.dumps({**result, "rows": rows, "violations": faults}, indent=2)
    else:
        verdict = faults or ["every distance, precision and recall moves as it should"]
        title = f"{extractor.name} {extractor.hash}, {chosen.resolution} pixels"
        text = "\n".join([title, table(rows), *verdict])
    sys.stdout.write(text + "\n")
    if chosen.out is not None:
        picture(rows, held_out, chosen.out)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
