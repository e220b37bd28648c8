"""What fedscan writes is its owner's alone, whatever the umask."""

from __future__ import annotations

import os
import stat
import string
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from generation_folders import noise, slices
from hypothesis import given
from hypothesis import strategies as st
from tiny_gan import start

from common.checkpoints import save_model, save_snapshot
from common.config.run_config import RunConfig
from common.data import dicom_sorting
from common.data.archive_files import ArchiveFile
from common.data.cache import cached_pictures
from common.evaluation.memorization import write_look_alikes
from common.files import as_text, numbered_name, write_atomically, write_json
from common.files import make_folder as make
from common.imaging.cohorts import write_cohort
from common.imaging.pictures import write_grid, write_path, write_picture
from common.metrics_log import MetricsLog, Row
from common.predictions import save_predictions
from common.run_folder import RunFolder
from common.tasks.task import read_run_config
from common.training.gan_checkpoint import save_checkpoint
from simulations import collect
from simulations.folders import locked, require_writable
from simulations.gan import project
from simulations.plan import Cell
from simulations.report import document
from simulations.schedule import attempt, end_cell


@pytest.fixture(params=[0o000, 0o022, 0o777], ids=["000", "022", "777"], autouse=True)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder of the user's, which stays as it is."""
    (home := tmp_path / "home").mkdir()
    home.chmod(0o755)
    return home


def require_private(home: Path) -> None:
    """Require that all below is its owner's alone, and that there is anything."""
    found = list(home.rglob("*"))
    assert found
    for path in found:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path
    assert stat.S_IMODE(home.stat().st_mode) == 0o755


def test_folders_that_are_made_and_no_others(home: Path) -> None:
    assert make(home / "a" / "b" / "c") == home / "a" / "b" / "c"
    make(home)
    require_private(home)
    (home / "a" / "b").chmod(0o750)
    make(home / "a" / "b" / "d")
    assert stat.S_IMODE((home / "a" / "b").stat().st_mode) == 0o750
    write_atomically(home / "file", b"")
    with pytest.raises(FileExistsError):
        make(home / "file")


def test_files_of_every_writer(home: Path) -> None:
    draws = np.random.default_rng(0)
    image = draws.uniform(-1, 1, (1, 16, 16)).astype(np.float32)
    write_json(home / "a" / "value.json", {"a": 1})
    write_picture(home / "b" / "one.png", image)
    write_grid(home / "b" / "grid.png", [image[None]])
    write_path(home / "b" / "path.png", image, [0], image[None], [1.0])
    write_look_alikes(home / "c" / "look.png", image[None], image[None], [0], [0], [1.0])
    predictions = np.array([0, 1]), np.array([0.1, 0.2]), ("a", "b"), ("F", "M")
    save_predictions(home / "d" / "predictions.csv", *predictions)
    save_model(home / "e", torch.nn.Linear(1, 1).state_dict(), {})
    save_snapshot(home / "f", "state", {"a": torch.zeros(1)}, {})
    save_checkpoint(home / "g", start())
    log = MetricsLog(home / "h" / "i" / "metrics.jsonl")
    log.append([Row(1, "north", "val", "loss", 0.5, 4, 1.0)])
    require_private(home)


def test_a_runs_folder(home: Path) -> None:
    folder = RunFolder(RunConfig.from_flower({"run.output-dir": str(home / "runs")}), "17")
    folder.write_manifest({}, "0")
    folder.write_failure({"site": "north", "traceback": "sub-01"})
    folder.write_summary({})
    require_private(home)


def test_prepared_scans_and_phantoms(home: Path) -> None:
    write_atomically(home / "scan", b"")
    cached_pictures(
        ["scan"],
        lambda path: np.zeros((1, 2, 2), np.uint8),
        **{"root": home, "site": "north", "name": "all", "settings": "", "shape": (1, 2, 2)},
        cache=home / "cache",
    )
    write_cohort(home / "cohort", {"north": 4}, n_test=0, seed=0, workers=1)
    require_private(home)


def test_a_comparisons_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_writable(home / "out", "--out")
    work = SimpleNamespace(folder=str(home / "out" / "cells" / "a"), cell=Cell("local", "", 0))
    monkeypatch.setattr("simulations.schedule.run_cell", lambda work: 1 / 0)
    with locked(home / "out"):
        attempt(work)
    end_cell(home / "out" / "cells" / "b", Cell("local", "", 1), "timeout", "why")
    require_private(home)


def test_what_a_comparison_collects_and_its_report(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = slices(2, "north", np.random.default_rng(0), noise)
    monkeypatch.setattr(
        collect, "load_task", lambda name: SimpleNamespace(open_split=lambda *_: scans)
    )
    make(home / "out")
    config = read_run_config({"task": "generation"})
    collect.write_samples(home / "out" / "samples.npz", {"north": str(tmp_path)}, config)
    require_private(home)
    assert (home / "out" / "samples.npz").is_file()


def test_projections(home: Path) -> None:
    image = torch.zeros(1, 16, 16)
    point = SimpleNamespace(step=0, image=image, distance=1.0)
    done = SimpleNamespace(
        reconstruction=image, path=[point], ws=torch.zeros(1, 2), noise=[image], distance=1.0
    )
    project._write(home / "000", image.numpy(), done)
    require_private(home)


def test_pictures_of_an_archive_and_files_beside_them(home: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a picture")
    (tmp_path / "a.jpg").chmod(0o644)
    make(home / "out")
    ArchiveFile("a.jpg", 9, tmp_path / "a.jpg").put(home / "out" / "a.jpg", copy=True)
    dicom_sorting._put(home / "out" / "README", b"text")
    require_private(home)


def test_cells_that_spreadsheets_would_compute_are_texts() -> None:
    for cell in ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1"):
        assert as_text(cell) == f"'{cell}"
    assert as_text("P-1=2") == "P-1=2"


def test_reports(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "_comparison", lambda folder: {})
    monkeypatch.setattr(document, "fill", lambda parts: "a page with scans")
    document.write_report(make(home / "out"))
    require_private(home)


def test_a_folder_that_cannot_be_made_ends_with_one_error():
    with pytest.raises(OSError):
        make(Path("/proc/none/below"))


@given(st.text(), st.integers(0, 99))
def test_a_numbered_name_is_one_plain_name(text: str, number: int) -> None:
    name = numbered_name(number, text)
    assert Path(name).parts == (name,)
    assert name.startswith(f"{number:02d}-") and name.isascii() and len(name) <= 63
    assert {*name} <= {*"_-", *string.ascii_letters, *string.digits}


def test_numbers_keep_texts_apart_that_read_alike() -> None:
    assert numbered_name(0, "BCC/SCC") == "00-BCC_SCC" != numbered_name(1, "BCC SCC")
