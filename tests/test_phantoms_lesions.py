"""Simulated skin lesions: what the truth says is what the pictures show, and nothing else is."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from scipy.stats import norm

from common.data.image_table import read_image_table
from common.data.phantoms import contact_sheet, lesion_cohorts, lesions
from common.data.phantoms.dermatoscopes import DERMATOSCOPES, acquire, encode
from common.data.phantoms.lesion_canvas import Canvas
from common.data.phantoms.lesion_cohorts import (
    HOSPITALS,
    patient_pictures,
    take,
    write_hospital,
)
from common.data.phantoms.lesion_rendering import render
from common.data.phantoms.lesion_scene import Scene
from common.data.phantoms.lesion_structures import STRUCTURES
from common.data.phantoms.lesions import DIAGNOSES, LATENTS, MEANS, View, best_accuracy, best_guess
from common.data.photographs import load_photographs
from common.errors import ConfigError
from common.studies.study import load_study

FEW = 24  # patients


def _lesion(diagnosis: str = "NV", seed: int = 0, **latents: float) -> lesions.Lesion:
    """Draw a lesion of fair skin at its diagnosis' mean, but for the latents given."""
    patient = lesions.Patient(age=50.0, sex="female", tone=0.15, blush=0.2)
    values = MEANS[DIAGNOSES.index(diagnosis)].copy()
    for name, value in latents.items():
        values[LATENTS.index(name)] = value
    return lesions.Lesion(patient, diagnosis, "posterior torso", values, seed)


def _random_lesion(diagnosis: str, seed: int) -> lesions.Lesion:
    rng = np.random.default_rng(seed)
    patient = lesions.sample_patient({diagnosis: 1.0}, rng)
    return lesions.sample_lesion(patient, diagnosis, rng)


