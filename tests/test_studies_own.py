"""A user's own study: a TOML file, a folder a hospital, and no code."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import fedscan, fedscan_here

pytestmark = pytest.mark.simulation

STUDY = """
name = "chest"
[images]
storage = "table"
table = "findings.csv"
file = "path"
channels = 1
size = 32
intensity-range = [0, 4095]
[label]
column = "finding"
classes = { none = ["0"], effusion = ["1"], mass = ["2"] }
positive = "mass"
[groups]
person = "patient_id"
"""
CLASSES = ("none", "effusion", "mass")


def hospital(folder: Path, people: int, seed: int, *, german: bool = False) -> Path:
    """Write 16-bit grey pictures, two a person, of what the label says: where a bright disc is."""
    rng = np.random.default_rng(seed)
    (folder / "pictures").mkdir(parents=True)
    y, x = np.mgrid[:40, :40]
    rows = []
    for person in range(people):
        label = person % len(CLASSES)
        for view in range(2):
            centre = (10, 20, 30)[label] + rng.integers(-2, 3)
            disc = (x - 20) ** 2 + (y - centre) ** 2 < 36
            pixels = rng.integers(200, 900, (40, 40)) + 2500 * disc
            name = f"pictures/{person:03d}-{view}.png"
            Image.fromarray(pixels.astype(np.uint16)).save(folder / name)
            rows.append((name, f"p{person}", "ABC"[label] if german else str(label)))
    rows.append(("pictures/none.png", "p-unknown", ""))  # without a label
    names = ("Datei", "Fall", "Befund") if german else ("path", "patient_id", "finding")
    with (folder / "findings.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=";" if german else ",")
        writer.writerows([names, *rows])
    if german:
        (folder / "site.toml").write_text(
            '[columns]\nDatei = "path"\nFall = "patient_id"\nBefund = "finding"\n'
            '[codes.finding]\nA = "none"\nB = "effusion"\nC = "mass"\n'
        )
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    (folder / "chest.toml").write_text(STUDY)
    hospital(folder / "hospitals" / "north", 60, 0)
    hospital(folder / "hospitals" / "klinik", 30, 1, german=True)
    return folder


def test_a_study_file_alone_trains_grey_pictures_of_three_classes(
    study: Path, session_cache: Path
) -> None:
    options = ["--study", "chest.toml", "--cohort", "hospitals", "--out", "runs"]
    sizes = ["run.rounds=6", "run.evaluate-every=3", "training.local-steps=20"]
    done = fedscan(
        *("run", *options, "--format", "json"),
        *(word for size in sizes for word in ("--set", size)),
        cwd=study,
        cache=session_cache,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    manifest = json.loads((study / "runs" / summary["run_id"] / "manifest.json").read_text())
    assert manifest["config"]["study"].strip() == STUDY.strip()  # whole, and no path
    for site, people in (("north", 60), ("klinik", 30)):
        found = summary["sites"][site]
        splits = [found[f"n_{split}"] for split in ("train", "val", "test")]
        assert sum(splits) == 2 * people
        assert all(count % 2 == 0 for count in splits)  # both pictures of a person in one split
        assert found["left_out"] == 1
        assert found["balanced_accuracy"] > 0.6  # a third would be chance
        assert {f"recall.{name}" for name in CLASSES} <= found.keys()
        assert "sensitivity_at_90_specificity" in found


def test_its_hospitals_are_found_usable(study: Path, session_cache: Path) -> None:
    words = ("check", "hospitals", "--study", "chest.toml", "--format", "json")
    done = fedscan_here(*words, cwd=study, cache=session_cache)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["usable"]
    assert [site["persons"] for site in report["sites"]] == [30, 60]
