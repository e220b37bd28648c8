"""Prepared pictures are found again while their files are unchanged, and stay out of memory."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from common.data import cache as module
from common.data.cache import CachedPictures, cached_pictures
from common.errors import ConfigError, DataContractError

ROOT = Path(__file__).parents[1]
SHAPE = (3, 2, 2)


class Reader:
    """Makes a picture (C, S, S) of a file's first byte, and counts what is read."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, path: Path) -> np.ndarray:
        self.read.append(path.name)
        if not path.exists():
            raise DataContractError("north", "is missing", where=path.name)
        content = path.read_bytes()
        if content == b"bad":
            raise DataContractError("north", "is bad", where=path.name)
        picture = np.full(SHAPE, content[0], np.uint8)
        picture[:, 0, 1] = (1, 2, 3)
        return picture


@pytest.fixture(autouse=True)
def sure(monkeypatch):
    """Trust files that a test has written just now."""
    monkeypatch.setattr(module, "_RACY_NS", -1)


@pytest.fixture
def site(tmp_path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    for i in range(5):
        (folder / f"anna{i}.png").write_bytes(bytes([10 * i + 1]))
    return folder


def names(site: Path) -> list[str]:
    return sorted(path.name for path in site.iterdir())


def load(site: Path, reader=None, files=None, **changes) -> CachedPictures:
    options = {"name": "retina train", "settings": "v1", "shape": SHAPE} | changes
    return cached_pictures(
        names(site) if files is None else files,
        reader or Reader(),
        root=site,
        site="north",
        cache=site.parent / "cache",
        **options,
    )


def values(pictures: CachedPictures) -> list[int]:
    return pictures.take(np.arange(len(pictures)))[:, 0, 0, 0].tolist()


# What is kept


def test_pictures_come_in_the_order_of_their_files(site):
    pictures = load(site)
    assert pictures.pixels.dtype == np.uint8
    assert pictures.pixels.shape == (5, *SHAPE)
    assert pictures.rows.tolist() == [0, 1, 2, 3, 4]
    assert values(pictures) == [1, 11, 21, 31, 41]
    assert pictures.take([3])[0, :, 0, 1].tolist() == [1, 2, 3]
    assert values(load(site, files=["anna3.png", "anna1.png"])) == [31, 11]


def test_take_copies_and_pixels_cannot_be_written(site):
    pictures = load(site)
    batch = pictures.take([4, 0, 4])
    assert batch[:, 0, 0, 0].tolist() == [41, 1, 41]
    batch[:] = 0
    assert values(pictures) == [1, 11, 21, 31, 41]
    with pytest.raises(ValueError, match="read-only"):
        pictures.pixels[0] = 0


def test_second_process_reads_no_file(site):
    load(site)
    again = Reader()
    assert values(load(site, again)) == [1, 11, 21, 31, 41]
    assert again.read == []


@pytest.mark.parametrize("dated_back", [False, True])
def test_changed_file_is_read_again_and_no_other(site, dated_back):
    load(site)
    before = (site / "anna2.png").stat()
    (site / "anna2.png").write_bytes(b"\x63")
    if dated_back:  # as rsync and cp -p do
        os.utime(site / "anna2.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    again = Reader()
    assert values(load(site, again)) == [1, 11, 99, 31, 41]
    assert again.read == ["anna2.png"]


def test_file_put_in_place_of_another_is_read_again(site):
    load(site)
    (site / "anna1.png").replace(site / "anna2.png")
    again = Reader()
    assert values(load(site, again)) == [1, 11, 31, 41]
    assert again.read == ["anna2.png"]


def test_added_and_removed_files_cost_only_themselves(site):
    load(site)
    (site / "anna0.png").unlink()
    (site / "anna9.png").write_bytes(b"\x07")
    again = Reader()
    assert values(load(site, again)) == [11, 21, 31, 41, 7]
    assert again.read == ["anna9.png"]


def test_file_written_just_now_is_read_once_more(site, monkeypatch):
    monkeypatch.setattr(module, "_RACY_NS", 10**18)
    load(site)
    again = Reader()
    load(site, again)
    assert again.read == names(site)


@pytest.mark.parametrize("change", [{"settings": "v2"}, {"name": "retina test"}])
def test_other_settings_and_other_splits_share_nothing(site, change):
    load(site)
    again = Reader()
    load(site, again, **change)
    assert again.read == names(site)


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
def test_numbers_are_kept_as_they_were(site, dtype):
    rng = np.random.default_rng(0)
    images = {name: rng.uniform(0, 250, (1, 2, 3, 4)).astype(dtype) for name in names(site)}
    for _ in range(2):
        found = load(site, lambda path: images[path.name], shape=(1, 2, 3, 4), dtype=dtype)
        assert found.pixels.dtype == dtype
        np.testing.assert_array_equal(found.take(range(5)), [images[name] for name in names(site)])


def test_an_image_is_kept_as_seen_whatever_its_order_in_memory(site):
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    found = load(site, lambda path: image.transpose(2, 0, 1))
    np.testing.assert_array_equal(found.take([0])[0], image.transpose(2, 0, 1))


def test_one_cache_is_kept_for_each_name(site):
    for settings in ("v1", "v2", "v3"):
        load(site, settings=settings)
    assert len(list((site.parent / "cache/pictures").glob("*.pixels"))) == 1
    load(site, name="retina test")
    assert len(list((site.parent / "cache/pictures").glob("*.pixels"))) == 2


def test_variants_are_kept_beside_each_other(site):
    """As a classifier's size and a generator's, in turns."""
    for variant in ("16", "32"):
        load(site, variant=variant)
    again = Reader()
    for variant in ("16", "32"):
        load(site, again, variant=variant)
    assert again.read == []


def test_pictures_in_use_outlive_a_new_cache(site):
    old = load(site)
    (site / "anna0.png").write_bytes(b"\x63")
    assert values(load(site)) == [99, 11, 21, 31, 41]
    assert values(old) == [1, 11, 21, 31, 41]


# Bad files


def test_bad_files_are_left_out_counted_and_not_tried_again(site, caplog):
    (site / "anna1.png").write_bytes(b"bad")
    (site / "anna3.png").write_bytes(b"bad")
    with caplog.at_level(logging.WARNING):
        pictures = load(site, files=[*names(site), "gone.png"])
    assert pictures.rows.tolist() == [0, 2, 4]
    assert values(pictures) == [1, 21, 41]
    assert pictures.left_out == {"is bad": 2, "is missing": 1}
    assert "2 of 6 images of retina train left out: is bad" in caplog.text
    assert "anna" not in caplog.text
    again = Reader()
    assert load(site, again, files=[*names(site), "gone.png"]).left_out == pictures.left_out
    assert again.read == []


@pytest.mark.parametrize("reason", [MemoryError(), OSError(errno.EIO, "Input/output error")])
def test_what_failed_for_a_passing_reason_is_read_again(site, reason):
    def short(path: Path) -> np.ndarray:
        if path.name == "anna1.png":
            raise DataContractError("north", "is bad", where=path.name) from reason
        return Reader()(path)

    assert load(site, short).left_out == {"is bad": 1}
    again = Reader()
    assert values(load(site, again)) == [1, 11, 21, 31, 41]
    assert again.read == ["anna1.png"]


def test_mended_file_is_taken_in(site):
    (site / "anna1.png").write_bytes(b"bad")
    load(site, files=[*names(site), "late.png"])
    (site / "anna1.png").write_bytes(b"\x05")
    (site / "late.png").write_bytes(b"\x06")
    pictures = load(site)
    assert values(pictures) == [1, 5, 21, 31, 41, 6]
    assert pictures.left_out == {}


def test_no_usable_picture_is_an_error_that_names_nothing(site):
    for name in names(site):
        (site / name).write_bytes(b"bad")
    with pytest.raises(DataContractError, match="is bad: 5") as caught:
        load(site)
    assert caught.value.public == (
        "site 'north': no image of retina train can be used. Run `fedscan check`"
    )
    with pytest.raises(DataContractError, match="no image of retina train can be used"):
        load(site, files=[])


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (np.zeros(SHAPE), "an image of float64"),
        (np.zeros((2, 2, 3), np.uint8), r"shape \(2, 2, 3\)"),
        (np.zeros((3, 2, 3), np.uint8), r"shape \(3, 2, 3\)"),
    ],
)
def test_a_reader_that_breaks_its_contract_leaves_no_cache(site, image, told):
    with pytest.raises(ValueError, match=told):
        load(site, lambda path: image)
    assert not list((site.parent / "cache/pictures").glob("*.pixels"))


