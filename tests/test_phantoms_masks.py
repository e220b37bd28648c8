"""Masks of simulated images lie where their pixels differ from those of images without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from common.data.phantoms import dermatoscopes, lesion_rendering
from common.data.phantoms.dermatoscopes import ARTEFACTS, Dermatoscope, acquire, artefacts
from common.data.phantoms.known import holds_phantoms
from common.data.phantoms.lesion_cohorts import patient_pictures, take, write_hospital
from common.data.phantoms.lesion_masks import (
    LESION,
    MASKS,
    cohort_seed,
    picture_masks,
    picture_named,
)
from common.errors import ConfigError
from common.imaging import phantoms, shifts
from common.imaging.bids import list_sites
from common.imaging.phantom_regions import regional_mask
from common.imaging.prepare import FIELD_OF_VIEW_MM, HEAD, prepare_volume
from common.imaging.slices import axial_slices

SIZE = 64


def with_only(name: str) -> Dermatoscope:
    """Return north's dermatoscope, with one artefact in every picture and no other."""
    never = dict.fromkeys(ARTEFACTS, 0.0)
    always = {name: 8.0 if name == "hair" else 1.0}
    return Dermatoscope(**{**vars(dermatoscopes.DERMATOSCOPES["north"]), **never, **always})


@pytest.mark.parametrize("name", ARTEFACTS)
def test_a_picture_without_an_artefact_differs_in_its_mask(name, monkeypatch):
    scope, light = with_only(name), np.full((SIZE, SIZE, 3), 0.5, np.float32)
    whole = acquire(light, scope, np.random.default_rng(3)).astype(float)
    mask = artefacts(SIZE, scope, np.random.default_rng(3))[name] > 0.1
    drawn = dermatoscopes._STEPS[name]
    # Drawn into another picture: all that follows has the same random numbers.
    monkeypatch.setitem(dermatoscopes._STEPS, name, lambda light, *a: drawn(light.copy(), *a))
    bare = acquire(light, scope, np.random.default_rng(3)).astype(float)
    changed = ((whole - bare) ** 2).sum(axis=2)
    assert 0 < mask.mean() < 0.7
    near = ndimage.binary_dilation(mask)  # the lens spreads an edge by a pixel
    assert changed[near].sum() > 0.95 * changed.sum()
    assert changed[mask].mean() > 10 * changed[~near].mean()


@pytest.mark.parametrize("hospital", ["north", "south", "island"])
def test_a_picture_without_its_lesion_differs_in_the_lesions_mask(hospital, monkeypatch):
    pictures = [patient_pictures(hospital, patient, seed=4)[0] for patient in range(6)]
    with monkeypatch.context() as patch:
        patch.setattr(lesion_rendering, "STRUCTURES", ())
        skin = [take(one, 4, SIZE).astype(float) for one in pictures]
    found = []
    for one, bare in zip(pictures, skin, strict=True):
        changed = np.abs(take(one, 4, SIZE) - bare).max(axis=2)
        found.append(roc_auc_score(picture_masks(one, 4, SIZE)[LESION].ravel(), changed.ravel()))
    assert np.mean(found) > 0.95


def test_a_mask_is_at_the_same_place_at_any_size():
    for hospital in ("north", "south", "island"):
        for patient in range(4):
            one = patient_pictures(hospital, patient, seed=4)[0]
            small, large = (picture_masks(one, 4, size) for size in (32, 128))
            for name in (LESION, "frame", "corners"):
                pooled = large[name].reshape(32, 4, 32, 4).mean((1, 3)) > 0.5
                both, either = pooled & small[name], pooled | small[name]
                assert both.sum() >= 0.8 * either.sum()
                assert large[name].any() == small[name].any()


def test_masks_of_a_file_are_those_of_its_picture(tmp_path: Path):
    folder = write_hospital(tmp_path, "island", seed=7, patients=3, size=16)
    seed = cohort_seed(folder)
    assert seed == 7
    for path in sorted((folder / "images").iterdir()):
        one = picture_named(path.name, seed)
        found = picture_masks(one, seed, 16)
        assert one.file == path.name
        assert tuple(found) == MASKS
        assert all(mask.shape == (16, 16) and mask.dtype == bool for mask in found.values())
        again = picture_masks(picture_named(path.name, seed), seed, 16)
        assert all((again[name] == mask).all() for name, mask in found.items())


