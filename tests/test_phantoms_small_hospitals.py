"""Many small hospitals: each sees in its own way, and any cohort begins with a smaller one."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from common.data.phantoms.dermatoscopes import DERMATOSCOPES, dermatoscope
from common.data.phantoms.lesion_cohorts import HOSPITALS, hospital_named
from common.data.phantoms.lesions import DIAGNOSES
from common.data.phantoms.small_hospitals import SIZE, small_sites, write_small_hospitals
from common.errors import ConfigError
from simulations.cli import app

SEED = 1000


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    return write_small_hospitals(tmp_path_factory.mktemp("many") / "cohort", 2, seed=SEED)


def test_a_small_hospital_has_twenty_pictures_of_as_many_patients_in_three_splits(cohort):
    from PIL import Image

    for site in ("site-001", "site-002"):
        rows = list(csv.DictReader((cohort / site / "lesions.csv").open()))
        assert len({row["patient_id"] for row in rows}) == len(rows) == 20
        assert min(Counter(row["split"] for row in rows)[name] for name in ("val", "test")) >= 1
        shapes = {Image.open(cohort / site / "images" / row["image"]).size for row in rows}
        assert shapes == {(SIZE, SIZE)}
    assert sorted(path.name for path in cohort.iterdir()) == ["site-001", "site-002"]


def test_a_larger_cohort_begins_with_the_hospitals_of_a_smaller_one(cohort, tmp_path):
    one = write_small_hospitals(tmp_path / "one", 1, seed=SEED, workers=2)
    assert _files(one / "site-001") == _files(cohort / "site-001")
    assert _files(one / "site-001") != _files(cohort / "site-002")


def test_instruments_and_mixes_differ_between_hospitals_and_lie_about_the_documented_ones():
    names = small_sites(300)
    assert len({dermatoscope(name) for name in names}) == len(names)
    for field in ("noise", "quality", "white"):
        known = np.array([getattr(one, field) for one in DERMATOSCOPES.values()])
        drawn = np.array([getattr(dermatoscope(name), field) for name in names])
        assert (drawn >= known.min(axis=0)).all()
        assert (drawn <= known.max(axis=0)).all()
    mixes = np.array([[hospital_named(name).mix[d] for d in DIAGNOSES] for name in names])
    assert mixes.sum(axis=1) == pytest.approx(1)
    known = np.array([[one.mix[d] for d in DIAGNOSES] for one in HOSPITALS.values()])
    assert mixes.mean(axis=0) == pytest.approx(known.mean(axis=0), abs=0.03)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"count": 10_001}, {"count": 1, "pictures": 16}])
def test_numbers_that_make_no_cohort_are_refused(tmp_path, wrong):
    with pytest.raises(ConfigError, match="accepted are"):
        write_small_hospitals(tmp_path / "cohort", **wrong)
    assert not (tmp_path / "cohort").exists()


def test_hospitals_that_are_there_are_left_alone(cohort):
    before = _files(cohort)
    with pytest.raises(ConfigError, match="site-001' exists"):
        write_small_hospitals(cohort, 3, seed=SEED)
    assert _files(cohort) == before


def test_the_command_makes_them_and_takes_no_option_of_brains(tmp_path):
    def phantom(*options: str):
        return CliRunner().invoke(app, ["prepare", "phantom", str(tmp_path / "out"), *options])

    for clash in (["--sites", "north=20"], ["--test-scans", "4"]):
        refused = phantom("--sites-count", "2", *clash)
        assert isinstance(refused.exception, ConfigError)
        assert "--sites-count" in str(refused.exception)
    assert isinstance(phantom("--pictures", "20").exception, ConfigError)
    assert not (tmp_path / "out").exists()
    assert phantom("--sites-count", "1", "--seed", str(SEED)).exit_code == 0
    assert len(list((tmp_path / "out/site-001/images").iterdir())) == 20