def test_interrupted_building_leaves_the_old_cache(site):
    load(site)
    (site / "anna4.png").write_bytes(b"\x09")

    def interrupted(path: Path) -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(site, interrupted)
    again = Reader()
    assert values(load(site, again)) == [1, 11, 21, 31, 9]
    assert again.read == ["anna4.png"]


# On disk


def test_nobody_else_may_read_and_nothing_names_a_patient(site):
    (site.parent / "cache/pictures").mkdir(parents=True, mode=0o755)
    load(site)
    home = site.parent / "cache/pictures"
    assert home.stat().st_mode & 0o777 == 0o700
    files = list(home.iterdir())
    assert len(files) == 3
    for path in files:
        assert path.stat().st_mode & 0o777 == 0o600
        assert "anna" not in path.name
        assert b"anna" not in path.read_bytes()


def damage(home: Path, what: str) -> None:
    (index,) = home.glob("*.json")
    (pixels,) = home.glob("*.pixels")
    told = json.loads(index.read_text())
    if what == "pixels gone":
        pixels.unlink()
    elif what == "pixels short":
        os.truncate(pixels, pixels.stat().st_size - 1)
    elif what == "pixels overwritten":
        pixels.write_bytes(bytes(pixels.stat().st_size))
    elif what == "index gone":
        index.unlink()
    elif what == "index half":
        index.write_text(index.read_text()[:50])
    elif what == "index no object":
        index.write_text("[1]")
    elif what == "index deep":
        index.write_text("[" * 100_000)
    elif what == "index elsewhere":
        index.write_text(json.dumps({**told, "pixels": "../../site/anna0.png"}))
    else:
        (first, *_) = told["files"]
        changed = {"place twice": 1, "place negative": -1, "place a text": "0"}
        told["files"][first][1] = changed[what]
        index.write_text(json.dumps(told))


