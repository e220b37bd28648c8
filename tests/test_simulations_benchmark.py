"""A whole comparison on Ray: killed and resumed it ends as if nothing had happened."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
from processes import SCRIPTS, environment, fedscan, flower_processes, wait_until_gone

from simulations.plan import Cell
from simulations.schedule import end_cell

TIMINGS = ["seconds"]


def words(cohort: Path, out: Path, *more: str) -> list[str]:
    return ["benchmark", "--preset", "smoke", "--cohort", str(cohort), "--out", str(out), *more]


@pytest.fixture(scope="module")
def whole(tiny_cohort: Path, session_cache: Path, tmp_path_factory: pytest.TempPathFactory):
    """A comparison that ran without interruption."""
    out = tmp_path_factory.mktemp("whole") / "comparison"
    before = flower_processes()
    done = fedscan(*words(tiny_cohort, out), cwd=out.parent, cache=session_cache)
    assert done.returncode == 0, done.stderr
    assert not wait_until_gone(before)
    return done, out


@pytest.mark.simulation
def test_it_leaves_results_of_every_arm_a_summary_and_a_report(whole) -> None:
    done, out = whole
    assert done.stdout.splitlines()[-1] == str(out / "report.html")
    results = pd.read_csv(out / "results.csv")
    assert set(results.arm) == {"centralized", "local", "federated"}
    assert set(results.status) == {"done"}
    sent = results[(results.arm == "federated") & (results.split == "test")]
    assert (sent.bytes_up > 0).all()
    assert (results.drop(sent.index).bytes_up == 0).all()  # no other arm, no bytes before the end
    equal = results[results.split == "test"].groupby("arm").steps.unique()
    assert {tuple(steps) for steps in equal} == {(4,)}
    summary = json.loads((out / "summary.json").read_text())
    assert summary["headline"]["gain_of_data_poor_site"]["value"] is not None
    assert "<svg" in (out / "report.html").read_text()
    for path in (out / "results.csv", out / "summary.json", out / "report.html"):
        assert "sub-" not in path.read_text()


@pytest.mark.simulation
def test_killed_and_resumed_it_gives_the_same_results(
    whole, tiny_cohort: Path, session_cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "comparison"
    before = flower_processes()
    process = subprocess.Popen(
        [str(SCRIPTS / "fedscan"), *words(tiny_cohort, out)],
        cwd=tmp_path,
        env=environment(session_cache),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("cells/*/status.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "results.csv").exists()
    assert not wait_until_gone(before, 60)

    refused = fedscan(*words(tiny_cohort, out), cwd=tmp_path, cache=session_cache)
    assert refused.returncode == 2 and "--resume" in refused.stderr
    other = words(tiny_cohort, out, "--resume", "--seeds", "2")
    refused = fedscan(*other, cwd=tmp_path, cache=session_cache)
    assert refused.returncode == 2 and "another seeds" in refused.stderr

    resumed = fedscan(*words(tiny_cohort, out, "--resume"), cwd=tmp_path, cache=session_cache)
    assert resumed.returncode == 0, resumed.stderr
    expected, got = (
        pd.read_csv(folder / "results.csv").drop(columns=TIMINGS) for folder in (whole[1], out)
    )
    pd.testing.assert_frame_equal(expected, got)
    predictions = "sites/island/predictions.csv"
    assert (out / predictions).read_bytes() == (whole[1] / predictions).read_bytes()


@pytest.mark.simulation
def test_one_bad_cell_does_not_stop_the_others(
    tiny_cohort: Path, session_cache: Path, tmp_path: Path
) -> None:
    """Island's test scans are gone: its own model cannot be tested, nor can any other there."""
    cohort = tmp_path / "cohort"
    shutil.copytree(tiny_cohort, cohort)
    table = pd.read_csv(cohort / "island" / "participants.tsv", sep="\t")
    for name in table.query("split == 'test'").participant_id:
        (cohort / "island" / name / "anat" / f"{name}_T1w.nii.gz").write_bytes(b"")
    out = tmp_path / "out"
    arms = ("--arms", "local,centralized")
    done = fedscan(*words(cohort, out, *arms), cwd=tmp_path, cache=session_cache)
    assert done.returncode == 1
    assert "centralized-seed0 (error), local-seed0 (error)" in done.stderr
    why = json.loads((out / "cells" / "local-seed0" / "status.json").read_text())["why"]
    assert "DataContractError" in why and "Traceback" in why
    assert set(pd.read_csv(out / "results.csv").status) == {"error"}


def test_a_cell_that_did_not_end_well_leaves_one_row_without_a_value(tmp_path: Path) -> None:
    end_cell(tmp_path, Cell("local", "", 3), "timeout", "ended after 5 s")
    (row,) = pd.read_csv(tmp_path / "results.csv").to_dict("records")
    assert row["status"] == "timeout" and row["seed"] == 3
    assert pd.isna(row["metric"]) and pd.isna(row["value"])
