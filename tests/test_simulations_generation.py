"""Federated generation as people run it: `fedscan run --set task=generation`, real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from processes import fedscan_here

pytestmark = pytest.mark.simulation


@pytest.fixture(scope="module")
def run(finished):
    """A whole run with two actors: its output and its folder."""
    return finished("run", "generation")


def test_the_run_folder_has_the_generator_grids_and_results(run) -> None:
    done, folder = run
    names = {path.name for path in folder.iterdir()}
    assert {"manifest.json", "metrics.jsonl", "summary.json", "gan.json", "report.html"} <= names
    assert sum(name.endswith(".safetensors") for name in names) == 1
    grids = sorted(path.name for path in (folder / "grids").iterdir())
    assert grids == ["round-0002.png", "round-0003.png"]  # as rounds go by: every second, the last
    with Image.open(folder / "grids" / grids[-1]) as grid:
        assert grid.width > grid.height > 100
    summary = json.loads((folder / "summary.json").read_text())
    for block in (summary["generation"], *(s["generation"] for s in summary["sites"].values())):
        assert len(block["extractor"]["hash"]) == 64
        assert {"frechet_distance", "kernel_distance", "precision", "recall"} <= block.keys()
        assert block["images_seen"] and block["p_ada"] is not None
    assert summary["generation"]["images_seen"] == 2 * 3 * 2 * 4
    assert "island" in done.stdout and "north" in done.stdout


def test_nothing_of_a_participant_is_in_the_run_folder(run) -> None:
    folder = run[1]
    for name in ("manifest.json", "metrics.jsonl", "summary.json", "gan.json", "flower.log"):
        assert "sub-" not in (folder / name).read_text(), name
    assert not list(folder.rglob("look-alikes*"))


def test_pictures_can_be_drawn_from_the_run(run, session_cache: Path, tmp_path: Path) -> None:
    words = (
        "--count",
        "4",
        "--label",
        "site=island",
        "--seed",
        "0",
        "--out",
        str(tmp_path / "out"),
    )
    done = fedscan_here("generate", str(run[1]), *words, cwd=tmp_path, cache=session_cache)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("picture-*.png"))) == 4


def test_a_change_that_is_not_accepted_ends_before_anything_starts(
    tiny_cohort: Path, tiny_tasks: dict[str, list[str]], session_cache: Path, tmp_path: Path
) -> None:
    values = [*tiny_tasks["generation"], 'model.gan-changes="r1-gama=1"']
    words = ("--cohort", str(tiny_cohort), *(w for value in values for w in ("--set", value)))
    done = fedscan_here("run", *words, cwd=tmp_path, cache=session_cache)
    assert done.returncode == 2
    assert "r1-gama" in done.stderr and "Traceback" not in done.stderr
