"""``import fedscan``: a run's numbers, model, predictions and figure, without the command line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from benchmark_folders import make_folder
from conftest import TINY
from PIL import Image
from processes import ROOT
from tiny import run_config

import fedscan
from common.imaging.bids import list_sites
from common.metrics_log import MetricsLog, Row
from common.tasks.task import SiteContext
from fedscan._settings import overrides
from simulations.arms import train_in_place
from simulations.options import parse_set

ROWS = [
    Row(number, site, split, name, value, n, 1.0)
    for number in (1, 2)
    for site, n in (("island", 3), ("north", 8))
    for split, name, value in (
        ("train", "loss", 0.7),
        ("val", "loss", 0.6),
        ("val", "balanced_accuracy", 0.5 + 0.1 * number),
    )
] + [Row(2, "north", "test", "balanced_accuracy", 0.75, 4, 2.0)]


@pytest.fixture(scope="module")
def folder(tiny_cohort: Path, session_cache: Path, tmp_path_factory) -> Path:
    """The folder of a classifier that all share."""
    above, folders = tmp_path_factory.mktemp("api"), list_sites(tiny_cohort)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSCAN_CACHE", str(session_cache))
        patch.setenv("FEDSCAN_RECORDS", str(above / "none"))
        train_in_place(
            {site: [site] for site in folders},
            folders,
            run_config(parse_set(TINY), **{"model.adapt": "none", "run.rounds": 1}),
            place=SiteContext("all", tuple(sorted(folders)), torch.device("cpu")),
            folder=above / "all",
            records=(above / "sites", Path("all")),
        )
        (above / "all" / "metrics.jsonl").unlink(missing_ok=True)
        MetricsLog(above / "all" / "metrics.jsonl").append(ROWS)
        yield above / "all"


def test_import_is_fast_and_loads_no_library() -> None:
    code = (
        "import sys, time; began = time.process_time(); import fedscan; "
        "assert time.process_time() - began < 0.3; "
        "assert not {'torch', 'pandas', 'flwr', 'matplotlib', 'numpy'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_another_package_named_common_is_refused_in_words(monkeypatch) -> None:
    from fedscan._app import put_on_path

    put_on_path()  # fedscan's own stays
    monkeypatch.setitem(sys.modules, "common", types.ModuleType("common"))
    with pytest.raises(ImportError, match="needs its own package 'common'"):
        put_on_path()


def test_every_public_name_is_there_and_documented() -> None:
    for name in fedscan.__all__:
        assert name in dir(fedscan)
        assert getattr(fedscan, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'Runn'"):
        fedscan.Runn  # noqa: B018


def test_metrics_have_a_row_for_each_round_site_and_split(folder: Path) -> None:
    table = fedscan.load_run(folder).metrics
    assert list(table)[:4] == ["round", "site", "split", "n"]
    assert len(table) == len({(r.round, r.site, r.split) for r in ROWS})
    for row in ROWS:
        at = (table["round"] == row.round) & (table["site"] == row.site)
        (found,) = table[at & (table["split"] == row.split)][row.name]
        assert found == row.value
    assert table.loc[table["split"] == "train", "balanced_accuracy"].isna().all()


def test_model_has_the_weights_of_the_file_and_is_in_evaluation_mode(folder: Path) -> None:
    from safetensors.torch import load_file

    run = fedscan.load_run(folder)
    assert run.sites == ("island", "north")
    assert not run.model.training
    state = run.model.state_dict()
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(state[name], tensor)


def test_predictions_of_a_sites_folder_are_those_of_the_model(
    folder: Path, tiny_cohort: Path
) -> None:
    run = fedscan.load_run(folder)
    table = run.predict(tiny_cohort / "north")
    columns = [name for name in table if name.startswith("probability.")]
    assert len(columns) == 2 and not table["problem"].any()
    np.testing.assert_allclose(table[columns].sum(axis=1), 1)
    one = run.predict(tiny_cohort / "north" / table["image"][0])
    np.testing.assert_allclose(one[columns], table[columns][:1])


def test_arrays_are_refused_where_files_tell_more(folder: Path) -> None:
    with pytest.raises(fedscan.ConfigError, match=r"storage 'bids'.*give paths"):
        fedscan.load_run(folder).predict(np.zeros((2, 16, 16), np.uint8))


def test_plot_draws_a_line_for_each_site(folder: Path) -> None:
    run = fedscan.load_run(folder)
    (axes,) = run.plot().axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert drawn == {site: [0.6, 0.7] for site in ("island", "north")}
    with pytest.raises(fedscan.ConfigError, match=r"metric 'auroc'.*there is"):
        run.plot("auroc")


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(fedscan.ConfigError, match="no model is here"):
        fedscan.load_run(tmp_path)
    with pytest.raises(fedscan.ConfigError, match=r"no summary\.json"):
        fedscan.load_benchmark(tmp_path)


def test_settings_are_keys_of_the_run_config_by_their_last_part() -> None:
    given = {"rounds": 3, "local_steps": 5, "data.size": 16, "mu": 0.1}
    assert overrides(None, "fedprox", given) == {
        "run.rounds": 3,
        "training.local-steps": 5,
        "data.size": 16,
        "strategy.name": "fedprox",
        "strategy.mu": 0.1,
    }


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"round": 3}, "unknown key 'round'; did you mean 'run.rounds'"),
        ({"study": "brain"}, "unknown study 'brain'"),
        ({"strategy": "fedavgg"}, "did you mean 'fedavg'"),
        ({"cohort": "/nowhere"}, "/nowhere"),
        ({"sites": 2, "strategy": "krum"}, "krum"),
    ],
)
def test_a_mistake_is_an_error_before_anything_starts(asked, words, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("simulations.federate.flower_run", lambda *_: pytest.fail("started"))
    with pytest.raises(fedscan.FedscanError, match=words):
        fedscan.run(out=tmp_path, quiet=True, **asked)


def test_run_asks_the_commands_function_and_returns_its_folder(
    folder: Path, tiny_cohort: Path, monkeypatch, tmp_path: Path
) -> None:
    asked = []

    def federate(config, resources, **how):
        asked.append((config, resources, how))
        return folder, {}

    monkeypatch.setattr("simulations.federate.federate", federate)
    run = fedscan.run(cohort=tiny_cohort, strategy="fedbn", out=tmp_path, rounds=4, quiet=True)
    ((config, resources, how),) = asked
    assert run.path == folder
    assert (config.run.rounds, config.strategy.name, resources.sites) == (4, "fedbn", 2)
    assert config.data.cohort_dir == str(tiny_cohort) and how["quiet"]


def test_pictures_are_predicted_alike_as_arrays_and_as_files(
    session_cache: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))
    monkeypatch.setenv("FEDSCAN_RECORDS", str(tmp_path / "records"))
    from test_studies_own import STUDY, hospital

    sites = {"north": hospital(tmp_path / "cohort" / "north", 30, 0)}
    (tmp_path / "chest.toml").write_text(STUDY)
    from simulations.options import study_override

    changes = {"run.rounds": 1, **study_override(str(tmp_path / "chest.toml"))}
    tiny = parse_set(TINY)
    train_in_place(
        {"north": ["north"]},
        sites,
        run_config(tiny, **changes, **{"model.adapt": "none"}),
        place=SiteContext("all", ("north",), torch.device("cpu")),
        folder=tmp_path / "all",
        records=(tmp_path / "sites", Path("all")),
    )
    run = fedscan.load_run(tmp_path / "all")
    files = sorted((tmp_path / "cohort" / "north" / "pictures").glob("*.png"))[:3]
    by_file = run.predict(files)
    by_array = run.predict([np.asarray(Image.open(path)).astype(np.uint16) for path in files])
    same = [name for name in by_file if name != "image"]
    pd.testing.assert_frame_equal(by_array[same], by_file[same])
    with pytest.raises(fedscan.ConfigError, match=r"type float64: accepted is \(H, W\)"):
        run.predict(np.zeros((4, 4)))
    shutil.copy(files[0], tmp_path / "one.png")
    with pytest.raises(fedscan.ConfigError, match="not both"):
        run.predict([tmp_path / "one.png", np.zeros((4, 4), np.uint8)])


def test_every_block_of_the_page_runs(
    folder: Path, tiny_cohort: Path, monkeypatch, tmp_path: Path
) -> None:
    """As it stands, but for the training itself, whose result is there already."""
    shutil.copytree(folder.parent, tmp_path / "made")
    run = tmp_path / "made" / "all"
    (run / "summary.json").write_text('{"sites": {"north": {"balanced_accuracy": 0.75}}}')
    shutil.copytree(tiny_cohort / "north", tmp_path / "new-scans")
    make_folder(tmp_path / "compared", draws=20)
    monkeypatch.setattr("simulations.federate.federate", lambda *_, **__: (run, {}))
    monkeypatch.setattr("simulations.compare.compare", lambda *_, **__: tmp_path / "compared")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "python.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)```", page, flags=re.M | re.S)
    assert len(blocks) == 4
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert (names["predicted"]["site"] == "north").all()
