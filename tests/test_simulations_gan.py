"""Generators from the command line: trained, stopped, resumed, drawn from, projected into."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from processes import SCRIPTS, caches, environment, fedscan_here
from safetensors.numpy import load_file, save_file
from test_task_generation import slices
from tiny import dataset

from common.errors import ConfigError, DivergedError, FedscanError
from simulations.folders import locked
from simulations.gan import summary as judged
from simulations.gan.plan import Request
from simulations.gan.train import train
from simulations.stopping import signals_noted

SIZES = ["resolution=16", "channel-base=256", "channel-max=16", "z-dim=16", "w-dim=16"]
OFTEN = ["batch-size=4", "log-every=2", "snapshot-every=3"]
EVERY = ["path-weight=2", "style-mixing=0.9"]  # every phase, whatever the preset leaves out
SET = [word for assignment in SIZES + OFTEN + EVERY for word in ("--set", assignment)]
CHANGES = {
    "resolution": 16,
    "channel-base": 256,
    "channel-max": 16,
    "z-dim": 16,
    "w-dim": 16,
    "batch-size": 4,
    "log-every": 2,
    "snapshot-every": 3,
    "path-weight": 2,
    "style-mixing": 0.9,
}


pytestmark = pytest.mark.usefixtures("quick_default")


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of these tests' own, since the extractor in it is none to judge by."""
    return tmp_path_factory.mktemp("gan cache")


@pytest.fixture
def command(cache: Path) -> Callable[..., Done]:
    """Run ``fedscan`` in this process, which saves seconds of imports a call."""

    def run(*words: str | Path) -> Done:
        done = fedscan_here(*map(str, words), cwd=Path.cwd(), cache=cache)
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="module")
def begin(tiny_cohort: Path, cache: Path) -> Iterator[Callable[..., dict]]:
    """Train a number of iterations in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in caches(cache).items():
            patch.setenv(name, value)

        def run(out: Path, steps: int = 6, *, resume: bool = False, **more) -> dict:
            changes = {**({} if resume else CHANGES), "kimg": steps * 4 / 1000}
            options = {"cohort": tiny_cohort, "changes": changes, "resume": resume, **more}
            return train(Request(out=out, **options))

        yield run


@pytest.fixture(scope="module")
def trained(begin, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """Six iterations on both sites, told sex and site: the folder and the summary."""
    out = tmp_path_factory.mktemp("trained") / "gan"
    changes = {**CHANGES, "kimg": 0.024, "label-kinds": "sex,site"}
    return out, begin(out, changes=changes)


def weights(folder: Path) -> bytes:
    (path,) = folder.glob("gan-*.safetensors")
    return path.read_bytes()


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


# Training


def test_the_folder_of_a_training_is_whole(trained) -> None:
    folder, _ = trained
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    (tensors,) = folder.glob("gan-*.safetensors")
    assert names == {
        *("manifest.json", "metrics.jsonl", "summary.json", "gan.json", tensors.name),
        *("real.png", "grid.png", "grid-000003.png", "grid-000006.png"),
    }
    assert (folder / "grid.png").read_bytes() == (folder / "grid-000006.png").read_bytes()
    assert (folder / "grid-000003.png").read_bytes() != (folder / "grid-000006.png").read_bytes()
    assert (folder / "real.png").stat().st_mode & 0o077 == 0  # slices of scans


def test_the_summary_names_the_extractor_and_stands_beside_real_scans(trained) -> None:
    folder, summary = trained
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert summary["extractor"]["name"] and len(summary["extractor"]["hash"]) >= 12
    assert summary["images_seen"] == 24 and summary["steps"] == 6
    assert summary["sites"] == ["island", "north"] and summary["labels"] == ["sex", "site"]
    n_test = summary["real"]["n_real"]
    assert n_test == summary["generated"]["n_real"] == 8 * 5  # four scans a site, five slices
    assert summary["real"]["n_generated"] == summary["generated"]["n_generated"]
    for name in ("kernel_distance", "precision", "recall"):
        assert summary["generated"][name] is not None
    assert summary["real"]["kernel_distance"] < summary["generated"]["kernel_distance"]
    assert 0 <= summary["p"] <= 1 and summary["seconds"] > 0
    assert summary["path_length"] > 0
    real, generated = summary["real"]["statistics"], summary["generated"]["statistics"]
    assert real["sliced_wasserstein"]["mean"] < generated["sliced_wasserstein"]["mean"]


def test_the_metrics_hold_losses_p_signs_norms_and_speed(trained) -> None:
    found = rows(trained[0])
    assert {row["round"] for row in found if row["name"] == "loss-generator"} == {2, 4, 6}
    assert {row["name"] for row in found} >= {
        *("loss-generator", "loss-discriminator", "sign-real", "p", "images-per-second"),
        *("gradient-norm-generator", "gradient-norm-discriminator", "r1-penalty", "path-length"),
    }
    assert {row["site"] for row in found} == {"island+north"}
    assert all(row["n"] == 4 * row["round"] for row in found)


def test_nothing_identifying_is_in_the_folder(trained, tiny_cohort: Path) -> None:
    for path in trained[0].iterdir():
        assert "sub-" not in path.name
        assert b"sub-" not in path.read_bytes(), path.name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_training_goes_on_bit_for_bit(
    number: int, begin, tiny_cohort: Path, cache: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "stopped"
    process = subprocess.Popen(
        [str(SCRIPTS / "fedscan"), "train-gan", "--cohort", str(tiny_cohort), "--out", "stopped"]
        + ["--site", "north", *SET, "--set", "kimg=1000"],
        cwd=tmp_path,
        env=environment(cache),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (folder / "grid-000006.png").is_file() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 128 + number
        assert "Saved after iteration" in err and "--resume" in err
        assert "Traceback" not in err
    reached = json.loads((folder / "gan.json").read_text())["steps"]
    assert reached >= 3 and not (folder / "summary.json").exists()

    begin(folder, reached + 4, resume=True)
    begin(tmp_path / "at once", reached + 4, sites=("north",))
    assert weights(folder) == weights(tmp_path / "at once")
    steps = [row["round"] for row in rows(folder) if row["name"] == "p"]
    assert steps == sorted(set(steps)) and steps[-1] == reached + 4
    grids, others = pictures(folder), pictures(tmp_path / "at once")
    assert all(grids[name] == others[name] for name in others)


def test_a_finished_training_is_told_and_left_alone(trained, begin, capsys) -> None:
    folder, summary = trained
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert begin(folder, resume=True) == summary
    assert "Nothing is left to do" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def other_extractor(trained, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another network of the same architecture, as a file."""
    (weights,) = (cache / "extractors").glob("*.safetensors")
    state = {name: tensor * 1.25 for name, tensor in load_file(weights).items()}
    path = tmp_path_factory.mktemp("extractor") / "other.safetensors"
    save_file(state, path)
    return path


