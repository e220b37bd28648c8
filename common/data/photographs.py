"""From a picture file as a camera or an archive left it to a small square of bytes.

JPEG, PNG, TIFF, BMP and WebP, told by their content and not by their name. The files are not
trusted: they are opened without leaving the site's folder, the number of pixels is bounded before
any is decoded, and whatever a decoder makes of damaged bytes ends in an error with a reason.

What happens, in this order:

1. A JPEG that is much larger than asked for is decoded at 1/2, 1/4 or 1/8 of its size, which the
   cosine transform does at once, but never below twice the size asked for.
2. Palettes and CMYK become RGB. What is transparent shows white, as it does in the programs in
   which people looked at the picture; black would look like the frame of a dermatoscope.
3. Colour becomes grey by ITU-R 601 luma (0.299 R + 0.587 G + 0.114 B) where one channel is asked
   for, and grey is repeated where three are.
4. The largest square in the middle is taken (``crop``), or the whole with black beside it
   (``pad``). By default it is cropped: bars would tell the camera by its aspect ratio.
5. Bicubic resampling with a kernel as wide as the larger spacing, so that nothing aliases.
6. The EXIF orientation is applied; one that cannot be read counts as upright.
7. Intensities are scaled to 0..255 and rounded.

Colours are taken as stored: embedded ICC profiles are not applied. Pillow reads 16-bit colour as
its upper eight bits.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from common.data.cache import CachedPictures, cached_pictures
from common.errors import DataContractError
from common.site_files import open_inside, plain, relative

if TYPE_CHECKING:
    from PIL import Image

    from common.data.image_table import ImageTable
    from common.studies.study import Study

PHOTOGRAPH_VERSION = 1  # raise it with any change that alters a byte of what is read
MOST_PIXELS = 2**26  # 67 million: 200 MB in colour; a camera of 24 megapixels has 2.8 times less
MOST_BYTES = 2**29  # of a file
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")

EMPTY = "a picture's file is empty"
UNKNOWN_FORMAT = "a file is no picture of a known format"
TOO_LARGE = "a picture has too many pixels"
TOO_LONG = "a picture's file is too large"
DAMAGED = "a picture cannot be decoded"
SEVERAL = "a file holds several pictures"
NO_RANGE = "a picture's numbers have no fixed range"
SHOWS_NOTHING = "a picture shows nothing: all its pixels are alike"
NOT_FINITE = "a picture holds NaN or infinite numbers"

PERCENTILES = (0.5, 99.5)  # of a picture that is scaled by its own range
_PHOTOMETRIC, _BITS, _WHITE_IS_ZERO = 262, 258, 0  # TIFF
_ORIENTATION = 0x0112  # EXIF


def read_photograph(
    path: Path,
    *,
    size: int,
    channels: int,
    fit: str = "crop",
    intensity: str = "full-range",
    intensity_range: tuple[float, float] | None = None,
    root: Path | None = None,
    site: str = "site",
) -> NDArray[np.uint8]:
    """Read a picture file as a square of bytes.

    Parameters
    ----------
    path : Path
    size : int
        S, the pixels along each side.
    channels : int
        C: 1 for grey, 3 for red, green and blue.
    fit : str
        ``crop`` or ``pad``, for pictures that are not square.
    intensity : str
        What becomes 0 and 255: ``full-range``, the ends of what the file's integers hold (0 and
        65535 of 16 bits; a TIFF may say fewer); ``own-range``, the 0.5th and 99.5th percentile
        of the resized picture, over all channels; ``fixed-range``, ``intensity_range``, in the
        file's numbers. Values beyond are clipped.
    intensity_range : tuple of float, optional
        Black and white.
    root : Path, optional
        The folder that the file must not leave by a link; by default the one that it lies in.
    site : str
        Name of the site, for errors.

    Returns
    -------
    (S, S, C) uint8
        Rows from the top, columns from the left.

    Raises
    ------
    DataContractError
        The file is missing, no regular one, empty, too large, of no known format, damaged, holds
        several pictures, or numbers without a fixed range under ``full-range``. Its public words
        hold neither the file's name nor anything read from it.
    """
    root = path.parent if root is None else root

    def refuse(problem: str, *, got: str = "", remedy: str = "") -> DataContractError:
        where = relative(path, root)
        return DataContractError(site, problem, where=where, got=plain(got), remedy=remedy)

    with open_inside(path, root=root, site=site) as stream:
        n_bytes = os.fstat(stream.fileno()).st_size
        if not n_bytes:
            raise refuse(EMPTY)
        if n_bytes > MOST_BYTES:
            raise refuse(TOO_LONG, got=f"{n_bytes} bytes", remedy=f"At most {MOST_BYTES} bytes")
        try:
            with warnings.catch_warnings():
                # Of Pillow: on metadata, such as damaged EXIF, which say nothing of the pixels; and
                # on many pixels, which are judged here.
                warnings.simplefilter("ignore")
                pixels, scaling = _decode(stream, refuse, size=size, channels=channels, fit=fit)
        except DataContractError:
            raise
        except Exception as error:  # decoders of damaged bytes raise whatever they like
            raise refuse(DAMAGED, got=f"{type(error).__name__}: {error}") from error
    if not np.isfinite(pixels).all():
        raise refuse(NOT_FINITE)
    if intensity == "full-range":
        if scaling["full"] is None:
            raise refuse(
                NO_RANGE,
                remedy="In the study, set intensity 'own-range', or intensity-range to two numbers",
            )
        low, high = 0.0, scaling["full"]
    elif intensity == "fixed-range" and intensity_range is not None:
        low, high = intensity_range
    elif intensity == "own-range":
        low, high = np.percentile(pixels, PERCENTILES)
    else:
        raise ValueError(f"intensity {intensity!r} with range {intensity_range}")
    return to_bytes(pixels, low, high, inverted=scaling["inverted"])


def require_content(
    picture: NDArray[np.uint8], path: Path, *, root: Path, site: str
) -> NDArray[np.uint8]:
    """Return a picture (S, S, C), and refuse one of a single colour.

    That is what is left of a picture which is transparent all over, or lies beyond its range.

    Raises
    ------
    DataContractError
    """
    if not np.ptp(picture, axis=(0, 1)).any():
        raise DataContractError(site, SHOWS_NOTHING, where=relative(path, root))
    return picture


def picture_settings(study: Study, size: int = 0) -> dict[str, Any]:
    """Return how a study's pictures are read, as `read_photograph` takes it; 0: its own size."""
    keys = ("channels", "fit", "intensity", "intensity_range")
    return {"size": size or study.images.size, **{key: getattr(study.images, key) for key in keys}}


