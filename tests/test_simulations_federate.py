"""What is refused before Flower starts, what counts as the end of a run, and what is left of it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from common.config.run_config import RunConfig, flatten
from common.errors import ConfigError
from common.metrics_log import MetricsLog, Row
from common.processes.environment import neutral_home, offline_environment, toml
from simulations import federate as module
from simulations.console import Steps
from simulations.federate import RunFailed, federate, survey_cohort
from simulations.flower_command import START_SECONDS, own_server_answers
from simulations.launch import RAY_TOO_SLOW, TOO_SLOW, FlowerRun, Resources
from simulations.private_state import clean_up_after_killed, looked_after

SLOW = f"Starting local SuperLink...\nError: {TOO_SLOW} 15s. See logs at /tmp/x.\n"


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Give simulated sites a folder for their records; of a run 7, one has kept something."""
    monkeypatch.setenv("FEDSCAN_RECORDS", str(tmp_path / "records"))
    kept = tmp_path / "records" / "north" / "state" / "7"
    kept.mkdir(parents=True)
    return kept


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Let Flower end with a log and files in the run's folder; return how often it was started."""
    monkeypatch.setenv("FEDSCAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FEDSCAN_RECORDS", str(tmp_path / "records"))
    made: list[int] = []

    def end_as(log="", **left):
        def start(config, run, folder, **about):
            made.append(len(made))
            for name, text in left.items():
                (folder / f"{name}.json").write_text(text)
            return log

        monkeypatch.setattr(module, "_through_flower", start)
        return made

    return end_as


@pytest.fixture
def unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take images for readable that are not."""
    monkeypatch.setattr(module, "_require_readable", lambda table, config: None)


@pytest.fixture
def without_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take any folder for a cohort."""
    monkeypatch.setattr(module, "survey_cohort", lambda config, **_: None)


def config(tmp_path: Path, **changes) -> RunConfig:
    values = {"run.output-dir": str(tmp_path / "runs"), "data.cohort-dir": str(tmp_path), **changes}
    return RunConfig.from_flower(values)