def _latents(diagnoses: tuple[str, ...], n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Latents (n · diagnoses, 25) of sampled lesions, and their diagnoses."""
    rng = np.random.default_rng(seed)
    patient = lesions.sample_patient({"NV": 1.0}, rng)
    drawn = [
        lesions.sample_lesion(patient, name, rng).latents for name in diagnoses for _ in range(n)
    ]
    return np.array(drawn), np.repeat(diagnoses, n)


def _scene(lesion: lesions.Lesion) -> Scene:
    scene = Scene(Canvas(128, View()), lesion)
    for structure in STRUCTURES:
        structure(scene)
    return scene


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / "lesions.csv").read_text())))


@pytest.fixture(scope="module")
def island(tmp_path_factory) -> Path:
    return write_hospital(tmp_path_factory.mktemp("cohort"), "island", seed=3, patients=FEW)


# -------------------------------------------------------------------------------------- the truth


def test_best_accuracy_of_melanoma_and_nevus_follows_from_their_distance():
    d = lesions.distance("MEL", "NV")
    assert d == pytest.approx(2.82, abs=0.005)
    assert best_accuracy(("MEL", "NV")) == pytest.approx(norm.cdf(d / 2))


@pytest.mark.parametrize("diagnoses", [("MEL", "NV"), DIAGNOSES], ids=["two", "eight"])
def test_a_linear_classifier_of_latents_reaches_the_optimum_and_no_more(diagnoses):
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    x, y = _latents(diagnoses, 1000, seed=1)
    model = LinearDiscriminantAnalysis().fit(x, y)
    x, y = _latents(diagnoses, 1000, seed=2)
    best = best_accuracy(diagnoses)
    error = math.sqrt(best * (1 - best) / len(y))
    assert np.mean(np.array(best_guess(x, diagnoses)) == y) == pytest.approx(best, abs=3 * error)
    assert model.score(x, y) == pytest.approx(best, abs=3 * error + 0.004)  # it is estimated


def test_optimum_of_unequal_shares_is_what_the_best_rule_reaches():
    shares = (0.1, 0.9)
    best = best_accuracy(("MEL", "NV"), shares)
    x, _ = _latents(("MEL", "NV"), 4000, seed=3)
    means = MEANS[:2]
    scores = x @ means.T - (means**2).sum(1) / 2 + np.log(shares)
    right = (scores.argmax(1) == np.repeat([0, 1], 4000)).reshape(2, -1).mean(1)
    assert best > best_accuracy(("MEL", "NV"))
    assert right @ shares == pytest.approx(best, abs=0.01)


def test_criteria_of_kind_tell_melanoma_and_nevus_nothing():
    kind = slice(LATENTS.index("pigment"), None)
    assert np.array_equal(MEANS[0, kind], MEANS[1, kind])
    strengths = np.abs(MEANS[0] - MEANS[1])[: LATENTS.index("pigment")]
    assert len(strengths) == 12
    assert strengths.min() >= 0.6 and strengths.max() <= 0.9


def test_a_hospital_sees_its_mix_of_diagnoses_whatever_the_ages():
    rng = np.random.default_rng(0)
    for hospital in HOSPITALS.values():
        ages = [lesions.sample_patient(hospital.mix, rng).age for _ in range(1500)]
        odds = np.mean([lesions.diagnosis_odds(hospital.mix, age) for age in ages], axis=0)
        assert odds == pytest.approx(list(hospital.mix.values()), abs=0.02)


# ------------------------------------------------------------------------------------ the picture


def test_picture_shows_the_latents_and_neither_diagnosis_nor_age_nor_sex():
    lesion = _random_lesion("MEL", 1)
    patient = dataclasses.replace(lesion.patient, age=20.0, sex="male")
    other = dataclasses.replace(lesion, diagnosis="NV", body_site="head/neck", patient=patient)
    assert np.array_equal(render(lesion, 32), render(other, 32))


@pytest.mark.parametrize("diagnosis", DIAGNOSES)
def test_light_is_between_none_and_all(diagnosis):
    for shift in (-3.0, 0.0, 3.0):
        lesion = _random_lesion(diagnosis, 2)
        lesion = dataclasses.replace(lesion, latents=lesion.latents + shift)
        light = render(lesion, 64)
        assert light.shape == (64, 64, 3) and light.dtype == np.float32
        assert light.min() >= 0 and light.max() <= 1


def test_a_lesion_is_the_same_at_any_size():
    for diagnosis in DIAGNOSES:
        lesion = _random_lesion(diagnosis, 3)
        large = render(lesion, 256).reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
        assert np.abs(render(lesion, 64) - large).mean() < 0.006
        assert render(lesion, 50).shape == (50, 50, 3)


def test_turning_the_dermatoscope_turns_the_picture():
    for diagnosis in DIAGNOSES:
        lesion = _random_lesion(diagnosis, 4)
        turned = render(lesion, 64, View(rotation=math.pi / 2))
        assert np.abs(np.rot90(turned) - render(lesion, 64)).mean() < 0.003


def test_shift_moves_the_lesion_to_the_right_and_downwards():
    lesion = _lesion(seed=5)
    moved = render(lesion, 64, View(shift=(0.25, 0.125)))  # 8 and 4 of 64 pixels
    assert moved[4:, 8:] == pytest.approx(render(lesion, 64)[:-4, :-8], abs=0.02)


def _point_asymmetry(lesion: lesions.Lesion) -> float:
    """Share of the outlined area that half a turn about its centroid does not cover."""
    mask = _scene(lesion).mask > 0.5
    centre = np.array(ndimage.center_of_mass(mask))
    where = np.argwhere(mask)
    turned = np.rint(2 * centre - where).astype(int).clip(0, 127)
    return 1 - mask[turned[:, 0], turned[:, 1]].mean()


def _raggedness(lesion: lesions.Lesion) -> float:
    """Perimeter over that of a disc of the same area."""
    mask = _scene(lesion).mask > 0.5
    perimeter = sum(np.abs(np.diff(mask.astype(int), axis=k)).sum() for k in (0, 1))
    return perimeter / math.sqrt(mask.sum())


def _rim_width(lesion: lesions.Lesion) -> float:
    mask = _scene(lesion).mask
    return ((mask > 0.1) & (mask < 0.9)).sum() / math.sqrt((mask > 0.5).sum())


def _inside(lesion: lesions.Lesion) -> np.ndarray:
    return render(lesion, 128)[_scene(lesion).mask > 0.5]


def _variation(lesion: lesions.Lesion) -> float:
    scene = _scene(lesion)
    values = scene.melanin[scene.mask > 0.9]
    return values.std() / values.mean()


MEASURES = {
    "asymmetry": _point_asymmetry,
    "border": _raggedness,
    "edge": lambda lesion: -_rim_width(lesion),
    "variegation": _variation,
    "network": _variation,
    "globules": _variation,
    "darkness": lambda lesion: -_inside(lesion).mean(),
    "diameter": lambda lesion: (_scene(lesion).mask > 0.5).sum(),
    "streaks": _raggedness,
    "veil": lambda lesion: float(np.subtract(*_inside(lesion).mean(0)[[2, 0]])),  # blue - red
    "regression": lambda lesion: _scene(lesion).scar.sum(),
    "redness": lambda lesion: -float(np.divide(*_inside(lesion).mean(0)[[1, 0]])),  # green / red
    "pigment": lambda lesion: -_inside(lesion)[:, 2].mean(),
    "melanocytic": _variation,
    "erythema": lambda lesion: -float(np.divide(*_inside(lesion).mean(0)[[1, 0]])),
    "nests": lambda lesion: _scene(lesion).deep.sum(),
    "arborizing": lambda lesion: _scene(lesion).blood.max(),
    "follicles": lambda lesion: _scene(lesion).scar.sum(),
    "scale": lambda lesion: _scene(lesion).keratin.sum(),
    "cysts": lambda lesion: _scene(lesion).scar.max(),
    "ridges": _variation,
    "white_centre": lambda lesion: float(render(lesion, 64)[28:36, 28:36].mean()),
    "lacunae": lambda lesion: _scene(lesion).blood.max(),
    "keratin": lambda lesion: float(_scene(lesion).keratin[48:80, 48:80].mean()),
    "coiled": lambda lesion: _scene(lesion).blood.max(),
}


@pytest.mark.parametrize("name", LATENTS)
def test_each_latent_moves_what_it_says(name):
    low, high = (
        np.mean([MEASURES[name](_lesion("NV", seed, **{name: z})) for seed in range(6)])
        for z in (-2.0, 2.5)
    )
    assert high > low


@pytest.mark.parametrize("name", LATENTS[LATENTS.index("nests") :])
def test_an_absent_structure_leaves_no_trace_and_a_present_one_does(name):
    absent, also_absent, present = (
        render(_lesion("NV", 7, **{name: z}), 64) for z in (-3.0, 0.0, 2.0)
    )
    assert np.array_equal(absent, also_absent)
    assert np.abs(present - absent).max() > 0.05


# -------------------------------------------------------------------------------- the dermatoscope


def test_what_a_dermatoscope_adds_is_drawn_alike_whatever_it_looks_at():
    bright, dark = np.full((32, 32, 3), 0.9), np.full((32, 32, 3), 0.1)
    for scope in DERMATOSCOPES.values():
        for seed in range(10):
            first, second = np.random.default_rng(seed), np.random.default_rng(seed)
            acquire(bright, scope, first)
            acquire(dark, scope, second)
            assert first.bit_generator.state == second.bit_generator.state


def test_acquisition_leaves_the_light_as_it_was():
    light = render(_lesion(), 32)
    before = light.copy()
    acquire(light, DERMATOSCOPES["south"], np.random.default_rng(0))
    assert np.array_equal(light, before)


def _grey_cards(monkeypatch, hospital: str, patients: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of a grey card at the seeds of a cohort, 8 x 8 colours each; the diagnoses."""
    card = np.full((32, 32, 3), 0.4, np.float32)
    monkeypatch.setattr(lesion_cohorts, "render", lambda truth, size, view: card)
    pictures = [
        picture
        for patient in range(patients)
        for picture in patient_pictures(hospital, patient, 11)
    ]
    cards = np.array([take(picture, 11, 32) for picture in pictures])
    small = cards.reshape(-1, 8, 4, 8, 4, 3).mean(axis=(2, 4))
    return small.reshape(len(cards), -1) / 255, np.array([p.truth.diagnosis for p in pictures])


def test_acquisition_alone_tells_the_hospital_but_not_the_diagnosis(monkeypatch):
    from sklearn.linear_model import RidgeClassifier
    from sklearn.metrics import roc_auc_score

    cards, diagnoses = _grey_cards(monkeypatch, "south", 220)
    half = len(cards) // 2
    for positive in (["NV"], ["MEL"]):
        y = np.isin(diagnoses, positive)
        model = RidgeClassifier(10.0, class_weight="balanced").fit(cards[:half], y[:half])
        auc = roc_auc_score(y[half:], model.decision_function(cards[half:]))
        n, m = y[half:].sum(), (~y[half:]).sum()
        chance = math.sqrt((n + m + 1) / (12 * n * m))  # SE of the AUC of scores without meaning
        assert abs(auc - 0.5) < 3 * chance

    other, _ = _grey_cards(monkeypatch, "island", 60)  # the classifier sees what there is to see
    x = np.concatenate([cards[: len(other)], other])
    y = np.repeat([0, 1], len(other))
    model = RidgeClassifier(10.0).fit(x[::2], y[::2])
    assert model.score(x[1::2], y[1::2]) > 0.9


def test_another_diagnosis_in_the_same_picture_changes_no_draw_of_the_acquisition(monkeypatch):
    card = np.full((32, 32, 3), 0.4, np.float32)
    views = []

    def grey(truth, size, view):
        views.append(view)
        return card

    monkeypatch.setattr(lesion_cohorts, "render", grey)
    picture = patient_pictures("north", 0, 5)[0]
    other = dataclasses.replace(picture, truth=_random_lesion("SCC", 9))
    assert np.array_equal(take(picture, 5, 32), take(other, 5, 32))
    assert views[0] == views[1]


def test_hospitals_differ_in_light_detail_and_noise():
    card = np.full((64, 64, 3), 0.4, np.float32)
    quiet = {"hair": 0, "frame": 0, "corners": 0, "ruler": 0, "bubbles": 0, "ink": 0, "glare": 0}
    pictures = {}
    for name, scope in DERMATOSCOPES.items():
        scope = dataclasses.replace(scope, **quiet)
        shots = [acquire(card, scope, np.random.default_rng(k)).astype(float) for k in range(20)]
        pictures[name] = np.array(shots)
    warmth = {name: (p[..., 0] - p[..., 2]).mean() for name, p in pictures.items()}
    grain = {name: np.diff(p, axis=2).std() for name, p in pictures.items()}
    assert warmth["south"] > warmth["north"] + 5 > warmth["island"]
    assert grain["north"] < grain["south"] < grain["island"]


def test_jpeg_follows_from_the_pixels_and_holds_no_metadata():
    pixels = acquire(render(_lesion(), 64), DERMATOSCOPES["north"], np.random.default_rng(1))
    data = encode(pixels, DERMATOSCOPES["north"])
    assert data == encode(pixels, DERMATOSCOPES["north"])
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "JPEG" and image.size == (64, 64) and not image.getexif()
        assert np.abs(np.asarray(image).astype(int) - pixels).mean() < 4


# -------------------------------------------------------------------------------------- the cohort


def test_same_seed_same_bytes_whatever_the_number_of_processes(island, tmp_path):
    again = write_hospital(tmp_path, "island", seed=3, patients=FEW, workers=2)
    assert _digests(again) == _digests(island)


def test_pictures_do_not_depend_on_how_many_patients_there_are_or_who_comes_first(island, tmp_path):
    small = _digests(write_hospital(tmp_path, "island", seed=3, patients=3))
    large = _digests(island)
    images = [name for name in small if name.endswith(".jpg")]
    assert images and all(small[name] == large[name] for name in images)
    last = patient_pictures("island", FEW - 1, 3)[-1]
    data = encode(take(last, 3), DERMATOSCOPES["island"])
    assert hashlib.sha256(data).hexdigest() == large[f"images/{last.file}"]


def test_another_seed_or_hospital_gives_other_patients():
    first, second, third = (
        patient_pictures(name, 0, seed)[0].truth
        for name, seed in (("north", 0), ("north", 1), ("south", 0))
    )
    assert len({first.seed, second.seed, third.seed}) == 3


def test_table_names_every_picture_once_and_only_what_is_known(island):
    rows = _rows(island)
    assert list(rows[0]) == list(lesion_cohorts.COLUMNS)
    files = [row["image"] for row in rows]
    assert sorted(files) == sorted(path.name for path in (island / "images").iterdir())
    assert len(set(files)) == len(files) > FEW
    assert {row["diagnosis"] for row in rows} <= set(DIAGNOSES)
    assert {row["sex"] for row in rows} == set(lesions.SEXES)
    assert {row["site"] for row in rows} <= set(lesions.BODY_SITES)
    assert all(int(row["age"]) in range(5, 90, 5) for row in rows)
    assert "CC0" in (island / "README").read_text()


def test_a_patient_is_in_one_split_and_a_lesion_of_one_patient_and_diagnosis(island):
    rows = _rows(island)
    for group, alike in (
        ("patient_id", ("split", "sex", "age")),
        ("lesion_id", ("patient_id", "diagnosis", "site")),
    ):
        for column in alike:
            pairs = {(row[group], row[column]) for row in rows}
            assert len(pairs) == len({row[group] for row in rows})
    lesion_count, patient_count = (
        len({row[key] for row in rows}) for key in ("lesion_id", "patient_id")
    )
    assert patient_count == FEW < lesion_count < len(rows)


def test_a_hospital_is_read_under_the_study_of_skin_lesions(island, tmp_path):
    """The simulator, the study, the table's reader and the pictures' reader fit together."""
    study = load_study("skin-lesions")
    table, rows = read_image_table(island, "island", study), _rows(island)
    names = study.label.classes.names
    assert [names[label] for label in table.labels] == [row["diagnosis"] for row in rows]
    assert list(table.splits) == [row["split"] for row in rows]
    pictures = load_photographs(
        table, table.rows("val"), study, name="skin-lesions val", cache=tmp_path / "cache"
    )
    assert len(pictures.rows) == len(table.rows("val")) > 0
    assert pictures.pixels.shape == (len(pictures.rows), 3, 64, 64)
    assert not pictures.left_out


def test_a_fifth_of_the_patients_tests_and_every_frequent_diagnosis_is_in_every_split():
    pictures = [p for patient in range(300) for p in patient_pictures("north", patient, 0)]
    splits = lesion_cohorts.split_patients(pictures)
    shares = {name: list(splits.values()).count(name) / 300 for name in ("train", "val", "test")}
    assert shares == pytest.approx({"train": 0.6, "val": 0.2, "test": 0.2}, abs=0.03)
    for diagnosis in ("MEL", "NV", "BCC", "BKL"):
        parts = {splits[p.patient_id] for p in pictures if p.truth.diagnosis == diagnosis}
        assert parts == {"train", "val", "test"}


def test_patients_added_to_the_test_split_show_each_diagnosis_often_enough():
    drawn = [p for patient in range(100) for p in patient_pictures("island", patient, 0)]
    splits = lesion_cohorts.split_patients(drawn)
    tested = [p for p in drawn if splits[p.patient_id] == "test"]
    added = lesion_cohorts.added_patients(tested, "island", 0, least=4)
    assert added == sorted(set(added)) and min(added) >= lesion_cohorts.FIRST_ADDED
    shown = tested + [p for patient in added for p in patient_pictures("island", patient, 0)]
    people = Counter(name for _, name in {(p.patient_id, p.truth.diagnosis) for p in shown})
    assert set(people) == set(DIAGNOSES) and min(people.values()) == 4
    assert people["VASC"] < people["NV"]  # and no more of them than it takes


def test_a_default_hospital_tests_each_diagnosis_on_people_of_its_own(tmp_path, monkeypatch):
    small = dataclasses.replace(HOSPITALS["island"], patients=20)
    monkeypatch.setitem(HOSPITALS, "island", small)
    monkeypatch.setattr(lesion_cohorts, "take", lambda *_: np.zeros((16, 16, 3), np.uint8))
    told: list[int] = []
    rows = _rows(write_hospital(tmp_path, "island", seed=0, size=16, progress=told.append))
    assert sum(told) == 20
    splits = {row["patient_id"]: row["split"] for row in rows}
    assert {splits[row["patient_id"]] == row["split"] for row in rows} == {True}
    tested = [row for row in rows if row["split"] == "test"]
    for name in DIAGNOSES:
        assert len({row["patient_id"] for row in tested if row["diagnosis"] == name}) >= 20
    assert len([name for name, split in splits.items() if split != "test"]) <= 16


def test_pictures_of_a_lesion_share_its_truth_and_no_pixels():
    several = next(
        group
        for patient in range(50)
        for group in [[p for p in patient_pictures("north", patient, 0) if p.lesion == 0]]
        if len(group) > 1
    )
    first, second = several[:2]
    assert first.truth is second.truth and first.file != second.file
    assert np.abs(take(first, 0, 32).astype(int) - take(second, 0, 32)).mean() > 2


def test_default_hospitals_are_of_the_sizes_twenty_to_ten_to_two():
    sizes = [HOSPITALS[name].patients for name in ("north", "south", "island")]
    assert [10 * size // sizes[-1] for size in sizes] == [100, 50, 10]
    assert set(HOSPITALS) == set(DERMATOSCOPES)


@pytest.mark.parametrize(
    ("name", "wrong", "got"),
    [
        ("west", {}, "west"),
        ("north", {"patients": 0}, "0 patients"),
        ("north", {"size": 4}, "4 pixels"),
        ("north", {"patients": 2.5}, "2.5"),
    ],
)
def test_what_is_not_accepted_is_refused_before_anything_is_written(tmp_path, name, wrong, got):
    with pytest.raises(ConfigError, match=got):
        write_hospital(tmp_path / "cohort", name, seed=0, **wrong)
    assert not (tmp_path / "cohort").exists()


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "north").mkdir()
    (tmp_path / "north" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        write_hospital(tmp_path, "north", seed=0, patients=1)
    assert [path.name for path in tmp_path.rglob("*")] == ["north", "notes.txt"]


def test_a_failure_leaves_no_half_hospital(tmp_path):
    def fail(_: int) -> None:
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_hospital(tmp_path, "north", seed=0, patients=2, size=16, progress=fail)
    assert not list(tmp_path.iterdir())


def test_contact_sheets_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(contact_sheet, "SIZE", 16)
    monkeypatch.setattr(contact_sheet, "COLUMNS", 1)
    monkeypatch.setattr(contact_sheet, "DIAGNOSES", ("MEL", "NV"))
    contact_sheet.write_sheets(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "lesions-diagnoses.png",
        "lesions-hospitals.png",
    ]


def test_test_patients_are_as_many_as_asked_and_the_same_whatever_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(lesion_cohorts, "take", lambda *_: np.zeros((16, 16, 3), np.uint8))
    parts = []
    for number in (10, 40):
        home = tmp_path / str(number)
        told: list[int] = []
        about = {"patients": number, "test": 25, "size": 16, "progress": told.append}
        rows = _rows(write_hospital(home, "island", seed=2, **about))
        assert sum(told) == number
        parts.append({s: {r["patient_id"] for r in rows if r["split"] == s} for s in SPLITS})
    assert parts[0]["test"] == parts[1]["test"] and len(parts[0]["test"]) == 25
    plain = _rows(write_hospital(tmp_path, "island", seed=2, patients=40, size=16))
    for split in ("train", "val"):  # who trains does not depend on who is tested
        assert parts[1][split] == {r["patient_id"] for r in plain if r["split"] == split}


SPLITS = ("train", "val", "test")
