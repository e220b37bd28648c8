"""The dermatology study on a folder in ISIC 2019's layout, from its preparation to the report."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from archives import ISIC_2019, isic2019
from processes import fedscan_here

from common.evaluation.extractor import load_extractor
from common.evaluation.extractors import skin
from common.imaging.bids import list_sites
from simulations.benchmark import Benchmark
from simulations.plan import load_plan
from simulations.report.document import write_report

CLASSES = [name for name in ISIC_2019 if name != "UNK"]
FEW = {"run.rounds": 1, "run.evaluate-every": 1, "training.local-steps": 1}
NETWORKS = "resolution=16 channel-base=64 channel-max=4 z-dim=8 w-dim=8"


@pytest.fixture
def quick_extractor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A feature extractor with too little training to judge."""
    make = functools.partial(skin.make_network, lesions=1, steps=1)
    monkeypatch.setattr(skin, "make_network", make)
    load_extractor("fedscan-skin", tmp_path)
    (weights,) = (tmp_path / "extractors").glob("*.safetensors")
    return weights


@pytest.mark.simulation
def test_the_preset_runs_on_pictures_in_the_layout_of_isic_2019(
    quick_extractor: Path, tmp_path: Path, session_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        (f"ISIC_{center}_{name}_{k}", name, f"{center}_{name}{k:04d}")
        for center, count in {"BCN": 12, "HAM": 10}.items()
        for name in CLASSES
        for k in range(count)
    ]
    archive = isic2019(tmp_path / "archive", rows)
    prepared = fedscan_here(
        *("prepare", "isic2019", str(archive), "--out", "hospitals"),
        cwd=tmp_path,
        cache=session_cache,
    )
    assert prepared.returncode == 0, prepared.stderr
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))
    run = {**FEW, "model.gan-changes": NETWORKS, "model.extractor": str(quick_extractor)}
    shorter = {"repetitions": 1, "use": {**FEW, "task": "classification"}, "in-place": True}
    plan, out = load_plan("dermatology", shorter, run), tmp_path / "out"
    Benchmark(plan, list_sites(tmp_path / "hospitals"), {"run.min-sites": 2}, out).run(resume=False)
    page = write_report(out).read_text()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["cells"]["left_out"] == 0 and summary["unfinished"] == []
    arms = {f"{arm}/{name}" for arm in ("centralized", "federated") for name in plan.variants}
    assert arms <= summary["models"].keys()
    told = summary["scores"]["bcn"]["federated/fedavg"]
    assert {f"kernel_distance.{name}" for name in CLASSES} <= told.keys()
    assert {f"recall.{name}" for name in CLASSES} <= {row["metric"] for row in summary["use"]}
    assert "Each class by itself" in page and "Speed of training" in page