@pytest.mark.parametrize(
    "what",
    [
        "pixels gone",
        "pixels short",
        "pixels overwritten",
        "index gone",
        "index half",
        "index no object",
        "index deep",
        "index elsewhere",
        "place twice",
        "place negative",
        "place a text",
    ],
)
def test_damaged_cache_is_built_again(site, what):
    load(site)
    damage(site.parent / "cache/pictures", what)
    again = Reader()
    assert values(load(site, again)) == [1, 11, 21, 31, 41]
    assert again.read == names(site)
    assert len(list((site.parent / "cache/pictures").glob("*.pixels"))) == 1


def test_what_a_crash_left_is_removed(site):
    load(site)
    home = site.parent / "cache/pictures"
    (index,) = home.glob("*.json")
    (home / f"{index.stem}-left.pixels").write_bytes(b"half")
    (site / "anna0.png").write_bytes(b"\x02")
    load(site)
    assert len(list(home.glob("*.pixels"))) == 1


def test_cache_that_cannot_be_written_is_an_error_with_a_way_out(site):
    (site.parent / "cache").write_text("a file in its place")
    with pytest.raises(ConfigError, match="FEDSCAN_CACHE") as caught:
        load(site)
    assert str(site.parent) not in caught.value.public


def test_full_disk_leaves_the_old_cache(site, monkeypatch):
    load(site)
    (site / "anna0.png").write_bytes(b"\x02")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ConfigError, match="No space left"):
            load(site)
    assert len(list((site.parent / "cache/pictures").glob("*.pixels"))) == 1
    assert values(load(site)) == [2, 11, 21, 31, 41]


# At once


def test_threads_that_want_one_cache_build_it_once(site):
    reader, found = Reader(), []
    workers = [
        threading.Thread(target=lambda: found.append(values(load(site, reader)))) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [[1, 11, 21, 31, 41]] * 4
    assert sorted(reader.read) == names(site)


SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from common.data import cache

folder, log, side, n = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
cache._RACY_NS = -1

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

def read(path):
    with log.open("a") as stream:
        stream.write(path.name + "\\n")
    return np.full((3, side, side), int(path.name) % 251, np.uint8)

files = [str(i) for i in range(n)]
start = peak()
found = cache.cached_pictures(files, read, root=folder, site="north", name="all", settings="",
                              shape=(3, side, side), cache=folder.parent / "cache")
for _ in range(2):
    order = np.random.default_rng(0).permutation(len(found))
    for batch in np.array_split(order, max(1, n // 32)):
        assert (found.take(batch)[:, 1, 0, 1] == batch % 251).all()
print(peak() - start)
"""


def many(tmp_path: Path, n: int) -> tuple[Path, Path]:
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(n):
        (folder / str(i)).touch()
    return folder, tmp_path / "log"


def test_processes_that_want_one_cache_build_it_once(tmp_path):
    folder, log = many(tmp_path, 60)
    command = [sys.executable, "-c", SCRIPT, str(folder), str(log), "4", "60"]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert sorted(log.read_text().split(), key=int) == [str(i) for i in range(60)]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read in /proc")
def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path):
    """110 MB of pictures, built and then read twice in random order."""
    n, side = 4000, 96
    folder, log = many(tmp_path, n)
    command = [sys.executable, "-c", SCRIPT, str(folder), str(log), str(side), str(n)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 50  # MB
    (pixels,) = (tmp_path / "cache/pictures").glob("*.pixels")
    assert pixels.stat().st_size == n * 3 * side * side