def timeless(summary: dict) -> dict:
    return {key: value for key, value in summary.items() if key != "seconds"}


def test_a_finished_training_is_judged_anew_by_another_network(
    trained, begin, other_extractor: Path, tmp_path: Path, capsys
) -> None:
    folder, summary = trained
    out = tmp_path / "gan"
    shutil.copytree(folder, out)
    anew = begin(out, resume=True, extractor=str(other_extractor))
    assert "judging by other.safetensors" in capsys.readouterr().err
    assert anew["extractor"]["name"] == "other.safetensors"
    assert anew["extractor"]["hash"] != summary["extractor"]["hash"]
    assert anew["generated"]["kernel_distance"] != summary["generated"]["kernel_distance"]
    assert json.loads((out / "summary.json").read_text()) == anew
    assert anew["seconds"] > 0 and weights(out) == weights(folder)
    assert timeless(begin(out, resume=True)) == timeless(summary)


@pytest.mark.parametrize("broken", ["path_length", "statistics", "steps", "extractor", "all"])
def test_a_summary_of_an_older_version_is_not_current(broken: str, trained, tmp_path: Path):
    from types import SimpleNamespace

    from simulations.gan.summary import read_current

    _, summary = trained
    extractor = SimpleNamespace(**summary["extractor"])
    old, path = json.loads(json.dumps(summary)), tmp_path / "summary.json"
    path.write_text(json.dumps(old))
    assert read_current(path, extractor, steps=6) == summary
    if broken == "statistics":
        del old["generated"]["statistics"]
    elif broken == "steps":
        old["steps"] = 3
    elif broken == "all":
        old = ["no summary"]
    else:
        del old[broken]
    path.write_text(json.dumps(old))
    assert read_current(path, extractor, steps=6) is None
    path.write_text("{half")
    assert read_current(path, extractor, steps=6) is None


