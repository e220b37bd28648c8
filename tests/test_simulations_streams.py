"""However a user has set up the output, and whatever memory there is, `main` ends in words."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import platformdirs
import pytest

from common.errors import ConfigError
from common.machine import is_out_of_memory
from common.paths import cache_dir, site_records
from common.studies.study import load_study
from fedscan import __main__ as entry
from fedscan._settings import absolute as absolute_of_python
from simulations import cli
from simulations.options import absolute
from simulations.preset_files import read_preset
from simulations.streams import BROKEN_PIPE

DASH = "a – b é 男 \udcff"


def run_main(monkeypatch, command, capsys) -> tuple[int, str]:
    """Let ``main`` run a function in place of a command; return its exit code and its words."""
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    monkeypatch.setattr(cli.os, "umask", lambda _: None)
    monkeypatch.setattr(cli, "app", command)
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = end.code
    return code, capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_any_encoding_of_the_output_will_do(monkeypatch, capsys, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    code, _ = run_main(monkeypatch, lambda: print(DASH), capsys)
    assert code == 0
    assert raw.getvalue().decode(encoding).startswith("a ")


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_closed_stream_is_no_error(monkeypatch, capsys, name):
    monkeypatch.setattr(sys, name, None)
    code, _ = run_main(monkeypatch, lambda: print(DASH, file=getattr(sys, name)), capsys)
    assert code == 0


def pipe_without_reader():
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", encoding="utf-8")


@pytest.mark.parametrize(
    ("opened", "expected", "words"),
    [
        (pipe_without_reader, BROKEN_PIPE, ""),
        (lambda: open("/dev/full", "w", encoding="utf-8"), 1, "No space left"),  # noqa: PTH123, SIM115
    ],
    ids=["pipe", "full-disk"],
)
def test_what_waits_to_be_written_is_told_in_words_or_not_at_all(
    monkeypatch, capsys, opened, expected, words
):
    stream = opened()
    monkeypatch.setattr(sys, "stdout", stream)
    code, told = run_main(monkeypatch, lambda: stream.write("result\n"), capsys)
    assert code == expected
    assert words in told and "Traceback" not in told
    stream.close()  # what could not be written is not tried again


MEMORY = [
    MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 20 GiB"),
    RuntimeError("cuBLAS: CUBLAS_STATUS_ALLOC_FAILED"),
    OSError(12, "Cannot allocate memory"),
]


@pytest.mark.parametrize("error", MEMORY[:-1])
def test_too_little_memory_ends_in_words(monkeypatch, capsys, error):
    def command():
        raise error

    code, told = run_main(monkeypatch, command, capsys)
    assert code == 1
    assert "out of memory" in told and "Traceback" not in told


@pytest.mark.parametrize("error", MEMORY)
def test_errors_of_memory_are_known_also_as_a_cause(error):
    assert is_out_of_memory(error)
    try:
        raise ValueError("a wrapper") from error
    except ValueError as wrapped:
        assert is_out_of_memory(wrapped)


@pytest.mark.parametrize(
    ("what", "expected", "words"),
    [(KeyboardInterrupt, 130, "Interrupted\n"), (MemoryError, 1, "out of memory")],
)
def test_what_happens_while_modules_are_imported_ends_in_one_line(
    monkeypatch, capsys, what, expected, words
):
    def importing():
        raise what

    monkeypatch.setattr(entry, "put_on_path", importing)
    with pytest.raises(SystemExit) as end:
        entry.main()
    told = capsys.readouterr().err
    assert end.value.code == expected
    assert words in told and told.count("\n") == 1


def test_a_files_name_cannot_steer_the_terminal_that_tells_of_it(monkeypatch, capsys):
    def command():
        raise PermissionError(13, "Permission denied", "a\x1b[2Jb")

    code, told = run_main(monkeypatch, command, capsys)
    assert code == 1
    assert "Permission denied: a\ufffd[2Jb" in told


def test_a_user_without_a_home_is_told_in_words(monkeypatch, capsys):
    code, told = run_main(
        monkeypatch, lambda: absolute(Path("~nobody-of-this-name/cohort")), capsys
    )
    assert code == 2
    assert "no home" in told


def test_a_path_of_nobodys_home_is_refused_in_every_place_that_takes_one():
    for take in (absolute_of_python, read_preset, load_study):
        with pytest.raises(ConfigError, match=r"~nobody-of-this-name/a\.toml: .*no such user"):
            take("~nobody-of-this-name/a.toml")


@pytest.mark.parametrize("variable", ["FEDSCAN_CACHE", "FEDSCAN_RECORDS"])
def test_without_a_home_a_folder_must_be_named(monkeypatch, variable):
    monkeypatch.delenv(variable, raising=False)
    for name in ("user_cache_path", "user_data_path"):
        monkeypatch.setattr(platformdirs, name, lambda name: Path("~/.cache") / name)
    with pytest.raises(ConfigError, match=f"set HOME, or name a folder by {variable}"):
        cache_dir() if variable == "FEDSCAN_CACHE" else site_records("north")


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory?")])
def test_other_errors_are_none_of_memory(error, monkeypatch, capsys):
    assert not is_out_of_memory(error)

    def command():
        raise error

    with pytest.raises(type(error)):
        run_main(monkeypatch, command, capsys)
