"""Folders that somebody else has written: nothing outside them is read, nothing hangs or breaks."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from benchmark_folders import make_folder
from generation_folders import make_comparison, make_run
from tiny_gan import start

from common.errors import ConfigError, FedscanError, FileError
from common.metrics_log import read_rows
from common.reading import (
    open_plain,
    parse_json,
    parse_toml,
    read_bytes,
    read_json,
    require_plain_tree,
)
from common.training.gan_checkpoint import load_checkpoint, save_checkpoint
from simulations.benchmark import Benchmark
from simulations.gan.generate import open_checkpoint
from simulations.gan.plan import Request, resolve
from simulations.plan import Plan
from simulations.question import check_folder, require_same
from simulations.report.document import write_report
from simulations.results import read_predictions
from simulations.schedule import status_of
from simulations.stopping import STOP

HUGE = 2**30  # bytes, of a file that takes no room on the disk
SECRET = "the-name-of-a-patient"
CELL = "cells/federated-fedavg-seed0"
FILES = {
    "comparison": ["results.csv", "summary.json", "manifest.json", "samples.npz"],
    "generation": ["use.csv", f"{CELL}/all/summary.json", f"{CELL}/all/grids/round-0006.png"],
    "run": ["manifest.json", "metrics.jsonl", "summary.json", "grids/round-0003.png"],
}
REPORTED = [(kind, name) for kind, names in FILES.items() for name in names]
SPOILT = {
    "deep": b"[" * 100_000,
    "deep in an object": b'{"a": ' * 500 + b"1" + b"}" * 500,
    "digits": b'{"config": 1' + b"0" * 5000 + b"}",
    "more than 64 bits": b'{"config": 1' + b"0" * 400 + b"}",
    "not a number": b'{"config": NaN}',
    "infinite": b'{"config": [-Infinity]}',
    "beyond floats": b'{"config": 1e999}',
    "half a pair": b'{"config": "\\ud800"}',
    "no text": b"\xff\xfe\x00",
    "no object": b"[1]",
}


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    """End a test that hangs, as on a pipe."""

    def late(*_: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("whole")
    return {
        "comparison": make_folder(home / "comparison", seeds=1, rounds=2),
        "generation": make_comparison(home / "generation", seeds=1, rounds=12),
        "run": make_run(home / "run", rounds=3),
    }


@pytest.fixture
def report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[[Path], tuple[int, str]]]:
    """Run ``fedscan report`` here; return its exit code and all that it says."""
    from simulations.cli import main

    handlers = {number: signal.getsignal(number) for number in STOP}
    os.umask(umask := os.umask(0))

    def run(folder: Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fedscan", "report", str(folder)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        said = capsys.readouterr()
        return code, said.out + said.err

    yield run
    os.umask(umask)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def spoil(path: Path, how: str, away: Path) -> None:
    """Put something else in the place of a file: a link to the very file, which is then away."""
    elsewhere = away / f"{SECRET}-{path.name}"
    shutil.move(path, elsewhere)
    if how == "link":
        path.symlink_to(elsewhere)
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
    elif how == "sparse":
        with path.open("wb") as file:
            file.truncate(HUGE)


@pytest.mark.parametrize("how", ["link", "pipe", "folder", "sparse"])
@pytest.mark.parametrize(("kind", "name"), REPORTED)
def test_a_report_reads_plain_files_alone(
    whole: dict[str, Path], report: Callable, tmp_path: Path, kind: str, name: str, how: str
) -> None:
    folder = shutil.copytree(whole[kind], tmp_path / "folder")
    (folder / "report.html").unlink(missing_ok=True)
    spoil(folder / name, how, tmp_path)
    code, said = report(folder)
    told = "".join(said.split("\n"))
    assert code in (1, 2)
    assert Path(name).name in told or "holds no " in told
    assert "Traceback" not in said and SECRET not in said
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize(("kind", "name"), [one for one in REPORTED if "json" in one[1]])
def test_a_report_takes_no_json_that_a_program_cannot_go_on_with(
    whole: dict[str, Path], report: Callable, tmp_path: Path, kind: str, name: str, how: str
) -> None:
    folder = shutil.copytree(whole[kind], tmp_path / "folder")
    (folder / name).write_bytes(SPOILT[how] + b"\n")
    code, said = report(folder)
    assert code == 1
    assert (Path(name).name in said and "Accepted" in said) or "Copy" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("name", ["cells", CELL, f"{CELL}/all", f"{CELL}/all/grids"])
def test_a_report_enters_no_folder_by_a_link(
    whole: dict[str, Path], tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(whole["generation"], tmp_path / "folder")
    shutil.move(folder / name, tmp_path / SECRET)
    (folder / name).symlink_to(tmp_path / SECRET)
    with pytest.raises(FileError, match="in a folder that is a link") as caught:
        write_report(folder)
    assert SECRET not in str(caught.value)


def test_the_folder_that_is_named_may_be_a_link(whole: dict[str, Path], tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(whole["run"])
    assert write_report(link).is_file()


@pytest.mark.parametrize(
    ("kind", "value"),
    [("comparison", "x"), ("generation", [[{}]])]
    + [("run", value) for value in ([], "x", 1e308, 2**63, None, [[{}]])],
)
def test_values_that_fedscan_would_not_write_end_in_a_report_or_in_words(
    whole: dict[str, Path], tmp_path: Path, kind: str, value: object
) -> None:
    folder = shutil.copytree(whole[kind], tmp_path / "folder")
    kept = json.loads((folder / "manifest.json").read_text())["config"]
    for name in ("summary.json", "manifest.json"):
        names = json.loads((folder / name).read_text())
        spoilt = {**dict.fromkeys(names, value), "config": kept}
        (folder / name).write_text(json.dumps(spoilt))
    with contextlib.suppress(FedscanError):
        write_report(folder)


def test_an_archive_that_unpacks_to_more_than_memory_is_not_unpacked(
    whole: dict[str, Path], tmp_path: Path
) -> None:
    import zipfile

    folder = shutil.copytree(whole["comparison"], tmp_path / "folder")
    with (
        zipfile.ZipFile(folder / "samples.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("site north.npy", "w", force_zip64=True) as file,
    ):
        for _ in range(600):
            file.write(bytes(2**20))
    assert (folder / "samples.npz").stat().st_size < 2**20
    with pytest.raises(FileError, match="too large when it is unpacked"):
        write_report(folder)


@pytest.mark.parametrize(
    "stack", [np.full((2, 8, 8), np.nan), np.zeros((2, 2)), np.full((1, 2, 2), "x"), np.array(1j)]
)
def test_what_is_no_stack_of_slices_is_named(
    whole: dict[str, Path], tmp_path: Path, stack: np.ndarray
) -> None:
    folder = shutil.copytree(whole["comparison"], tmp_path / "folder")
    np.savez(folder / "samples.npz", north=stack)
    with pytest.raises(FileError, match=r"samples\.npz: holds .*Delete it"):
        write_report(folder)


# Checkpoints, and folders to go on with


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "gan"
    save_checkpoint(folder, start())
    return folder


@pytest.mark.parametrize("how", ["link", "pipe", "folder", "sparse"])
@pytest.mark.parametrize("pattern", ["gan.json", "gan-*.safetensors"])
def test_a_checkpoint_is_plain_files(
    checkpoint: Path, tmp_path: Path, pattern: str, how: str
) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "folder")
    (path,) = folder.glob(pattern)
    spoil(path, how, tmp_path)
    for read in (load_checkpoint, lambda one: open_checkpoint(one, "cpu")):
        with pytest.raises(FedscanError, match=path.name) as caught:
            read(folder)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("how", SPOILT)
def test_a_sidecar_that_a_program_cannot_go_on_with_is_refused(
    checkpoint: Path, tmp_path: Path, how: str
) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "folder")
    (folder / "gan.json").write_bytes(SPOILT[how])
    with pytest.raises(ConfigError, match=r"gan\.json: .* Restore"):
        open_checkpoint(folder, "cpu")


READERS: dict[str, Callable[[Path], object]] = {
    "a training to go on with": lambda path: resolve(Request(path.parent, resume=True)),
    "a comparison to go on with": lambda path: require_same(path.parent, {}),
    "how a cell ended": lambda path: status_of(path.parent),
    "a log of metrics": lambda path: list(read_rows(path)),
    "predictions": lambda path: read_predictions(path, path.parent),
}
NAMES = ("manifest.json", "manifest.json", "status.json", "metrics.jsonl", "predictions.csv")


@pytest.mark.parametrize("how", ["link", "folder", "pipe", "sparse", *SPOILT])
@pytest.mark.parametrize(("reader", "name"), zip(READERS, NAMES, strict=True))
def test_what_a_command_goes_on_with_is_refused_in_words(
    tmp_path: Path, reader: str, name: str, how: str
) -> None:
    (folder := tmp_path / "a" / "b").mkdir(parents=True)
    (folder / name).write_bytes(SPOILT.get(how, SECRET.encode()) + b"\n")
    if how not in SPOILT:
        spoil(folder / name, how, tmp_path)
    if reader == "a comparison to go on with" and how in ("folder", "pipe"):
        with pytest.raises(ConfigError):  # the manifest is no file: other files are there
            check_folder(folder, resume=True)
        return
    with pytest.raises(FedscanError, match=name) as caught:
        READERS[reader](folder / name)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("place", ["cells", "cells/local-seed0/note", "sites"])
def test_nothing_is_resumed_in_a_folder_with_links(tmp_path: Path, place: str) -> None:
    """What is written and removed on the way would be elsewhere."""
    (tmp_path / "out" / place).parent.mkdir(parents=True)
    (tmp_path / "out" / "manifest.json").write_text("{}")
    (tmp_path / "elsewhere").mkdir()
    check_folder(tmp_path / "out", resume=True)
    (tmp_path / "out" / place).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="is a link, which fedscan makes none of"):
        check_folder(tmp_path / "out", resume=True)


def test_no_training_goes_on_in_a_folder_with_links(tmp_path: Path) -> None:
    texts = dict.fromkeys(("study", "cohort", "data", "source_hash"), "")
    manifest = {"preset": "tiny-32", "config": {}, "sites": {}, **texts}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "out" / "grid-000001.png").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="is a link, which fedscan makes none of"):
        resolve(Request(tmp_path / "out", resume=True))


def test_what_resuming_a_made_up_comparison_runs_into_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Benchmark(Plan(arms=["local"]), {"north": tmp_path}, {}, tmp_path / "out")
    monkeypatch.setattr(made, "_begin", lambda resume: None)
    (cell,) = made.plan.cells()
    made._cell(cell).mkdir(parents=True)
    (made._cell(cell) / "status.json").write_text('{"status": "done"}')
    header = "arm,strategy,seed,trained_on,tested_on,split,metric,value,n,steps,images_seen,rounds"
    table = f"{header},seconds,bytes_up,bytes_down,status\n"
    (made._cell(cell) / "results.csv").write_text(table)
    (tmp_path / "out" / "manifest.json").write_text('{"poor_site": "north", "seconds": []}')
    monkeypatch.setattr("simulations.benchmark.summarize_cells", lambda *_, **__: {}["model"])
    with pytest.raises(FedscanError, match=r"KeyError.*--resume trains all anew"):
        made.run(resume=True)


def test_a_tree_may_be_named_by_a_link_and_holds_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "folder" / "inner" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    require_plain_tree(tmp_path / "link")
    os.mkfifo(tmp_path / "folder" / "inner" / "pipe")
    with pytest.raises(ConfigError, match="pipe is neither a file nor a folder"):
        require_plain_tree(tmp_path / "link")


# The reader itself


def test_devices_and_sockets_are_not_opened(tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as one:
        os.chdir(tmp_path)  # a socket's path may have 107 characters
        one.bind("socket")
        for path in (tmp_path / "socket", Path("/dev/zero"), Path("/dev/tty")):
            with pytest.raises(FileError, match="no regular file"):
                open_plain(path, limit=10)


@pytest.mark.parametrize("name", ["..", "../file", "a/../../file"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "root" / "a").mkdir(parents=True)
    with pytest.raises(FileError, match="leads out"):
        open_plain(tmp_path / "root" / name, tmp_path / "root", limit=10)


def test_every_value_that_fedscan_writes_is_read(tmp_path: Path) -> None:
    value = {"a": [1, -1, 2**63, 0.1, 1e308, True, None, "ü\n"], "b": {"c": [[[{}]]]}}
    (tmp_path / "a.json").write_text(json.dumps(value))
    assert read_json(tmp_path / "a.json") == value
    assert parse_json(b"[" * 63 + b"]" * 63)
    with pytest.raises(ValueError, match="deep"):
        parse_json(b"[" * 65 + b"]" * 65)


def test_errors_show_no_control_characters_and_tell_others_no_path(tmp_path: Path) -> None:
    (tmp_path / "a\x1b[31m").mkdir()
    with pytest.raises(FileError) as caught:
        open_plain(tmp_path / "a\x1b[31m", limit=10)
    assert str(caught.value).isprintable()
    assert str(tmp_path) not in caught.value.public


# TOML


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a." * 30_000 + "a = 1", "more than 300 dots"),  # of which Python would keep 3 GB
        ("a = " + "[" * 30_000, "nested too deeply"),
        ("a = " + "[" * 70 + "]" * 70, "nested too deeply"),
        ("a = 0x" + "f" * 30_000, "more than 64 bits"),
        ("a = 1 =", "Expected newline"),
    ],
)
def test_toml_that_would_cost_much_is_refused(text, why):
    with pytest.raises(ValueError, match=why):
        parse_toml(text)


def test_a_read_asks_for_no_more_memory_than_the_file_needs(tmp_path):
    path = tmp_path / "small"
    path.write_bytes(b"few bytes")
    assert read_bytes(path, limit=2**60) == b"few bytes"