@pytest.mark.parametrize(
    "file",
    ["north-00001-9-1.jpg", "north-00000-1-1.jpg", "ISIC_0000001.jpg", "x-1-1-1.png", "../a.jpg"],
)
def test_a_file_that_is_no_phantoms_is_refused(file):
    with pytest.raises(ConfigError, match="no picture of the lesion phantom"):
        picture_named(file, 0)


def test_only_phantoms_have_a_cohorts_seed(tmp_path: Path):
    assert cohort_seed(tmp_path) is None
    (tmp_path / "README").write_text("Pictures of our patients, seed 3.")
    assert cohort_seed(tmp_path) is None
    (tmp_path / "README").write_text("drawn by fedscan's lesion phantom, version 1, seed 3.\n")
    with pytest.raises(ConfigError, match="version 1"):
        cohort_seed(tmp_path)
    endless = "drawn by fedscan's lesion phantom, version " + 5000 * "9" + ", seed 3.\n"
    (tmp_path / "README").write_text(endless)
    assert cohort_seed(tmp_path) is None


def test_a_sites_folder_says_whether_it_holds_phantoms(tmp_path: Path, tiny_cohort: Path):
    assert not holds_phantoms(tmp_path)
    for text in ("Pictures of our patients.", "lesion phantom, version 1."):
        (tmp_path / "README").write_text(text)
        assert not holds_phantoms(tmp_path)
    (tmp_path / "README").write_text("drawn by fedscan's lesion phantom, version 1, seed 3.\n")
    assert holds_phantoms(tmp_path)
    assert all(holds_phantoms(folder) for folder in list_sites(tiny_cohort).values())
    brains = tmp_path / "brains"
    brains.mkdir()
    for text in ("[]", "{", '{"GeneratedBy": 3}', '{"GeneratedBy": [{"Name": "fMRIPrep"}]}'):
        (brains / "dataset_description.json").write_text(text)
        assert not holds_phantoms(brains)


# Brains


@pytest.fixture(scope="module")
def sexes() -> np.ndarray:
    """A mean woman's and a mean man's prepared scan, (2, 48, 48, 48), at equal brain volume."""
    grid = phantoms.Grid((54, 63, 54), (4.0, 4.0, 4.0))
    found = []
    for side in (-0.5, 0.5):
        latents = phantoms.Latents(
            sex="F",
            age=phantoms.TEMPLATE_AGE,
            log_volume=np.log(phantoms.VOLUME_ML),
            regions=phantoms.REGION_SD * phantoms.REGION_D * side * phantoms._SIGNS,
            ventricles=0.0,
            tissue=np.zeros(3),
            knots=np.zeros((3, *phantoms.KNOTS)),
            shape=np.zeros(3),
            rotation=np.zeros(3),
            translation=np.zeros(3),
        )
        weights = np.append(shifts.site_scanner("north").contrast, 1.0)
        signal = np.tensordot(weights, phantoms.render(latents, grid), 1)
        found.append(prepare_volume(signal.astype(np.float32), grid.affine, image_size=48))
    return np.stack(found)


def test_the_sexes_differ_in_the_regions_mask(sexes):
    mask, head = regional_mask(48), sexes.min(axis=0) > HEAD
    changed = np.abs(sexes[1] - sexes[0])
    assert roc_auc_score(mask[head], changed[head]) > 0.9


def test_slices_of_the_regions_mask_are_at_their_heights():
    heights = (-9.0, 27.0)
    cube = regional_mask(96).astype(np.float32)  # 2.25 mm
    cut = axial_slices(cube, heights) > 0.5
    found = regional_mask(96, heights)
    assert found.shape == (2, 96, 96)
    assert (cut & found).sum() > 0.8 * (cut | found).sum()


def test_the_regions_mask_is_of_both_sides_alike():
    mask = regional_mask(48)
    assert (mask == mask[::-1]).mean() > 0.99
    assert mask.mean() * FIELD_OF_VIEW_MM**3 < 0.2 * 1000 * phantoms.VOLUME_ML
