"""``fedscan attack`` on tiny runs: what it writes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import run_config
from typer.testing import CliRunner

from common.config.run_config import RunConfig
from common.errors import ConfigError
from common.imaging.bids import list_sites
from common.tasks.task import SiteContext
from simulations.arms import train_in_place
from simulations.attack.people import choose_people, participants_of
from simulations.attack.run import ABOUT, FIGURE, PICTURES, TABLE, Request, attack
from simulations.ledger import QUESTION
from simulations.trained import read_trained

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {
    "run.rounds": 1,
    "training.local-steps": 2,
    "training.batch-size": 4,
    "data.size": 16,
}
EVERYTHING = {"kinds": ("membership", "inversion", "attributes"), "shadows": 2}
SHORT = {"inversions": 1, "steps": 2, "pictures": 8}


@pytest.fixture(scope="module", autouse=True)
def own_cache(quick_default: None, tmp_path_factory: pytest.TempPathFactory):
    """Keep what these tests make, the quick extractor among it, out of others' way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSCAN_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("FEDSCAN_RECORDS", str(tmp_path_factory.mktemp("records")))
        yield


def cell(above: Path, name: str, config: RunConfig, folders: dict[str, Path]) -> Path:
    """Train a comparison's cell of all sites, federated without messages."""
    folder = above / "cells" / name / "all"
    train_in_place(
        {site: [site] for site in folders},
        folders,
        config,
        place=SiteContext("all", tuple(sorted(folders)), torch.device("cpu")),
        folder=folder,
        records=(above / "sites", Path(name) / "all"),
    )
    return folder


@pytest.fixture(scope="module")
def run(tiny_cohort: Path, tmp_path_factory) -> Path:
    return cell(
        tmp_path_factory.mktemp("comparison"),
        "federated",
        run_config(TINY, **{"strategy.name": "fedper", "model.adapt": "statistics"}),
        list_sites(tiny_cohort),
    )


