"""Shells can complete fedscan's commands and options."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from simulations.cli import app


def complete(words: str) -> str:
    """What bash would be offered for the last word, asked for as its completion asks."""
    code = "from simulations.cli import app; app(prog_name='fedscan')"
    asked = {
        "_FEDSCAN_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True
    ).stdout


@pytest.mark.parametrize(
    ("words", "offered"), [("fedscan pred", "predict"), ("fedscan run --conf", "--config")]
)
def test_commands_and_options_are_completed(words: str, offered: str) -> None:
    assert offered in complete(words).split()


def test_completion_can_be_shown_and_installed() -> None:
    from typer.main import get_command

    names = {name for one in get_command(app).params for name in one.opts}
    assert {"--install-completion", "--show-completion"} <= names
