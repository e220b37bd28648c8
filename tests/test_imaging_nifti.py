"""Which scans load, as what, and how each broken or hostile one is refused."""

from __future__ import annotations

import gzip
import os
import time
import tracemalloc
import warnings
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from common.errors import DataContractError
from common.imaging.nifti import MAX_SIDE, load_scan, scan_header

SHAPE = (5, 6, 7)
ZOOMS = (1.0, 2.0, 3.0)
CODES = ["".join(axes) for order in permutations(("RL", "AP", "SI")) for axes in product(*order)]
NAME = "sub-01_T1w.nii"


@pytest.fixture(scope="module")
def world() -> tuple[np.ndarray, np.ndarray]:
    """A volume in RAS orientation without any symmetry, and its affine."""
    volume = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) - 20
    affine = np.diag([*ZOOMS, 1.0])
    affine[:3, 3] = (-10, -20, 30)
    return volume, affine


def save(folder: Path, data: np.ndarray, affine: np.ndarray, *, name=NAME, kind=nib.Nifti1Image):
    path = folder / name
    nib.save(kind(data, affine), path)
    return path


def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    return load_scan(path, site="north", root=path.parent)


def refusal(path: Path) -> DataContractError:
    with pytest.raises(DataContractError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"site 'north': {path.name}")
    assert "\n" not in message
    assert path.name not in caught.value.public
    return caught.value


def edited(folder: Path, world, *, name=NAME, **fields) -> Path:
    """A sound file in whose header some fields are overwritten."""
    path = save(folder, *world)
    raw = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(raw[:348]), check=False)
    for field, value in fields.items():
        header[field] = value
    raw[:348] = header.binaryblock
    path = folder / name
    path.write_bytes(gzip.compress(bytes(raw), 1) if name.endswith(".gz") else bytes(raw))
    return path


