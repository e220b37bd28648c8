"""A trained model is found again with its sites' images, wherever it was trained."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import run_config

from common.errors import ConfigError, FileError
from common.imaging.bids import list_sites
from common.predictions import PROBABILITY
from common.tasks.task import SiteContext
from common.training.classifier import predict
from simulations.arms import train_in_place
from simulations.trained import read_trained

TINY = {
    "run.rounds": 1,
    "training.local-steps": 2,
    "training.batch-size": 4,
    "data.size": 16,
    "model.adapt": "statistics",
}


@pytest.fixture(scope="module", params=["fedavg", "fedper"])
def trained(request, tiny_cohort: Path, session_cache: Path, tmp_path_factory) -> Path:
    """A classifier of a comparison's cell; under fedper each site has a head of its own."""
    above, folders = tmp_path_factory.mktemp("comparison"), list_sites(tiny_cohort)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSCAN_CACHE", str(session_cache))
        patch.setenv("FEDSCAN_RECORDS", str(above / "none"))
        train_in_place(
            {site: [site] for site in folders},
            folders,
            run_config(TINY, **{"strategy.name": request.param}),
            place=SiteContext("all", tuple(sorted(folders)), torch.device("cpu")),
            folder=above / "cells" / "federated" / "all",
            records=(above / "sites", Path("federated") / "all"),
        )
        yield above / "cells" / "federated" / "all"


def test_the_classifier_predicts_as_it_was_tested_at_each_site(trained: Path) -> None:
    found = read_trained(trained)
    for site in found.sites:
        records = trained.parents[2] / "sites" / site / "federated" / "all" / "predictions.csv"
        table = pd.read_csv(records)
        told = table[[c for c in table if c.startswith(PROBABILITY)]].to_numpy()
        data = found.open(site, "test")
        again = predict(found.classifier(site), data, found.study, found.device)
        np.testing.assert_allclose(again, told[:, 1], atol=1e-6)


def test_each_image_has_a_row_with_its_class_and_its_file(trained: Path) -> None:
    found = read_trained(trained)
    rows, data = found.rows("north", "test"), found.open("north", "test")
    assert len(rows) == len(data)
    assert rows["label"].tolist() == [found.study.label.classes.names[k] for k in data.labels]
    assert all(path.is_file() for path in rows["image"])
    assert rows["person"].tolist() == list(range(data.people))


def test_data_that_were_moved_are_named_by_the_user(trained: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(trained, moved)
    manifest = json.loads((moved / "manifest.json").read_text())
    here = Path(manifest["folders"]["north"]).parent
    manifest["folders"] = {site: str(tmp_path / "gone" / site) for site in manifest["folders"]}
    (moved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="--cohort"):
        read_trained(moved)
    assert read_trained(moved, cohort=here).folders == read_trained(trained).folders


def test_a_local_model_is_of_its_own_site_alone(tiny_cohort: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FEDSCAN_CACHE", str(tmp_path / "cache"))
    folders = list_sites(tiny_cohort)
    train_in_place(
        {"north": ["north"]},
        folders,
        run_config(TINY),
        place=SiteContext("north", tuple(sorted(folders)), torch.device("cpu")),
        folder=tmp_path / "north",
        records=(tmp_path / "sites", Path("local")),
    )
    found = read_trained(tmp_path / "north")
    assert found.training_sites == ("north",) and found.sites == ("island", "north")


def test_data_of_hospitals_that_no_folder_names_are_asked_for(trained: Path, tmp_path) -> None:
    manifest = json.loads((trained / "manifest.json").read_text())
    deployed = {"config": manifest["config"], "sites": {"north": {}, "elsewhere": {}}}
    (tmp_path / "manifest.json").write_text(json.dumps(deployed))
    with pytest.raises(ConfigError, match="--cohort"):
        read_trained(tmp_path)


def test_a_folder_names_no_file_to_judge_by(trained: Path, tmp_path: Path) -> None:
    found = replace(read_trained(trained), extractor_name=str(tmp_path / "own.pt"))
    with pytest.raises(ConfigError, match="--extractor"):
        found.extractor()


def test_a_classifier_is_no_generator(trained: Path) -> None:
    with pytest.raises(ConfigError, match="a generator is needed"):
        read_trained(trained).generator()


@pytest.mark.parametrize("manifest", ["{}", "[]", "{", '{"config": 3}', '{"config": {"x": 1}}'])
def test_a_folder_without_a_usable_manifest_is_refused(manifest: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises((ConfigError, FileError)):
        read_trained(tmp_path)


def test_the_folder_above_names_the_one_to_take(trained: Path) -> None:
    with pytest.raises(ConfigError, match="Name a folder inside"):
        read_trained(trained.parent)
