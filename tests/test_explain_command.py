"""``fedscan explain`` and ``fedscan similar`` on trained classifiers of simulated hospitals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny import run_config
from typer.testing import CliRunner

from common.data.phantoms.lesion_cohorts import write_hospital
from common.errors import ConfigError, FedscanError
from common.imaging.bids import list_sites
from common.tasks.task import SiteContext
from simulations import console
from simulations.arms import train_in_place
from simulations.cli import app
from simulations.explain import commands, figures
from simulations.explain.run import SiteMaps, _draw, _table, choose

TINY = {
    "run.rounds": 1,
    "training.local-steps": 2,
    "training.batch-size": 4,
    "model.adapt": "none",
}


def train(folders: dict[str, Path], above: Path, **changes) -> Path:
    out = above / "run"
    train_in_place(
        {site: [site] for site in folders},
        folders,
        run_config(TINY, **changes),
        place=SiteContext("all", tuple(sorted(folders)), torch.device("cpu")),
        folder=out,
        records=(above / "sites", Path("run")),
    )
    return out


@pytest.fixture(autouse=True)
def own_cache(session_cache: Path, monkeypatch: pytest.MonkeyPatch, one_thread) -> None:
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory) -> dict[str, Path]:
    """North and island, with a few patients each."""
    cohort = tmp_path_factory.mktemp("skin")
    for site, patients in (("north", 24), ("island", 12)):
        write_hospital(cohort, site, seed=3, patients=patients, size=32)
    return list_sites(cohort)


@pytest.fixture(scope="module")
def skin(hospitals, session_cache: Path, tmp_path_factory) -> Path:
    """A classifier of their lesions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSCAN_CACHE", str(session_cache))
        above = tmp_path_factory.mktemp("trained")
        return train(hospitals, above, study="skin-lesions", size=32)


def told(*words: object) -> dict:
    done = CliRunner().invoke(app, [*map(str, words), "--format", "json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def refused(match: str, *words: object) -> None:
    with pytest.raises(FedscanError, match=match):
        CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)


# explain


def test_explain_writes_a_table_a_summary_and_pictures(skin: Path, tmp_path: Path):
    out = tmp_path / "explanation"
    summary = told("explain", skin, "--method", "both", "--count", 6, "--out", out)
    assert json.loads((out / "attention.json").read_text()) == summary
    assert set(summary["sites"]) == {"north", "island", "all"}
    table = pd.read_csv(out / "attention.csv")
    assert len(table) == 2 * sum(summary["sites"][site]["images"] for site in ("north", "island"))
    assert set(table["method"]) == {"gradcam", "occlusion"}
    assert set(table["class"]) | set(table["predicted"]) <= set(summary["classes"])
    north = table[(table["site"] == "north") & (table["method"] == "gradcam")]
    ratio = north["share.lesion"].sum() / north["area.lesion"].sum()
    assert summary["sites"]["north"]["gradcam"]["lesion"]["ratio"]["mean"] == pytest.approx(ratio)
    assert not any(str(path) in (out / "attention.csv").read_text() for path in ("/", ".jpg"))
    for name in ("averages-gradcam.png", "averages-occlusion.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 96
    drawn = {path.name.split("-")[2] for path in out.glob("class-*-gradcam.png")}
    assert drawn == set(table["class"])


def test_explain_gives_the_same_bytes_again(skin: Path, tmp_path: Path):
    for out in ("one", "other"):
        told("explain", skin, "--site", "island", "--count", 4, "--out", tmp_path / out)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "other").iterdir())
    for name in names:
        first, second = ((tmp_path / out / name).read_bytes() for out in ("one", "other"))
        assert first == second, name


def test_masks_of_a_folder_are_brought_to_the_pictures_size(skin: Path, hospitals, tmp_path: Path):
    masks = tmp_path / "masks"
    masks.mkdir()
    left = np.zeros((48, 48), np.uint8)  # of another size than the pictures
    left[:, :24] = 255
    for k, file in enumerate(sorted((hospitals["island"] / "images").iterdir())):
        ending = ("_segmentation.png", ".png")[k % 2]
        Image.fromarray(left).save(masks / f"{file.stem}{ending}")
    out = tmp_path / "out"
    told("explain", skin, "--site", "island", "--count", 4, "--masks", masks, "--out", out)
    table = pd.read_csv(out / "attention.csv")
    np.testing.assert_allclose(table["area.lesion"], 0.5)


def test_real_pictures_without_masks_have_pictures_alone(skin: Path, hospitals, tmp_path: Path):
    cohort = tmp_path / "cohort"
    for site, folder in hospitals.items():  # without the file by which phantoms are known
        shutil.copytree(folder, cohort / site, ignore=shutil.ignore_patterns("README"))
    out = tmp_path / "out"
    words = ["explain", skin, "--site", "island", "--count", 2, "--cohort", cohort, "--out", out]
    done = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0
    assert list(out.glob("class-*.png"))
    assert list(pd.read_csv(out / "attention.csv")) == [
        *("site", "scan", "person", "class", "predicted", "method")
    ]