class TestAccepted:
    @pytest.mark.parametrize("name", [NAME, NAME + ".gz", "sub-0.1-a_acq-b.c_T1w.nii.gz"])
    @pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
    def test_plain_and_compressed_of_both_versions(self, tmp_path, world, name, kind):
        volume, affine = load(save(tmp_path, *world, name=name, kind=kind))
        assert volume.dtype == np.float32
        np.testing.assert_array_equal(volume, world[0])
        np.testing.assert_allclose(affine, world[1])

    @pytest.mark.parametrize("code", CODES)
    def test_any_of_the_48_orientations(self, tmp_path, world, code):
        stored = nib.Nifti1Image(*world).as_reoriented(
            nib.orientations.ornt_transform(
                nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(code)
            )
        )
        path = tmp_path / NAME
        nib.save(stored, path)
        assert scan_header(path, site="north", root=tmp_path).orientation == code
        volume, affine = load(path)
        np.testing.assert_array_equal(volume, world[0])
        np.testing.assert_allclose(affine, world[1], atol=1e-5)

    def test_oblique_scans_come_closest_to_ras(self, tmp_path, world):
        angle = np.deg2rad(20)
        turn = np.eye(4)
        turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        _, affine = load(save(tmp_path, world[0][::-1, :, :], turn @ world[1]))
        assert nib.aff2axcodes(affine) == ("R", "A", "S")
        np.testing.assert_allclose(nib.affines.voxel_sizes(affine), ZOOMS, rtol=1e-6)

    @pytest.mark.parametrize(
        "dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", ">i2", ">f4"]
    )
    def test_storage_types(self, tmp_path, world, dtype):
        data = (world[0] + 20).clip(0, 100).astype(dtype)
        image = nib.Nifti1Image(data, world[1], dtype=data.dtype)
        if dtype.startswith(">"):
            header = nib.Nifti1Header(endianness=">")
            header.set_data_dtype(data.dtype)
            image = nib.Nifti1Image(data, world[1], header)
        path = tmp_path / NAME
        nib.save(image, path)
        assert scan_header(path, site="north", root=tmp_path).dtype == np.dtype(dtype)
        np.testing.assert_array_equal(load(path)[0], data.astype(np.float32))

    def test_scale_factors(self, tmp_path, world):
        path = edited(tmp_path, world, scl_slope=0.5, scl_inter=-3.0)
        np.testing.assert_allclose(load(path)[0], world[0] * 0.5 - 3, rtol=1e-6)

    @pytest.mark.parametrize("slope", [0.0, np.nan])
    def test_scale_factors_that_mean_none(self, tmp_path, world, slope):
        path = edited(tmp_path, world, scl_slope=slope, scl_inter=7.0)
        np.testing.assert_array_equal(load(path)[0], world[0])

    def test_float_written_with_scale_factors(self, tmp_path, world):
        image = nib.Nifti1Image(world[0] / 7.0, world[1])
        image.set_data_dtype(np.int16)
        nib.save(image, tmp_path / NAME)
        np.testing.assert_allclose(load(tmp_path / NAME)[0], world[0] / 7, atol=1e-3)

    @pytest.mark.parametrize("extra", [(1,), (1, 1)])
    def test_trailing_singleton_dimensions(self, tmp_path, world, extra):
        path = save(tmp_path, world[0].reshape(SHAPE + extra), world[1])
        np.testing.assert_array_equal(load(path)[0], world[0])

    @pytest.mark.parametrize("zooms", [(0.1, 0.1, 0.1), (1, 1, 1), (0.9, 5, 0.7), (20, 20, 20)])
    def test_voxel_sizes(self, tmp_path, world, zooms):
        path = save(tmp_path, world[0], np.diag([*zooms, 1.0]))
        np.testing.assert_allclose(nib.affines.voxel_sizes(load(path)[1]), zooms, rtol=1e-6)

    @pytest.mark.parametrize(("unit", "factor"), [(0, 1), (1, 1000), (2, 1), (3, 0.001)])
    def test_units_of_length(self, tmp_path, world, unit, factor):
        data, affine = world
        scaled = np.diag([1 / factor] * 3 + [1]) @ affine
        path = edited(tmp_path, (data, scaled), xyzt_units=unit)
        np.testing.assert_allclose(load(path)[1], affine, rtol=1e-5)

    def test_position_by_quaternion_with_its_sign_left_zero(self, tmp_path, world):
        path = save(tmp_path, *world)
        image = nib.load(path)
        image.set_qform(world[1], code=1)
        image.set_sform(None, code=0)
        quaternion = {name: image.header[name] for name in ("quatern_b", "quatern_c", "quatern_d")}
        offsets = {f"qoffset_{a}": image.header[f"qoffset_{a}"] for a in "xyz"}
        pixdim = image.header["pixdim"].copy()
        pixdim[0] = 0
        path = edited(
            tmp_path, world, sform_code=0, qform_code=1, pixdim=pixdim, **quaternion, **offsets
        )
        np.testing.assert_allclose(load(path)[1], world[1], atol=1e-5)

    def test_header_extensions_and_a_little_padding(self, tmp_path, world):
        image = nib.Nifti1Image(*world)
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 5000))
        nib.save(image, tmp_path / NAME)
        with (tmp_path / NAME).open("ab") as stream:
            stream.write(b"\0" * 512)
        np.testing.assert_array_equal(load(tmp_path / NAME)[0], world[0])

    def test_compressed_in_several_members_or_under_the_other_name(self, tmp_path, world):
        raw = save(tmp_path, *world).read_bytes()
        for name in ("a.nii.gz", "b.nii"):
            (tmp_path / name).write_bytes(gzip.compress(raw[:400]) + gzip.compress(raw[400:]))
            np.testing.assert_array_equal(load(tmp_path / name)[0], world[0])
        (tmp_path / "c.nii.gz").write_bytes(raw)
        np.testing.assert_array_equal(load(tmp_path / "c.nii.gz")[0], world[0])

    def test_link_within_the_site(self, tmp_path, world):
        path = save(tmp_path, *world)
        (tmp_path / "link.nii").symlink_to(path)
        np.testing.assert_array_equal(load(tmp_path / "link.nii")[0], world[0])

    def test_the_file_is_not_modified(self, tmp_path, world):
        path = save(tmp_path, *world)
        before = path.read_bytes()
        load(path)[0][:] = 0
        assert path.read_bytes() == before


