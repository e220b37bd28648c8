"""Volumes keep millimetres and forget the scanner; they are prepared once and never wrong."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data import cache as module
from common.data.dataset import Dataset
from common.data.site_data import open_split
from common.errors import ConfigError, DataContractError
from common.imaging import nifti, prepare
from common.imaging.prepare import FIELD_OF_VIEW_MM, HEAD, otsu, prepare_head, prepare_volume
from common.studies.study import load_study

BRAINS = load_study("brain-sex")
ROOT = Path(__file__).parents[1]

RADII_MM = np.array([70.0, 88.0, 80.0])
CODES = ["".join(axes) for order in permutations(("RL", "AP", "SI")) for axes in product(*order)]


def make_head(
    *, shape=(48, 56, 48), zooms=(4.0, 4.0, 4.0), radii=RADII_MM, centre=(0, 0, 0), noise=8.0
) -> tuple[np.ndarray, np.ndarray]:
    """Ellipsoid head of known radii (mm), its ventricle dark, and a dark lesion on the right."""
    affine = np.diag([*zooms, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * zooms
    grid = np.indices(shape).reshape(3, -1)
    mm = (affine[:3, :3] @ grid + affine[:3, 3:]).T - np.array(centre, dtype=float)

    def fill(size, place=(0, 0, 0)):
        """Share of each voxel inside an ellipsoid, soft over one voxel."""
        distance = np.linalg.norm((mm - place) / size, axis=1) - 1
        return np.clip(0.5 - distance * np.min(size) / np.mean(zooms), 0, 1)

    head = 300 * fill(radii) + 300 * fill(radii * 0.8) - 450 * fill(radii * 0.2)
    head -= 200 * fill(radii * 0.15, place=(35, 20, 10))
    rng = np.random.default_rng(0)
    noisy = np.hypot(head + rng.normal(0, noise, head.shape), rng.normal(0, noise, head.shape))
    return noisy.reshape(shape).astype(np.float32), affine


def extents_mm(image: np.ndarray) -> np.ndarray:
    """Width of the head along each axis through its middle, at a quarter of full intensity."""
    size = image.shape[0]
    middle = size // 2
    lines = (image[:, middle, middle], image[middle, :, middle], image[middle, middle, :])
    widths = []
    for line in lines:
        fine = np.interp(np.linspace(0, size - 1, 50 * size), np.arange(size), line)
        inside = np.flatnonzero(fine > 0.25)
        widths.append((inside[-1] - inside[0]) * (size - 1) / (50 * size - 1))
    return np.array(widths) * FIELD_OF_VIEW_MM / size


@pytest.fixture(scope="module")
def head() -> tuple[np.ndarray, np.ndarray]:
    return make_head()


@pytest.fixture(scope="module")
def prepared(head) -> np.ndarray:
    return prepare_volume(*head, image_size=32)


class TestPrepare:
    def test_range_shape_and_background(self, prepared):
        assert prepared.shape == (32, 32, 32)
        assert prepared.dtype == np.float32
        assert prepared.min() == 0
        assert prepared.max() == 1
        corners = prepared[::31, ::31, ::31]
        assert (corners == 0).all()
        assert 0.15 < (prepared > 0).mean() < 0.4  # the ellipsoid fills a fifth of the cube

    def test_input_is_not_modified(self, head):
        volume, affine = head[0].copy(), head[1].copy()
        prepare_volume(volume, affine, image_size=16)
        np.testing.assert_array_equal(volume, head[0])
        np.testing.assert_array_equal(affine, head[1])

    @pytest.mark.parametrize("size", [24, 32, 48, 64])
    @pytest.mark.parametrize("scale", [0.85, 1.0, 1.15])
    def test_head_size_is_kept_in_mm(self, size, scale):
        radii = RADII_MM * scale
        image = prepare_volume(*make_head(radii=radii), image_size=size)
        np.testing.assert_allclose(
            extents_mm(image), 2 * radii, atol=0.75 * FIELD_OF_VIEW_MM / size
        )

    def test_volume_of_the_head_is_kept(self):
        ml = [
            (prepare_volume(*make_head(radii=RADII_MM * scale), image_size=48) > 0.25).sum()
            * (FIELD_OF_VIEW_MM / 48 / 10) ** 3
            for scale in (0.85, 1.0, 1.1)
        ]
        true = [4 / 3 * np.pi * np.prod(RADII_MM * scale / 10) for scale in (0.85, 1.0, 1.1)]
        np.testing.assert_allclose(ml, true, rtol=0.03)

    @pytest.mark.parametrize(
        ("shape", "zooms"),
        [((96, 112, 96), (2, 2, 2)), ((64, 76, 32), (3, 3, 6)), ((200, 60, 52), (1, 4, 4))],
    )
    def test_voxel_size_hardly_matters(self, prepared, shape, zooms):
        other = prepare_volume(*make_head(shape=shape, zooms=zooms), image_size=32)
        assert np.corrcoef(other.ravel(), prepared.ravel())[0, 1] > 0.98
        np.testing.assert_allclose(extents_mm(other), extents_mm(prepared), atol=5)

    @pytest.mark.parametrize("centre", [(12, -8, 8), (-6.5, 10, 3)])
    def test_where_the_head_lies_hardly_matters(self, prepared, centre):
        moved = prepare_volume(*make_head(centre=centre), image_size=32)
        assert np.corrcoef(moved.ravel(), prepared.ravel())[0, 1] > 0.99

    @given(st.lists(st.floats(-300, 300), min_size=3, max_size=3))
    @settings(max_examples=10, deadline=None)
    def test_origin_of_the_scanner_does_not_matter(self, head, prepared, origin):
        affine = head[1].copy()
        affine[:3, 3] += origin
        moved = prepare_volume(head[0], affine, image_size=32)
        np.testing.assert_allclose(moved, prepared, atol=1e-3)

    @given(st.sampled_from(CODES), st.sampled_from("CF"))
    @settings(max_examples=60, deadline=None)
    def test_storage_orientation_does_not_matter(self, head, prepared, code, order):
        image = nib.Nifti1Image(*head)
        turned = image.as_reoriented(
            nib.orientations.ornt_transform(
                nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(code)
            )
        )
        data = np.asarray(turned.dataobj, order=order)
        np.testing.assert_allclose(
            prepare_volume(data, turned.affine, image_size=32), prepared, atol=1e-3
        )

    @given(st.floats(0.01, 1000), st.floats(-5, 5))
    @settings(max_examples=25, deadline=None)
    def test_affine_maps_of_intensity_do_not_matter(self, head, prepared, gain, offset):
        mapped = gain * (head[0].astype(np.float64) + 100 * offset)
        again = prepare_volume(mapped.astype(np.float32), head[1], image_size=32)
        np.testing.assert_allclose(again, prepared, atol=5e-3)

    def test_sides_are_kept_apart(self, prepared):
        # The lesion lies right (x > 0), in front and above.
        assert prepared[21, 18, 17] < prepared[10, 18, 17] - 0.1

    def test_oblique_scan_is_turned_upright(self, prepared):
        angle = np.deg2rad(15)
        turn = np.eye(4)
        turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        sphere, affine = make_head(radii=np.array([75.0, 75, 75]))
        upright = prepare_volume(sphere, affine, image_size=32)
        turned = prepare_volume(sphere, turn @ affine, image_size=32)
        np.testing.assert_allclose(extents_mm(turned), extents_mm(upright), atol=3)
        # The lesion went round with the scanner's axes, by 15 degrees.
        assert np.abs(turned - upright).max() > 0.1

    def test_spikes_do_not_stretch_the_scale(self, head, prepared):
        spiked = head[0].copy()
        spiked[::20, ::20, ::20] *= 1000
        spiked[0, 0, 0] = 1e6
        again = prepare_volume(spiked, head[1], image_size=32)
        assert np.median(np.abs(again - prepared)[prepared > 0.5]) < 0.1

    @pytest.mark.parametrize("value", [0.0, 5.0])
    def test_no_head_gives_zeros(self, value):
        blank = prepare_volume(np.full((20, 20, 20), value), np.diag([8, 8, 8, 1]), image_size=16)
        assert not blank.any()

    def test_small_volume_is_padded_with_background(self):
        small = make_head(shape=(20, 20, 20), radii=np.array([30.0, 30, 30]))
        image = prepare_volume(*small, image_size=32)
        np.testing.assert_allclose(extents_mm(image), 60, atol=4)
        assert image[:4].max() == 0

    def test_image_size_too_small(self, head):
        with pytest.raises(ValueError, match="at least 4"):
            prepare_volume(*head, image_size=3)

    def test_otsu_parts_two_classes(self):
        rng = np.random.default_rng(0)
        values = np.concatenate([rng.normal(10, 2, 7000), rng.normal(100, 5, 3000)])
        threshold, background = otsu(values.astype(np.float32))
        assert 20 < threshold < 85
        assert background == pytest.approx(10, abs=0.5)


def write_site(root: Path, n: int = 10, *, age_s: float = 60) -> Path:
    """A BIDS site of ``n`` small heads, all in train but the last two, last changed a while ago."""
    rows = ["participant_id\tsex\tsplit"]
    for i in range(n):
        name = f"sub-{i:02d}"
        split = {n - 1: "test", n - 2: "val"}.get(i, "train")
        rows.append(f"{name}\t{'MF'[i % 2]}\t{split}")
        volume, affine = make_head(
            shape=(24, 28, 24), zooms=(8, 8, 8), radii=RADII_MM * (0.9 + i / 50)
        )
        path = root / name / "anat" / f"{name}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(volume.astype(np.int16), affine), path)
        os.utime(path, (time.time() - age_s,) * 2)
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def site(tmp_path):
    return write_site(tmp_path / "north")


@pytest.fixture
def settled(monkeypatch):
    """Let files count as settled at once: a file's change time cannot be set back."""
    monkeypatch.setattr(module, "_RACY_NS", -1)


