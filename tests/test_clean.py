"""What is removed, and what never is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.processes import environment
from simulations.clean import (
    EXTRACTORS,
    HOSPITALS,
    MARK,
    PREPARED,
    RECORDS,
    STOPPED,
    TEMPORARY,
    find,
)
from simulations.cli import app
from simulations.folders import locked
from simulations.in_use import temporary_folder
from simulations.private_state import looked_after, note_of

KEPT_AT_SITES = ("secret", "privacy-budget.json", "state/7.ended")


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache, the records of a finished run, of a stopped one, and of a deployed site."""
    monkeypatch.setenv("FEDSCAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FEDSCAN_RECORDS", str(tmp_path / "records"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(environment, "SHORT_FOLDERS", ())  # /tmp has other processes' folders
    for name in (
        "cache/pictures/ab.json",
        "cache/pictures/ab-x.pixels",
        "cache/pictures/ab.lock",
        "cache/phantoms/north-1/north/participants.tsv",
        "cache/extractors/brain.safetensors",
        "records/north/1-finished/predictions.csv",
        "records/north/state/2-stopped/round-1/state.json",
        "runs/1-finished/summary.json",
        "runs/2-stopped/metrics.jsonl",
        "runs/2-stopped/checkpoint/run.json",
        "tmp/fedscan-old/flower.log",
        "tmp/other/file",
        *(f"records/north/{name}" for name in KEPT_AT_SITES),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    os.utime(tmp_path / "tmp" / "fedscan-old", (0, 0))
    note = note_of("2-stopped")
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps({"folder": str(tmp_path / "runs" / "2-stopped")}))
    return tmp_path


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_each_kind_is_found_and_nothing_goes_without_being_asked(disk: Path) -> None:
    before = files(disk)
    kinds = [PREPARED, HOSPITALS, EXTRACTORS, RECORDS, STOPPED, TEMPORARY]
    assert [one.what for one in find()] == kinds
    shown = CliRunner().invoke(app, ["clean"])
    assert shown.exit_code == 0
    assert {name for name in files(disk) if not name.endswith(".lock")} == {
        name for name in before if not name.endswith(".lock")
    }


def test_yes_leaves_results_hospitals_and_what_a_site_must_keep(disk: Path) -> None:
    assert CliRunner().invoke(app, ["clean", "--yes"]).exit_code == 0
    left = {name for name in files(disk) if not name.endswith(".lock")}
    assert left == {
        "cache/phantoms/north-1/north/participants.tsv",
        "cache/extractors/brain.safetensors",
        "records/north/1-finished/predictions.csv",
        "runs/1-finished/summary.json",
        "runs/2-stopped/metrics.jsonl",
        "tmp/other/file",
        *(f"records/north/{name}" for name in KEPT_AT_SITES),
    }


def test_hospitals_and_records_go_where_they_are_named(disk: Path) -> None:
    CliRunner().invoke(app, ["clean", "--yes", "--records", "--hospitals"])
    left = files(disk)
    assert not [
        name
        for name in left
        if name.startswith("cache/ph") or "extractors" in name or "1-finished/pred" in name
    ]
    assert "runs/1-finished/summary.json" in left
    assert all(f"records/north/{name}" in left for name in KEPT_AT_SITES)


def test_a_running_run_keeps_its_state_and_its_caches(disk: Path) -> None:
    with looked_after(disk / "runs" / "2-stopped"):
        before = files(disk)
        told = CliRunner().invoke(app, ["clean", "--yes", "--hospitals", "--format", "json"])
        kinds = {one["what"]: one["state"] for one in json.loads(told.stdout)}
        assert kinds[STOPPED] == kinds[PREPARED] == kinds[HOSPITALS] == "in use"
        gone = before - files(disk)
    assert gone == {"tmp/fedscan-old/flower.log"}


def test_a_command_in_progress_keeps_the_cache_the_records_and_its_temporary_folder(
    disk: Path,
) -> None:
    (disk / "benchmark").mkdir()
    with locked(disk / "benchmark"), temporary_folder() as folder:
        os.utime(folder, (0, 0))
        told = {one.path.name: one.in_use for one in find()}
        assert told["pictures"] and told["phantoms"] and told["1-finished"] and told[folder.name]
        assert not told["fedscan-old"]
    assert not any(one.in_use for one in find())
    assert not list((disk / "cache" / ".in-use").iterdir()) and not folder.exists()


def test_folders_of_runs_are_found_where_a_long_tmpdir_cannot_hold_them(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = disk / "short"
    (other / "fedscan-left").mkdir(parents=True)
    os.utime(other / "fedscan-left", (0, 0))
    monkeypatch.setattr(environment, "SHORT_FOLDERS", (str(other),))
    monkeypatch.setattr(environment, "LONGEST_TEMPORARY", len(str(other)))
    monkeypatch.setattr("tempfile.tempdir", f"{other}-and-much-longer")
    assert [one.path for one in find() if one.what == TEMPORARY] == [other / "fedscan-left"]


def test_a_temporary_folder_that_a_process_names_is_in_use(disk: Path) -> None:
    folder = disk / "tmp" / "fedscan-old"
    code = "import sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={"FLWR_HOME": str(folder / "flwr")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        process.stdout.readline()
        (found,) = [one for one in find() if one.what == TEMPORARY]
        assert found.in_use
        process.stdin.close()
    (found,) = [one for one in find() if one.what == TEMPORARY]
    assert not found.in_use


def test_a_hospitals_records_stay_until_its_run_has_ended(disk: Path) -> None:
    """A deployed site keeps a state of each run of which it has not given the test's answer."""
    site = disk / "records" / "north"
    for run in ("7", "8"):
        (site / run).mkdir()
        (site / run / "predictions.csv").write_text("{}")
    (site / "state" / "8").mkdir()  # 7 has ended
    CliRunner().invoke(app, ["clean", "--yes", "--records"])
    assert not (site / "7").exists() and (site / "8" / "predictions.csv").is_file()


def test_a_supernode_keeps_the_records_and_the_cache(disk: Path, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(
        "clients.gateway.supernode.serve",
        lambda node: seen.extend(one for one in find() if one.what in (RECORDS, PREPARED)),
    )
    words = ["--superlink", "127.0.0.1:9", "--site", "north", "--data-dir", str(disk)]
    done = CliRunner().invoke(app, ["supernode", *words, "--policy", str(disk / "policy.toml")])
    assert done.exit_code == 0 and len(seen) == 2 and all(one.in_use for one in seen)


def test_what_a_killed_process_has_marked_goes_and_what_one_holds_stays(disk: Path) -> None:
    running = note_of("any").parent
    code = (
        "import os, sys\nfrom pathlib import Path\n"
        "from simulations.in_use import cache_in_use\n"
        "from simulations.private_state import looked_after\n"
        "with cache_in_use(), looked_after(Path(sys.argv[1])):\n    os.kill(os.getpid(), 9)\n"
    )
    (disk / "runs" / "3-killed").mkdir()
    subprocess.run([sys.executable, "-c", code, str(disk / "runs" / "3-killed")], check=False)
    for name in ("4-claimed.claim", "5-unknown.lock", "6-beginning.claim"):
        (running / name).touch()
    old = [p for p in files(disk) if p.endswith((".lock", ".claim")) and "beginning" not in p]
    for name in old:
        os.utime(disk / name, (0, 0))
    with looked_after(disk / "runs" / "2-stopped"):
        os.utime(running / "2-stopped.lock", (0, 0))
        found = {one.path.name for one in find() if one.what == MARK}
        (mark,) = (disk / "cache" / ".in-use").iterdir()
        assert found == {mark.name, "4-claimed.claim", "5-unknown.lock"}
        assert CliRunner().invoke(app, ["clean", "--yes"]).exit_code == 0
        left = {path.name for path in running.iterdir()}
    assert left == {"2-stopped.json", "2-stopped.lock", "6-beginning.claim"}
    assert not mark.exists()