def test_attention_to_regions_is_measured_in_simulated_brains(tiny_cohort: Path, tmp_path: Path):
    for name, classifier in (("volumes", "small"), ("slices", "slices")):
        run = train(list_sites(tiny_cohort), tmp_path / name, size=16, classifier=classifier)
        out = tmp_path / name / "out"
        summary = told("explain", run, "--site", "north", "--count", 3, "--out", out)
        found = summary["sites"]["north"]["gradcam"]["regions"]
        assert found["images"] == 3
        assert 0 < found["area"] < 0.3  # of the head
        assert found["shortcut"] is None  # the regions are what is to be looked at


def test_what_cannot_be_explained_is_refused_before_anything_is_written(skin: Path, tmp_path: Path):
    out = tmp_path / "out"
    refused("accepted is one of island, north", "explain", skin, "--site", "east", "--out", out)
    refused("no such folder", "explain", tmp_path / "none", "--out", out)
    refused("no model is here", "explain", tmp_path, "--out", out)
    assert not out.exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    refused("none of the", "explain", skin, "--masks", empty, "--out", out)
    refused("no such folder", "explain", skin, "--masks", tmp_path / "none", "--out", out)
    out.mkdir(exist_ok=True)
    (out / "other.txt").write_text("")
    refused("holds other files", "explain", skin, "--out", out)


HOSTILE = ("x/../../../evil", "=HYPERLINK(1)")


def one_image_of_each() -> SiteMaps:
    nothing = np.zeros((2, 8, 8))
    return SiteMaps(
        *(np.arange(2), np.arange(2), np.arange(2), np.arange(2)),
        np.zeros((2, 3, 8, 8)),
        masks={},
        maps={"gradcam": nothing},
        attention={},
        influence={},
    )


def test_no_class_leads_out_of_the_folder(tmp_path: Path):
    out = tmp_path / "1" / "2" / "3" / "out"
    _draw(out, {"north": one_image_of_each()}, HOSTILE)
    made = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.parent for path in made} == {out}
    assert len(made) == 3  # a class each, and the averages


def test_no_class_is_a_formula_of_a_spreadsheet():
    text = _table({"north": one_image_of_each()}, HOSTILE).decode()
    assert "'=HYPERLINK(1)" in text and ",=" not in text


def test_images_are_chosen_evenly_over_the_classes():
    labels = np.array([0] * 50 + [1] * 5 + [2] * 2 + [-1] * 9)
    chosen = choose(labels, 12, np.random.default_rng(0))
    assert np.bincount(labels[chosen]).tolist() == [5, 5, 2]
    assert (np.diff(chosen) > 0).all()
    assert len(choose(labels, 1000, np.random.default_rng(0))) == 57


def test_flags_are_of_all_images_together(skin: Path, tmp_path: Path):
    few = told("explain", skin, "--site", "north", "--count", 12, "--out", tmp_path / "few")
    flags = [one["shortcut"] for one in few["sites"]["north"]["gradcam"].values()]
    assert few["tests"] == sum(flag is not None for flag in flags)
    found = told("explain", skin, "--count", 12, "--out", tmp_path / "out")
    for site in ("north", "island"):
        of_site = found["sites"][site]["gradcam"]
        assert all(one["shortcut"] is None for one in of_site.values())
    assert any(
        one["influence"]["low"] is not None
        for k, one in found["sites"]["north"]["gradcam"].items()
        if one["influence"]
    )
    flags = [one["shortcut"] for one in found["sites"]["all"]["gradcam"].values()]
    assert 0 < found["tests"] == sum(flag is not None for flag in flags)


def without_split(hospitals: dict[str, Path], above: Path, site: str, split: str) -> Path:
    """Copy hospitals, one without a row of a split."""
    cohort = above / "cohort"
    for name, folder in hospitals.items():
        shutil.copytree(folder, cohort / name)
    table = pd.read_csv(cohort / site / "lesions.csv", keep_default_na=False)
    table[table["split"] != split].to_csv(cohort / site / "lesions.csv", index=False)
    return cohort


