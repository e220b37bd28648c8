"""New images are predicted as a run's own were tested, and one that is broken is told of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY
from tiny import run_config
from typer.testing import CliRunner

from common.errors import ConfigError
from common.imaging.bids import list_sites
from common.predictions import PROBABILITY
from common.studies.study import load_study
from common.tasks.task import SiteContext
from simulations.arms import train_in_place
from simulations.cli import app
from simulations.options import parse_set
from simulations.predict import list_images, predict
from simulations.trained import read_trained


@pytest.fixture(scope="module", params=[("threshold", "none"), ("statistics", "landmarks")])
def trained(request, tiny_cohort: Path, session_cache: Path, tmp_path_factory) -> Path:
    """A classifier under one kind of adaptation, with harmonized images or without."""
    above, folders = tmp_path_factory.mktemp("trained"), list_sites(tiny_cohort)
    adapt, harmonize = request.param
    changes = {"model.adapt": adapt, "data.harmonize": harmonize, "run.rounds": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSCAN_CACHE", str(session_cache))
        patch.setenv("FEDSCAN_RECORDS", str(above / "none"))
        train_in_place(
            {site: [site] for site in folders},
            folders,
            run_config(parse_set(TINY), **changes),
            place=SiteContext("all", tuple(sorted(folders)), torch.device("cpu")),
            folder=above / "cells" / "federated" / "all",
            records=(above / "sites", Path("federated") / "all"),
        )
        yield above / "cells" / "federated" / "all"


def test_a_sites_folder_is_predicted_as_the_site_was_tested(trained: Path) -> None:
    found = read_trained(trained)
    for site in found.sites:
        told = pd.read_csv(trained.parents[2] / "sites" / site / "federated/all/predictions.csv")
        table = predict(found, found.folders[site]).set_index("image")
        assert set(table["site"]) == {site} and not table["problem"].any()
        rows = table.loc[list(found.open(site, "test").names)]
        columns = [c for c in told if c.startswith(PROBABILITY)]
        np.testing.assert_allclose(rows[columns], told[columns], atol=1e-6)
        assert rows["predicted"].tolist() == [
            columns[k].removeprefix(PROBABILITY) for k in told[columns].to_numpy().argmax(1)
        ]


def test_a_broken_scan_is_a_row_with_the_reason_and_its_exit_code(
    trained: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    scan = next(read_trained(trained).folders["north"].rglob("*.nii.gz"))
    shutil.copy(scan, folder / "b.nii.gz")
    (folder / "a.nii.gz").write_bytes(b"no scan")
    (folder / "notes.txt").write_text("no image")
    arguments = [str(trained), str(folder), "--site", "north", "--out", str(tmp_path / "p.csv")]
    done = CliRunner().invoke(app, ["predict", *arguments])
    assert done.exit_code == 1
    table = pd.read_csv(tmp_path / "p.csv")
    assert table["image"].tolist() == ["a.nii.gz", "b.nii.gz"]
    assert table["predicted"].isna().tolist() == [True, False]
    assert table["problem"].notna().tolist() == [True, False]
    done = CliRunner().invoke(app, ["predict", str(trained), str(scan), *arguments[2:]])
    assert done.exit_code == 0 and len(pd.read_csv(tmp_path / "p.csv")) == 1


def test_without_a_site_the_shared_model_is_used_or_a_site_is_asked_for(trained: Path) -> None:
    found = read_trained(trained)
    scan = next(found.folders["north"].rglob("*.nii.gz"))
    if found.config.model.adapt == "statistics":
        with pytest.raises(ConfigError, match="--site"):
            predict(found, scan)
        return
    table = predict(found, [scan, scan])
    assert table["site"].tolist() == ["", ""] and (table["threshold"] == 0.5).all()


def test_the_shared_model_needs_no_data_of_the_sites(trained: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(trained, moved)
    scan = next(read_trained(trained).folders["north"].rglob("*.nii.gz"))
    manifest = json.loads((moved / "manifest.json").read_text())
    manifest["folders"] = {name: str(tmp_path / name) for name in manifest["folders"]}
    (moved / "manifest.json").write_text(json.dumps(manifest))
    found = read_trained(moved, need_data=False)
    if found.config.model.adapt == "threshold":
        assert len(predict(found, scan)) == 1
    with pytest.raises(ConfigError, match="--cohort"):
        predict(found, scan, site="north")


@pytest.mark.parametrize("images", ["nowhere.nii.gz", "."])
def test_images_that_are_not_there_are_refused(trained: Path, images, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"no such file|no image"):
        predict(read_trained(trained), tmp_path / images, site="north")


def test_a_table_that_is_no_csv_is_refused(trained: Path, tmp_path: Path) -> None:
    scan = tmp_path / "scan.nii.gz"
    done = CliRunner().invoke(app, ["predict", str(trained), str(scan), "--out", str(scan)])
    assert isinstance(done.exception, ConfigError)


@pytest.mark.parametrize(
    ("files", "rules", "listed"),
    [
        (("sub-01/anat/sub-01_T1w.nii", "sub-02/anat/sub-02_T1w.nii"), "sub-02", [0]),
        (
            ("sub-01/anat/sub-01_run-2_T1w.nii", "sub-01/anat/sub-01_run-1_T1w.nii"),
            "*_run-1_*",
            [0],
        ),
        (("a.nii", "b.nii", "old/c.nii"), "b.nii\nold/", [0]),
    ],
    ids=["participant", "file", "loose"],
)
def test_what_a_data_set_ignores_is_not_predicted(tmp_path, files, rules, listed) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"never opened")
    (tmp_path / ".bidsignore").write_text(rules)
    found = [one.name for one in list_images(load_study("brain-sex"), tmp_path)]
    assert found == [files[k] for k in listed]
