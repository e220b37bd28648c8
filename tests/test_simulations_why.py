"""Why a run ended is told by its cause, in words, and by a traceback only where it explains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulations.why import LESS_MEMORY, first_error, why

RAY = (
    "INFO :      Starting Flower Simulation\n"
    "Traceback (most recent call last):\n"
    '  File "ray/_private/node.py", line 1, in start\n'
    "{cause}\n"
    "ERROR :     An exception was raised by the Simulation Runtime\n"
    "Traceback (most recent call last):\n"
    "RuntimeError: Simulation Runtime crashed\n"
) + "INFO :      wake\n" * 100


def test_the_first_error_is_told_and_not_the_end_of_the_log(tmp_path: Path) -> None:
    cause = "ValueError: the cause"
    told = why(tmp_path, RAY.format(cause=cause))
    assert cause in told and "crashed" not in told and "wake" not in told
    assert str(tmp_path / "flower.log") in told


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ("OSError: AF_UNIX path length cannot exceed 107 bytes: /tmp/…", "TMPDIR"),
        ("OSError: [Errno 28] No space left on device", "a disk is full"),
        ("RuntimeError: [enforce fail] can't allocate memory", LESS_MEMORY),
        ("ray.exceptions.OutOfMemoryError: killed, out of memory", LESS_MEMORY),
    ],
)
def test_what_is_known_is_told_with_a_way_out(tmp_path: Path, cause: str, words: str) -> None:
    assert words in why(tmp_path, RAY.format(cause=cause))


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("", ""),
        ("INFO : no error\n", ""),
        ("ERROR : it broke\nERROR : and more\n", "ERROR : it broke"),
        ("(ClientAppActor pid=7) KeyError: 'x'\n", "(ClientAppActor pid=7) KeyError: 'x'"),
    ],
)
def test_first_error(log: str, expected: str) -> None:
    assert first_error(log) == expected


@pytest.mark.parametrize(
    ("error", "traceback", "shown", "hidden"),
    [
        ("a scan is bad", "  File x\ncommon.errors.DataContractError: a scan is bad\n", "", "File"),
        ("'x'", "  File x\nKeyError: 'x'\n", "File x", LESS_MEMORY),
        ("out of memory", "  File x\ntorch.OutOfMemoryError: …\n", LESS_MEMORY, "File x"),
        ("[Errno 28] No space left on device", "  File x\nOSError\n", "a disk is full", "File x"),
    ],
)
def test_a_traceback_is_shown_only_of_what_nobody_foresaw(
    tmp_path: Path, error: str, traceback: str, shown: str, hidden: str
) -> None:
    failure = {"site": "north", "phase": "fit", "error": error, "traceback": traceback}
    (tmp_path / "failure.json").write_text(json.dumps(failure))
    told = why(tmp_path, "")
    assert told.startswith(f"site 'north' failed in fit: {error}")
    assert shown in told and hidden not in told