def load(root: Path, cache: Path, split="train", size=16) -> Dataset:
    return open_split(BRAINS, "north", root, split, size=size, cache=cache)


def forbid(monkeypatch, module, name):
    def fail(*args, **kwargs):
        raise AssertionError(f"{name} was called")

    monkeypatch.setattr(module, name, fail)


NAMES = tuple(f"sub-{i:02d}" for i in range(8))


class TestOpenSplit:
    def test_images_labels_and_persons_belong_together(self, site, tmp_path):
        loaded = load(site, tmp_path / "cache")
        images = loaded.images()
        assert images.shape == (8, 1, 16, 16, 16)
        assert loaded.shape == (1, 16, 16, 16)
        assert images.dtype == np.float32
        assert images.min() == 0
        assert 0.9 < images.max() <= 1
        assert loaded.labels.dtype == np.int64
        assert loaded.persons == NAMES
        assert loaded.labels.tolist() == [1, 0] * 4
        image = nib.load(site / "sub-03/anat/sub-03_T1w.nii.gz")
        alone = prepare_head(image.get_fdata(), image.affine, image_size=16)
        half_precision = 2**-11 + 1e-5
        np.testing.assert_allclose(images[3, 0], alone, rtol=0, atol=half_precision)

    def test_generator_s_conditions_belong_to_their_images(self, site, tmp_path):
        told = load(site, tmp_path / "cache").conditions
        assert [one["sex"] for one in told] == ["male", "female"] * 4
        assert {one["site"] for one in told} == {"north"}

    def test_no_other_splits_file_is_opened(self, site, tmp_path, monkeypatch):
        opened = []
        read = nifti.read_scan
        monkeypatch.setattr(
            nifti, "read_scan", lambda path, **rest: opened.append(path.name) or read(path, **rest)
        )
        load(site, tmp_path / "cache", "val")
        assert opened == ["sub-08_T1w.nii.gz"]

    def test_bad_scans_are_left_out_counted_and_not_named_in_the_log(self, site, tmp_path, caplog):
        (site / "sub-02/anat/sub-02_T1w.nii.gz").write_bytes(b"")
        (site / "sub-04/anat/sub-04_T1w.nii.gz").write_bytes(b"")
        blank = nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4))
        nib.save(blank, site / "sub-05/anat/sub-05_T1w.nii.gz")
        with caplog.at_level(logging.DEBUG):
            loaded = load(site, tmp_path / "cache")
        assert loaded.persons == tuple(f"sub-{i:02d}" for i in (0, 1, 3, 6, 7))
        assert loaded.labels.tolist() == [1, 0, 0, 1, 0]
        assert [one["sex"][0] for one in loaded.conditions] == list("mffmf")
        images = loaded.images()
        assert len(images) == 5
        assert all(image.any() for image in images)
        left_out = "images of brain-sex train left out"
        assert f"site 'north': 2 of 8 {left_out}: a scan is empty" in caplog.text
        assert f"1 of 8 {left_out}: a scan's voxels are all zero" in caplog.text
        assert "fedscan check" in caplog.text
        assert "sub-" not in caplog.text

    def test_scan_without_a_head_is_left_out(self, site, tmp_path, caplog):
        specks = np.zeros((60, 60, 60), np.int16)
        specks[0, 0, 0] = 1
        image = nib.Nifti1Image(specks, np.diag([0.1, 0.1, 0.1, 1]))
        nib.save(image, site / "sub-02/anat/sub-02_T1w.nii.gz")
        assert "sub-02" not in load(site, tmp_path / "cache").persons
        assert "1 of 8 images of brain-sex train left out: a scan shows no head" in caplog.text

    def test_split_with_none_left_is_an_error(self, site, tmp_path):
        (site / "sub-08/anat/sub-08_T1w.nii.gz").write_bytes(b"")
        with pytest.raises(DataContractError, match="no image of brain-sex val") as caught:
            load(site, tmp_path / "cache", "val")
        assert "a scan is empty: 1" in str(caught.value)
        assert "sub-08" not in caught.value.public

    def test_file_moved_out_of_the_site_behind_a_link_is_refused_even_when_cached(
        self, site, tmp_path, settled, caplog
    ):
        load(site, tmp_path / "cache")
        scan = site / "sub-02/anat/sub-02_T1w.nii.gz"
        scan.rename(tmp_path / "moved.nii.gz")
        scan.symlink_to(tmp_path / "moved.nii.gz")
        assert "sub-02" not in load(site, tmp_path / "cache").persons
        assert "1 of 8 images of brain-sex train left out: leaves the site's folder" in caplog.text

    @pytest.mark.parametrize("folder", ["sub-02", "sub-02/anat"])
    def test_folder_moved_out_of_the_site_behind_a_link_is_refused_even_when_cached(
        self, site, tmp_path, settled, folder
    ):
        """The files in it keep all their times and inodes."""
        load(site, tmp_path / "cache")
        (site / folder).rename(tmp_path / "moved")
        (site / folder).symlink_to(tmp_path / "moved")
        assert "sub-02" not in load(site, tmp_path / "cache").persons


