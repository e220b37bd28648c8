"""Standard output and error as a user has set them up: any encoding, a closed pipe, a full disk."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO, cast

BROKEN_PIPE = 128 + 13  # as the shell has it of a process that SIGPIPE ended


def prepare_streams() -> None:
    r"""Let no letter that an encoding lacks, and no closed stream, end a command.

    What cannot be written is written as its escape, such as ``\\u2013``.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this process
            setattr(sys, name, cast(TextIO, open(os.devnull, "w", errors="backslashreplace")))  # noqa: PTH123, SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def written_out() -> Iterator[None]:
    """Write what the block has left in standard output, while an error can still be told."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError:
        _give_up(sys.stdout)
        raise


def _give_up(stream: TextIO) -> None:
    """Let go what waits in a stream: it would fail again when the process ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