def load_photographs(
    table: ImageTable,
    rows: NDArray[np.integer],
    study: Study,
    *,
    name: str,
    cache: Path,
    size: int = 0,
    read: Callable[..., NDArray[np.uint8]] = read_photograph,
    version: Sequence[object] = (),
) -> CachedPictures:
    """Pictures of some rows of a site's table, prepared once; only their files are opened.

    ``rows[pictures.rows]`` are the rows of the table to which they belong.

    Parameters
    ----------
    table : ImageTable
    rows : (N,) integers
    study : Study
        Of view ``picture``.
    name : str
        What the pictures are of, for messages: one cache is kept for each, and for each size.
    cache : Path
        Folder on the site's own disk.
    size : int
        S, pixels a side; 0: the study's.
    read : callable
        Reader of a file, with the parameters of `read_photograph`.
    version : sequence
        What the reader's result depends on besides those, as JSON can hold it.

    Raises
    ------
    DataContractError
        No picture can be used.
    ConfigError
        The cache cannot be written.
    """
    import PIL

    settings = picture_settings(study, size)
    here = {"root": table.root, "site": table.site}

    def prepared(path: Path) -> NDArray[np.uint8]:
        return require_content(read(path, **settings, **here), path, **here).transpose(2, 0, 1)

    return cached_pictures(
        [table.files[row] for row in rows],
        prepared,
        root=table.root,
        site=table.site,
        name=name,
        variant=str(settings["size"]),
        # Another version of the decoders may round otherwise.
        settings=json.dumps([PHOTOGRAPH_VERSION, PIL.__version__, settings, *version]),
        shape=(settings["channels"], settings["size"], settings["size"]),
        cache=cache,
    )