class TestDamaged:
    @pytest.mark.parametrize("name", [NAME, NAME + ".gz"])
    def test_empty(self, tmp_path, name):
        (tmp_path / name).touch()
        assert "a scan is empty" in str(refusal(tmp_path / name))

    @pytest.mark.parametrize("kept", [3, 200, 349, -1])
    @pytest.mark.parametrize("name", [NAME, NAME + ".gz"])
    def test_truncated(self, tmp_path, world, name, kept):
        path = save(tmp_path, *world, name=name)
        path.write_bytes(path.read_bytes()[:kept])
        assert "a scan is truncated" in str(refusal(path))

    def test_truncated_before_it_was_compressed(self, tmp_path, world):
        path = save(tmp_path, *world, name=NAME + ".gz")
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-10]))
        assert "a scan is truncated (got 762 of 772 bytes)" in str(refusal(path))

    def test_bit_flipped_in_compressed_voxels(self, tmp_path, world):
        path = save(tmp_path, *world, name=NAME + ".gz")
        raw = bytearray(path.read_bytes())
        raw[-6] ^= 1  # of the checksum
        path.write_bytes(raw)
        assert "compression is corrupted" in str(refusal(path))
        raw[30:60] = b"\xff" * 30
        path.write_bytes(raw)
        assert "compression is corrupted" in str(refusal(path))

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_voxel_that_is_not_finite(self, tmp_path, world, value):
        data = world[0].astype(np.float32)
        data[1, 2, 3] = value
        error = refusal(save(tmp_path, data, world[1]))
        assert "voxel (1, 2, 3)" in str(error)
        assert "NaN or infinite" in str(error)
        assert "voxel (" not in error.public

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_border_of_nan_is_air(self, tmp_path, world, axis):
        """As SPM writes it beyond the field of view of a scan that was moved."""
        data = world[0].astype(np.float32)
        border = (slice(None),) * axis + (slice(-2, None),)
        data[border] = np.nan
        volume, _ = load(save(tmp_path, data, world[1]))
        assert (volume[border] == np.nanmin(data)).all()
        data[border] = np.nanmin(data)
        np.testing.assert_array_equal(volume, data)

    def test_nan_inside_is_none_beside_a_border_of_it(self, tmp_path, world):
        data = world[0].astype(np.float32)
        data[0] = np.nan
        data[3, 3, 3] = np.nan
        assert "voxel (3, 3, 3)" in str(refusal(save(tmp_path, data, world[1])))

    def test_voxel_is_named_as_stored(self, tmp_path, world):
        data = world[0].astype(np.float32)
        data[1, 2, 3] = np.nan
        flipped = world[1] @ np.diag([-1.0, 1, 1, 1])
        assert "voxel (1, 2, 3)" in str(refusal(save(tmp_path, data, flipped)))

    def test_float64_that_float32_cannot_hold(self, tmp_path, world):
        data = world[0].astype(np.float64)
        data[0, 0, 0] = 1e300
        error = refusal(save(tmp_path, data, world[1]))
        assert "voxel (0, 0, 0)" in str(error)

    def test_all_zero(self, tmp_path, world):
        assert "all zero" in str(refusal(save(tmp_path, world[0] * 0, world[1])))

    def test_all_equal(self, tmp_path, world):
        assert "all equal" in str(refusal(save(tmp_path, world[0] * 0 + 7, world[1])))

    @pytest.mark.parametrize("raw", [b"P5 4 4 255\n" + b"\0" * 1000, b"\0" * 1000, b"\xff" * 400])
    def test_another_format(self, tmp_path, raw):
        (tmp_path / NAME).write_bytes(raw)
        assert "is not NIfTI" in str(refusal(tmp_path / NAME))

    def test_header_of_a_pair(self, tmp_path, world):
        assert "is not NIfTI" in str(refusal(edited(tmp_path, world, magic=b"ni1")))


