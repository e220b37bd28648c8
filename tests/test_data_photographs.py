"""A picture file becomes the square that a person sees, or an error with a reason."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from common.data import photographs
from common.data.image_table import read_image_table
from common.data.photographs import (
    DAMAGED,
    EMPTY,
    NO_RANGE,
    NOT_FINITE,
    SEVERAL,
    TOO_LARGE,
    TOO_LONG,
    UNKNOWN_FORMAT,
    load_photographs,
    read_photograph,
    require_content,
)
from common.errors import DataContractError
from common.site_files import ESCAPES
from common.studies.study import Study

FORMATS = {"png": {}, "tif": {}, "bmp": {}, "webp": {"lossless": True}}


def scene(height: int = 24, width: int = 24, channels: int = 3) -> np.ndarray:
    """A smooth picture without any symmetry, (H, W, C) uint8 or, of one channel, (H, W)."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    planes = [200 * x + 30 * y, 90 + 60 * x * y + 100 * y, 250 - 180 * y * y - 40 * x]
    picture = np.rint(np.stack(planes[:channels], axis=-1)).astype(np.uint8)
    return picture[..., 0] if channels == 1 else picture


def put(path: Path, pixels: np.ndarray | Image.Image, **options) -> Path:
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(path, **options)
    return path


def refusal(path: Path, **options) -> DataContractError:
    with pytest.raises(DataContractError) as caught:
        read_photograph(path, **{"size": 8, "channels": 3, "site": "north", **options})
    assert path.name not in caught.value.public
    assert caught.value.public.startswith("site 'north': ")
    return caught.value


