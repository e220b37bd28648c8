"""The command line: what it refuses before anything starts, and how it says so."""

from __future__ import annotations

import io
import json
import os
import subprocess
from pathlib import Path

import pytest
from processes import SCRIPTS, environment, fedscan, fedscan_here
from rich.table import Table

from common.errors import ConfigError
from simulations import console, launch
from simulations.launch import Resources


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--set", "sede=1"], "did you mean 'run.seed'?"),
        (["--set", "seed=1"], "it is 'run.seed' now"),
        (["--set", "server-momentum=0.5"], "it was removed"),
        (["--set", "run.seed"], "accepted is key=value"),
        (["--set", "run.seed=-1"], "run.seed = -1"),
        (["--set", "training.learning-rate=fast"], "training.learning-rate = 'fast'"),
        (["--set", "run.output-dir=/tmp"], "give out instead (--out)"),
        (["--set", "run.threads=4096"], "run.threads = 4096"),
        (["--set", "run.threads=256", "--cpus", "1"], "256 CPUs a site cannot be had: 1"),
        (["--cpus", "100000"], "100000 CPUs cannot be had"),
        (["--gpus-per-site", "1000"], "1000 GPUs a site cannot be had"),
        (["--cohort", "nowhere"], "nowhere"),
        (["--study", "skin-lesions", "--set", "study=brain-sex"], "give one of them"),
        (["--resume", "run", "--out", "elsewhere"], "--out: leave it out"),
        (["--resume", "run", "--gpus-per-site", "0.5"], "--gpus-per-site: leave it out"),
    ],
)
def test_run_refuses_with_one_clear_message(
    words: list[str], expected: str, tmp_path: Path
) -> None:
    done = fedscan_here("run", *words, cwd=tmp_path, cache=tmp_path / "cache")
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())  # nothing was begun


@pytest.mark.parametrize(
    ("variable", "command"),
    [
        ("FEDSCAN_CACHE", "run"),
        ("FEDSCAN_RECORDS", "run"),
        ("FEDSCAN_CACHE", "benchmark"),
        ("FEDSCAN_CACHE", "train-gan"),
    ],
)
def test_relative_folder_of_what_is_kept_is_refused_before_anything_starts(
    variable: str, command: str, tiny_cohort: Path, tmp_path: Path
) -> None:
    sites = ["--site", "north"] if command == "train-gan" else []
    words = (command, "--cohort", str(tiny_cohort), *sites, "--out", "out")
    kept = {variable: "kept"}
    done = fedscan_here(*words, cwd=tmp_path, cache=tmp_path / "cache", **kept)
    assert done.returncode == 2
    assert f"Error: {variable}=kept: accepted is an absolute path" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Round" not in done.stderr
    assert not (tmp_path / "kept").exists()
    assert {path.name for path in tmp_path.glob("out/*")} <= {".lock"}


def lost(kind: str) -> int:
    """Open a standard error that cannot be written to."""
    if kind == "full disk":
        return os.open("/dev/full", os.O_WRONLY)
    reader, writer = os.pipe() if kind == "reader" else os.openpty()
    os.close(reader)
    return writer


@pytest.mark.parametrize("kind", ["reader", "terminal", "full disk"])
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["run", "--set", "run.seed=-1"], 2),
        (["prepare", "phantom", "cohort", "--sites", "a=5", "--test", "2"], 0),
    ],
)
def test_work_goes_on_and_keeps_its_exit_code_when_standard_error_is_lost(
    kind: str, words: list[str], code: int, tmp_path: Path
) -> None:
    stderr = lost(kind)
    done = subprocess.run(
        [str(SCRIPTS / "fedscan"), *words],
        cwd=tmp_path,
        env=environment(tmp_path / "cache"),
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        timeout=240,
        check=False,
    )
    os.close(stderr)
    assert done.returncode == code
    assert done.stdout == ("" if code else "cohort\n")


def test_run_refuses_another_number_of_sites_than_the_cohort_has(
    tiny_cohort: Path, tmp_path: Path
) -> None:
    words = ("run", "--cohort", str(tiny_cohort), "--sites", "3")
    done = fedscan_here(*words, cwd=tmp_path, cache=tmp_path / "cache")
    assert done.returncode == 2
    assert "holds 2: island, north" in done.stderr


@pytest.mark.parametrize(
    "command", [[], ["run"], ["prepare"], ["prepare", "phantom"], ["check"], ["strategies"]]
)
def test_help_has_an_example(command: list[str], tmp_path: Path) -> None:
    done = fedscan_here(*command, "--help", cwd=tmp_path, cache=tmp_path)
    assert done.returncode == 0
    if command not in ([], ["prepare"]):
        assert "xample" in done.stdout


