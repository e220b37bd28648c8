"""Every command and file of the README and of a tutorial, in order, in an empty folder.

Those of a tutorial word for word; those of the README with a few steps of training.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.imaging.cohorts import write_cohort

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", flags=re.S | re.M)
SECONDS = 1500  # of one block
OWN = Path(sys.executable).parent

pytestmark = [pytest.mark.documentation, pytest.mark.simulation, pytest.mark.federation]


def blocks(page: Path) -> Iterator[tuple[str, str, str]]:
    """Yield language, title and text of each block of code."""
    yield from BLOCK.findall(page.read_text())


def follow(text: str, folder: Path, commands: Path = OWN) -> None:
    """Run a block of commands in a shell, as a reader does."""
    started = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env={
            **os.environ,
            "PATH": os.pathsep.join((str(commands), str(OWN), os.environ["PATH"])),
            "PYTHONPATH": str(ROOT),
            "HOME": str(folder.parent),
            "FEDSCAN_CACHE": str(folder.parent / "cache"),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = started.communicate(timeout=SECONDS)
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGINT)
            started.wait(30)
    assert started.returncode == 0, f"{text}\n{said[-4000:]}"


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_reaches_its_end(page: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    for language, title, text in blocks(page):
        if title:
            (folder / title).write_text(text)
        elif language == "bash":
            follow(text, folder)
        elif language == "python":
            (folder / "block.py").write_text(text)
            follow("python block.py", folder)


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_says_how_every_file_of_it_is_called(page: Path) -> None:
    assert all(title for language, title, _ in blocks(page) if language == "toml")


# The README's commands, with these options behind them: the last of an option holds.
SHORT = """#!/usr/bin/env bash
case $1 in
    run | federate) set -- "$@" --set run.rounds=1 --set training.local-steps=1 ;;
    train-gan) set -- "$@" --minutes 0.05 ;;
esac
exec python -m fedscan "$@"
"""
ELSEWHERE = {
    "pip install": "run by .ci/run",
    "--gpus-per-site": "needs a GPU",
    "fedscan supernode": "followed by tests/test_deployment.py",
}


def readme_commands() -> list[str]:
    """List the README's commands that can be followed here."""
    of_bash = [text for language, _, text in blocks(ROOT / "README.md") if language == "bash"]
    lines = [line for text in of_bash for line in text.splitlines()]
    return [line for line in lines if not any(word in line for word in ELSEWHERE)]


def draw_retinas(cohort: Path) -> None:
    """Draw two hospitals' pictures as the README's study has them."""
    rng = np.random.default_rng(0)
    for site in ("east", "west"):
        (cohort / site).mkdir(parents=True)
        rows = ["path,patient_id,grade"]
        for k in range(80):
            level = k % 4
            picture = rng.normal(60 + 40 * level, 10, (64, 64)).clip(0, 255).astype(np.uint8)
            Image.fromarray(picture).save(cohort / site / f"{k:03}.png")
            rows.append(f"{k:03}.png,{site}-{k},{('none', 'mild', 'moderate', 'severe')[level]}")
        (cohort / site / "findings.csv").write_text("\n".join(rows))


def test_the_readmes_commands_work(tmp_path: Path) -> None:
    home, folder, commands = tmp_path, tmp_path / "empty", tmp_path / "bin"
    folder.mkdir()
    commands.mkdir()
    (commands / "fedscan").write_text(SHORT)
    (commands / "fedscan").chmod(0o755)
    sizes = {"north": 8, "island": 6}
    brains = write_cohort(home / "brains", sizes, n_test=4, seed=5, workers=1)
    shutil.copytree(brains / "north", home / "new-scans")
    draw_retinas(home / "retinas")
    for _, title, text in blocks(ROOT / "README.md"):
        if title:
            (folder / title).write_text(text)
    for line in readme_commands():
        hospitals = home / "hospitals"
        hospitals.unlink(missing_ok=True)
        hospitals.symlink_to(home / ("retinas" if "retina.toml" in line else "brains"))
        if "RUN" in line and not (folder / "runs" / "RUN").exists():
            first = min((folder / "runs").iterdir())
            (folder / "runs" / "RUN").symlink_to(first)
        follow(line, folder, commands)
