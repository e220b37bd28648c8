"""Pictures: what is written is what was made, whoever reads it; what is read may be hostile."""

from __future__ import annotations

import gzip
import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from common.errors import ConfigError
from common.imaging.pictures import (
    READABLE,
    arranged,
    grid,
    to_pixels,
    write_grid,
    write_path,
    write_picture,
)
from simulations.gan import picture_input
from simulations.gan.generate import write_slice
from simulations.gan.picture_input import is_whole_scan, read_picture


@pytest.fixture
def image() -> np.ndarray:
    """One picture (1, 16, 16), no two rows, columns or corners alike."""
    return np.random.default_rng(0).uniform(-1, 1, (1, 16, 16)).astype(np.float32)


def read(path: Path, resolution: int = 16, channels: int = 1, height_mm: float = 0.0) -> np.ndarray:
    return read_picture(path, channels=channels, resolution=resolution, height_mm=height_mm)


# Writing


def test_pixels_are_the_nearest_of_256_levels_and_clipped() -> None:
    values = np.array([-2, -1, 0, 0.25, 1, 3], np.float32).reshape(1, 1, 2, 3)
    assert to_pixels(values).ravel().tolist() == [0, 0, 128, 159, 255, 255]


@pytest.mark.parametrize(("channels", "shape"), [(1, (5, 5)), (2, (5, 10)), (3, (5, 5, 3))])
def test_channels_become_grey_colour_or_neighbours(channels: int, shape: tuple[int, ...]) -> None:
    images = np.zeros((2, channels, 5, 5), np.float32)
    images[:, -1] = 1
    pixels = to_pixels(images)
    assert pixels.shape == (2, *shape)
    assert (pixels[0, ..., -1] == 255).all()


def test_a_picture_is_read_back_as_it_was_written(image: np.ndarray, tmp_path: Path) -> None:
    write_picture(tmp_path / "one.png", image)
    np.testing.assert_allclose(read(tmp_path / "one.png"), image, atol=1 / 255 + 1e-6)
    colour = np.concatenate([image, -image, image * 0])
    write_picture(tmp_path / "colour.png", colour)
    found = read(tmp_path / "colour.png", channels=3)
    np.testing.assert_allclose(found, colour, atol=1 / 255 + 1e-6)