def test_prepared_phantoms_are_found_usable(tmp_path: Path) -> None:
    words = ("prepare", "phantom", "cohort", "--sites", "a=5,b=4", "--test", "2", "--seed", "3")
    made = fedscan_here(*words, cwd=tmp_path, cache=tmp_path / "cache")
    assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines()[-1] == "cohort"
    checked = fedscan_here("check", "cohort", "--format", "json", cwd=tmp_path, cache=tmp_path)
    assert checked.returncode == 0
    report = json.loads(checked.stdout)
    assert [site["site"] for site in report["sites"]] == ["a", "b"]
    assert sum(report["sites"][0]["n"]["train"].values()) == 3


@pytest.mark.parametrize("sites", ["a", "a=", "a=4,a=5", "a=-4", "a=3", "../a=5"])
def test_prepare_refuses_sites_that_cannot_be(sites: str, tmp_path: Path) -> None:
    done = fedscan_here("prepare", "phantom", "out", "--sites", sites, cwd=tmp_path, cache=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_check_names_the_file_and_exits_2(tiny_cohort: Path, tmp_path: Path) -> None:
    import shutil

    cohort = tmp_path / "cohort"
    shutil.copytree(tiny_cohort, cohort)
    scans = sorted((cohort / "island").rglob("*.nii.gz"))
    for scan in scans:
        scan.write_bytes(b"")
    done = fedscan_here("check", str(cohort), cwd=tmp_path, cache=tmp_path / "cache")
    assert done.returncode == 2
    assert scans[0].name in done.stdout
    assert "not usable" in done.stdout


@pytest.mark.parametrize("study", ["brain-sex", "skin-lesions"])
def test_check_says_its_errors_where_every_command_does(study: str, tmp_path: Path) -> None:
    words = ("check", "nope", "--study", study)
    done = fedscan_here(*words, cwd=tmp_path, cache=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: ") and "nope does not exist" in done.stderr
    done = fedscan_here(*words, "--format", "json", cwd=tmp_path, cache=tmp_path)
    assert done.returncode == 2
    assert json.loads(done.stdout)["usable"] is False


def test_resources_become_flowers_federation_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "usable_cpus", lambda: 8)
    words = Resources(sites=3, cpus_per_site=2, gpus_per_site=0.5).federation_config().split()
    assert words == [
        "num-supernodes=3",
        "client-resources-num-cpus=2",
        "client-resources-num-gpus=0.5",
        "init-args-num-cpus=6",  # more processes would have nothing to do
    ]
    assert "init-args-num-cpus=9" in Resources(sites=300).federation_config()
    assert "init-args-num-cpus=1" in Resources(sites=300, cpus=1).federation_config()
    with pytest.raises(ConfigError, match="9 CPUs a site"):
        Resources(sites=3, cpus_per_site=9).check()
    in_cluster = Resources(sites=3, ray_address="head:6379").federation_config()
    assert "init-args" not in in_cluster  # Ray refuses to give a cluster other CPUs


def test_run_refuses_one_data_set_where_a_cohort_is_asked_for(
    tiny_cohort: Path, tmp_path: Path
) -> None:
    words = ("run", "--cohort", str(tiny_cohort / "north"))
    done = fedscan_here(*words, cwd=tmp_path, cache=tmp_path / "cache")
    assert done.returncode == 2
    assert "one data set" in done.stderr


@pytest.mark.parametrize("words", [["--out", "file"], ["--set", "run.min-sites=9"]])
def test_run_refuses_what_could_only_fail_later(
    words: list[str], tiny_cohort: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    done = fedscan_here(
        *("run", "--cohort", str(tiny_cohort), *words), cwd=tmp_path, cache=tmp_path / "cache"
    )
    assert done.returncode == 2
    assert "Error:" in done.stderr and "Traceback" not in done.stderr


def test_terminal_obeys_nothing_that_others_wrote() -> None:
    shown = console._Plain(file=io.StringIO(), width=80)
    table = Table("site")
    table.add_row("a\x1b[2Jb :smile:")
    shown.print(table)
    shown.print("[bold]c[/] \x1b]0;title\x07 \u202e", markup=False)
    told = shown.file.getvalue()
    assert not {"\x1b", "\x07", "\u202e"} & set(told)
    assert "a\ufffd[2Jb :smile:" in told
    assert "[bold]c[/]" in told


def test_version_is_told(tmp_path: Path) -> None:
    done = fedscan("--version", cwd=tmp_path, cache=tmp_path)
    assert done.returncode == 0 and done.stdout.count(".") == 2
