"""Signals that ask a long work to end, answered where it can be ended."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def tell_at_once(line: str) -> None:
    """Say a line on standard error from within a signal's handler.

    Not by ``sys.stderr``: the signal may have come while it was being written to, and it refuses to
    be entered twice; and a line that found no reader would wait in it, fail again when the process
    ends, and take the place of its exit code.
    """
    with contextlib.suppress(OSError):  # nobody may be there to read it
        os.write(2, f"{line}\n".encode())


@contextlib.contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Note signals that ask to end instead of obeying at once; a second one is obeyed.

    An iteration changes two networks and two optimizers: to save what is between two of them it
    must have been finished.
    """
    noted: list[int] = []
    previous: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
        if noted and callable(previous[number]):
            previous[number](number, frame)
        noted.append(number)
        tell_at_once("Interrupted: saving what is done")

    if threading.current_thread() is threading.main_thread():
        for number in STOP:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                previous[number] = signal.signal(number, note)
    try:
        yield noted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