def png(width: int, height: int, *, data: bytes = b"") -> bytes:
    """A PNG of 8-bit RGB whose header says what it likes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        code = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", code)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def exif(orientation: object) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


# Pixels


@pytest.mark.parametrize("suffix", FORMATS)
def test_picture_of_the_size_asked_for_keeps_every_byte(tmp_path, suffix):
    path = put(tmp_path / f"a.{suffix}", scene(), **FORMATS[suffix])
    found = read_photograph(path, size=24, channels=3)
    assert found.dtype == np.uint8
    assert found.flags.writeable
    np.testing.assert_array_equal(found, scene())


def test_jpeg_is_within_its_own_loss(tmp_path):
    path = put(tmp_path / "a.jpg", scene(), quality=95, subsampling=0)
    found = read_photograph(path, size=24, channels=3)
    assert np.abs(found.astype(int) - scene()).max() <= 8


def test_name_says_nothing_of_the_format(tmp_path):
    put(tmp_path / "a.png", scene()).rename(tmp_path / "a.jpg")
    np.testing.assert_array_equal(read_photograph(tmp_path / "a.jpg", size=24, channels=3), scene())


def test_reading_twice_gives_the_same_bytes_and_leaves_the_file(tmp_path):
    path = put(tmp_path / "a.jpg", scene(300, 200))
    before = path.read_bytes()
    first, again = (read_photograph(path, size=16, channels=3) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert path.read_bytes() == before


def test_palette_becomes_its_colours(tmp_path):
    picture = Image.fromarray(scene()).quantize(256)
    np.testing.assert_array_equal(
        read_photograph(put(tmp_path / "a.png", picture), size=24, channels=3),
        np.asarray(picture.convert("RGB")),
    )


def test_cmyk_becomes_rgb(tmp_path):
    ink = Image.fromarray(scene()).convert("CMYK")
    for name, options in (("a.tif", {}), ("a.jpg", {"quality": 100, "subsampling": 0})):
        found = read_photograph(put(tmp_path / name, ink, **options), size=24, channels=3)
        assert np.abs(found.astype(int) - scene()).max() <= 4


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_what_is_transparent_shows_white(tmp_path, mode):
    alpha = np.full((24, 24), 255, np.uint8)
    alpha[:, 12:] = 0
    if mode == "RGBA":
        picture, options = Image.fromarray(np.dstack([scene(), alpha])), {}
    elif mode == "LA":
        picture, options = Image.fromarray(np.dstack([scene()[..., 0], alpha])), {}
    else:
        colour = scene()
        colour[:, 12:] = (1, 2, 3)
        picture, options = Image.fromarray(colour), {"transparency": (1, 2, 3)}
        if mode == "P":
            picture = picture.quantize(16)
            options = {"transparency": picture.getpixel((20, 20))}
    found = read_photograph(put(tmp_path / "a.png", picture, **options), size=24, channels=3)
    assert (found[:, 12:] == 255).all()
    assert (found[:, :12] < 255).any()


def test_half_transparent_is_half_white(tmp_path):
    picture = np.zeros((8, 8, 4), np.uint8)
    picture[..., 3] = 51  # a fifth
    found = read_photograph(put(tmp_path / "a.png", picture), size=8, channels=3)
    assert (found == 204).all()


def test_colour_becomes_grey_by_luma_and_grey_is_repeated(tmp_path):
    grey = read_photograph(put(tmp_path / "a.png", scene()), size=24, channels=1)
    luma = scene() @ np.array([0.299, 0.587, 0.114])
    assert grey.shape == (24, 24, 1)
    assert np.abs(grey[..., 0] - luma).max() <= 1
    plane = put(tmp_path / "b.png", scene(channels=1))
    found = read_photograph(plane, size=24, channels=3)
    np.testing.assert_array_equal(found, np.repeat(scene(channels=1)[..., None], 3, axis=2))


def test_black_and_white_of_one_bit(tmp_path):
    bits = scene(channels=1) > 100
    path = put(tmp_path / "a.png", Image.fromarray(bits))
    np.testing.assert_array_equal(
        read_photograph(path, size=24, channels=1)[..., 0], np.where(bits, 255, 0)
    )


# Sixteen bits


def deep(low: int = 1000, high: int = 3000) -> np.ndarray:
    ramp = scene(channels=1).astype(float)
    ramp = (ramp - ramp.min()) / (ramp.max() - ramp.min())
    return np.rint(low + (high - low) * ramp).astype(np.uint16)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled_by_their_full_range(tmp_path, suffix, channels):
    path = put(tmp_path / f"a.{suffix}", deep(0, 65535))
    found = read_photograph(path, size=24, channels=channels)
    expected = np.rint(deep(0, 65535) / 257).astype(np.uint8)
    assert found.shape == (24, 24, channels)
    assert (found == expected[..., None]).all()


def test_big_endian_tiff_reads_as_little_endian(tmp_path):
    little = put(tmp_path / "a.tif", deep())
    big = Image.frombytes("I;16B", (24, 24), deep().astype(">u2").tobytes())
    put(tmp_path / "b.tif", big)
    np.testing.assert_array_equal(
        read_photograph(little, size=24, channels=1),
        read_photograph(tmp_path / "b.tif", size=24, channels=1),
    )


def test_fixed_range_is_in_the_numbers_of_the_file(tmp_path):
    path = put(tmp_path / "a.png", deep(0, 4095))
    found = read_photograph(
        path, size=24, channels=1, intensity="fixed-range", intensity_range=(1000, 3000)
    )
    expected = np.clip((deep(0, 4095).astype(float) - 1000) / 2000, 0, 1)
    np.testing.assert_array_equal(found[..., 0], np.rint(255 * expected))


def test_fixed_range_also_holds_for_eight_bits(tmp_path):
    path = put(tmp_path / "a.png", scene())
    found = read_photograph(
        path, size=24, channels=3, intensity="fixed-range", intensity_range=(50, 152)
    )
    np.testing.assert_array_equal(found, np.rint(np.clip((scene() - 50.0) * 2.5, 0, 255)))


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 20_000), st.integers(500, 40_000))
def test_own_range_knows_neither_offset_nor_gain(tmp_path_factory, offset, gain):
    folder = tmp_path_factory.mktemp("pictures")
    paths = [
        put(folder / "a.png", deep(0, 60_000)),
        put(folder / "b.png", deep(offset, offset + gain)),
    ]
    one, other = (
        read_photograph(path, size=24, channels=1, intensity="own-range").astype(int)
        for path in paths
    )
    assert np.abs(one - other).max() <= 1
    assert (one.min(), one.max()) == (0, 255)


def test_constant_picture_under_its_own_range_is_black(tmp_path):
    path = put(tmp_path / "a.png", np.full((9, 9), 700, np.uint16))
    assert not read_photograph(path, size=4, channels=1, intensity="own-range").any()


@pytest.mark.parametrize("pixels", [deep(), scene(channels=1)])
def test_tiff_in_which_zero_is_white_reads_as_it_looks(tmp_path, pixels):
    usual = put(tmp_path / "a.tif", pixels)
    raw = bytearray(usual.read_bytes())
    at = raw.find(struct.pack("<HHI", 262, 3, 1))
    assert at > 0
    raw[at + 8 : at + 10] = struct.pack("<H", 0)
    (tmp_path / "b.tif").write_bytes(raw)
    one = read_photograph(usual, size=24, channels=1).astype(int)
    assert (read_photograph(tmp_path / "b.tif", size=24, channels=1) == 255 - one).all()


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_thirty_two_bits_need_a_range(tmp_path, kind):
    path = put(tmp_path / "a.tif", deep().astype(kind))
    error = refusal(path, channels=1)
    assert error.problem == NO_RANGE
    assert "intensity-range" in error.public
    found = read_photograph(
        path, size=24, channels=1, intensity="fixed-range", intensity_range=(1000, 3000)
    )
    np.testing.assert_array_equal(found[..., 0], np.rint(255 * (deep() - 1000.0) / 2000))


def test_not_a_number_is_refused(tmp_path):
    pixels = deep().astype(np.float32)
    pixels[3, 4] = np.nan
    error = refusal(put(tmp_path / "a.tif", pixels), channels=1, intensity="own-range")
    assert error.problem == NOT_FINITE


# Geometry


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (24, 41), (25, 24)])
def test_crop_is_the_middle(tmp_path, shape):
    pixels = np.zeros((*shape, 3), np.uint8)
    side = min(shape)
    top, left = (shape[0] - side + 1) // 2, (shape[1] - side + 1) // 2
    pixels[top : top + side - 1, left : left + side - 1] = 255
    found = read_photograph(put(tmp_path / "a.png", pixels), size=8, channels=3)
    assert found[1:-1, 1:-1].min() == 255


def test_crop_leaves_the_margins_out_and_pad_keeps_them_on_black(tmp_path):
    pixels = np.full((20, 40, 3), 100, np.uint8)
    pixels[:, :10] = pixels[:, 30:] = 200
    path = put(tmp_path / "a.png", pixels)
    cropped = read_photograph(path, size=8, channels=3).astype(int)
    assert np.abs(cropped - 100).max() <= 8  # at the edges the kernel sees what is beyond
    found = read_photograph(path, size=8, channels=3, fit="pad")
    assert not found[:2].any()
    assert not found[-2:].any()
    assert np.abs(found[2:6, 0].astype(int) - 200).max() <= 2
    assert np.abs(found[2:6, 3:5].astype(int) - 100).max() <= 2


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(4, 16),
    st.sampled_from(["crop", "pad"]),
    st.sampled_from([1, 3]),
)
def test_every_picture_becomes_a_square_as_asked(
    tmp_path_factory, width, height, size, fit, channels
):
    path = put(tmp_path_factory.mktemp("p") / "a.png", scene(height, width))
    found = read_photograph(path, size=size, channels=channels, fit=fit)
    assert found.shape == (size, size, channels)
    assert found.dtype == np.uint8


@settings(deadline=None, max_examples=40)
@given(st.integers(9, 40), st.integers(9, 40), st.sampled_from(["crop", "pad"]), st.integers(0, 3))
def test_reading_commutes_with_turning(tmp_path_factory, width, height, fit, quarters):
    """An enlarged picture overshoots, and is clipped between the two passes: there it does not."""
    folder = tmp_path_factory.mktemp("p")
    one = put(folder / "a.png", scene(height, width))
    other = put(folder / "b.png", np.ascontiguousarray(np.rot90(scene(height, width), quarters)))
    turned = np.rot90(read_photograph(one, size=9, channels=3, fit=fit), quarters)
    found = read_photograph(other, size=9, channels=3, fit=fit)
    # Pillow rounds between its two passes, so their order shows in the last bits.
    assert np.abs(turned.astype(int) - found).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_orientation_of_exif_is_applied(tmp_path, suffix, orientation):
    """A camera that is held otherwise stores turned pixels, and says so."""
    upright = Image.fromarray(scene(20, 30))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that the camera did
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    options = {"exif": exif(orientation), "quality": 100, "lossless": True}
    keep = {"jpg": ("exif", "quality"), "webp": ("exif", "lossless")}.get(suffix, ("exif",))
    path = put(tmp_path / f"a.{suffix}", stored, **{key: options[key] for key in keep})
    plain = put(tmp_path / f"b.{suffix}", upright, **{k: options[k] for k in keep if k != "exif"})
    found = read_photograph(path, size=10, channels=3).astype(int)
    expected = read_photograph(plain, size=10, channels=3)
    assert np.abs(found - expected).max() <= (10 if suffix == "jpg" else 1)


def test_metadata_that_are_damaged_or_too_long_are_read_without_a_warning(tmp_path):
    """Python's warnings name a file of this installation, and say nothing of the picture."""
    cut = put(tmp_path / "cut.jpg", scene(), exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0garbage")
    path = put(tmp_path / "long.tif", scene())
    whole = bytearray(path.read_bytes())
    entry = whole.index(struct.pack("<HH", 257, 4))  # the height, of one number
    whole[entry + 4 : entry + 12] = struct.pack("<II", 2, 8)
    path.write_bytes(whole)
    for file in (cut, path):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            with contextlib.suppress(DataContractError):
                read_photograph(file, size=24, channels=3)
        assert [str(one.message) for one in told] == []


@pytest.mark.parametrize("bad", [0, 9, 77, "left", b"\xff\xff"])
def test_orientation_without_sense_counts_as_upright(tmp_path, bad):
    usual = put(tmp_path / "a.jpg", scene())
    path = tmp_path / "b.jpg"
    if isinstance(bad, int):
        put(path, scene(), exif=exif(bad))
    else:
        block = exif(6)
        damaged = b"Exif\0\0" + (bad if isinstance(bad, bytes) else b"II*\0" + b"\xee" * len(block))
        put(path, scene(), exif=damaged)
    np.testing.assert_array_equal(
        read_photograph(path, size=24, channels=3), read_photograph(usual, size=24, channels=3)
    )


def test_fine_stripes_do_not_alias(tmp_path):
    stripes = np.zeros((240, 240), np.uint8)
    stripes[:, ::2] = 255
    found = read_photograph(put(tmp_path / "a.png", stripes), size=16, channels=1)
    assert np.abs(found.astype(int) - 127).max() <= 4  # the stripes end at the edges


# Large files


def test_large_jpeg_is_decoded_small_and_looks_as_if_it_had_not_been(tmp_path):
    large = Image.fromarray(scene(60, 90)).resize((1800, 1200), Image.Resampling.BICUBIC)
    jpeg = put(tmp_path / "a.jpg", large, quality=95)
    whole = put(tmp_path / "a.png", Image.open(jpeg))
    for channels in (1, 3):
        for fit in ("crop", "pad"):
            small, exact = (
                read_photograph(path, size=32, channels=channels, fit=fit).astype(int)
                for path in (jpeg, whole)
            )
            assert np.abs(small - exact).max() <= 3


def test_twenty_four_megapixels_take_a_fraction_of_decoding_them(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    large = Image.fromarray(noise).resize((6000, 4000), Image.Resampling.BILINEAR)
    path = put(tmp_path / "a.jpg", large, quality=85)

    def seconds(work) -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    reading = min(seconds(lambda: read_photograph(path, size=64, channels=3)) for _ in range(2))
    decoding = seconds(lambda: Image.open(path).load())
    assert reading < decoding / 2


# What is refused


def test_empty_file(tmp_path):
    (tmp_path / "anna.jpg").touch()
    assert refusal(tmp_path / "anna.jpg").problem == EMPTY


@pytest.mark.parametrize("content", [b"not a picture\n" * 50, b"\xff", b"GIF89a" + b"\0" * 50])
def test_file_that_is_no_picture(tmp_path, content):
    (tmp_path / "anna.jpg").write_bytes(content)
    error = refusal(tmp_path / "anna.jpg")
    assert error.problem == UNKNOWN_FORMAT
    assert "JPEG, PNG, TIFF, BMP, WEBP" in error.public


@pytest.mark.parametrize("suffix", ["jpg", *FORMATS])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_file_is_refused(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = put(tmp_path / f"anna.{suffix}", noise).read_bytes()
    (tmp_path / f"anna.{suffix}").write_bytes(whole[: int(share * len(whole))])
    assert refusal(tmp_path / f"anna.{suffix}").problem in (DAMAGED, UNKNOWN_FORMAT)


@pytest.mark.parametrize("side", [9_000, 20_000, 2**31 - 1])
def test_bomb_is_refused_before_a_pixel_is_decoded(tmp_path, side, monkeypatch):
    path = tmp_path / "anna.png"
    path.write_bytes(png(side, side, data=bytes(1000)))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    assert refusal(path).problem in (TOO_LARGE, UNKNOWN_FORMAT)


def test_as_many_pixels_as_the_limit_are_read(tmp_path, monkeypatch):
    path = put(tmp_path / "anna.png", scene(10, 12))
    monkeypatch.setattr(photographs, "MOST_PIXELS", 120)
    read_photograph(path, size=8, channels=3)
    monkeypatch.setattr(photographs, "MOST_PIXELS", 119)
    error = refusal(path)
    assert error.problem == TOO_LARGE
    assert "12 × 10" in str(error)
    assert "12" not in error.public


@pytest.mark.parametrize("colour", [(0, 0, 0, 255), (255, 0, 0, 255), (9, 9, 9, 0)])
def test_a_picture_of_one_colour_shows_nothing(tmp_path, colour):
    path = put(tmp_path / "a.png", np.full((20, 20, 4), colour, np.uint8))
    picture = read_photograph(path, size=8, channels=3)
    with pytest.raises(DataContractError, match="shows nothing"):
        require_content(picture, path, root=tmp_path, site="north")


def test_file_that_is_too_long(tmp_path, monkeypatch):
    path = put(tmp_path / "anna.png", scene())
    monkeypatch.setattr(photographs, "MOST_BYTES", path.stat().st_size - 1)
    assert refusal(path).problem == TOO_LONG


@pytest.mark.parametrize("suffix", ["tif", "png", "webp"])
def test_several_pictures_in_one_file(tmp_path, suffix):
    pictures = [Image.fromarray(scene()), Image.fromarray(255 - scene())]
    path = put(tmp_path / f"anna.{suffix}", pictures[0], save_all=True, append_images=pictures[1:])
    assert refusal(path).problem == SEVERAL


def test_phone_picture_with_a_second_view_is_its_first(tmp_path):
    pictures = [Image.fromarray(scene()), Image.fromarray(255 - scene())]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "MPO", save_all=True, append_images=pictures[1:], quality=95)
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    found = read_photograph(tmp_path / "a.jpg", size=24, channels=3)
    assert np.abs(found.astype(int) - scene()).mean() < 3


def test_link_out_of_the_folder_pipe_and_folder_are_not_opened(tmp_path):
    folder = tmp_path / "north"
    folder.mkdir()
    put(tmp_path / "elsewhere.png", scene())
    (folder / "anna.png").symlink_to(tmp_path / "elsewhere.png")
    assert refusal(folder / "anna.png", root=folder).problem == ESCAPES
    os.mkfifo(folder / "pipe.png")
    assert refusal(folder / "pipe.png").problem == "is not a regular file"
    refusal(folder / "none.png")


# A site's pictures under a study


def test_pictures_of_a_split_belong_to_their_rows(tmp_path):
    study = Study.from_mapping(
        {
            "name": "x",
            "images": {
                "storage": "table",
                "table": "t.csv",
                "file": "f",
                "channels": 3,
                "size": 16,
            },
            "label": {"column": "y", "classes": ["a", "b"]},
        }
    )
    site = tmp_path / "north"
    site.mkdir()
    lines = ["f,y,split"]
    for i in range(6):
        pixels = np.full((10, 12, 3), 40 * i, np.uint8)
        pixels[-3:] += 20  # a picture of one colour shows nothing
        put(site / f"{i}.png", pixels)
        lines.append(f"{i}.png,{'ab'[i % 2]},{'train' if i < 4 else 'test'}")
    (site / "2.png").write_bytes(b"")
    (site / "t.csv").write_text("\n".join(lines))
    table = read_image_table(site, "north", study)
    chosen = table.rows("train")
    pictures = load_photographs(table, chosen, study, name="x train", cache=tmp_path / "cache")
    rows = chosen[pictures.rows]
    assert [table.files[row] for row in rows] == ["0.png", "1.png", "3.png"]
    assert table.labels[rows].tolist() == [0, 1, 1]
    assert pictures.pixels.shape == (3, 3, 16, 16)
    assert pictures.take([0, 1, 2])[:, 0, 0, 0].tolist() == [0, 40, 120]
    assert pictures.left_out == {EMPTY: 1}
    smaller = load_photographs(
        table, chosen, study, name="x train", size=4, cache=tmp_path / "cache"
    )
    assert smaller.pixels.shape == (3, 3, 4, 4)
