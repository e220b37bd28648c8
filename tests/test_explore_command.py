"""``fedscan explore`` from a tiny training to its files."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from processes import caches
from safetensors.numpy import load_file

from common.errors import ConfigError, FedscanError
from common.files import csv_of
from simulations.explore import explore as exploring
from simulations.explore.explore import Request, explore
from simulations.explore.points import attribute_values, listed, real_points
from simulations.gan.plan import Request as Training
from simulations.gan.train import train
from simulations.trained import read_trained

CHANGES = {
    "resolution": 16,
    "channel-base": 128,
    "channel-max": 8,
    "z-dim": 16,
    "w-dim": 16,
    "batch-size": 4,
    "kimg": 0.008,
    "label-kinds": "sex,site",
}


@pytest.fixture(scope="module")
def gan(
    tiny_cohort: Path, quick_default: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A generator after two iterations, with an extractor that knows as little."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in caches(tmp_path_factory.mktemp("explore cache")).items():
            patch.setenv(name, value)
        patch.setattr(exploring, "LATENTS", 60)
        out = tmp_path_factory.mktemp("gan") / "gan"
        train(Training(out=out, cohort=tiny_cohort, changes=CHANGES))
        yield out


@pytest.fixture(scope="module")
def asked(gan: Path, tmp_path_factory: pytest.TempPathFactory) -> Request:
    folder = tmp_path_factory.mktemp("explored")
    return Request(gan, folder / "one", count=24, maps=("pca", "tsne"), project=8, steps=2)


@pytest.fixture(scope="module")
def explored(asked: Request) -> Request:
    explore(asked)
    return asked


def test_every_point_has_a_row_and_no_name(explored: Request) -> None:
    table = pd.read_csv(explored.out / "points.csv", keep_default_na=False)
    assert table["kind"].value_counts().to_dict() == {"real": 24, "generated": 24, "projected": 8}
    assert set(table["site"]) == {"north", "island"}
    assert set(table.loc[table["kind"] != "generated", "split"]) == {"train", "val", "test"}
    assert not any("sub-" in str(cell) for cell in table.to_numpy().ravel())
    assert not {"person", "image", "row"} & set(table)
    for space, method, unknown in (("features", "pca", 0), ("w", "tsne", 24)):
        places = table[[f"{space}_{method}_{axis}" for axis in "xy"]]
        assert (places == "").sum().tolist() == [unknown] * 2


def test_generated_images_have_the_labels_of_the_real_ones(explored: Request) -> None:
    table = pd.read_csv(explored.out / "points.csv")
    counts = [
        table[table["kind"] == kind].groupby(["class", "site"]).size()
        for kind in ("real", "generated")
    ]
    pd.testing.assert_series_equal(*counts)


def test_each_figure_is_there(explored: Request) -> None:
    names = {f"maps/{s}-{m}.{e}" for s in ("features", "w") for m in ("pca", "tsne") for e in
             ("png", "svg")}  # fmt: skip
    names |= {"interpolation.png", "truncation.png", "mixing.png"}
    for name in names:
        assert (explored.out / name).stat().st_size > 1000
        assert (explored.out / name).stat().st_mode & 0o077 == 0
    for path in explored.out.rglob("*.png"):
        with Image.open(path) as picture:
            picture.load()


def test_each_direction_has_an_accuracy_a_vector_and_a_strip(explored: Request) -> None:
    about = json.loads((explored.out / "explore.json").read_text())
    table = pd.read_csv(explored.out / "directions.csv", keep_default_na=False)
    vectors = load_file(explored.out / "directions.safetensors")
    assert table["direction"].tolist() == ["sex=male", "site=north"]
    assert set(vectors) == set(table["direction"])
    assert (table["low"] <= table["accuracy"]).all()
    assert (table["accuracy"] <= table["high"]).all()
    assert len(list((explored.out / "strips").iterdir())) == 2
    assert about["stays"] == ["points.csv", "maps", "neighbours.png"]
    assert about["counts"]["generated"] == about["counts"]["real"]
    assert set(about["separability"]) == {
        "real and generated, by features",
        "training and test images, by features",
        "projected and generated, in W",
    }


def test_a_seed_decides_every_byte(explored: Request, tmp_path: Path) -> None:
    again = replace(explored, out=tmp_path / "again")
    explore(again)
    files = sorted(p.relative_to(explored.out) for p in explored.out.rglob("*") if p.is_file())
    for name in files:
        assert (again.out / name).read_bytes() == (explored.out / name).read_bytes(), name


def test_an_image_is_its_own_nearest_neighbour(explored: Request, tmp_path: Path) -> None:
    trained = read_trained(explored.run)
    data = trained.open("north", "train")
    np.save(tmp_path / "picture.npy", data.take([0])[0] * 2 - 1)
    asked = replace(explored, out=tmp_path / "near", neighbours_of=tmp_path / "picture.npy")
    asked = replace(asked, count=60, sites=("north",), maps=(), project=0)
    about = explore(asked)
    assert "explore.json" in about["stays"]  # it lists single patients' images
    near = about["neighbours"]["real"]
    assert near[0]["distance"] == pytest.approx(0, abs=1e-5)
    assert (near[0]["site"], near[0]["split"]) == ("north", "train")
    assert (asked.out / "neighbours.png").is_file()


def test_projections_of_another_command_are_taken(explored: Request, tmp_path: Path) -> None:
    from simulations.gan.project import Request as Projecting
    from simulations.gan.project import project_all

    picture = tmp_path / "picture.npy"
    np.save(picture, read_trained(explored.run).open("north", "test").take([0])[0] * 2 - 1)
    work = Projecting(explored.run, (picture,) * 5, tmp_path / "projected", steps=1)
    project_all(replace(work, labels=("female",)))
    asked = replace(explored, out=tmp_path / "out", projections=work.out, maps=("pca",))
    assert explore(asked)["counts"]["projected"] == 5
    table = pd.read_csv(asked.out / "points.csv", keep_default_na=False)
    assert set(table.loc[table["kind"] == "projected", "class"]) == {"female"}
    foreign = json.loads((work.out / "projections.json").read_text()) | {"weights": "of others"}
    (work.out / "projections.json").write_text(json.dumps(foreign))
    with pytest.raises(ConfigError, match="of another generator"):
        explore(replace(asked, out=tmp_path / "foreign"))
    project_all(replace(work, out=tmp_path / "plus", space="w+"))
    with pytest.raises(ConfigError, match="--space w"):
        explore(replace(asked, projections=tmp_path / "plus", out=tmp_path / "none"))


def test_authenticity_projections_know_their_images(explored: Request, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    from simulations.explore.points import read_projections

    rows = [("training", 0, 0.3, "w"), ("training", 0, 0.1, "w"), ("held-out", 1, 0.2, "w"),
            ("generated", 0, 0.2, "w"), ("training", 0, 0.0, "w+")]  # fmt: skip
    table = pd.DataFrame(rows, columns=["group", "row", "distance", "space"]).assign(site="north")
    table.to_csv(tmp_path / "authenticity.csv", index=False)
    w = np.random.default_rng(0).standard_normal((5, 6, 16)).astype(np.float32)
    save_file({"w": w}, tmp_path / "latents.safetensors")
    trained = read_trained(explored.run)
    about = json.dumps({"weights": trained.weights_hash})
    (tmp_path / "authenticity.json").write_text(about)
    found = read_projections(trained, tmp_path)
    np.testing.assert_array_equal(found.ws, w[[1, 2], 0])  # the closest of each image
    assert found.table["split"].tolist() == ["train", "test"]
    assert found.table["class"].tolist()[1] == trained.rows("north", "test")["label"][1]
    table.assign(row=10_000).to_csv(tmp_path / "authenticity.csv", index=False)
    with pytest.raises(ConfigError, match="'north' has fewer images"):
        read_projections(trained, tmp_path)
    table.drop(columns="site").to_csv(tmp_path / "authenticity.csv", index=False)
    with pytest.raises(FedscanError, match="Project the images anew"):
        read_projections(trained, tmp_path)


def test_a_column_of_a_sites_table_labels_its_images(explored: Request) -> None:
    trained = read_trained(explored.run)
    table = listed(trained, "north", "test", range(len(trained.open("north", "test"))))
    ages = attribute_values(trained, table, "age")
    sheet = pd.read_csv(trained.folders["north"] / "participants.tsv", sep="\t", dtype=str)
    known = dict(zip(sheet["participant_id"], sheet["age"], strict=True))
    files = trained.rows("north", "test")["image"]
    assert ages == [known[path.relative_to(trained.folders["north"]).parts[0]] for path in files]
    with pytest.raises(ConfigError, match="--attribute weight"):
        attribute_values(trained, table, "weight")


def test_real_images_are_drawn_from_every_split_of_every_site(explored: Request) -> None:
    found = real_points(read_trained(explored.run), ("north", "island"), 12, seed=1)
    assert found.table.groupby(["site", "split"]).size().tolist() == [2] * 6


def test_images_of_sites_that_did_not_train_are_unseen(explored: Request) -> None:
    trained = replace(read_trained(explored.run), training_sites=("island",))
    found = real_points(trained, trained.sites, 12, seed=1).table
    splits = found.groupby("site")["split"].unique().map(set)
    assert splits["island"] == {"train", "val", "test"}
    assert splits["north"] == {"unseen", "val", "test"}
    assert len(attribute_values(trained, found, "age")) == len(found)


def test_splits_without_images_are_left_out(
    explored: Request, tiny_cohort: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_cohort, tmp_path / "cohort")
    path = tmp_path / "cohort" / "north" / "participants.tsv"
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    table.assign(split="train").to_csv(path, sep="\t", index=False)
    trained = read_trained(explored.run, tmp_path / "cohort")
    found = real_points(trained, trained.sites, 400, seed=1).table
    assert set(found.loc[found["site"] == "north", "split"]) == {"train"}
    assert set(found.loc[found["site"] == "island", "split"]) == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sites": ("west",)}, "--site west"),
        ({"maps": ("pca", "som")}, "map 'som'"),
        ({"artefacts": True}, "--artefacts"),
        ({"attributes": ("age",), "project": 0}, "--attribute"),
        ({"attributes": ("weight",)}, "--attribute weight"),
        ({"without": ("sex=female",)}, "--without sex=female: accepted is one of sex=male"),
        ({"projections": Path("/nowhere")}, "--projections"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_written(
    explored: Request, tmp_path: Path, changes: dict, words: str
) -> None:
    asked = replace(explored, **{"out": tmp_path / "out", **changes})
    with pytest.raises(ConfigError, match=words):
        explore(asked)
    assert not asked.out.exists()


def test_the_command_prints_tables_or_json(
    explored: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    from typer.testing import CliRunner

    from simulations.cli import app

    words = ["explore", str(explored.run), "--count", "8", "--maps", "pca", "--project", "0"]
    text = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "a")])
    assert text.exit_code == 0, text.output
    assert "sex=male" in text.output
    machine = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "b"), "--format", "json"])
    about = json.loads(machine.stdout[machine.stdout.index("{") :])
    assert about["counts"] == {"real": 8, "generated": 8}


@pytest.fixture(scope="module")
def lesions(gan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator of small pictures of skin, whose hospital's table tells of hair."""
    del gan  # its cache
    folder = tmp_path_factory.mktemp("lesions")
    site, draws = folder / "cohort" / "north", np.random.default_rng(0)
    (site / "images").mkdir(parents=True)
    lines = ["image,patient_id,lesion_id,diagnosis,split,Hair"]
    for k in range(48):
        pixels = draws.integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(site / "images" / f"p{k}.png")
        split = ("train", "train", "val", "test")[k % 4]
        hair = "" if k == 0 else ("yes", "no")[k // 4 % 2]
        lines.append(f"p{k}.png,P{k},L{k},{('MEL', 'NV')[k % 2]},{split},{hair}")
    (site / "lesions.csv").write_text("\n".join(lines))
    out, changes = folder / "gan", CHANGES | {"label-kinds": "diagnosis"}
    about = {"cohort": folder / "cohort", "extractor": "fedscan-brain"}
    train(Training(out=out, study="skin-lesions", changes=changes, **about))
    return out


def test_lesions_have_directions_of_diagnosis_artefact_and_a_persons_notes(
    lesions: Path, tmp_path: Path
) -> None:
    from common.latent import artefacts

    make = functools.partial(artefacts.phantoms_with_artefacts, lesions=5, takes=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artefacts, "phantoms_with_artefacts", make)
        patch.setattr("simulations.explore.attributes.LEAST_ACCURACY", 0.0)
        asked = Request(lesions, tmp_path / "out", 48, maps=("pca",), project=48, steps=1)
        asked = replace(asked, extractor="fedscan-brain")
        found = explore(replace(asked, attributes=("hair",), artefacts=True, without=("frame",)))
    rows = {row["direction"]: row for row in found["directions"]}
    artefact_names = {"hair", "ruler", "frame"}
    assert set(rows) == {"diagnosis=NV", "hair=yes"} | artefact_names
    assert {"explore.json", "strips"} <= set(found["stays"])
    assert rows["hair=yes"]["count"] == 47  # one picture was not annotated
    assert rows["hair=yes"]["positive"] == 23
    assert set(found["detectors"]) == artefact_names
    assert set(found["responses"]) == set(rows)
    assert all(len(one["hair"]) == 7 for one in found["responses"].values())
    vectors = load_file(tmp_path / "out" / "directions.safetensors")
    others = [vectors[name] @ vectors["frame"] for name in vectors if name != "frame"]
    np.testing.assert_allclose(others, 0, atol=1e-5)


def test_pictures_of_one_name_in_two_folders_have_each_their_own_notes(
    lesions: Path, tmp_path: Path
) -> None:
    cohort = tmp_path / "cohort"
    shutil.copytree(read_trained(lesions).folders["north"], cohort / "north")
    site = cohort / "north"
    sheet = pd.read_csv(site / "lesions.csv", dtype=str, keep_default_na=False)
    for k, name in enumerate(sheet["image"]):
        moved = Path(f"v1.{k // 2}") / f"{k % 2}.png"
        (site / "images" / moved).parent.mkdir(exist_ok=True)
        (site / "images" / name).rename(site / "images" / moved)
        sheet.loc[k, "image"] = moved.as_posix()
    sheet.to_csv(site / "lesions.csv", index=False)
    known = dict(zip(sheet["image"], sheet["Hair"], strict=True))
    trained = read_trained(lesions, cohort)
    table = listed(trained, "north", "train", range(24))
    files = trained.rows("north", "train")["image"]
    wanted = [known[path.relative_to(site / "images").as_posix()] for path in files]
    assert set(wanted) == {"yes", "no", ""}
    assert attribute_values(trained, table, "hair") == wanted


def test_an_attribute_that_fails_after_the_projections_leaves_nothing_behind(
    lesions: Path, tmp_path: Path
) -> None:
    asked = Request(lesions, tmp_path / "out", 8, maps=("pca",), project=8, steps=1)
    asked = replace(asked, extractor="fedscan-brain", artefacts=False)
    with pytest.raises(ConfigError, match="--without hair=maybe"):
        explore(replace(asked, attributes=("hair",), without=("hair=maybe",)))
    assert not any((tmp_path / "out").iterdir())


def test_no_cell_of_a_table_is_a_formula() -> None:
    table = pd.DataFrame({"=class": ["=1+1", "@x", "nevus"], "distance": [-1.0, 2.0, 3.0]})
    assert csv_of(table) == b"'=class,distance\n'=1+1,-1.0\n'@x,2.0\nnevus,3.0\n"