class TestCache:
    def test_second_process_reads_and_prepares_nothing(self, site, tmp_path, settled, monkeypatch):
        first = load(site, tmp_path / "cache")
        for name in ("read_scan", "decode_scan"):
            forbid(monkeypatch, nifti, name)
        forbid(monkeypatch, prepare, "prepare_volume")
        second = load(site, tmp_path / "cache")
        np.testing.assert_array_equal(second.images(), first.images())
        assert second.persons == first.persons

    def test_changed_scan_is_prepared_again_and_no_other(
        self, site, tmp_path, settled, monkeypatch
    ):
        before = load(site, tmp_path / "cache").images()
        scan = site / "sub-02/anat/sub-02_T1w.nii.gz"
        scan.write_bytes((site / "sub-07/anat/sub-07_T1w.nii.gz").read_bytes())
        prepared = []
        prepare_one = prepare.prepare_volume
        monkeypatch.setattr(
            prepare,
            "prepare_volume",
            lambda *args, **rest: prepared.append(1) or prepare_one(*args, **rest),
        )
        after = load(site, tmp_path / "cache").images()
        assert len(prepared) == 1
        np.testing.assert_array_equal(after[2], before[7])
        np.testing.assert_array_equal(np.delete(after, 2, 0), np.delete(before, 2, 0))

    def test_change_that_keeps_size_and_modification_time_is_seen(
        self, site, tmp_path, settled, caplog
    ):
        scan = site / "sub-02/anat/sub-02_T1w.nii.gz"
        raw, status = bytearray(scan.read_bytes()), scan.stat()
        load(site, tmp_path / "cache")
        raw[-6] ^= 1
        scan.write_bytes(raw)
        os.utime(scan, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert "sub-02" not in load(site, tmp_path / "cache").persons
        assert "left out: a scan's compression is corrupted" in caplog.text

    def test_other_sizes_and_versions_do_not_mix(self, site, tmp_path, settled, monkeypatch):
        for size in (16, 8):
            loaded = load(site, tmp_path / "cache", "val", size=size)
            assert loaded.images().shape == (1, 1, size, size, size)
        monkeypatch.setattr(prepare, "PREPARE_VERSION", -1)
        forbid(monkeypatch, prepare, "prepare_volume")
        with pytest.raises(AssertionError, match="prepare_volume was called"):
            load(site, tmp_path / "cache", "val")

    def test_splits_do_not_take_each_other_s_place(self, site, tmp_path, settled, monkeypatch):
        for split in ("train", "val", "test"):
            load(site, tmp_path / "cache", split)
        forbid(monkeypatch, nifti, "read_scan")
        for split, persons in (("train", NAMES), ("val", ("sub-08",)), ("test", ("sub-09",))):
            assert load(site, tmp_path / "cache", split).persons == persons

    def test_label_changed_in_the_table_is_taken_with_the_same_pixels(
        self, site, tmp_path, settled
    ):
        before = load(site, tmp_path / "cache")
        table = site / "participants.tsv"
        table.write_text(table.read_text().replace("sub-02\tM", "sub-02\tF"))
        after = load(site, tmp_path / "cache")
        assert (before.labels[2], after.labels[2]) == (1, 0)
        np.testing.assert_array_equal(after.images(), before.images())

    def test_names_no_participant_and_is_for_the_owner_alone(self, site, tmp_path, settled):
        load(site, tmp_path / "cache")
        kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
        assert len(kept) == 3
        for path in kept:
            assert "sub-" not in str(path.relative_to(tmp_path))
            assert b"sub-" not in path.read_bytes()
            assert path.stat().st_mode & 0o077 == 0
        assert (tmp_path / "cache/pictures").stat().st_mode & 0o077 == 0

    def test_cache_that_cannot_be_made_is_an_error_with_a_way_out(self, site, tmp_path):
        (tmp_path / "cache").write_text("a file where the folder should be")
        with pytest.raises(ConfigError, match="FEDSCAN_CACHE") as caught:
            load(site, tmp_path / "cache")
        assert str(tmp_path) not in caught.value.public

    def test_two_processes_at_once(self, site, tmp_path):
        script = (
            "import sys, hashlib; from pathlib import Path\n"
            "from common.data.site_data import open_split\n"
            "from common.studies.study import load_study\n"
            "site, cache = map(Path, sys.argv[1:])\n"
            "sets = [open_split(load_study('brain-sex'), 'north', site, 'train', size=16,\n"
            "                   cache=cache) for _ in range(3)]\n"
            "print({hashlib.sha256(s.images().tobytes()).hexdigest() for s in sets})\n"
        )
        both = [
            subprocess.Popen(
                [sys.executable, "-c", script, str(site), str(tmp_path / "cache")],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=ROOT,
                text=True,
            )
            for _ in range(2)
        ]
        outputs = [process.communicate(timeout=120) for process in both]
        assert [process.returncode for process in both] == [0, 0], outputs
        assert outputs[0][0] == outputs[1][0]
        assert outputs[0][0].count("'") == 2  # one hash, three times over
        assert len(list((tmp_path / "cache/pictures").glob("*.pixels"))) == 1


def test_a_cached_start_needs_neither_nibabel_nor_scipy(site, tmp_path, settled):
    load(site, tmp_path / "cache")
    script = (
        "import sys; from pathlib import Path\n"
        "from common.data import cache; cache._RACY_NS = -1\n"
        "from common.data.site_data import open_split\n"
        "from common.studies.study import load_study\n"
        "folder, cache_folder = map(Path, sys.argv[1:])\n"
        "found = open_split(load_study('brain-sex'), 'north', folder, 'train', size=16,\n"
        "                   cache=cache_folder)\n"
        "assert len(found.images()) == 8\n"
        "heavy = {'nibabel', 'scipy', 'torch', 'nilearn', 'flwr', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(site), str(tmp_path / "cache")],
        check=True,
        cwd=ROOT,
        timeout=120,
    )


# Heads for classifiers


def test_voxels_of_a_head_are_means_of_its_own_part(head):
    double, found = prepare_volume(*head, image_size=24), prepare_head(*head, image_size=12)
    for x, y, z in np.ndindex(found.shape):
        block = double[2 * x : 2 * x + 2, 2 * y : 2 * y + 2, 2 * z : 2 * z + 2]
        inside = block[block > HEAD]
        expected = inside.mean() if inside.size >= 4 else 0.0
        assert found[x, y, z] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("size", [25, 32, 47])
def test_heads_have_the_size_asked_for_and_no_voxel_between_air_and_head(head, size):
    found = prepare_head(*head, image_size=size)
    assert found.shape == (size,) * 3
    assert 0.9 < found.max() <= 1
    assert not ((found > 0) & (found <= HEAD)).any()


def test_a_volume_without_a_head_is_a_head_without_a_voxel():
    air = np.zeros((24, 24, 24), np.float32)
    assert not prepare_head(air, np.diag([8.0, 8, 8, 1]), image_size=12).any()