class TestHeader:
    @pytest.mark.parametrize("name", [NAME, NAME + ".gz"])
    @pytest.mark.parametrize(
        ("dim", "problem"),
        [
            ([3, MAX_SIDE + 1, 6, 7, 1, 1, 1, 1], "absurd dimensions"),
            ([3, 32767, 32767, 32767, 1, 1, 1, 1], "absurd dimensions"),
            ([3, 0, 6, 7, 1, 1, 1, 1], "absurd dimensions"),
            ([3, -5, 6, 7, 1, 1, 1, 1], "absurd dimensions"),
            ([7, 5, 6, 7, 1000, 1000, 1000, 1000], "more than one volume"),
            ([4, 5, 6, 7, 2, 1, 1, 1], "more than one volume"),
            ([4, 5, 6, 7, 2000, 1, 1, 1], "absurd dimensions"),
            ([3, 1024, 1024, 1024, 1, 1, 1, 1], "too many voxels"),
            ([2, 5, 6, 1, 1, 1, 1, 1], "not a volume"),
            ([3, 5, 6, 1, 1, 1, 1, 1], "not a volume"),
        ],
    )
    def test_dimensions(self, tmp_path, world, name, dim, problem):
        error = refusal(edited(tmp_path, world, name=name, dim=dim))
        assert problem in str(error)
        assert "Accepted" in str(error) or "At most" in str(error)

    def test_number_of_dimensions(self, tmp_path, world):
        for n in (0, 8, -1):
            path = edited(tmp_path, world, dim=[n, 5, 6, 7, 1, 1, 1, 1])
            assert "absurd" in str(refusal(path)) or "not NIfTI" in str(refusal(path))

    @pytest.mark.parametrize("name", [NAME, NAME + ".gz"])
    def test_promise_that_the_file_cannot_keep_takes_no_memory(self, tmp_path, world, name):
        path = edited(tmp_path, world, name=name, dim=[3, 512, 512, 500, 1, 1, 1, 1])
        refusal(path)  # imports nibabel
        tracemalloc.start()
        assert "truncated" in str(refusal(path))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * 2**20

    def test_bomb_is_unpacked_no_further_than_promised(self, tmp_path, world):
        raw = save(tmp_path, *world).read_bytes()
        path = tmp_path / "bomb.nii.gz"
        path.write_bytes(gzip.compress(raw + bytes(200 * 2**20), 1))
        load(path)
        tracemalloc.start()
        np.testing.assert_array_equal(load(path)[0], world[0])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 * 2**20

    @pytest.mark.parametrize("name", [NAME, NAME + ".gz"])
    @pytest.mark.parametrize("behind", [b"\0", b"\0" * 2**20, b"of another program", b"\x1f\x8bno"])
    def test_bytes_behind_a_whole_file_have_no_effect(self, tmp_path, world, name, behind):
        path = save(tmp_path, *world, name=name)
        path.write_bytes(path.read_bytes() + behind)
        np.testing.assert_array_equal(load(path)[0], world[0])

    @pytest.mark.parametrize("name", [NAME, NAME + ".gz"])
    def test_file_far_longer_than_promised_is_not_read_to_its_end(self, tmp_path, world, name):
        path = save(tmp_path, *world, name=name)
        os.truncate(path, 100 * 2**20)
        load(path)
        tracemalloc.start()
        np.testing.assert_array_equal(load(path)[0], world[0])
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
        tracemalloc.stop()

    def test_many_members_take_no_longer_than_their_bytes(self, tmp_path, world):
        raw = save(tmp_path, *world).read_bytes()
        (path := tmp_path / (NAME + ".gz")).write_bytes(
            gzip.compress(raw[:400]) + 40_000 * gzip.compress(b"") + gzip.compress(raw[400:])
        )
        began = time.process_time()
        np.testing.assert_array_equal(load(path)[0], world[0])
        assert time.process_time() - began < 5

    def test_checksum_is_read_also_where_bytes_follow(self, tmp_path, world):
        raw = bytearray(save(tmp_path, *world, name=NAME + ".gz").read_bytes())
        raw[-6] ^= 1  # of the checksum
        (tmp_path / (NAME + ".gz")).write_bytes(bytes(raw) + b"more")
        assert "compression is corrupted" in str(refusal(tmp_path / (NAME + ".gz")))

    def test_file_too_large_for_any_scan(self, tmp_path, world):
        path = save(tmp_path, *world)
        os.truncate(path, 2**40)  # sparse
        assert "too large" in str(refusal(path))

    @pytest.mark.parametrize("dtype", [np.complex64, [("R", "u1"), ("G", "u1"), ("B", "u1")]])
    def test_complex_and_colour(self, tmp_path, world, dtype):
        error = refusal(save(tmp_path, np.zeros(SHAPE, dtype=dtype), world[1]))
        assert "data type is not accepted" in str(error)
        assert "integers of 8 to 64 bits" in str(error)

    @pytest.mark.parametrize("code", [0, 1, 3, 9999, 1536, 1792, 2304])
    def test_other_types(self, tmp_path, world, code):
        assert "data type is" in str(refusal(edited(tmp_path, world, datatype=code)))

    @pytest.mark.parametrize("zoom", [0.0, -1.0, np.nan, np.inf])
    def test_voxel_size_not_positive(self, tmp_path, world, zoom):
        path = edited(tmp_path, world, pixdim=[1, 1, zoom, 1, 1, 1, 1, 1], sform_code=0)
        error = refusal(path)
        assert "voxel size is not positive" in str(error)
        assert "Set pixdim" in error.public

    @pytest.mark.parametrize("zoom", [0.0, -2.0, np.nan, np.inf])
    @pytest.mark.parametrize("name", [NAME, NAME + ".gz"])
    def test_fields_that_nothing_needs_have_no_effect(self, tmp_path, world, zoom, name):
        """With an sform neither the voxel size nor a quaternion says where a voxel lies."""
        fields = {"pixdim": [zoom, zoom, 1, 1, zoom, zoom, 1, 1], "quatern_b": 9, "bitpix": 3}
        fields |= {"qform_code": 1, "cal_max": np.nan, "slice_code": 77, "descrip": b"\xff\xfe"}
        path = edited(tmp_path, world, name=name, sform_code=1, **fields)
        volume, affine = load(path)
        np.testing.assert_array_equal(volume, world[0])
        np.testing.assert_allclose(affine, world[1])
        assert scan_header(path, site="north", root=tmp_path).zooms_mm == ZOOMS

    @pytest.mark.parametrize("zoom", [0.001, 1000.0])
    def test_voxel_size_of_no_scanner(self, tmp_path, world, zoom):
        error = refusal(save(tmp_path, world[0], np.diag([1, zoom, 1, 1.0])))
        assert "out of range" in str(error)
        assert "0.05 to 30.0 mm" in str(error)

    def test_affine_whose_squares_overflow(self, tmp_path, world):
        path = save(tmp_path, *world, kind=nib.Nifti2Image)
        raw = path.read_bytes()
        header = nib.Nifti2Header(raw[:540], check=False)
        header["srow_y"] = [0, 1e200, 0, 0]
        path.write_bytes(header.binaryblock + raw[540:])
        with warnings.catch_warnings(action="error"):
            assert "out of range" in str(refusal(path))

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_affine_not_finite(self, tmp_path, world, value):
        path = edited(tmp_path, world, sform_code=1, srow_x=[1, 0, 0, value])
        assert "affine is not finite" in str(refusal(path))

    def test_affine_singular(self, tmp_path, world):
        path = edited(tmp_path, world, sform_code=1, srow_x=[1, 1, 0, 0], srow_y=[1, 1, 0, 0])
        assert "singular" in str(refusal(path))

    @pytest.mark.parametrize(
        "fields",
        [
            {"scl_slope": 2.0, "scl_inter": np.nan},
            {"sform_code": 0, "qform_code": 1, "quatern_b": 5.0},
            {"vox_offset": np.nan},
            {"vox_offset": 16.0},
        ],
        ids=["intercept", "quaternion", "no-offset", "offset-in-header"],
    )
    def test_contradictions(self, tmp_path, world, fields):
        error = refusal(edited(tmp_path, world, **fields))
        assert "contradicts itself" in str(error) or "inside its header" in str(error)

    def test_endless_extensions(self, tmp_path, world):
        path = edited(tmp_path, world, vox_offset=1e9)
        assert "extensions are too long" in str(refusal(path))

    @pytest.mark.parametrize("seed", range(40))
    def test_random_headers_are_refused_in_one_line_or_load(self, tmp_path, world, seed):
        rng = np.random.default_rng(seed)
        path = save(tmp_path, *world)
        raw = bytearray(path.read_bytes())
        for place in rng.integers(4, 344, size=30):
            raw[place] = rng.integers(256)
        path.write_bytes(raw)
        try:
            volume, affine = load(path)
        except DataContractError as error:
            assert "\n" not in str(error)
        else:
            assert np.isfinite(volume).all()
            assert np.isfinite(affine).all()