def test_a_slice_keeps_its_geometry_and_is_read_back(image: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "one.nii.gz"
    write_slice(path, image)
    stored = nib.load(path)
    assert stored.shape == (16, 16, 1)
    assert nib.aff2axcodes(stored.affine) == ("R", "A", "S")
    assert stored.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(stored.header.get_zooms(), 216 / 16)
    # The top left pixel is the participant's left front corner.
    corner = stored.affine @ [0, 15, 0, 1]
    np.testing.assert_allclose(corner[:3], [-101.25, 101.25, 0])
    np.testing.assert_allclose(stored.get_fdata()[0, 15, 0], (image[0, 0, 0] + 1) / 2, rtol=1e-6)
    np.testing.assert_allclose(read(path), image, atol=1e-6)


def test_a_slice_lies_at_its_height(image: np.ndarray, tmp_path: Path) -> None:
    write_slice(tmp_path / "one.nii.gz", image, height_mm=-9.0)
    corner = nib.load(tmp_path / "one.nii.gz").affine @ [0, 15, 0, 1]
    np.testing.assert_allclose(corner[:3], [-101.25, 101.25, -9])


def test_the_same_pictures_give_the_same_bytes(image: np.ndarray, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_grid(tmp_path / f"{name}.png", [image[None]] * 2, names=["F", "M"], captions=["x\ny"])
        write_slice(tmp_path / f"{name}.nii.gz", image)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_grid_enlarges_small_pictures_and_holds_each_in_its_place() -> None:
    levels = np.array([[-1, 0, 1], [1, -1, 0]], np.float32)
    rows = [np.ones((3, 1, 16, 16), np.float32) * row[:, None, None, None] for row in levels]
    pixels = np.asarray(grid(rows).convert("L"))
    side = pixels.shape[0] // 2
    assert side >= READABLE
    centres = pixels[side // 2 :: side, side // 2 :: side][:2, :3]
    assert centres.tolist() == [[0, 128, 255], [255, 0, 128]]


def test_names_and_captions_take_room_and_leave_the_pictures_alone() -> None:
    rows = [np.full((2, 1, 16, 16), -1, np.float32)] * 2
    bare = np.asarray(grid(rows).convert("L"))
    named = np.asarray(grid(rows, names=["F, north", "M"], captions=["a", "b\nc"]).convert("L"))
    assert named.shape[0] > bare.shape[0] and named.shape[1] > bare.shape[1] + 20
    assert (named == 0).sum() >= (bare == 0).sum()
    left = named[:, : named.shape[1] - bare.shape[1]]
    assert (left < 128).any()  # letters


def test_images_of_one_name_stand_together_and_rows_may_end_early() -> None:
    images = np.arange(10, dtype=np.float32).reshape(10, 1, 1, 1)
    rows, names = arranged(images, ["F", "M"] * 4 + ["F", "F"])
    assert [row.ravel().tolist() for row in rows] == [[0, 2, 4], [6, 8, 9], [1, 3, 5], [7]]
    assert names == ["F", "", "M", ""]
    rows, names = arranged(images)
    assert [len(row) for row in rows] == [3, 3, 3, 1] and not names
    grid(rows)


def test_a_path_shows_the_target_and_every_waypoint(image: np.ndarray, tmp_path: Path) -> None:
    write_path(tmp_path / "path.png", image, [0, 5], np.stack([image, image]), [1.5, 0.25])
    with Image.open(tmp_path / "path.png") as strip:
        assert strip.width > 3 * READABLE and strip.height < 2.5 * READABLE


def test_pictures_are_their_owners_alone(image: np.ndarray, tmp_path: Path) -> None:
    write_grid(tmp_path / "real.png", [image[None]])
    write_picture(tmp_path / "target.png", image)
    write_path(tmp_path / "path.png", image, [0], image[None], [1.0])
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600, path.name


# Reading


def test_another_size_is_resampled_and_keeps_what_is_where(tmp_path: Path) -> None:
    big = np.full((1, 64, 64), -1, np.float32)
    big[0, :32, :32] = 1
    write_picture(tmp_path / "big.png", big)
    found = read(tmp_path / "big.png")[0]
    assert found.shape == (16, 16) and np.abs(found).max() <= 1
    assert found[2, 2] == 1 and found[13, 13] == found[2, 13] == -1


@pytest.mark.parametrize(
    "array",
    [
        np.linspace(-1, 1, 256).reshape(16, 16),
        np.linspace(-1, 1, 256, dtype=np.float32).reshape(1, 16, 16),
    ],
)
def test_an_array_is_taken_as_it_is(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_allclose(read(tmp_path / "a.npy")[0], array.reshape(16, 16), atol=1e-6)


def test_eight_and_sixteen_bits_span_the_whole_range(tmp_path: Path) -> None:
    levels = np.linspace(0, 255, 256).astype(np.uint8).reshape(16, 16)
    np.save(tmp_path / "a.npy", levels)
    Image.fromarray(levels.astype(np.uint16) * 257).save(tmp_path / "b.png")
    Image.fromarray(levels).convert("RGBA").save(tmp_path / "c.png")
    for name in ("a.npy", "b.png", "c.png"):
        np.testing.assert_allclose(read(tmp_path / name)[0], levels / 127.5 - 1, atol=1e-5)


def test_a_whole_scan_gives_its_slice_as_training_does(tiny_cohort: Path, tmp_path: Path) -> None:
    from common.data.site_data import open_split
    from common.studies.study import load_study

    site = tiny_cohort / "north"
    brains = load_study("brain-sex")
    wanted = open_split(
        brains, "north", site, "test", size=32, heights_mm=[9.0], cache=tmp_path
    ).levels([9.0])
    (scan,) = (site / wanted.persons[0]).rglob("*_T1w.nii*")
    found = read(scan, resolution=32, height_mm=9.0)
    half_precision = 2**-10  # of what is stored, from -1 to 1
    np.testing.assert_allclose(found, wanted.images()[0] * 2 - 1, rtol=0, atol=half_precision)
    with pytest.raises(ConfigError, match="--height 150"):
        read(scan, resolution=32, height_mm=150.0)


def _chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def _bomb(side: int) -> bytes:
    """A PNG of a few kilobytes that promises, and unpacks to, a square of zeros."""
    packer = zlib.compressobj(9)
    lines = b"".join(packer.compress(b"\0" * (side + 1)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", lines)


def _header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def _npy(array: object) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def _slice_bytes(shape: tuple[int, ...], value: float = 0.5, spacing: float = 13.5) -> bytes:
    voxels = np.full(shape, value, np.float32)
    return nib.Nifti1Image(voxels, np.diag([spacing, spacing, spacing, 1])).to_bytes()


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, "PNG")
    return file.getvalue()


def _whole_png() -> bytes:
    return _png(np.eye(16))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("hidden", [0, 128, 255])
def test_what_is_transparent_is_air_whatever_colour_it_hides(
    mode: str, hidden: int, tmp_path: Path
) -> None:
    seen = Image.fromarray(np.pad(np.full((8, 8), 200, np.uint8), 4))
    picture = Image.new("LA", (16, 16), (hidden, 0))
    picture.paste(seen, mask=seen.point(lambda grey: 255 * (grey > 0)))
    picture.putalpha(seen.point(lambda grey: 255 * (grey > 0)))
    if mode == "P":
        indices = seen.point(lambda grey: int(grey > 0))
        picture = Image.frombytes("P", (16, 16), indices.tobytes())
        picture.putpalette([hidden] * 3 + [200] * 3)
        picture.save(tmp_path / "seen.png", transparency=0)
    else:
        picture.convert(mode).save(tmp_path / "seen.png")
    seen.save(tmp_path / "flat.png")
    np.testing.assert_allclose(
        read(tmp_path / "seen.png"), read(tmp_path / "flat.png"), atol=2 / 127
    )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("text.png", b"no picture at all", "not a whole PNG"),
        ("empty.png", b"", "not a whole PNG"),
        ("cut.png", _whole_png()[:45], "not a whole PNG"),
        ("picture.jpg", _whole_png(), "not a whole JPEG"),
        ("picture.gif", _whole_png(), "accepted are .png, .jpg, .npy, and NIfTI"),
        ("pickle.npy", _npy(np.array([object()])), "not a whole .npy"),
        ("empty.npy", b"", "not a whole .npy"),
        ("text.npy", b"not an array", "not a whole .npy"),
        ("cut.npy", _npy(np.zeros((16, 16)))[:200], "not a whole .npy"),
        ("deep.npy", _header("-" * 9000 + "1"), "not a whole .npy"),
        ("nan.npy", _npy(np.full((16, 16), np.nan)), "values beyond"),
        ("wild.npy", _npy(np.full((16, 16), 7.0)), "values beyond"),
        ("words.npy", _npy(np.array([["a"] * 16] * 16)), "numbers of type"),
        ("flat.npy", _npy(np.zeros(16)), "not an array of shape"),
        ("long.npy", _npy(np.zeros((16, 17))), "16 × 17 pixels"),
        ("many.npy", _npy(np.zeros((3, 16, 16))), "3 channels, but the generator makes 1"),
        ("text.nii", b"no scan at all", "not a NIfTI"),
        ("text.nii.gz", b"no scan at all", "not a NIfTI"),
        ("cut.nii", _slice_bytes((16, 16, 1))[:500], "truncated (got 500 of 1376 bytes)"),
        ("small.nii", _slice_bytes((16, 16, 1), spacing=1.0), "covers 16 × 16 mm"),
        ("bright.nii", _slice_bytes((16, 16, 1), 100.0), "values beyond 0"),
        ("nan.nii", _slice_bytes((16, 16, 1), np.nan), "values beyond 0"),
        ("grey.nii", _slice_bytes((16, 16, 1)), "shows nothing"),
        ("grey.npy", _npy(np.zeros((16, 16))), "shows nothing"),
        ("black.png", _png(np.zeros((16, 16), np.uint8)), "shows nothing"),
        ("red.png", _png(np.full((16, 16, 3), (255, 0, 0), np.uint8)), "shows nothing"),
        ("clear.png", _png(np.arange(1024).reshape(16, 16, 4) % 4 * 0), "shows nothing"),
        ("flat.nii", _slice_bytes((16, 16, 16)), "voxels are all equal"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_a_file_that_is_no_picture_is_refused_by_name(
    name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / f"sub-007-{name}"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert words in str(caught.value) and path.name in str(caught.value)
    assert "sub-007" not in caught.value.public


@pytest.mark.parametrize("side", [5000, 10_000, 14_000])  # below, at and above Pillow's own limits
def test_a_bomb_is_refused_before_it_is_unpacked(side: int, tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(_bomb(side))
    tracemalloc.start()
    with pytest.raises(ConfigError, match="accepted are 2 to 4096"):
        read(tmp_path / "bomb.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 2**20


def test_a_header_that_promises_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    whole = _npy(np.zeros((16, 16)))
    (tmp_path / "big.npy").write_bytes(whole.replace(b"(16, 16), }", b"(16, 9999999), }"))
    with pytest.raises(ConfigError):
        read(tmp_path / "big.npy")


@pytest.mark.parametrize(
    ("name", "content", "value"),
    [
        ("long.npy", _npy(np.zeros((16, 17))), "17"),
        ("wide.npy", _npy(np.zeros((1, 5000))), "5000"),
        ("many.npy", _npy(np.zeros((3, 16, 16))), "3"),
        ("words.npy", _npy(np.array([["a"] * 16] * 16)), "<U1"),
        ("small.nii", _slice_bytes((16, 16, 1), spacing=1.0), "16 × 16"),
        ("cut.nii", _slice_bytes((16, 16, 1))[:500], "500"),
    ],
)
def test_the_public_words_hold_no_value_of_a_file(
    name: str, content: bytes, value: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read(tmp_path / name)
    public = caught.value.public
    assert value in str(caught.value) and value not in public
    assert public.startswith("a picture: ") and name not in public


def _extended(raw: bytes, size: int) -> bytes:
    """NIfTI bytes with 16 bytes of an extension that says to be of another size."""
    (offset,) = struct.unpack("<f", raw[108:112])
    assert offset == 352 and raw[348] == 0  # no extension yet
    header = raw[:108] + struct.pack("<f", 368) + raw[112:348] + bytes([1, 0, 0, 0])
    return header + struct.pack("<ii8x", size, 6) + raw[352:]


LYING = [2**31 - 16, -16, -(2**31), 0]


@pytest.mark.parametrize("size", LYING)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_extensions_of_a_slice_are_not_read(
    size: int, suffix: str, image: np.ndarray, tmp_path: Path
) -> None:
    write_slice(tmp_path / "plain.nii.gz", image)
    raw = _extended(gzip.decompress((tmp_path / "plain.nii.gz").read_bytes()), size)
    path = tmp_path / f"lying{suffix}"
    path.write_bytes(gzip.compress(raw) if suffix == ".nii.gz" else raw)
    assert not is_whole_scan(path)
    np.testing.assert_array_equal(read(path), read(tmp_path / "plain.nii.gz"))


@pytest.mark.parametrize("size", LYING[:2])
def test_extensions_of_a_scan_are_not_read(size: int, tiny_cohort: Path, tmp_path: Path) -> None:
    scan = min((tiny_cohort / "north").rglob("*_T1w.nii.gz"))
    path = tmp_path / "lying.nii"
    path.write_bytes(_extended(gzip.decompress(scan.read_bytes()), size))
    assert is_whole_scan(path)
    np.testing.assert_array_equal(read(path), read(scan))


@pytest.mark.parametrize("size", [-16, 16])
def test_a_bomb_behind_a_slice_is_not_unpacked(
    size: int, image: np.ndarray, tmp_path: Path
) -> None:
    write_slice(tmp_path / "plain.nii.gz", image)
    raw = _extended(gzip.decompress((tmp_path / "plain.nii.gz").read_bytes()), size)
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(raw + bytes(64 * 2**20), 6))
    assert path.stat().st_size < 2**17
    tracemalloc.start()
    np.testing.assert_array_equal(read(path), read(tmp_path / "plain.nii.gz"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 2**20


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (108, struct.pack("<f", 2.0**24), "header extensions"),
        (108, struct.pack("<f", 10.0), "inside the header"),
        (108, struct.pack("<f", np.nan), "contradicts itself"),
        (42, struct.pack("<hh", 4096, 4096), "truncated"),  # 64 MiB in a file of one kilobyte
        (42, struct.pack("<hh", 4097, 16), "4097 × 16 pixels"),
        (42, struct.pack("<h", -16), "-16 × 16 pixels"),
        (40, struct.pack("<h", 0), "accepted is a slice"),
        (40, struct.pack("<h", 2), "accepted is a slice"),
        (40, struct.pack("<h", -5), "not a NIfTI"),
        (70, struct.pack("<h", 128), "not numbers"),  # RGB
        (70, struct.pack("<h", 12345), "contradicts itself"),
        (280, struct.pack("<f", np.nan), "accepted is a slice"),  # of the affine
        (280, struct.pack("<f", -13.5), "accepted is a slice"),  # x to the left
    ],
)
def test_the_header_of_a_slice_is_judged(
    place: int, value: bytes, words: str, image: np.ndarray, tmp_path: Path
) -> None:
    write_slice(tmp_path / "plain.nii.gz", image)
    raw = bytearray(gzip.decompress((tmp_path / "plain.nii.gz").read_bytes()))
    raw[place : place + len(value)] = value
    for name, content in (("a.nii", bytes(raw)), ("b.nii.gz", gzip.compress(bytes(raw)))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=words):
            read(tmp_path / name)


def test_a_link_is_what_it_leads_to(image: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "shown").mkdir()
    write_slice(tmp_path / "store" / "one.nii.gz", image)
    (tmp_path / "shown" / "one.nii.gz").symlink_to(tmp_path / "store" / "one.nii.gz")
    np.testing.assert_allclose(read(tmp_path / "shown" / "one.nii.gz"), image, atol=1e-6)


def test_a_file_too_large_or_missing_or_a_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read(tmp_path / "nothing.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ConfigError, match="a folder; name the pictures in it"):
        read(tmp_path / "folder.png")
    (tmp_path / "a.png").write_bytes(_whole_png())
    monkeypatch.setattr(picture_input, "MAX_BYTES", 10)
    with pytest.raises(ConfigError, match="larger than"):
        read(tmp_path / "a.png")
