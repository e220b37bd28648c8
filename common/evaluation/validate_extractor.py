"""Show that an extractor sees what people see, before its distances are believed.

Held-out real pictures are spoilt in ways whose order nobody disputes, and judged against real
training pictures as if they were generated. Spoiling each picture (blur, noise, displaced patches,
…) must raise the distances and lower precision; making fewer kinds of pictures (dropped kinds,
few people, copies) must raise the distances and lower recall, but not precision. Which ways, each
default extractor's module says (``validation_steps``).

All pictures here are of phantoms made by code, as are those that the default extractors are
trained on: to pass says nothing yet of real patients' pictures. Whoever has a real cohort can give
a network trained on real ones as a file, with ``--extractor``, and can `validate` any extractor on
that cohort's pictures.

    python -m common.evaluation.validate_extractor --extractor fedscan-skin --out validation.png

judges a default extractor on its default phantom cohort; it makes both where they are missing.
The exit code is 0 where it passes, 1 where it does not, 2 where it cannot be tried, as with fewer
held-out people than features: a Fréchet distance needs one image more than features.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import ConfigError, FedscanError
from common.evaluation.extractors.plan import DIVERSITY, QUALITY, SHOWN, Pictures, Step
from common.evaluation.generation import MEASURES, judge_features
from common.files import write_atomically

if TYPE_CHECKING:
    from common.evaluation.extractor import Extractor

SLACK = 0.05  # precision or recall may rise by this: one SE of a share of 100 participants
HELD = 0.1  # precision may fall by this where only variety is lost


def _too_few(got: str, needed: int) -> ConfigError:
    return ConfigError(
        f"{got} are too few to validate this extractor on: its {needed - 1} features take at "
        f"least {needed} of each. Give more people, or an extractor of fewer features",
        public="too few pictures or people for the extractor's number of features",
    )


def validate(
    extractor: Extractor,
    reference: Pictures,
    held_out: Pictures,
    steps: Callable[[Pictures, int], Iterator[Step]],
    *,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Judge every step against the reference.

    Parameters
    ----------
    extractor : Extractor
    reference, held_out : Pictures
        Real pictures of different people.
    steps : callable
        Given the held-out pictures and a seed, the steps: a recipe's ``validation_steps``.
    seed : int

    Returns
    -------
    list of dict
        ``series``, ``kind``, ``level``, ``n_draws`` and the measures of `judge_features`, each the
        mean over the draws.

    Raises
    ------
    ConfigError
        Too few pictures or held-out people for the extractor's number of features.
    """
    real = extractor.features(reference.images)
    needed = real.shape[1] + 1  # as many images as a covariance of full rank takes
    people = len(set(held_out.people))  # some steps take one picture of each
    if min(len(real), people) < needed:
        raise _too_few(f"{len(real)} training pictures and {people} held-out people", needed)
    rows = []
    for step in steps(held_out, seed):
        draws = [
            judge_features(extractor.features(images), real, seed=seed) for images in step.draws
        ]
        fewest = min(map(len, step.draws))
        if fewest < needed:  # many small sites: one of them alone is too small
            raise _too_few(f"{fewest} pictures in step '{step.series}: {step.level}'", needed)
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


def picture(rows: Sequence[dict[str, Any]], steps: Iterable[Step], path: Path) -> None:
    """Draw three pictures of every step, with its Fréchet distance: the order to see."""
    from PIL import Image, ImageDraw

    side, shown, height = 96, 3, 128
    series = list(dict.fromkeys(row["series"] for row in rows))
    columns = max(sum(row["series"] == name for row in rows) for name in series)
    sheet = Image.new("RGB", (columns * (shown * side + 8), len(series) * height), "white")
    draw = ImageDraw.Draw(sheet)
    counts = dict.fromkeys(series, 0)
    for row, step in zip(rows, steps, strict=True):
        left = counts[step.series] * (shown * side + 8)
        top = series.index(step.series) * height
        counts[step.series] += 1
        chosen = step.draws[0][np.linspace(0, len(step.draws[0]) - 1, shown + 2).astype(int)[1:-1]]
        for place, one in enumerate(chosen):
            pixels = ((one + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0)
            colour = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
            small = Image.fromarray(np.ascontiguousarray(colour)).resize((side, side))
            sheet.paste(small, (left + place * side, top + 14))
        text = f"{step.series}: {step.level}   Frechet {row['frechet_distance']:.1f}"
        draw.text((left, top), text, fill="black")
    file = io.BytesIO()
    sheet.save(file, "PNG")
    write_atomically(path, file.getvalue())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the validation; returns 1 when the extractor does not pass, and says where.

    Ends the process with 2 when the validation cannot be run, and says why.
    """
    from common.evaluation.extractor import DEFAULT, DEFAULTS, load_extractor, recipe
    from common.paths import cache_dir

    parser = argparse.ArgumentParser(
        prog="python -m common.evaluation.validate_extractor", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--extractor", default=DEFAULT, help="name or file (%(default)s)")
    parser.add_argument(
        "--pictures",
        choices=DEFAULTS,
        help="whose phantoms and steps to judge by; by default a default extractor's own",
    )
    parser.add_argument(
        "--resolution", type=int, choices=(32, 64, 128), help="by default that of the pictures"
    )
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--out", type=Path, help="also draw the steps into this PNG file")
    chosen = parser.parse_args(arguments)
    named = chosen.extractor if chosen.extractor in DEFAULTS else DEFAULT
    plan = recipe(chosen.pictures or named)
    resolution = chosen.resolution or plan.RESOLUTION
    try:
        cache = cache_dir()
        extractor = load_extractor(chosen.extractor, cache)
        reference, held_out = plan.validation_pictures(resolution, cache)
        rows = validate(extractor, reference, held_out, plan.validation_steps)
    except FedscanError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    faults = violations(rows)
    if chosen.format == "json":
        result = {"extractor": extractor.identity(), "resolution": resolution}
        text = json.dumps({**result, "rows": rows, "violations": faults}, indent=2)
    else:
        verdict = faults or ["every distance, precision and recall moves as it should"]
        title = f"{extractor.name} {extractor.hash}, {resolution} pixels"
        text = "\n".join([title, table(rows), *verdict])
    sys.stdout.write(text + "\n")
    if chosen.out is not None:
        picture(rows, plan.validation_steps(held_out, 0), chosen.out)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
