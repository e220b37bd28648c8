"""What a comparison will do is known, and refused where it cannot be, before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import fedscan

from common.errors import ConfigError
from simulations.plan import FEDPROX_MU, Cell, load_plan, presets


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_a_plan_with_a_description_and_valid_cells(name: str) -> None:
    plan = load_plan(name, {}, {})
    assert plan.description
    for cell in plan.cells():
        assert plan.config(cell, {}).seed == cell.seed


def test_cells_are_arms_times_seeds_and_strategies_concern_the_federated_arm_only() -> None:
    plan = load_plan("default", {"seeds": 2, "strategies": ["fedavg", "fedprox"]}, {})
    assert {cell.name for cell in plan.cells()} == {
        f"{arm}-seed{seed}"
        for seed in (0, 1)
        for arm in ("centralized", "local", "federated-fedavg", "federated-fedprox")
    }


def test_only_fedprox_cells_have_a_proximal_term() -> None:
    plan = load_plan("default", {"strategies": ["fedavg", "fedprox"]}, {})
    assert plan.config(Cell("federated", "fedprox", 0), {}).proximal_mu == FEDPROX_MU
    assert plan.config(Cell("federated", "fedavg", 0), {}).proximal_mu == 0
    assert plan.config(Cell("local", "", 0), {}).proximal_mu == 0
    plan = load_plan("default", {"strategies": ["fedprox"]}, {"proximal-mu": 0.3})
    assert plan.config(Cell("federated", "fedprox", 0), {}).proximal_mu == 0.3


def test_arms_differ_in_nothing_but_the_data_that_they_see() -> None:
    plan = load_plan("default", {"seeds": 3}, {"local-steps": 7})
    configs = [plan.config(cell, {}) for cell in plan.cells() if cell.seed == 2]
    assert len(configs) == 3 and len(set(configs)) == 1


@pytest.mark.parametrize(
    ("preset", "overrides", "run", "expected"),
    [
        ("nope", {}, {}, "unknown preset 'nope'; there are default"),
        ("default", {"arms": ["central"]}, {}, "'central'"),
        ("default", {"arms": ["local", "local"]}, {}, "named once"),
        ("default", {"seeds": 0}, {}, "seeds = 0"),
        ("default", {"centralized-batch": "huge"}, {}, "'huge'"),
        ("default", {}, {"seed": 1}, "--seeds"),
        ("default", {}, {"strategy": "fedprox"}, "--strategies"),
        ("default", {}, {"cohort-dir": "/elsewhere"}, "--cohort"),
        ("default", {}, {"min-sites": 1}, "every site"),
        ("default", {}, {"proximal-mu": 0.1}, "no effect"),
    ],
)
def test_what_cannot_be_is_refused(preset: str, overrides: dict, run: dict, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_plan(preset, overrides, run)


def test_resources_that_do_not_exist_are_refused_before_the_start(tmp_path: Path) -> None:
    for words in (["--set", "threads=200"], ["--gpus-per-cell", "100"]):
        done = fedscan("benchmark", *words, cwd=tmp_path, cache=tmp_path / "cache")
        assert done.returncode == 2
        assert "cannot be had" in done.stderr
    assert not list(tmp_path.iterdir())


def test_dry_run_tells_cells_and_time_and_starts_nothing(tmp_path: Path) -> None:
    done = fedscan(
        *("benchmark", "--dry-run", "--seeds", "2", "--set", "image-size=16"),
        cwd=tmp_path,
        cache=tmp_path / "cache",
    )
    assert done.returncode == 0, done.stderr
    assert "6 cells: federated-fedavg-seed0" in done.stdout
    assert "image-size = 16" in done.stdout
    assert "min on" in done.stdout
    assert not list(tmp_path.iterdir())


def test_benchmark_refuses_a_folder_with_other_files(tiny_cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    done = fedscan(
        *("benchmark", "--preset", "smoke", "--cohort", str(tiny_cohort), "--out", "full"),
        cwd=tmp_path,
        cache=tmp_path / "cache",
    )
    assert done.returncode == 2
    assert "holds other files" in done.stderr
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]
