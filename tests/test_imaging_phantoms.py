"""Phantom cohorts: the truth they hold, what scanners may not tell, and the files they become."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import hashlib
import json
import multiprocessing
import shutil
from collections import Counter
from pathlib import Path
from statistics import NormalDist

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from common.data.phantoms.cohorts import ensure_brains
from common.errors import ConfigError
from common.imaging import cohorts, phantoms, shifts

SITES = {"north": 6, "island": 5}
TEST = 3


def _latents(seed: int = 0, sex: str = "F", age: float = 25.0, **changes) -> phantoms.Latents:
    latents = phantoms.sample_latents(sex, (age, age), np.random.default_rng(seed))
    return dataclasses.replace(latents, **changes)


def _plain(**changes) -> phantoms.Latents:
    """The template itself at a given size, without any deviation."""
    still = {"knots": np.zeros((3, *phantoms.KNOTS)), "regions": np.zeros(26), "ventricles": 0.0}
    still |= {name: np.zeros(3) for name in ("tissue", "shape", "rotation", "translation")}
    return _latents(**(still | changes))


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _rows(site: Path) -> list[dict[str, str]]:
    with (site / "participants.tsv").open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.fixture(scope="session")
def cohort(tmp_path_factory) -> Path:
    return cohorts.write_cohort(
        tmp_path_factory.mktemp("phantoms") / "one", SITES, n_test=TEST, seed=0, workers=1
    )


# The truth


@pytest.fixture(scope="session")
def truth() -> tuple[np.ndarray, np.ndarray]:
    """Features (6000, 27) and sex of as many men as women."""
    rng = np.random.default_rng(1)
    sexes = np.array(["F", "M"] * 3000)
    features = [phantoms.sample_latents(sex, (20, 80), rng).features for sex in sexes]
    return np.array(features), sexes


def test_volume_alone_stays_under_four_fifths(truth):
    features, sexes = truth
    middle = np.log(phantoms.VOLUME_ML)
    accuracy = np.mean((features[:, 0] > middle) == (sexes == "M"))
    assert 0.65 < accuracy < 0.80
    assert accuracy == pytest.approx(NormalDist().cdf(phantoms.VOLUME_D / 2), abs=0.02)


def test_closed_form_optimum_is_what_discriminant_analysis_reaches(truth):
    features, sexes = truth
    model = LinearDiscriminantAnalysis().fit(features[:3000], sexes[:3000])
    accuracy = model.score(features[3000:], sexes[3000:])
    distance = np.hypot(phantoms.VOLUME_D, phantoms.REGION_D * np.sqrt(2 * len(phantoms.REGIONS)))
    best = NormalDist().cdf(distance / 2)
    assert accuracy == pytest.approx(best, abs=0.005)
    assert best == pytest.approx(0.991, abs=0.001)


def test_effect_sizes_are_those_documented(truth):
    features, sexes = truth
    men, women = features[sexes == "M"], features[sexes == "F"]
    spread = np.sqrt((men.var(axis=0) + women.var(axis=0)) / 2)
    d = (men.mean(axis=0) - women.mean(axis=0)) / spread
    assert d[0] == pytest.approx(1.3, abs=0.1)
    assert np.abs(d[1:]) == pytest.approx(0.9, abs=0.1)
    more_in_men = [region.more_in == "M" for region in phantoms.REGIONS for _ in range(2)]
    assert list(d[1:] > 0) == more_in_men
    assert np.exp(men[:, 0].mean() - women[:, 0].mean()) == pytest.approx(1.11, abs=0.01)


def test_volume_alone_stays_under_four_fifths_in_images():
    # Each subject is seen as a woman and as a man with the same nuisance: half the scans tell as
    # much. The north scanner; what else differs between the sexes must not add to the volume.
    counts, latent = np.empty((2, 2, 30))
    for k, subject in enumerate(cohorts.plan_site("north", n=30, n_test=0, seed=5)):
        for i, sex in enumerate(phantoms.SEXES):
            one = dataclasses.replace(subject, sex=sex)
            volume, _ = cohorts.subject_volume("north", one, 5)
            smooth = ndimage.uniform_filter(volume, 3)
            counts[i, k] = np.log(np.count_nonzero(smooth > 0.4 * np.percentile(smooth, 99)))
            latent[i, k] = cohorts.subject_latents("north", one, 5).log_volume
    within = [values - values.mean(axis=1, keepdims=True) for values in (counts, latent)]
    assert np.corrcoef(within[0].ravel(), within[1].ravel())[0, 1] > 0.8  # it does show the volume
    women, men = counts
    assert 0.65 < ((men > counts.mean()).mean() + (women < counts.mean()).mean()) / 2 < 0.80
    d = (men.mean() - women.mean()) / np.sqrt((women.var(ddof=1) + men.var(ddof=1)) / 2)
    assert 0.65 < NormalDist().cdf(d / 2) < 0.80


# The anatomy


def test_rendered_volume_is_the_latent_one():
    grid = phantoms.Grid((90, 108, 93), (2.0, 2.0, 2.0))
    tissues = phantoms.render(_plain(log_volume=np.log(1200.0)), grid)
    assert tissues[:2].sum() * 8 / 1000 == pytest.approx(1200, rel=0.01)


def test_fractions_of_an_undisturbed_brain_add_up_to_one_inside():
    grid = phantoms.Grid((60, 72, 62), (3.0, 3.0, 3.0))
    total = phantoms.render(_plain(age=80.0), grid)[:3].sum(axis=0)
    inside = ndimage.binary_erosion(total > 0.5, iterations=2)
    assert inside.sum() > 20_000
    assert total[inside] == pytest.approx(1, abs=1e-3)


def test_ventricles_are_wider_at_80_than_at_30():
    grid = phantoms.Grid((90, 108, 93), (2.0, 2.0, 2.0))
    x, y, z = grid.axes
    box = np.ix_(np.abs(x) < 25, (y > -45) & (y < 30), (z > 2) & (z < 26))
    still = {"knots": np.zeros((3, *phantoms.KNOTS)), "log_volume": np.log(1200.0)}
    wide = {
        age: np.count_nonzero(phantoms.render(_latents(age=age, **still), grid)[2][box] > 0.5)
        for age in (30.0, 80.0)
    }
    assert 1.4 * wide[30.0] < wide[80.0] < 3 * wide[30.0]


def test_grey_matter_declines_with_age():
    grid = phantoms.Grid((60, 72, 62), (3.0, 3.0, 3.0))
    young, old = (phantoms.render(_plain(age=age), grid)[0].sum() for age in (25.0, 75.0))
    assert old / young == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("site", ["north", "island"])
def test_where_nothing_is_interpolated_there_is_nothing(site, monkeypatch):
    latents, grid = _latents(age=80.0), shifts.site_scanner(site).grid
    found = phantoms.render(latents, grid)
    monkeypatch.setattr(phantoms, "_near_tissue", lambda where: np.ones(where.shape[1:], bool))
    assert np.array_equal(found, phantoms.render(latents, grid))
    assert found.any()


def test_sites_written_by_the_same_processes_have_the_same_bytes(cohort, tmp_path, monkeypatch):
    started = []

    class Counted(cohorts.ProcessPoolExecutor):
        def __init__(self, *words, **options):
            started.append(options)
            super().__init__(*words, **options)

    monkeypatch.setattr(cohorts, "ProcessPoolExecutor", Counted)
    with cohorts.processes(2):
        for site, n in SITES.items():
            cohorts.write_site(tmp_path, site, n=n, n_test=TEST, seed=0, workers=2)
    assert len(started) == 1
    assert _digests(tmp_path) == _digests(cohort)


def test_rendering_leaves_the_template_as_it_was():
    before = phantoms.load_template().maps.copy()
    phantoms.render(_latents(), shifts.site_scanner("north").grid)
    assert np.array_equal(phantoms.load_template().maps, before)


# The scanners


@pytest.mark.parametrize("site", ["north", "south", "island", "east", "west"])
def test_left_is_left_whatever_the_orientation_code(site):
    scanner = shifts.site_scanner(site)
    scan = dataclasses.replace(
        shifts.sample_scan(scanner, np.random.default_rng(0)), noise=0.0, bias=np.zeros(9)
    )
    region = [r.name for r in phantoms.REGIONS].index("lateral prefrontal")
    bent = np.zeros(26)
    bent[2 * region + 1] = 0.5  # the left one
    pair = []
    for deviations in (np.zeros(26), bent):
        latents = _plain(regions=deviations, log_volume=np.log(1200.0))
        tissues = phantoms.render(latents, scanner.grid)
        volume, affine = shifts.acquire(tissues, latents.tissue, scanner, scan)
        assert "".join(nib.aff2axcodes(affine)) == scanner.orientation
        pair.append(nib.as_closest_canonical(nib.Nifti1Image(volume, affine)))
    difference = pair[1].get_fdata() - pair[0].get_fdata()
    centre = nib.affines.apply_affine(pair[0].affine, ndimage.center_of_mass(difference))
    size = (1200 / phantoms.load_template().tissue_ml) ** (1 / 3)
    x, y, z = phantoms.REGIONS[region].centre
    expected = size * (np.array([-x, y, z]) - phantoms.BRAIN_CENTRE) + phantoms.BRAIN_CENTRE
    assert centre == pytest.approx(expected, abs=4)  # mm; GM is not centred on the region's centre


def test_named_sites_differ_in_all_that_a_scanner_does():
    scanners = [shifts.site_scanner(site) for site in shifts.SCANNERS]
    for name in ("contrast", "bias", "noise", "slice_mm", "orientation", "men", "ages"):
        assert len({getattr(scanner, name) for scanner in scanners}) == 3, name


def test_other_names_have_a_scanner_of_their_own_for_all_time():
    assert shifts.site_scanner("east") == shifts.site_scanner("east")
    assert shifts.site_scanner("east") != shifts.site_scanner("west")


@pytest.mark.parametrize("site", ["north", "south", "island", "east", "west"])
def test_field_of_view_holds_the_largest_heads(site):
    grid = shifts.site_scanner(site).grid
    large = np.log(phantoms.VOLUME_ML) + phantoms.VOLUME_CV * (0.65 + 3.5)
    for seed in range(4):
        tissue = phantoms.render(_latents(seed, log_volume=large), grid)[:3].sum(axis=0)
        rim = np.ones(grid.shape, bool)
        rim[1:-1, 1:-1, 1:-1] = False
        assert tissue[rim].max() == 0


def test_no_scanner_effect_carries_the_label():
    for subject in cohorts.plan_site("south", n=20, n_test=0, seed=0):
        other = dataclasses.replace(subject, sex="F" if subject.sex == "M" else "M")
        scan, same = (cohorts.subject_scan("south", s, 0) for s in (subject, other))
        assert scan.contrast.tolist() == same.contrast.tolist()
        assert scan.bias.tolist() == same.bias.tolist()
        assert (scan.noise, scan.gain, scan.noise_seed) == (same.noise, same.gain, same.noise_seed)
        # Nor does any nuisance of the anatomy.
        here, there = (cohorts.subject_latents("south", s, 0) for s in (subject, other))
        assert here.age == there.age
        for name in ("knots", "tissue", "shape", "rotation", "translation"):
            assert np.array_equal(getattr(here, name), getattr(there, name))
        assert not np.isclose(here.features, there.features).any()


def test_noise_is_rician():
    scanner = shifts.site_scanner("island")
    scan = shifts.sample_scan(scanner, np.random.default_rng(0))
    empty = np.zeros((4, *scanner.grid.shape), np.float32)
    volume, _ = shifts.acquire(empty, np.zeros(3), scanner, scan)
    sigma = scan.noise * scan.gain
    # Without signal the magnitude is Rayleigh: mean σ √(π/2), variance (2 - π/2) σ².
    assert volume.mean() == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.01)
    assert volume.var() == pytest.approx(sigma**2 * (2 - np.pi / 2), rel=0.02)


# The files


def test_same_seed_same_bytes_whatever_the_number_of_processes(cohort, tmp_path):
    again = cohorts.write_cohort(tmp_path / "two", SITES, n_test=TEST, seed=0, workers=2)
    assert _digests(again) == _digests(cohort)


def test_a_site_does_not_depend_on_the_others(cohort, tmp_path):
    alone = cohorts.write_site(tmp_path, "island", n=SITES["island"], n_test=TEST, seed=0)
    assert _digests(alone) == _digests(cohort / "island")


def test_another_seed_changes_every_scan(cohort, tmp_path):
    other = cohorts.write_site(tmp_path, "island", n=SITES["island"], n_test=TEST, seed=1)
    ours, theirs = _digests(cohort / "island"), _digests(other)
    scans = [name for name in ours if name.endswith(".nii.gz")]
    assert len(scans) == SITES["island"] + TEST
    assert not {ours[name] for name in scans} & set(theirs.values())


@pytest.mark.parametrize("site", SITES)
def test_layout_is_bids(cohort, site):
    folder = cohort / site
    description = json.loads((folder / "dataset_description.json").read_text())
    assert {"Name", "BIDSVersion"} <= description.keys()
    rows = _rows(folder)
    assert list(rows[0]) == ["participant_id", "sex", "age", "split"]
    assert Counter(row["split"] for row in rows)["test"] == TEST
    assert len(rows) == SITES[site] + TEST
    names = {row["participant_id"] for row in rows}
    assert names == {path.name for path in folder.glob("sub-*")}
    for name in names:
        files = [path for path in (folder / name).rglob("*") if path.is_file()]
        assert files == [folder / name / "anat" / f"{name}_T1w.nii.gz"]
    youngest, oldest = shifts.site_scanner(site).ages
    assert all(youngest <= float(row["age"]) <= oldest for row in rows)
    assert {path.name for path in cohort.iterdir()} == set(SITES)


def test_scan_holds_the_volume_and_no_other_metadata(cohort):
    plan = cohorts.plan_site("island", n=SITES["island"], n_test=TEST, seed=0)
    volume, affine = cohorts.subject_volume("island", plan[0], 0)
    name = plan[0].participant_id
    path = cohort / "island" / name / "anat" / f"{name}_T1w.nii.gz"
    image = nib.load(path)
    assert image.get_data_dtype() == np.int16
    assert np.abs(image.get_fdata() - volume).max() <= 0.51 * volume.max() / 4095
    assert image.affine == pytest.approx(affine)
    assert sorted(image.header.get_zooms()) == pytest.approx([3, 3, 5])
    for field in ("descrip", "aux_file", "db_name", "intent_name"):
        assert image.header[field].item() == b""
    assert not image.header.extensions
    raw = path.read_bytes()
    assert raw[3:8] == bytes(5)  # gzip: neither name nor time
    assert len(gzip.decompress(raw)) == 352 + 2 * volume.size


@pytest.mark.parametrize(
    ("site", "n", "n_test", "sizes"),
    [
        ("island", 20, 60, {"train": 16, "val": 4, "test": 60}),
        ("north", 200, 0, {"train": 160, "val": 40}),
        ("west", 4, 1, {"train": 2, "val": 2, "test": 1}),
        ("south", 5, 2, {"train": 3, "val": 2, "test": 2}),
    ],
)
def test_splits_and_sexes_have_their_quota(site, n, n_test, sizes):
    plan = cohorts.plan_site(site, n=n, n_test=n_test, seed=3)
    assert Counter(subject.split for subject in plan) == sizes
    for split, size in sizes.items():
        men = sum(s.sex == "M" for s in plan if s.split == split)
        assert abs(men - shifts.site_scanner(site).men * size) <= 1
        assert size < 2 or 0 < men < size
    names = [subject.participant_id for subject in plan]
    assert names == sorted(set(names))


def test_participant_numbers_tell_neither_sex_nor_split():
    plan = cohorts.plan_site("north", n=200, n_test=60, seed=0)
    number = np.arange(len(plan))
    for told in ([s.sex == "M" for s in plan], [s.split == "test" for s in plan]):
        assert abs(np.corrcoef(number, told)[0, 1]) < 0.2
        assert np.count_nonzero(np.diff(told)) > 60  # runs, where sorted rows would have two


@pytest.mark.parametrize(
    ("sites", "n_test", "got"),
    [
        ({"North": 10}, 0, "North"),
        ({"../x": 10}, 0, "../x"),
        ({"-x": 10}, 0, "-x"),
        ({"north": 3}, 0, "3"),
        ({"north": 10}, -1, "-1"),
        ({}, 0, "no site"),
    ],
)
def test_what_is_not_accepted_is_refused_before_anything_is_written(tmp_path, sites, n_test, got):
    with pytest.raises(ConfigError, match="accepted") as caught:
        cohorts.write_cohort(tmp_path / "out", sites, n_test=n_test, seed=0)
    assert got in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "island").mkdir()
    (tmp_path / "island" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        cohorts.write_cohort(tmp_path, {"north": 4, "island": 4}, n_test=0, seed=0)
    assert _digests(tmp_path).keys() == {"island/notes.txt"}


def test_a_failure_leaves_no_half_site(tmp_path):
    def fail(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cohorts.write_site(tmp_path, "island", n=4, n_test=0, seed=0, progress=fail)
    assert list(tmp_path.iterdir()) == []


# The cache


def _ensure(cache: Path, barrier, made) -> None:
    """Ask for a site at the same moment as another process; count the subjects made here."""

    def count(k: int) -> None:
        with made.get_lock():
            made.value += k

    barrier.wait(60)
    ensure_brains(cache, "island", n=4, n_test=1, seed=0, progress=count)


def test_two_processes_make_a_site_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, made = context.Barrier(2), context.Value("i", 0)
    other = context.Process(target=_ensure, args=(tmp_path, barrier, made))
    other.start()
    _ensure(tmp_path, barrier, made)
    other.join(120)
    assert other.exitcode == 0
    assert made.value == 5
    folder = ensure_brains(tmp_path, "island", n=4, n_test=1, seed=0)
    assert len(_rows(folder)) == 5


def test_a_crashed_attempt_is_not_taken_for_whole(tmp_path):
    folder = ensure_brains(tmp_path, "island", n=4, n_test=0, seed=0)
    whole = _digests(folder)
    partial = folder.with_name(".island.0.partial")
    folder.rename(partial)
    shutil.rmtree(next(partial.glob("sub-*")))
    assert ensure_brains(tmp_path, "island", n=4, n_test=0, seed=0) == folder
    assert _digests(folder) == whole
    assert not partial.exists()