@pytest.mark.parametrize("extractor", [None, {}, {"name": "", "hash": "0"}, {"name": "some"}])
def test_a_result_without_its_extractor_is_never_written(
    extractor, trained, begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "gan"
    shutil.copytree(trained[0], out)
    (out / "summary.json").unlink()
    nameless = {**trained[1], "extractor": extractor}
    monkeypatch.setattr("simulations.gan.summary.summarize", lambda *_, **__: nameless)
    with pytest.raises(FedscanError, match="extractor's"):
        begin(out, resume=True)
    assert not (out / "summary.json").exists()


def test_a_snapshot_is_no_training_time(
    begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simulations.gan.train import _Run

    write, clock, late = _Run._snapshot, time.perf_counter, [0.0]

    def slow(*arguments) -> None:
        write(*arguments)
        late[0] += 1000.0

    monkeypatch.setattr(time, "perf_counter", lambda: clock() + late[0])

    monkeypatch.setattr(_Run, "_snapshot", slow)  # after the 3rd iteration, rows after the 2nd, 4th
    begin(tmp_path / "gan", 4, sites=("north",))
    speed = {
        row["round"]: row["value"]
        for row in rows(tmp_path / "gan")
        if row["name"] == "images-per-second"
    }
    assert speed.keys() == {2, 4}
    assert speed[4] > 8 / 900


def test_the_hash_of_slices_needs_no_copy_of_them() -> None:
    import hashlib
    import tracemalloc

    from simulations.gan.sites import digest

    images = np.random.default_rng(0).random((2048, 1, 64, 64), np.float32)
    labels = [{"sex": "female", "site": "north"} for _ in images]
    data = dataset(images, conditions=labels)
    expected = hashlib.sha256(images.tobytes())
    expected.update(repr([sorted(row.items()) for row in labels]).encode())
    tracemalloc.start()
    found = digest(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == expected.hexdigest()
    assert peak < images.nbytes / 4


@pytest.mark.parametrize("names", [["west"], ["island", "south"], ["east", "north"]])
def test_any_of_the_phantom_hospitals_can_be_chosen(
    names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from common.data.phantoms.cohorts import phantom_cohort
    from simulations import hospitals
    from simulations.gan.sites import choose_sites, site_folders

    def ensure(site: str, cache: Path, **how: object) -> Path:
        return tmp_path / site

    cohort = replace(phantom_cohort("brain-sex"), ensure=ensure)
    monkeypatch.setattr(hospitals, "phantom_cohort", lambda study: cohort)
    folders = site_folders("brain-sex", None, choose_sites("brain-sex", None, names))
    assert folders == {name: tmp_path / name for name in sorted(names)}


def test_a_signal_is_noted_even_while_stderr_is_written_to(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Busy:
        def write(self, text: str) -> None:
            raise RuntimeError("reentrant call inside BufferedWriter")

        flush = write

    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", Busy())
        with signals_noted() as noted:
            signal.raise_signal(signal.SIGTERM)
    assert noted == [signal.SIGTERM] and signal.getsignal(signal.SIGTERM) == handler
    assert capfd.readouterr().err == "Interrupted: saving what is done\n"


def test_a_folder_that_holds_anything_is_not_overwritten(
    trained, command, tiny_cohort: Path, tmp_path: Path
) -> None:
    words = ("train-gan", "--cohort", tiny_cohort, *SET)
    done = command(*words, "--out", trained[0])
    assert done.code == 2 and "holds a training. Continue it with --resume" in done.err
    (tmp_path / "notes.txt").touch()
    done = command(*words, "--out", tmp_path)
    assert done.code == 2 and "holds other files" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    done = command(*words, "--out", tmp_path, "--resume")
    assert done.code == 2 and "holds no training" in done.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--set", "batch-size=8"], "another batch-size (4)"),
        (["--labels", "none"], "another label-kinds (sex,site)"),
        (["--site", "north"], "another choice of sites (island+north)"),
        (["--preset", "brain-64"], "another preset (tiny-32)"),
    ],
)
def test_another_training_is_not_resumed(trained, command, words, expected) -> None:
    done = command("train-gan", "--out", trained[0], "--resume", *words)
    assert done.code == 2 and expected in done.err


def test_another_machine_may_go_on(trained, command, tmp_path: Path) -> None:
    out = tmp_path / "gan"
    shutil.copytree(trained[0], out)
    words = ["--threads", "2", "--set", "kimg=0.028"]
    done = command("train-gan", "--out", out, "--resume", *words, "--format", "json")
    assert done.code == 0, done.err
    assert "begun with other threads" in done.err
    assert json.loads(done.out)["steps"] == 7


def test_what_a_resumed_training_was_asked_for_is_kept(trained, command, tmp_path: Path):
    out = tmp_path / "gan"
    shutil.copytree(trained[0], out)
    words = ("train-gan", "--out", out, "--resume")
    assert command(*words, "--set", "kimg=0.04", "--minutes", "0.0001").code == 0
    done = command(*words, "--format", "json")
    assert done.code == 0 and json.loads(done.out)["steps"] == 10, done.err


def test_a_site_without_test_scans_is_refused_before_the_training(
    command, tiny_cohort: Path, tmp_path: Path
) -> None:
    cohort = tmp_path / "cohort"
    shutil.copytree(tiny_cohort, cohort)
    table = cohort / "north" / "participants.tsv"
    table.write_text(table.read_text().replace("\ttest", "\ttrain"))
    done = command("train-gan", "--cohort", cohort, "--out", tmp_path / "gan", *SET)
    assert done.code == 2 and "site 'north'" in done.err and "test" in done.err
    assert not (tmp_path / "gan" / "manifest.json").exists()


def test_other_scans_are_not_resumed_with(trained, begin, tiny_cohort: Path, tmp_path: Path):
    cohort, out = tmp_path / "cohort", tmp_path / "gan"
    shutil.copytree(tiny_cohort, cohort)
    shutil.copytree(trained[0], out)
    table = cohort / "north" / "participants.tsv"
    text = table.read_text()
    assert "\ttrain" in text
    table.write_text(text.replace("\ttrain", "\tval", 1))
    with pytest.raises(ConfigError, match="not those that this training began with") as caught:
        begin(out, 9, resume=True, cohort=cohort)
    assert str(out) in str(caught.value) and str(tmp_path) not in caught.value.public
    begin(out, 7, resume=True)  # the cohort is where it was


def test_a_second_process_is_kept_out(trained, command, begin, tmp_path: Path) -> None:
    with locked(trained[0]):
        done = command("train-gan", "--out", trained[0], "--resume")
    assert done.code == 2 and "is being worked on by another process" in done.err


def test_a_full_disk_is_said_and_the_last_checkpoint_stays(begin, tmp_path: Path) -> None:
    out = tmp_path / "gan"
    begin(out, 3, sites=("north",))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = weights(out)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(FedscanError) as caught:
            begin(out, 6, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not isinstance(caught.value, ConfigError)
    for words in ("too large", "iteration 3 is whole", "make room", "--resume"):
        assert words in str(caught.value)
    assert str(tmp_path) not in caught.value.public and "make room" in caught.value.public
    assert weights(out) == before
    begin(out, 6, resume=True)
    begin(tmp_path / "at once", 6, sites=("north",))
    assert weights(out) == weights(tmp_path / "at once")


def test_time_ends_a_training_with_a_result(begin, tmp_path: Path) -> None:
    summary = begin(tmp_path / "gan", 10**6, sites=("north",), minutes=0.01)
    assert 1 <= summary["steps"] < 1000
    assert summary["seconds"] < 30
    assert json.loads((tmp_path / "gan" / "gan.json").read_text())["steps"] == summary["steps"]


def test_weights_that_are_not_finite_never_replace_a_checkpoint(
    begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from common.training import gan

    out = tmp_path / "gan"
    begin(out, 3, sites=("north",))
    before = weights(out)
    step = gan.train_step

    def broken(training, *rest):
        measured = step(training, *rest)
        next(training.ema.parameters()).fill_(float("nan"))
        return measured

    monkeypatch.setattr(gan, "train_step", broken)
    with pytest.raises(DivergedError, match="iteration 3 stays"):
        begin(out, 5, resume=True)
    assert weights(out) == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--site", "west"], "holds island, north"),
        (["--preset", "tiny"], "tiny-32, tiny-32-federated, brain-64, brain-128, paper-256"),
        (["--set", "channels=3"], "images of study 'brain-sex' have 1: leave it out"),
        (["--study", "retina"], "accepted is one of brain-sex, skin-lesions"),
        (["--set", "batchsize=4"], "did you mean 'batch-size'?"),
        (["--set", "resolution=48"], "resolution = 48"),
        (["--set", "resolution=512"], "accepted for slices of scans is one of 16, 32"),
        (["--labels", "age"], "none, or some of sex, height, site"),
        (["--labels", "sex", "--set", "label-kinds=site"], "give one of them"),
        (["--minutes", "0"], "--minutes 0"),
        (["--extractor", "inception.pt"], "accepted are 'fedscan-brain', 'fedscan-skin' and"),
        (["--cohort", "nowhere"], "nowhere"),
    ],
)
def test_a_request_that_cannot_be_met_writes_nothing(
    words, expected, command, tiny_cohort: Path, tmp_path: Path
) -> None:
    cohort = () if "--cohort" in words else ("--cohort", tiny_cohort)
    done = command("train-gan", *cohort, "--out", tmp_path / "gan", *words)
    assert done.code == 2 and expected in done.err
    assert "Traceback" not in done.err
    assert not list(tmp_path.iterdir())


def test_one_data_set_is_told_from_a_cohort_and_phantoms_by_name(
    command, tiny_cohort: Path, tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "gan")
    done = command("train-gan", "--cohort", tiny_cohort / "north", *out)
    assert done.code == 2 and "--site north" in done.err
    done = command("train-gan", "--site", "nord", *out)
    assert done.code == 2 and "east, island, north, south, west" in done.err


def test_scans_that_cannot_be_read_leave_nothing_in_the_way(
    command, tiny_cohort: Path, tmp_path: Path
) -> None:
    cohort, out = tmp_path / "cohort", tmp_path / "gan"
    shutil.copytree(tiny_cohort, cohort)
    for scan in (cohort / "island").rglob("*.nii.gz"):
        scan.write_bytes(b"")
    words = ("train-gan", "--cohort", cohort, "--out", out, *SET, "--set", "kimg=0.004")
    done = command(*words)
    assert done.code == 2 and "site 'island'" in done.err and "Traceback" not in done.err
    done = command(*words, "--site", "north")
    assert done.code == 0, done.err


def test_the_command_prints_a_table_and_the_folder(
    command, tiny_cohort: Path, tmp_path: Path
) -> None:
    words = ("train-gan", "--cohort", tiny_cohort, "--site", "north", *SET, "--set", "kimg=0.012")
    done = command(*words, "--out", tmp_path / "a")
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == str(tmp_path / "a")
    for word in ("generated", "real training images", "precision", "extractor"):
        assert word in done.out
    assert "Training 3/3" in done.err and "img/s" in done.err and "━" not in done.err
    done = command(*words, "--out", tmp_path / "b", "--labels", "none", "--format", "json")
    assert done.code == 0 and json.loads(done.out)["labels"] == []


# Generating


def test_the_same_request_gives_the_same_bytes(trained, command, tmp_path: Path) -> None:
    words = ("generate", trained[0], "--count", 5, "--seed", 3, "--truncation", 0.7, "--nifti")
    for name in ("a", "b"):
        done = command(*words, "--out", tmp_path / name)
        assert done.code == 0, done.err
    files = [sorted((tmp_path / name).iterdir()) for name in ("a", "b")]
    assert [path.name for path in files[0]] == [path.name for path in files[1]]
    assert len(files[0]) == 5 * 2 + 2
    for one, other in zip(*files, strict=True):
        assert one.read_bytes() == other.read_bytes()
    done = command(*words, "--seed", 4, "--out", tmp_path / "c")
    assert pictures(tmp_path / "c").keys() == pictures(tmp_path / "a").keys()
    assert pictures(tmp_path / "c") != pictures(tmp_path / "a")


def test_more_pictures_begin_with_the_same(trained, command, tmp_path: Path) -> None:
    for count in (3, 20):
        command("generate", trained[0], "--count", count, "--out", tmp_path / str(count))
    few, many = pictures(tmp_path / "3"), pictures(tmp_path / "20")
    shared = [name for name in few if name != "grid.png"]
    assert len(shared) == 3 and all(few[name] == many[name] for name in shared)


def test_labels_are_honoured(trained, command, tmp_path: Path) -> None:
    def made(name: str, *labels: str) -> tuple[list[dict], dict[str, bytes]]:
        words = [word for label in labels for word in ("--label", label)]
        done = command("generate", trained[0], "--count", 4, *words, "--out", tmp_path / name)
        assert done.code == 0, done.err
        about = json.loads((tmp_path / name / "pictures.json").read_text())
        return [one["labels"] for one in about["pictures"]], pictures(tmp_path / name)

    both, _ = made("both")
    assert len({tuple(row.items()) for row in both}) == 4  # every label in turn
    women, seen = made("women", "female", "site=north")
    assert women == [{"sex": "female", "site": "north"}] * 4
    men, others = made("men", "sex=male", "north")
    assert men == [{"sex": "male", "site": "north"}] * 4
    assert all(seen[name] != others[name] for name in seen)


@pytest.fixture(scope="module")
def of_heights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator that is told sex and height, fresh from the start."""
    from common.training.gan_checkpoint import save_checkpoint
    from common.training.gan_config import GanConfig
    from common.training.gan_state import GanTraining

    config = GanConfig.from_mapping({**CHANGES, "label-kinds": "sex,height"})
    kinds = {"sex": ("female", "male"), "height": ("-9", "0", "9", "18")}
    folder = tmp_path_factory.mktemp("heights")
    save_checkpoint(folder, GanTraining.start(config, config.architecture(kinds)))
    return folder


def test_slices_lie_at_the_height_of_their_label(of_heights, trained, command, tmp_path: Path):
    words = ("--count", 8, "--nifti", "--out")
    done = command("generate", of_heights, *words, tmp_path / "a")
    assert done.code == 0 and "1 × female, -9 mm; 1 × female, 0 mm" in done.out
    about = json.loads((tmp_path / "a" / "pictures.json").read_text())
    for one in about["pictures"]:
        stored = nib.load(tmp_path / "a" / one["file"].replace(".png", ".nii.gz"))
        assert stored.affine[2, 3] == float(one["labels"]["height"])
    assert command("generate", trained[0], *words, tmp_path / "b").code == 0
    assert nib.load(tmp_path / "b" / "picture-00000.nii.gz").affine[2, 3] == 0


def test_labels_read_as_a_person_writes_them() -> None:
    from simulations.gan.generate import height_mm, label_name

    assert label_name({"sex": "female", "height": "-9", "site": "north"}) == "female, -9 mm, north"
    assert height_mm({"sex": "female", "height": "-9"}) == -9
    assert [height_mm(row) for row in ({}, {"height": "top"}, {"height": "nan"})] == [None] * 3


def test_batches_are_the_same_pictures(trained) -> None:
    from common.training import gan_sampling

    generator, _ = gan_sampling.load_generator(trained[0])
    labels = gan_sampling.combinations(generator.architecture)
    wanted = [labels[k % 4] for k in range(37)]
    whole = gan_sampling.sample_rows(generator, wanted, range(37), truncation=0.7, seed=2)
    parts = list(gan_sampling.sample_batches(generator, wanted, range(37), truncation=0.7, seed=2))
    assert [len(part) for part in parts] == [16, 16, 5]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_only_the_grid_stays_in_memory(
    trained, command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import weakref

    from common.training import gan_sampling

    make, alive = gan_sampling.sample_batches, []

    def watched(*arguments, **options):
        known = []
        for images in make(*arguments, **options):
            own = images.copy()
            known.append(weakref.ref(own))
            yield own
            del own
            alive.append(sum(reference() is not None for reference in known))

    monkeypatch.setattr(gan_sampling, "sample_batches", watched)
    done = command("generate", trained[0], "--count", 100, "--out", tmp_path / "out")
    assert done.code == 0 and len(pictures(tmp_path / "out")) == 101
    assert len(alive) == 7 and max(alive) <= 2


def test_a_generator_of_nan_is_refused_batch_by_batch(
    trained, command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from common.training import gan_sampling
    from simulations.gan.generate import Request as Wanted
    from simulations.gan.generate import generate

    make = gan_sampling.sample_batches

    def diverging(*arguments, **options):
        for number, images in enumerate(make(*arguments, **options)):
            yield images if number == 0 else images * np.float32("nan")

    monkeypatch.setattr(gan_sampling, "sample_batches", diverging)
    with pytest.raises(ConfigError, match="this generator makes NaN") as caught:
        generate(Wanted(checkpoint=trained[0], out=tmp_path / "out", count=40))
    assert str(trained[0]) in str(caught.value) and str(trained[0]) not in caught.value.public
    assert len(pictures(tmp_path / "out")) == 16
    assert not (tmp_path / "out" / "pictures.json").exists()


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["X"], "accepted are sex=female, sex=male, site=island, site=north"),
        (["sex=X"], "accepted are sex=female"),
        (["age=30"], "accepted are sex=female"),
        (["female", "male"], "accepted is one"),
    ],
)
def test_an_unknown_label_is_refused_with_the_known_ones(
    labels, expected, trained, command, tmp_path: Path
) -> None:
    words = [word for label in labels for word in ("--label", label)]
    done = command("generate", trained[0], *words, "--out", tmp_path / "out")
    assert done.code == 2 and expected in done.err
    assert not (tmp_path / "out").exists()


def test_pictures_are_not_mixed_with_others(trained, command, tmp_path: Path) -> None:
    (tmp_path / "picture-00000.png").write_bytes(b"mine")
    done = command("generate", trained[0], "--out", tmp_path)
    assert done.code == 2 and "holds other files" in done.err
    assert (tmp_path / "picture-00000.png").read_bytes() == b"mine"


def test_from_python_in_three_lines(trained) -> None:
    folder = trained[0]
    from common.training.gan_sampling import load_generator, sample

    generator, about = load_generator(folder)
    images = sample(generator, 5, {"sex": "female"}, truncation=0.7, seed=0)

    assert images.shape == (5, 1, 16, 16) and np.isfinite(images).all()
    assert about["steps"] == 6
    again = sample(generator, 5, {"sex": "female"}, truncation=0.7, seed=0)
    np.testing.assert_array_equal(images, again)
    average = sample(generator, 3, {"sex": "female", "site": "north"}, truncation=0.0)
    np.testing.assert_allclose(average[0], average[1], atol=1e-5)
    with pytest.raises(ConfigError, match="accepted are sex=female"):
        sample(generator, 1, {"sex": "X"})


@pytest.mark.parametrize("verb", ["generate", "project"])
def test_what_is_no_checkpoint_is_refused_and_never_opened(
    verb: str, trained, command, tmp_path: Path
) -> None:
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    import pickle

    (tmp_path / "network.pkl").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    shutil.copytree(trained[0], broken)
    (tensors,) = broken.glob("gan-*.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-100])
    image = () if verb == "generate" else (trained[0] / "grid.png",)
    from simulations.gan.generate import open_checkpoint

    for name in ("network.pkl", "empty", "broken", "nowhere"):
        with pytest.raises(ConfigError) as caught:
            open_checkpoint(tmp_path / name, "cpu")
        assert str(tmp_path) not in caught.value.public and name not in caught.value.public
        path = tmp_path / name
        done = command(verb, path, *image, "--out", tmp_path / "out")
        assert done.code == 2 and str(path) in done.err, name
        assert "Traceback" not in done.err
    assert not (tmp_path / "exploded").exists() and not (tmp_path / "out").exists()


# Projecting


def test_generated_pictures_are_found_back(trained, command, tmp_path: Path) -> None:
    command("generate", trained[0], "--count", 2, "--nifti", "--out", tmp_path / "made")
    images = [tmp_path / "made" / "picture-00000.png", tmp_path / "made" / "picture-00001.nii.gz"]
    named = [tmp_path / f"sub-00{k}{''.join(path.suffixes)}" for k, path in enumerate(images)]
    for path, name in zip(images, named, strict=True):
        shutil.copy(path, name)
    words = ("--space", "w+", "--steps", 60, "--format", "json")
    done = command("project", trained[0], *named, *words, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert json.loads((tmp_path / "out" / "projections.json").read_text()) == found
    assert found["extractor"]["name"] and found["extractor"]["hash"]
    for number, one in enumerate(found["projections"]):
        assert one["distance"] < 0.8 * one["distance_start"]
        assert one["rms"] < one["rms_start"]
        folder = tmp_path / "out" / f"{number:03d}"
        assert sorted(path.name for path in folder.iterdir()) == [
            *("comparison.png", "path.png", "reconstruction.png", "target.png"),
            "w.safetensors",
        ]
        for path in folder.iterdir():  # each shows somebody's scan, or gives it back
            assert path.stat().st_mode & 0o777 == 0o600, path.name
        state = load_file(folder / "w.safetensors")
        assert state["w"].shape == (6, 16) and state["noise.00"].shape == (4, 4)
    texts = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any(b"sub-00" in text for text in texts)
    assert "sub-00" not in done.err + done.out


def test_a_projection_can_be_drawn_again(trained, command, tmp_path: Path) -> None:
    import torch

    from common.imaging.pictures import to_pixels
    from common.training.gan_sampling import load_generator

    command("generate", trained[0], "--count", 1, "--out", tmp_path / "made")
    image = tmp_path / "made" / "picture-00000.png"
    words = ("project", trained[0], image, "--steps", 10, "--label", "female")
    for name in ("a", "b"):
        done = command(*words, "--out", tmp_path / name)
        assert done.code == 0, done.err
    assert "distance" in done.out and done.out.splitlines()[-1] == str(tmp_path / "b")
    state = load_file(tmp_path / "a" / "000" / "w.safetensors")
    again = (tmp_path / "b" / "000" / "w.safetensors").read_bytes()
    assert (tmp_path / "a" / "000" / "w.safetensors").read_bytes() == again
    noise = [torch.from_numpy(state[key])[None, None] for key in sorted(state) if key != "w"]
    generator, _ = load_generator(trained[0])
    picture = generator.synthesis(torch.from_numpy(state["w"])[None], noise=noise)
    stored = np.asarray(Image.open(tmp_path / "a" / "000" / "reconstruction.png"))
    np.testing.assert_array_equal(to_pixels(picture.numpy())[0], stored)


@pytest.mark.parametrize("read", [True, False])
def test_what_an_interrupted_generation_made_is_whole(
    read: bool, trained, cache, tmp_path: Path
) -> None:
    out = tmp_path / "made"
    process = subprocess.Popen(
        [str(SCRIPTS / "fedscan"), "generate", str(trained[0]), "--count", "50000"]
        + ["--out", str(out)],
        env=environment(cache),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (out / "picture-00020.png").is_file() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if not read:  # as of `2>&1 | tee`, which Ctrl-C ends as well
        process.stderr.close()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    made = json.loads((out / "pictures.json").read_text())["pictures"]
    if read:
        assert f"{len(made)} of 50000 pictures are in" in err and "Traceback" not in err
    assert {one["file"] for one in made} == {path.name for path in out.glob("picture-*.png")}
    assert (out / "grid.png").is_file()


def test_the_height_of_a_whole_scan_is_its_label(
    of_heights, command, tiny_cohort: Path, tmp_path: Path
) -> None:
    scan = min((tiny_cohort / "north").rglob("*_T1w.nii.gz"))
    command("generate", of_heights, "--count", 1, "--nifti", "--out", tmp_path / "made")
    made = [tmp_path / "made" / f"picture-00000.{kind}" for kind in ("png", "nii.gz")]

    def labels(name: str, *words: str) -> list[dict]:
        done = command(
            *("project", of_heights, scan, *made, "--steps", 1, "--format", "json", *words),
            *("--out", tmp_path / name),
        )
        assert done.code == 0, done.err
        return [one["labels"] for one in json.loads(done.out)["projections"]]

    assert labels("a", "--height", "9", "--label", "female") == [
        {"height": "9", "sex": "female"},
        {"sex": "female"},
        {"sex": "female"},
    ]
    assert labels("b", "--height", "9", "--label", "height=-9") == [{"height": "-9"}] * 3
    assert labels("c", "--height", "5") == [{}, {}, {}]  # a height that it was not trained on

    def refusal(*words: str | Path) -> str:
        done = command("project", of_heights, *words, "--out", tmp_path / "refused")
        assert done.code == 2
        assert not (tmp_path / "refused").exists()
        return done.err

    assert "none of the pictures is one" in refusal(made[0], "--height", "9")
    assert "no head at 90 mm" in refusal(scan, "--height", "90")
    assert "a folder; name the pictures in it" in refusal(tmp_path / "made")


@pytest.mark.parametrize("words", [["--label", "X"], ["--space", "z"], ["--steps", "0"]])
def test_what_cannot_be_projected_is_refused(words, trained, command, tmp_path: Path) -> None:
    (tmp_path / "sub-007.png").write_bytes(b"no picture")
    image = tmp_path / "sub-007.png"
    done = command("project", trained[0], image, *words, "--out", tmp_path / "out")
    assert done.code == 2 and "Traceback" not in done.err
    done = command("project", trained[0], image, "--out", tmp_path / "out")
    assert done.code == 2 and "sub-007.png: not a whole PNG" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["train-gan", "generate", "project"])
def test_help_has_examples(name: str, command) -> None:
    done = command(name, "--help")
    assert done.code == 0 and f"fedscan {name}" in done.out and "example" in done.out


def test_the_installed_command_knows_them(tmp_path: Path) -> None:
    done = fedscan_here("--help", cwd=tmp_path, cache=tmp_path)
    assert done.returncode == 0
    for name in ("train-gan", "generate", "project"):
        assert name in done.stdout


COLOUR = """
name = "moles"
[images]
storage = "table"
table = "moles.csv"
file = "path"
channels = 3
size = 32
[label]
column = "kind"
classes = ["flat", "raised"]
[groups]
person = "who"
[generator]
conditions = ["kind"]
"""


def test_a_study_of_colour_photographs_is_trained_on_and_projected(
    trained, command, cache: Path, tmp_path: Path
) -> None:
    """With the study's conditions, and without the site among them."""
    clinic, out = tmp_path / "clinics" / "west", tmp_path / "gan"
    clinic.mkdir(parents=True)
    (tmp_path / "moles.toml").write_text(COLOUR)
    rng, lines = np.random.default_rng(0), ["path,who,kind"]
    for k in range(40):
        pixels = rng.integers(0, 256, (20, 20, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(clinic / f"{k}.jpg")
        lines.append(f"{k}.jpg,p{k},{('flat', 'raised')[k % 2]}")
    (clinic / "moles.csv").write_text("\n".join(lines))
    about = ("--study", tmp_path / "moles.toml", "--cohort", tmp_path / "clinics")
    extractor = next(cache.rglob("*.safetensors"))  # instead of one for photographs
    words = ("--out", out, *SET, "--set", "kimg=0.012", "--extractor", extractor)
    done = command("train-gan", *about, *words)
    assert done.code == 0, done.err
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["study"].strip() == COLOUR.strip()
    assert manifest["config"]["label-kinds"] == "kind"
    with Image.open(out / "grid.png") as grid:
        assert grid.mode == "RGB"
    again = command("train-gan", "--out", out, "--resume", "--study", "brain-sex")
    assert again.code == 2 and "another study (moles)" in again.err
    projected = ("--out", tmp_path / "found", "--steps", "2", "--extractor", extractor)
    done = command("project", out, clinic / "0.jpg", "--label", "flat", *projected)
    assert done.code == 0, done.err
    with Image.open(tmp_path / "found" / "000" / "reconstruction.png") as picture:
        assert picture.mode == "RGB"


@pytest.mark.parametrize("mirror", [True, False])
def test_copies_of_mirror_images_are_flagged_where_there_are_some(
    monkeypatch: pytest.MonkeyPatch, mirror: bool
) -> None:
    training, test = slices("north", 10, 0), slices("north", 10, 1)
    monkeypatch.setattr(judged, "path_length", lambda *_: 1.0)
    mirrored = 2 * training.images()[..., ::-1] - 1
    monkeypatch.setattr("common.training.gan_sampling.sample_rows", lambda *_, **__: mirrored)
    trained = SimpleNamespace(
        config=SimpleNamespace(resolution=16, seed=0, mirror=mirror),
        architecture=SimpleNamespace(labels=()),
        **{"ema": None, "steps": 1, "images_seen": 1, "p": 0.0},
    )
    pixels = SimpleNamespace(
        features=lambda images: np.asarray(images, float)[:, 0, ::4, ::5].reshape(len(images), -1),
        identity=lambda: {"name": "pixels", "hash": "0" * 64},
    )
    found = judged.summarize(trained, training, test, pixels, seconds=1.0)["copying"]
    assert found["flagged"] == mirror
    assert (found["look_alikes"] == 1) == mirror
