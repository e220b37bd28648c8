"""Runs have names that people can read, and no two have the same."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tiny import run_config

from common.config.run_config import RunConfig
from simulations.private_state import looked_after
from simulations.run_name import claim_name, run_name

AT = time.struct_time((2026, 11, 28, 15, 30, 0, 5, 332, 0))


@pytest.fixture
def at_one_minute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDSCAN_RECORDS", str(tmp_path / "records"))
    monkeypatch.setattr("simulations.run_name.time.localtime", lambda: AT)


def config(folder: Path) -> RunConfig:
    return run_config({"run.output-dir": str(folder)})


def test_a_name_tells_date_time_study_and_strategy() -> None:
    assert run_name(run_config({}), AT) == "2026-11-28-1530-brain-sex-fedavg"


@pytest.mark.parametrize("study", ["brain-sex", "skin-lesions"])
@pytest.mark.parametrize("strategy", ["fedavg", "multikrum"])
def test_every_name_is_accepted_as_a_runs_id(study: str, strategy: str) -> None:
    found = run_config({"study": study, "strategy.name": strategy})
    name = run_name(found, AT)
    assert found.replace({"run.id": f"{name}-99999"}).run.id == f"{name}-99999"


def test_runs_of_one_minute_are_numbered(at_one_minute, tmp_path: Path) -> None:
    names = [claim_name(config(tmp_path / "runs")) for _ in range(3)]
    plain = "2026-11-28-1530-brain-sex-fedavg"
    assert names == [plain, f"{plain}-2", f"{plain}-3"]
    assert all((tmp_path / "runs" / name).is_dir() for name in names)


def test_runs_in_other_folders_share_no_records(at_one_minute, tmp_path: Path) -> None:
    first = claim_name(config(tmp_path / "a"))
    assert claim_name(config(tmp_path / "b")) == f"{first}-2"
    with looked_after(tmp_path / "a" / first):
        assert claim_name(config(tmp_path / "c")) == f"{first}-3"
        (tmp_path / "a" / first / "summary.json").write_text("{}")
    (tmp_path / "records" / "north" / first).mkdir(parents=True)  # what a site has recorded
    assert claim_name(config(tmp_path / "d")) == f"{first}-4"
    assert not (tmp_path / "d" / first).exists()


def test_a_run_that_is_over_leaves_nothing_of_its_name(at_one_minute, tmp_path: Path) -> None:
    name = claim_name(config(tmp_path / "runs"))
    with looked_after(tmp_path / "runs" / name):
        (tmp_path / "runs" / name / "summary.json").write_text("{}")
    assert not list((tmp_path / "records" / ".running").iterdir())