def _decode(
    stream: BinaryIO, refuse: Any, *, size: int, channels: int, fit: str
) -> tuple[NDArray, dict[str, Any]]:
    """Decode, resize and turn a picture.

    Returns
    -------
    (S, S, C) uint8 or float32
        In the file's own numbers.
    dict
        ``full``, the largest number that the file's integers can hold, None where that is not
        known; ``inverted``, whether zero is white.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        picture = Image.open(stream, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise refuse(UNKNOWN_FORMAT, remedy=f"Accepted: {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise refuse(TOO_LARGE, remedy=f"At most {MOST_PIXELS} pixels") from error
    with picture:
        width, height = picture.size
        if width * height > MOST_PIXELS:
            got, remedy = f"{width} × {height}", f"At most {MOST_PIXELS} pixels"
            raise refuse(TOO_LARGE, got=got, remedy=remedy)
        # The other pictures of an MPO, which phones write, are views of the first.
        if picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1:
            raise refuse(SEVERAL, remedy="One picture a file")
        tags = getattr(picture, "tag_v2", {})
        bits = tags.get(_BITS, (16,))[0]
        white_is_zero = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        extent = _draft(picture, size, channels, fit)
        picture.load()
        # Pillow has turned a TIFF by now, and removed the tag.
        turn = _orientation(picture)
        if picture.mode.startswith("I;16"):
            scaling = {"full": float(2**bits - 1), "inverted": white_is_zero}
            plane = Image.fromarray(np.asarray(picture).astype(np.float32))
        elif picture.mode in ("I", "F"):
            scaling = {"full": None, "inverted": white_is_zero}
            plane = Image.fromarray(np.asarray(picture).astype(np.float32))
        else:
            scaling = {"full": 255.0, "inverted": False}  # Pillow has inverted it by itself
            plane = _without_alpha(picture).convert("L" if channels == 1 else "RGB")
    pixels = np.asarray(square(plane, extent, size, fit, turn))
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], channels, axis=2)
    return pixels, scaling


def _draft(picture: Image.Image, size: int, channels: int, fit: str) -> tuple[float, float]:
    """Let a JPEG decode itself smaller, and in grey; return the width and height that result.

    The last column or row of a reduced picture may be a part of one, so they are no integers.
    """
    width, height = picture.size
    if picture.format not in ("JPEG", "MPO"):
        return width, height
    shrink = 2 * size / (min if fit == "crop" else max)(width, height)
    target = (math.ceil(width * shrink), math.ceil(height * shrink))
    drafted = picture.draft("L" if channels == 1 else None, target)
    return (width, height) if drafted is None else drafted[1][2:]


def _orientation(picture: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1, upright, where there is none or it makes no sense."""
    try:
        found = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF says nothing of the pixels, which are sound
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _without_alpha(picture: Image.Image) -> Image.Image:
    """Return a picture of eight bits without palette, on white where it is transparent."""
    from PIL import Image

    if picture.mode in ("PA", "LA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
    elif picture.mode == "P":
        picture = picture.convert("RGB")
    if picture.mode != "RGBA":
        return picture
    ground = Image.new("RGB", picture.size, "white")
    ground.paste(picture, mask=picture.getchannel("A"))
    return ground


def square(
    picture: Image.Image, extent: tuple[float, float], size: int, fit: str, turn: int = 1
) -> Image.Image:
    """Resize to a square, and turn. Both are about the centre, so that their order is the same."""
    from PIL import Image

    width, height = extent
    if fit == "crop":
        side = min(extent)
        left, top = (width - side) / 2, (height - side) / 2
        inner, box = (size, size), (left, top, left + side, top + side)
    elif fit == "pad":
        inner = tuple(_of_parity(size * length / max(extent), size) for length in extent)
        box = (0.0, 0.0, width, height)
    else:
        raise ValueError(f"fit {fit!r}")
    # A hostile aspect ratio makes no large intermediate: Pillow reduces the width first.
    small = picture.resize(inner, Image.Resampling.BICUBIC, box=box)
    if turn > 1:
        small = small.transpose(_TURNS[turn])
    if small.size == (size, size):
        return small
    whole = Image.new(small.mode, (size, size))
    whole.paste(small, ((size - small.width) // 2, (size - small.height) // 2))
    return whole


def _of_parity(length: float, size: int) -> int:
    """Whole number near a length that leaves equal margins on both sides of ``size``."""
    return max(size - 2 * round((size - length) / 2), 2 - size % 2)


# Transposition that sets each orientation upright, by Pillow's numbers of Image.Transpose.
_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}


def to_bytes(pixels: NDArray, low: float, high: float, *, inverted: bool) -> NDArray[np.uint8]:
    """Scale so that ``low`` is 0 and ``high`` 255, clipped; all 0 where they are equal."""
    if pixels.dtype == np.uint8 and (low, high) == (0, 255):
        return pixels.copy()
    if not high > low:
        return np.zeros(pixels.shape, np.uint8)
    unit = np.clip((pixels.astype(np.float64) - low) / (high - low), 0, 1)
    return np.rint(255 * (1 - unit if inverted else unit)).astype(np.uint8)