def test_a_site_without_test_images_is_named_and_left_out(skin, hospitals, tmp_path: Path):
    cohort = without_split(hospitals, tmp_path, "island", "test")
    words = ("explain", skin, "--count", 2, "--cohort", cohort)
    found = told(*words, "--out", tmp_path / "out")
    assert found["left_out"] == ["island"]
    assert set(found["sites"]) == {"north"}
    refused("island has a labelled image", *words, "--site", "island", "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()


# similar


def test_cases_need_training_images_and_precision_needs_test_images(
    skin: Path, hospitals, tmp_path: Path
):
    image = next((hospitals["north"] / "images").iterdir())
    words = ("similar", skin, image, "--site", "island", "--out", tmp_path / "out", "--cohort")
    refused("no training image", *words, without_split(hospitals, tmp_path, "island", "train"))
    assert not (tmp_path / "out").exists()
    untested = without_split(hospitals, tmp_path / "other", "island", "test")
    found = told(*words, untested)
    assert found["precision"] is None
    assert len(found["neighbours"]) == 5


def test_an_image_of_the_site_is_its_own_nearest_case(skin: Path, hospitals, tmp_path: Path):
    table = pd.read_csv(hospitals["north"] / "lesions.csv")
    train = table[table["split"] == "train"].sort_values("image").reset_index()
    image = hospitals["north"] / "images" / train.loc[4, "image"]
    out = tmp_path / "similar"
    found = told("similar", skin, image, "--site", "north", "--count", 3, "--out", out)
    first, second, third = found["neighbours"]
    assert first["distance"] == pytest.approx(0, abs=1e-5)
    assert (first["scan"], first["label"]) == (4, train.loc[4, "diagnosis"])
    assert (hospitals["north"] / first["file"]).samefile(image)
    assert 0 < second["distance"] <= third["distance"]
    assert (out / "similar.png").is_file()
    assert json.loads((out / "similar.json").read_text()) == found


def test_averages_are_in_the_sites_order_and_without_empty_classes(monkeypatch):
    drawn = {}
    monkeypatch.setattr(figures, "write_grid", lambda path, rows, **names: drawn.update(names))
    pixels = np.zeros((4, 4, 3))
    cells = {("south", "MEL"): pixels, ("north", "NV"): pixels, ("south", "NV"): pixels}
    figures.write_averages(Path("x"), cells, ["north", "south"], ["MEL", "BCC", "NV"])
    assert drawn == {"names": ["north", "south"], "captions": ["MEL", "NV"]}


def test_the_table_of_attention_fits_80_columns(monkeypatch, capsys):
    monkeypatch.setattr(console, "out", type(console.out)(highlight=False, width=80))
    wide = {"mean": -10.123, "low": -10.123, "high": 12.345}
    one = {"images": 1000, "ratio": wide, "influence": wide, "shortcut": True}
    sites = {"hospital-1": {"gradcam": {"bubbles": one}, "occlusion": {"bubbles": one}}}
    methods = ["gradcam", "occlusion"]
    about = {"split": "test", "methods": methods, "tests": 2, "left_out": []}
    commands.show_attention({**about, "sites": sites})
    rows = [line for line in capsys.readouterr().out.splitlines() if "hospital-1" in line]
    assert len(rows) == 2
    assert all("bubbles" in row and "SHORTCUT" in row and len(row) <= 80 for row in rows)


def test_a_query_is_harmonized_as_the_sites_images_are(hospitals, tmp_path: Path):
    run = train(hospitals, tmp_path, study="skin-lesions", size=32, harmonize="landmarks")
    table = pd.read_csv(hospitals["island"] / "lesions.csv")
    file = table.loc[table["split"] == "train", "image"].iloc[0]
    image = hospitals["island"] / "images" / file
    found = told("similar", run, image, "--site", "island", "--out", tmp_path / "out")
    assert found["neighbours"][0]["distance"] == pytest.approx(0, abs=1e-5)


def test_cases_and_precision_are_of_the_sites_own_split_alone(
    skin: Path, hospitals, tmp_path: Path
):
    image = next((hospitals["north"] / "images").iterdir())
    found = told(
        "similar", skin, image, "--site", "island", "--count", 100, "--out", tmp_path / "out"
    )
    table = pd.read_csv(hospitals["island"] / "lesions.csv")
    counts = table["split"].value_counts()
    assert sorted(one["scan"] for one in found["neighbours"]) == list(range(counts["train"]))
    assert found["precision"]["images"] == counts["test"]
    assert 0 <= found["precision"]["mean"] <= 1


def test_a_scan_is_its_own_nearest_case(tiny_cohort: Path, tmp_path: Path):
    sites = list_sites(tiny_cohort)
    run = train(sites, tmp_path / "run", size=16)
    people = pd.read_csv(sites["north"] / "participants.tsv", sep="\t")
    name = people.loc[people["split"] == "train", "participant_id"].iloc[0]
    scan = sites["north"] / name / "anat" / f"{name}_T1w.nii.gz"
    found = told("similar", run, scan, "--site", "north", "--out", tmp_path / "out")
    assert found["neighbours"][0]["distance"] == pytest.approx(0, abs=1e-5)


def test_what_has_no_similar_cases_is_refused(skin: Path, hospitals, tmp_path: Path):
    out = ("--out", tmp_path / "out")
    image = next((hospitals["north"] / "images").iterdir())
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not a picture")
    refused("--site, one of island, north", "similar", skin, image, *out)
    refused("accepted is one of", "similar", skin, image, "--site", "east", *out)
    refused("no such file", "similar", skin, tmp_path / "x.jpg", "--site", "north", *out)
    refused("no picture of a known format", "similar", skin, broken, "--site", "north", *out)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError) as error:
        CliRunner().invoke(
            app,
            [*map(str, ("similar", skin, broken, "--site", "north", *out))],
            catch_exceptions=False,
        )
    assert "broken.jpg" not in error.value.public