class TestPaths:
    def test_link_out_of_the_site(self, tmp_path, world):
        (tmp_path / "north").mkdir()
        secret = save(tmp_path, *world, name="secret.nii")
        link = tmp_path / "north" / NAME
        link.symlink_to(secret)
        error = refusal(link)
        assert "leaves the site's folder by a link" in str(error)
        assert "secret" not in str(error)

    def test_folder_that_is_a_link_out_of_the_site(self, tmp_path, world):
        for name in ("north", "south"):
            (tmp_path / name).mkdir()
        save(tmp_path / "south", *world)
        (tmp_path / "north/anat").symlink_to(tmp_path / "south")
        with pytest.raises(DataContractError, match="by a link"):
            load_scan(tmp_path / "north/anat" / NAME, site="north", root=tmp_path / "north")

    def test_link_to_nowhere_and_round_in_a_circle(self, tmp_path):
        (tmp_path / "a.nii").symlink_to(tmp_path / "gone")
        (tmp_path / "b.nii").symlink_to(tmp_path / "b.nii")
        for name in ("a.nii", "b.nii"):
            assert "leads nowhere" in str(refusal(tmp_path / name))

    def test_pipe_and_folder(self, tmp_path):
        os.mkfifo(tmp_path / "a.nii")
        (tmp_path / "b.nii").mkdir()
        for name in ("a.nii", "b.nii"):
            assert "not a regular file" in str(refusal(tmp_path / name))

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_unreadable(self, tmp_path, world):
        path = save(tmp_path, *world)
        path.chmod(0)
        assert "cannot be read" in str(refusal(path))