@pytest.fixture(scope="module")
def gan(tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from simulations.gan.plan import Request as Training
    from simulations.gan.train import train

    sizes = {"resolution": 16, "channel-base": 256, "channel-max": 16, "z-dim": 16, "w-dim": 16}
    out = tmp_path_factory.mktemp("trained") / "gan"
    changes = {**sizes, "batch-size": 4, "kimg": 0.008, "label-kinds": "sex,site"}
    train(Training(out=out, cohort=tiny_cohort, changes=changes))
    return out


@pytest.fixture(scope="module")
def attacked(run: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("attacked") / "attack"
    attack(Request(run=run, out=out, **EVERYTHING, **SHORT))
    return out


def test_every_attack_of_a_classifier_says_what_it_knows_and_finds(attacked: Path) -> None:
    found = json.loads((attacked / ABOUT).read_text())
    methods = {(one["kind"], one["method"]) for one in found["attacks"]}
    of_members = {("membership", name) for name in ("loss", "update", "lira")}
    assert of_members <= methods
    assert ("inversion", "gradient") in methods and ("inversion", "update of 2 steps") in methods
    assert all(one["knows"] for one in found["attacks"])
    for one in found["attacks"]:
        if one["kind"] == "membership":
            assert one["persons"]["in"] == one["persons"]["out"]
            assert (one["auc"]["mean"] is None) == (one["persons"]["in"] < 5)
            assert one["baseline"] == 0.5
    assert {one["people"] for one in found["attacks"] if one["kind"] == "attributes"} == {3}
    sites = {one["site"] for one in found["attacks"] if one["kind"] == "membership"}
    assert sites == {"all", "island", "north"}


def test_results_are_added_to_the_summary_of_the_model(run: Path, attacked: Path) -> None:
    kept = json.loads((run / "summary.json").read_text())["attacks"]
    found = json.loads((attacked / ABOUT).read_text())["attacks"]
    assert all(one in kept for one in found)
    questions = [tuple(one.get(k) for k in QUESTION) for one in kept]
    assert len(set(questions)) == len(questions)


def test_the_table_has_one_row_a_person_and_attack_and_no_pseudonym(attacked: Path) -> None:
    table = pd.read_csv(attacked / TABLE)
    members = table[table["kind"] == "membership"]
    assert not members.duplicated(["method", "site", "person"]).any()
    counts = members.groupby(["method", "site"])["in_training"].mean()
    assert (counts == 0.5).all()
    for path in attacked.iterdir():
        assert b"sub-" not in path.read_bytes()
        assert path.stat().st_mode & 0o077 == 0
    assert {one.name for one in attacked.iterdir()} == {ABOUT, TABLE, FIGURE, PICTURES}


def test_the_areas_follow_from_the_table(attacked: Path) -> None:
    from sklearn.metrics import roc_auc_score

    table = pd.read_csv(attacked / TABLE)
    for one in json.loads((attacked / ABOUT).read_text())["attacks"]:
        if one["kind"] == "membership":
            rows = table[table["method"] == one["method"]]
            rows = rows if one["site"] == "all" else rows[rows["site"] == one["site"]]
            area = roc_auc_score(rows["in_training"], rows["score"])
            assert one["auc"]["mean"] is None or one["auc"]["mean"] == pytest.approx(area)
            assert one["site"] != "all" or one["auc"]["mean"] is not None


def test_the_same_seed_gives_the_same_bytes(run: Path, attacked: Path, tmp_path: Path) -> None:
    attack(Request(run=run, out=tmp_path / "again", **EVERYTHING, **SHORT))
    for path in attacked.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_people_are_matched_by_class_and_nobody_is_in_both_groups(run: Path) -> None:
    trained = read_trained(run)
    for site in trained.sites:
        people = choose_people(trained, site, 100, seed=0)
        data, inside = people.chosen, people.inside[people.rows]
        assert not set(np.array(data.persons)[inside]) & set(np.array(data.persons)[~inside])
        np.testing.assert_array_equal(
            np.bincount(data.labels[inside], minlength=2),
            np.bincount(data.labels[~inside], minlength=2),
        )
        assert len(choose_people(trained, site, 1, seed=0).rows) == 2


def test_a_pool_is_one_participant_and_a_loner_is_attacked_alone(run: Path, tmp_path: Path) -> None:
    assert participants_of(read_trained(run)) == {"island": ["island"], "north": ["north"]}
    for name, model, expected in (
        ("centralized-seed0", "all", {"all": ["island", "north"]}),
        ("local-seed0", "north", {"north": ["north"]}),
    ):
        moved = tmp_path / "cells" / name / model
        shutil.copytree(run, moved)
        manifest = json.loads((moved / "manifest.json").read_text())
        manifest["trained_on"] = next(iter(expected.values()))
        (moved / "manifest.json").write_text(json.dumps(manifest))
        assert participants_of(read_trained(moved)) == expected


def test_a_generator_is_attacked_by_its_pictures_and_by_projections(
    gan: Path, tmp_path: Path
) -> None:
    rows = [("w", 0, "north", g, p, p, 1.0 + p + (g == "training")) for p in range(5)
            for g in ("training", "held-out")]  # fmt: skip
    columns = ["space", "seed", "site", "group", "person", "row", "distance"]
    table = pd.DataFrame(rows, columns=columns)
    (gan / "authenticity").mkdir()
    table.to_csv(gan / "authenticity" / "authenticity.csv", index=False)
    kinds = ("membership", "attributes")
    found = attack(Request(run=gan, out=tmp_path / "a", kinds=kinds, **SHORT))["attacks"]
    methods = {one["method"] for one in found}
    assert methods == {"distance", "projection, w", "mean", "likelihood ratio"}
    assert all(one["features"] > 1 for one in found if one["kind"] == "attributes")
    nearer = [one["auc"]["mean"] for one in found if one["method"] == "projection, w"]
    assert nearer[0] == pytest.approx(8 / 25)  # training images were projected worse


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kinds": ("theft",)}, "accepted are membership, inversion, attributes"),
        ({"sites": ("east",)}, "accepted is one of island, north"),
        ({"shadows": 3}, "even numbers"),
        ({"out": Path(__file__).parent}, "holds other files"),
    ],
)
def test_what_cannot_be_attacked_is_refused_before_any_work(
    run: Path, tmp_path: Path, changes, words
) -> None:
    with pytest.raises(ConfigError, match=words):
        attack(Request(**{"run": run, "out": tmp_path / "out", **changes}))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("changes", [{"shadows": 2}, {"kinds": ("inversion",)}])
