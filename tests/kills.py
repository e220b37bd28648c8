"""Start a federation, kill all of it at some moment, and go on with it until it is whole."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
from processes import SCRIPTS, environment

from common.metrics_log import SERVER_MEMORY, read_rows


def started(command: str, words: list[str], *, cwd: Path, cache: Path) -> subprocess.Popen[bytes]:
    """Start ``fedscan run`` or ``federate`` as a process of its own."""
    return subprocess.Popen(
        [str(SCRIPTS / "fedscan"), command, *words],
        cwd=cwd,
        env=environment(cache),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it has started, each with ``kill -9``."""
    family = psutil.Process(process.pid).children(recursive=True)
    for one in [psutil.Process(process.pid), *family]:
        with contextlib.suppress(psutil.Error):
            one.kill()
    process.wait()
    psutil.wait_procs(family, timeout=60)


def wait_for_round(out: Path, number: int, process: subprocess.Popen[bytes]) -> Path:
    """Wait until a run has done so many rounds; return its folder."""
    while process.poll() is None:
        with contextlib.suppress(OSError, ValueError, StopIteration):
            folder = next(out.iterdir())
            state = json.loads((folder / "checkpoint" / "state.json").read_text())["state"]
            if state["round"] >= number:
                return folder
        time.sleep(0.01)
    raise AssertionError(f"the run ended with {process.returncode}")


def result(folder: Path) -> Mapping[str, object]:
    """Return all that a run has left, but for time, memory and its id."""
    summary = json.loads((folder / "summary.json").read_text())
    rows = read_rows(folder / "metrics.jsonl")
    return {
        **{p.name: p.read_bytes() for p in sorted(folder.glob("*.safetensors"))},
        "attendance": (folder / "attendance.jsonl").read_text(),
        "summary": {k: v for k, v in summary.items() if k not in ("seconds", "run_id")},
        "metrics": [
            (r.round, r.site, r.split, r.name, str(r.value), r.n)
            for r in rows
            if r.name not in (SERVER_MEMORY, "images-per-second")
        ],
    }


def resumed(command: str, folder: Path, *, cwd: Path, cache: Path) -> int:
    """Go on with a run; return the exit code."""
    return started(command, ["--resume", str(folder)], cwd=cwd, cache=cache).wait(timeout=900)
