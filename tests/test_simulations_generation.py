"""Federated generation as people run it: `fedscan run --set task=generation`, real processes."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from PIL import Image
from processes import fedscan, flower_processes, wait_until_gone

pytestmark = pytest.mark.simulation
TINY = [
    'task="generation"',
    'model.gan-changes="resolution=16 channel-max=8 z-dim=8 w-dim=8 label-kinds=sex,height,site"',
    "run.rounds=3",
    "training.local-steps=2",
    "training.batch-size=4",
    "run.evaluate-every=2",
    "run.device='cpu'",
]


@pytest.fixture(scope="module")
def quick_extractor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A feature extractor made in a second: too little training to judge, enough to name."""
    from common.evaluation.extractor import load_extractor
    from common.evaluation.extractors import brain as brain_training

    cache = tmp_path_factory.mktemp("extractor")
    with pytest.MonkeyPatch.context() as patch:
        make = functools.partial(brain_training.make_network, subjects=4, steps=2)
        patch.setattr(brain_training, "make_network", make)
        load_extractor(cache=cache)
    (weights,) = (cache / "extractors").glob("*.safetensors")
    return weights


@pytest.fixture(scope="module")
def begin(quick_extractor: Path, tiny_cohort: Path, session_cache: Path):
    def run(cwd: Path, *more: str):
        words = [
            word
            for line in (*TINY, f"model.extractor='{quick_extractor}'")
            for word in ("--set", line)
        ]
        before = flower_processes()
        done = fedscan(
            *("run", "--cohort", str(tiny_cohort), *words, *more), cwd=cwd, cache=session_cache
        )
        assert not wait_until_gone(before)
        return done

    return run


@pytest.fixture(scope="module")
def run(begin, tmp_path_factory: pytest.TempPathFactory):
    """A whole run with two actors: its output and its folder."""
    done = begin(tmp_path_factory.mktemp("generation"))
    assert done.returncode == 0, done.stderr
    return done, Path(done.stdout.splitlines()[-1])


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
    done = fedscan("generate", str(run[1]), *words, cwd=tmp_path, cache=session_cache)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("picture-*.png"))) == 4


def test_a_change_that_is_not_accepted_ends_before_anything_starts(begin, tmp_path: Path) -> None:
    done = begin(tmp_path, "--set", 'model.gan-changes="r1-gama=1"')
    assert done.returncode == 2
    assert "r1-gama" in done.stderr and "Traceback" not in done.stderr