def test_flowers_server_has_minutes_to_start() -> None:
    code = (
        "from flwr.cli import local_superlink as installed, app\n"
        "import flwr.cli.app as command; from simulations import flower_command\n"
        "assert installed.LOCAL_SUPERLINK_STARTUP_TIMEOUT == 15\n"
        "command.app = lambda **_: print(installed.LOCAL_SUPERLINK_STARTUP_TIMEOUT)\n"
        "flower_command.main()\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(told.stdout) == START_SECONDS >= 120


def test_a_server_that_another_process_has_started_is_not_taken() -> None:
    """It may be another run's, which has taken the port since it was chosen."""
    listen = (
        "import socket, sys; s = socket.create_server(('127.0.0.1', 0));"
        "print(s.getsockname()[1], flush=True); sys.stdin.read()"
    )
    with (
        socket.create_server(("127.0.0.1", 0)) as mine,
        subprocess.Popen(
            [sys.executable, "-c", listen], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as child,
    ):
        port = int(child.stdout.readline())
        assert own_server_answers(lambda: True, port)
        assert not own_server_answers(lambda: False, port)
        assert not own_server_answers(lambda: True, mine.getsockname()[1])
        child.stdin.close()


@pytest.mark.usefixtures("unopened")
def test_hospitals_whose_given_split_parts_a_family_are_named_before_the_start(
    attempts, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    cohort = tmp_path / "cohort"
    for site, families in (("north", "aab"), ("south", "abc")):
        lines = ["participant_id\tsex\tfamily\tsplit"]
        for name, split in zip(families, ("train", "val", "test"), strict=False):
            scan = cohort / site / f"sub-{split}" / "anat" / f"sub-{split}_T1w.nii"
            scan.parent.mkdir(parents=True)
            scan.touch()
            lines.append(f"sub-{split}\tF\t{name}\t{split}")
        (cohort / site / "participants.tsv").write_text("\n".join(lines))
    study = (
        'name = "families"\nimages = { storage = "bids", channels = 1 }\n'
        'label = { column = "sex", classes = { female = ["F"], male = ["M"] } }\n'
        'groups = { also = ["family"] }\n'
    )
    attempts("Error: something else")
    with pytest.raises(RunFailed):
        federate(config(tmp_path, study=study, **{"data.cohort-dir": str(cohort)}), Resources(2))
    warnings = [line for line in capsys.readouterr().err.splitlines() if "Warning" in line]
    assert len(warnings) == 1
    assert "site 'north': the given split parts 1 group" in warnings[0]


@pytest.mark.usefixtures("without_tables")
def test_a_strategy_that_needs_more_sites_is_refused_before_flower_starts(
    attempts, tmp_path: Path
) -> None:
    made = attempts("Error: something else")
    with pytest.raises(ConfigError, match="strategy 'bulyan' needs 7 sites and there are 2"):
        federate(config(tmp_path, **{"strategy.name": "bulyan"}), Resources(2))
    assert made == []


def test_a_hidden_site_that_a_cohort_lacks_is_refused_before_flower_starts(
    attempts, tiny_cohort: Path, tmp_path: Path
) -> None:
    made = attempts("Error: something else")
    asked = {"data.cohort-dir": str(tiny_cohort), "data.unlabelled": "islnd"}
    with pytest.raises(ConfigError, match=r"data\.unlabelled: there is no site 'islnd'"):
        federate(config(tmp_path, **asked), Resources(2))
    assert made == []


@pytest.mark.usefixtures("without_tables")
def test_a_machine_that_stays_too_busy_is_said_so(attempts, tmp_path: Path) -> None:
    attempts(SLOW)
    with pytest.raises(RunFailed, match="too busy") as caught:
        federate(config(tmp_path), Resources(2))
    assert "See logs at" not in str(caught.value)  # they are gone


@pytest.mark.usefixtures("without_tables")
def test_a_ray_that_does_not_start_is_said_so_with_the_place_of_the_log(
    attempts, tmp_path: Path
) -> None:
    attempts(f"Exception: The {RAY_TOO_SLOW}.\n" + "Simulation crashed\n" * 40)
    with pytest.raises(RunFailed, match="too busy") as caught:
        federate(config(tmp_path, **{"run.id": "7"}), Resources(2))
    assert str(tmp_path / "runs" / "7" / "flower.log") in str(caught.value)
    failure = json.loads((tmp_path / "runs" / "7" / "failure.json").read_text())
    assert "too busy" in failure["error"] and failure["error"] in str(caught.value)


@pytest.mark.usefixtures("without_tables")
def test_any_other_failure_is_final(attempts, tmp_path: Path) -> None:
    made = attempts("Error: something else")
    with pytest.raises(RunFailed, match="something else"):
        federate(config(tmp_path), Resources(2))
    assert made == [0]


@pytest.mark.usefixtures("without_tables")
@pytest.mark.parametrize("left", [(), ("failure",), ("summary", "failure")])
def test_only_a_summary_without_a_failure_is_success(
    attempts, tmp_path: Path, left: tuple[str, ...]
) -> None:
    """Flower's own word is not asked for: its log may end as if all was well."""
    failure = {"site": "", "phase": "training", "error": "it broke", "traceback": ""}
    attempts("finished:completed", **dict.fromkeys(left, json.dumps(failure)))
    with pytest.raises(RunFailed, match="it broke" if left else "without a result"):
        federate(config(tmp_path), Resources(2))


def test_what_simulated_sites_kept_goes_with_the_end_of_the_run(
    records: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "7"
    folder.mkdir(parents=True)
    with looked_after(folder):
        clean_up_after_killed()  # of another run, which begins meanwhile
        assert records.is_dir()
    assert records.is_dir()  # it can be resumed
    with looked_after(folder):
        (folder / "summary.json").write_text("{}")
    assert not records.exists()
    assert not list((records.parents[2] / ".running").iterdir())


def test_one_process_looks_after_a_run(tmp_path: Path, records: Path) -> None:
    folder = tmp_path / "runs" / "7"
    folder.mkdir(parents=True)
    with (
        looked_after(folder),
        pytest.raises(ConfigError, match="this run is in progress"),
        looked_after(folder),
    ):
        pass


def test_a_run_whose_launcher_was_killed_is_kept_until_its_folder_is_gone(
    records: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "7"
    folder.mkdir(parents=True)
    other = records.with_name("8")  # of a run that nobody has told of, as at a deployed site
    other.mkdir()
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from simulations.private_state import looked_after\n"
        "with looked_after(Path(sys.argv[1])):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=False)
    clean_up_after_killed()
    assert records.is_dir()
    told = json.loads((folder / "failure.json").read_text())
    assert told["error"] == "interrupted"
    assert told["go_on"] == "No round was whole: begin the run anew"
    shutil.rmtree(folder)
    clean_up_after_killed()
    assert not records.exists() and other.is_dir()


@pytest.mark.parametrize("study", ["brain-sex", "skin-lesions"])
def test_tables_that_cannot_be_used_are_refused_before_flower_starts(
    tiny_cohort: Path, tmp_path: Path, study: str
) -> None:
    cohort = tiny_cohort if study == "skin-lesions" else tmp_path
    (tmp_path / "north").mkdir()
    settings = config(tmp_path, study=study, **{"data.cohort-dir": str(cohort)})
    with pytest.raises(ConfigError, match=f"study '{study}': --study names another"):
        survey_cohort(settings)
    with pytest.raises(ConfigError, match="--study names another"):
        federate(settings, Resources(2))


@pytest.mark.parametrize("kind", ["pointer", "damaged", "noise"])
def test_scans_of_which_none_can_be_used_are_refused_before_flower_starts(
    tiny_cohort: Path, tmp_path: Path, kind: str
) -> None:
    cohort = shutil.copytree(tiny_cohort, tmp_path / "cohort")
    for scan in sorted((cohort / "north").glob("sub-*/anat/*.nii.gz"))[1:]:
        if kind == "noise":
            import nibabel as nib

            noise = np.random.default_rng(0).rayleigh(30, (40, 44, 40)).astype(np.float32)
            nib.save(nib.Nifti1Image(noise, np.diag([5, 5, 5, 1])), scan)
        else:
            scan.write_bytes(b"/annex/objects/KEY" if kind == "pointer" else b"no scan")
    settings = config(tmp_path, **{"data.cohort-dir": str(cohort)})
    with pytest.raises(ConfigError, match="fedscan check"):
        survey_cohort(settings)


def test_what_a_folder_probably_holds_is_told_before_flower_starts(tmp_path: Path) -> None:
    (tmp_path / "north").mkdir()
    (tmp_path / "north" / "IM000001").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(ConfigError, match="these are DICOM files: `fedscan prepare dicom"):
        survey_cohort(config(tmp_path))


def test_flowers_log_has_no_colours(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("\x1b[92mINFO \x1b[0m: Successfully started run 7\n")
    run = FlowerRun(tmp_path / "log", None)
    assert run.log() == "INFO : Successfully started run 7\n"
    assert run.run_id() == "7"


def test_a_decided_run_does_not_wait_for_a_flower_that_hangs(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLOSING_SECONDS", 0.0)
    settings = config(tmp_path)
    folder = Path(settings.run.output_dir) / "7"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text("{}")
    hanging = SimpleNamespace(ended=lambda seconds: False, run_id=lambda: "7")
    module._follow(hanging, settings, folder, Steps("Round", 1, None, quiet=True))


def test_every_ray_has_a_password_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of another cluster")
    first, second = (offline_environment(tmp_path) for _ in range(2))
    assert first["RAY_AUTH_MODE"] == "token"
    assert len({first["RAY_AUTH_TOKEN"], second["RAY_AUTH_TOKEN"], "of another cluster"}) == 3
    assert len(first["RAY_AUTH_TOKEN"]) == 64  # 256 bits, as hexadecimal digits


def test_a_named_cluster_keeps_its_password_and_its_workers_get_the_folders_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the cluster")
    monkeypatch.setenv("FEDSCAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FEDSCAN_RECORDS", str(tmp_path / "records"))
    environment = offline_environment(tmp_path, "head:6379")
    assert environment["RAY_ADDRESS"] == "head:6379"
    assert environment["RAY_AUTH_TOKEN"] == "of the cluster"
    assert "RAY_TMPDIR" not in environment
    told = json.loads(environment["RAY_JOB_CONFIG_JSON_ENV_VAR"])["runtime_env"]["env_vars"]
    assert told["FEDSCAN_CACHE"] == str(tmp_path / "cache")
    assert told["FEDSCAN_RECORDS"] == str(tmp_path / "records")


def test_workers_do_not_give_way_to_other_processes() -> None:
    words = """
import os, ray
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
print(ray.get(ray.remote(lambda: os.nice(0)).remote()) - os.nice(0))
"""
    with neutral_home() as home:
        done = subprocess.run(
            [sys.executable, "-c", words],
            env=offline_environment(home),
            capture_output=True,
            text=True,
            check=True,
        )
    assert done.stdout == "0\n"


def test_within_a_ray_worker_nothing_of_its_ray_is_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_JOB_ID", "RAY_RAYLET_PID", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "outer")
    environment = offline_environment(tmp_path)
    assert "outer" not in environment.values()
    assert environment["RAY_AUTH_MODE"] == "token"


def test_of_hundreds_of_sites_progress_tells_the_mean_and_names_none() -> None:
    rows = [Row(1, f"site-{k}", "val", "balanced_accuracy", k % 2, 4, 0.0) for k in range(500)]
    assert module._validation(rows) == "balanced accuracy 0.50, mean of 500 sites"
    assert module._images({row.site: {"n_train": 12} for row in rows}) == "500 sites (6000)"


def test_a_round_of_which_nobody_tells_counts_when_the_next_begins(tmp_path: Path) -> None:
    told: list[str] = []
    bar = SimpleNamespace(done=0)

    def advance(number: int, note: str = "", **more: bool) -> None:
        bar.done += number
        told.append(note)

    bar.advance = advance
    rows = [Row(1, "north", split, "bytes-up-x", 0.0, 0, 0.0) for split in ("train", "val")]
    settings = config(tmp_path, **{"run.rounds": 2})
    module._show_new_rounds(rows, bar, settings)
    assert bar.done == 0
    rows.append(Row(2, "north", "train", "loss", 0.5, 8, 1.0))
    rows.append(Row(2, "north", "val", "balanced_accuracy", 0.75, 8, 1.0))
    module._show_new_rounds(rows, bar, settings)
    assert (bar.done, told) == (
        2,
        ["validation: not told", "validation: balanced accuracy north 0.75"],
    )


def test_a_resumed_run_counts_the_rounds_before_and_does_not_tell_them_again(
    tmp_path: Path,
) -> None:
    told: list[str] = []
    bar = SimpleNamespace(done=0, say=told.append, tell=told.append)

    def advance(number: int, note: str = "", *, always: bool = False) -> None:
        bar.done += number
        told.extend([note] * always)

    bar.advance = advance
    for number in (1, 2):
        rows = [Row(number, "north", split, "balanced_accuracy", 0.5, 8, 1.0)
                for split in ("train", "val")]  # fmt: skip
        MetricsLog(tmp_path / "metrics.jsonl").append(rows)
    run = SimpleNamespace(ended=lambda _: True, run_id=lambda: None)
    settings = config(tmp_path, **{"run.rounds": 3, "run.id": "1", "run.resume": True})
    module._follow(run, settings, tmp_path, bar)
    assert bar.done == 2
    assert told == ["Resumed after round 2; the rounds before it are not told again"]


def test_a_path_of_any_letters_reaches_flower() -> None:
    values = {
        "data.cohort-dir": '/home/𠮷 "ö"\\ \x7f \x01',
        "run.seed": 3,
        "training.learning-rate": 1e-3,
    }
    assert flatten(tomllib.loads(toml(values))) == values  # as Flower does
    with pytest.raises(ConfigError, match="not UTF-8"):
        toml({"data.cohort-dir": "/home/\udcff"})


def test_an_extractor_that_is_not_there_is_refused_first(attempts, tmp_path: Path) -> None:
    made = attempts()
    for path, why in ((str(tmp_path / "nix.pt"), "accepted are"), ("nix.pt", "absolute path")):
        with pytest.raises(ConfigError, match=rf"extractor (= )?'.*nix\.pt': .*{why}"):
            federate(
                config(tmp_path, **{"task": "generation", "model.extractor": path}), Resources(2)
            )
    assert made == []


GRADES = """
name = "grades"
images = { storage = "table", table = "grades.csv", file = "path", channels = 1 }
label = { column = "grade", classes = ["none", "mild"] }
"""


@pytest.mark.usefixtures("unopened")
@pytest.mark.parametrize("adapt", ["center", "none"])
def test_a_site_that_lacks_a_class_is_not_centered_before_anything_is_started(
    attempts, tmp_path: Path, adapt: str
) -> None:
    for name, of_training in (("north", ("none", "mild")), ("island", ("none", "none"))):
        (site := tmp_path / "cohort" / name).mkdir(parents=True)
        splits = ("train", "train", "val", "test")
        rows = [
            f"{k}.png,{grade},{split}\n"
            for k, (grade, split) in enumerate(
                zip((*of_training, "mild", "none"), splits, strict=True)
            )
        ]
        (site / "grades.csv").write_text("".join(["path,grade,split\n", *rows]))
        for k in range(4):
            (site / f"{k}.png").touch()
    made = attempts(summary="{}")
    run = {"study": GRADES, "model.classifier": "gan-features", "model.adapt": adapt}
    asked = config(tmp_path, **run, **{"data.cohort-dir": str(tmp_path / "cohort")})
    if adapt == "none":
        federate(asked, Resources(2))
        assert made == [0]
    else:
        with pytest.raises(ConfigError, match=r"'island': .*none of mild.*adapt to none"):
            federate(asked, Resources(2))
        assert made == []


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (None, "the site's policy cannot be read"),
        ("min-batches = 1", "unknown key 'min-batches'"),
        ("max-rounds = 1", "refuses this run: run.rounds = 3"),
    ],
)
def test_a_policy_is_read_before_anything_is_started(
    attempts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str | None, said: str
) -> None:
    made = attempts("finished:completed")
    if policy:
        (tmp_path / "policy.toml").write_text(policy)
    monkeypatch.setenv("FEDSCAN_POLICY", str(tmp_path / "policy.toml"))
    with pytest.raises(ConfigError, match=said):
        federate(config(tmp_path, **{"run.rounds": 3}), Resources(2))
    assert made == []
