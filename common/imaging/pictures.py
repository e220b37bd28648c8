"""Pictures of pictures: one as it is, many as a grid with labelled rows, a projection as a strip.

Everything here takes images as the networks give them, (N, C, R, R) about [-1, 1], and gives PNG
bytes that depend on nothing else: no clock, no font of the machine, no metadata.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.files import write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image

READABLE = 96  # pixels a side that a picture in a grid has at least
_GAP = 4
_TEXT = 15  # height of the letters, in pixels
_PAPER, _INK = (255, 255, 255), (0, 0, 0)


def to_pixels(images: np.ndarray) -> np.ndarray:
    """Turn images into 8-bit grey or colour; values beyond [-1, 1] are clipped.

    Parameters
    ----------
    images : np.ndarray
        (N, C, R, R) with C from 1 to 4.

    Returns
    -------
    np.ndarray
        uint8: (N, R, R) for one channel; (N, R, R, 3) for three, taken as red, green and blue;
        else (N, R, C·R), the channels in grey side by side.
    """
    levels = (np.clip(np.asarray(images, np.float32), -1, 1) + 1) * np.float32(127.5)
    pixels = np.round(levels).astype(np.uint8)
    count, channels, height, width = pixels.shape
    if channels == 3:
        return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    return pixels.transpose(0, 2, 1, 3).reshape(count, height, channels * width)


def write_picture(path: Path, image: np.ndarray) -> None:
    """Write one image (C, R, R) as it is, a pixel a pixel.

    An image of one or three channels is read back within 1/255 of what it was.
    """
    from PIL import Image

    _write(path, Image.fromarray(to_pixels(image[None])[0]))


def write_grid(
    path: Path,
    rows: Sequence[np.ndarray],
    *,
    names: Sequence[str] = (),
    captions: Sequence[str] = (),
) -> None:
    """Write rows of images as one picture, small ones enlarged until a reader sees them.

    Parameters
    ----------
    path : Path
    rows : sequence of np.ndarray
        (n, C, R, R) each; rows may differ in length.
    names : sequence of str
        What stands to the left of each row.
    captions : sequence of str
        What stands above each column; a caption may have several lines.
    """
    _write(path, grid(rows, names=names, captions=captions))


def grid(
    rows: Sequence[np.ndarray], *, names: Sequence[str] = (), captions: Sequence[str] = ()
) -> Image:
    """Lay images out as :func:`write_grid` writes them."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(_TEXT)
    probe = ImageDraw.Draw(Image.new("RGB", (1, 1)))

    def extent(text: str) -> tuple[int, int]:
        right, bottom = probe.multiline_textbbox((0, 0), text, font=font)[2:]
        return int(np.ceil(right)), int(np.ceil(bottom))

    tiles = [[_enlarged(Image.fromarray(one)) for one in to_pixels(row)] for row in rows]
    width, height = tiles[0][0].size
    left = _GAP + max((extent(text)[0] + _GAP for text in names), default=0)
    top = _GAP + max((extent(text)[1] + _GAP for text in captions), default=0)
    pitch_x = max([width, *(extent(text)[0] for text in captions)]) + _GAP
    pitch_y = height + _GAP
    columns = max(map(len, tiles))
    sheet = Image.new("RGB", (left + columns * pitch_x, top + len(tiles) * pitch_y), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, line in enumerate(tiles):
        for column, tile in enumerate(line):
            sheet.paste(tile, (left + column * pitch_x, top + row * pitch_y))
    for row, text in enumerate(names):
        middle = top + row * pitch_y + (height - extent(text)[1]) / 2
        draw.text((_GAP, middle), text, fill=_INK, font=font)
    for column, text in enumerate(captions):
        draw.multiline_text((left + column * pitch_x, _GAP), text, fill=_INK, font=font)
    return sheet


def pitch(side: int) -> int:
    """Return how many pixels below the one before a row of a grid of images begins."""
    return side * max(1, -(-READABLE // side)) + _GAP


def arranged(
    images: np.ndarray, names: Sequence[str] | None = None
) -> tuple[list[np.ndarray], list[str]]:
    """Arrange images in rows, about as many as columns; those of one name together.

    Parameters
    ----------
    images : np.ndarray
        (N, C, R, R).
    names : sequence of str, optional
        One an image.

    Returns
    -------
    tuple of list of np.ndarray and list of str
        Rows and their names, as :func:`grid` takes them; of the rows of one name, the first
        bears it. Without names, no names.
    """
    columns = max(1, round(len(images) ** 0.5))
    rows: list[np.ndarray] = []
    titles: list[str] = []
    groups = dict.fromkeys(names or [""])
    for name in groups:
        chosen = images if names is None else images[[one == name for one in names]]
        parts = [chosen[k : k + columns] for k in range(0, len(chosen), columns)]
        rows += parts
        titles += [name] + [""] * (len(parts) - 1)
    return rows, titles if names is not None else []


def write_path(
    path: Path,
    target: np.ndarray,
    steps: Sequence[int],
    images: np.ndarray,
    distances: Sequence[float],
) -> None:
    """Write a projection's path: the target, then what was reached after some steps.

    Parameters
    ----------
    path : Path
    target : np.ndarray
        (C, R, R).
    steps : sequence of int
    images : np.ndarray
        (len(steps), C, R, R).
    distances : sequence of float
        Perceptual distance to the target, one an image.
    """
    captions = ["target\n"] + [
        f"step {step}\n{distance:.3g}" for step, distance in zip(steps, distances, strict=True)
    ]
    write_grid(path, [np.concatenate([target[None], images])], captions=captions)


def _enlarged(picture: Image) -> Image:
    """Bicubic: at 32 pixels the eye takes a mosaic of squares for texture."""
    from PIL import Image

    factor = (pitch(picture.height) - _GAP) // picture.height
    if factor == 1:
        return picture
    return picture.resize(
        (picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC
    )


def _write(path: Path, picture: Image) -> None:
    file = io.BytesIO()
    picture.save(file, "PNG")
    write_atomically(path, file.getvalue())
