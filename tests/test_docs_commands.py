"""Every command and file of a tutorial, word for word and in order, in an empty folder."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", flags=re.S | re.M)
SECONDS = 1500  # of one block

pytestmark = [pytest.mark.documentation, pytest.mark.simulation, pytest.mark.federation]


def blocks(page: Path) -> Iterator[tuple[str, str, str]]:
    """Yield language, title and text of each block of code."""
    yield from BLOCK.findall(page.read_text())


def follow(text: str, folder: Path) -> None:
    """Run a block of commands in a shell, as a reader does."""
    started = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
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