def test_what_is_of_classifiers_is_refused_for_a_generator(
    gan: Path, tmp_path: Path, changes
) -> None:
    with pytest.raises(ConfigError, match="generator"):
        attack(Request(run=gan, out=tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_the_noise_of_a_private_run_is_not_of_one_image(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    manifest = json.loads((moved / "manifest.json").read_text())
    private = {"privacy.epsilon": 8.0, "strategy.name": "fedavg"}
    plain = {"model.adapt": "none", "training.balance": "none"}
    manifest["config"] |= private | plain
    (moved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="differential privacy"):
        attack(Request(run=moved, out=tmp_path / "out", kinds=("inversion",)))


def test_an_attack_that_is_interrupted_leaves_no_folder(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise SystemExit(130)

    monkeypatch.setattr("simulations.attack.run._features", interrupted)
    with pytest.raises(SystemExit):
        attack(Request(run=run, out=tmp_path / "out", kinds=("attributes",)))
    assert not (tmp_path / "out").exists()


def test_progress_of_moments_is_counted_by_what_is_measured(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("simulations.console.PLAIN_EVERY", 0.0)
    attack(Request(run=run, out=tmp_path / "out", sites=("north",), kinds=("attributes",)))
    said = capsys.readouterr().err
    assert "Features 1/1 north" in said and "Moments 1/3 north, 3 people" in said


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["--inversions", "2"], "inversion"),
        (["--kind", "attributes", "--shadows", "2"], "membership"),
    ],
)
def test_an_option_of_another_kind_is_refused(
    run: Path, tmp_path: Path, words: list[str], kind: str
) -> None:
    from simulations.cli import app

    out = tmp_path / "out"
    refused = CliRunner().invoke(app, ["attack", str(run), "--out", str(out), *words])
    assert f"without --kind {kind}" in str(refused.exception)
    assert not out.exists()


def test_tables_fit_a_terminal_of_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from simulations import console
    from simulations.attack.command import _show_attacks

    found = {"mean": 0.5, "low": 0.25, "high": 0.75}
    about = {"site": "hospital-12", "people": 400, "auc": found}
    persons = {"persons": {"in": 136, "out": 136}, "tpr": {"0.01": found, "0.1": found}}
    image = dict.fromkeys(("psnr", "other_psnr", "ssim", "other_ssim"), 20.0)
    rows = [
        {**about, **persons, "kind": "membership", "method": "projection, w+"},
        {**about, **image, "kind": "inversion", "method": "update of 2 steps", "better": found},
        {**about, "kind": "attributes", "method": "likelihood ratio", "features": 512,
         "predicted": 0.5},
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "out", Console(width=80, highlight=False))
        _show_attacks(rows)
    said = capsys.readouterr().out
    for one in rows:
        (line,) = [line for line in said.splitlines() if one["method"] in line]
        assert "0.50 (0.25 to 0.75)" in line and one["site"] in line


def test_the_command_prints_a_table_or_json(run: Path, tmp_path: Path) -> None:
    from simulations.cli import app

    words = ["attack", str(run), "--site", "north", "--count", "2"]
    text = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "a")])
    assert text.exit_code == 0, text.output
    assert "membership" in text.stdout and "stay at the site" in text.stdout
    machine = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "b"), "--format", "json"])
    assert {one["site"] for one in json.loads(machine.stdout)["attacks"]} == {"north"}
    wrong = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "c"), "--kind", "theft"])
    assert wrong.exit_code
