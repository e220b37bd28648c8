"""What a box writes, on its way to the gate's own log."""

from __future__ import annotations

import re
import select
import threading
import time
from collections.abc import Callable

LONGEST_LINE, MOST_OUTPUT = 2000, 1_000_000  # bytes of a line, bytes of a task
MOST_PIECE = 1 << 16  # bytes that are read at once
DRAIN_SECONDS = 2.0
COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # which Flower writes


class Output:
    """Lines that a box writes, cleaned and bounded, for the gate's own log."""

    def __init__(self, reading: int, log: Callable[[str], None]) -> None:
        self._pipe = open(reading, "rb", buffering=0)  # noqa: SIM115
        self._log, self._left, self._begun = log, MOST_OUTPUT, b""
        self.last = ""
        self._lock = threading.Lock()  # from reading a piece until its lines are in the log
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def new_task(self) -> None:
        """Begin to count anew, after what the task before has written."""
        deadline = time.monotonic() + DRAIN_SECONDS  # some process of the box may write on
        while True:
            with self._lock:
                if self._pipe.closed or not self._readable(0) or time.monotonic() > deadline:
                    self._left = MOST_OUTPUT
                    return
            time.sleep(0.001)

    def tell(self, line: str) -> None:
        """Write a line of the gate's own."""
        self._log(f"box: {line}")

    def wait(self, seconds: float) -> None:
        """Wait until everybody who can write has ended."""
        self._thread.join(seconds)

    def _readable(self, milliseconds: int | None) -> bool:
        """Tell whether there is something to read, or the end, within that time."""
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        return bool(poll.poll(milliseconds))

    def _read(self) -> None:
        while not self._pipe.closed:
            self._readable(None)
            with self._lock:
                self._take(self._pipe.read(MOST_PIECE))

    def _take(self, piece: bytes) -> None:
        *lines, self._begun = (self._begun + piece).split(b"\n")
        for line in lines:
            self._write(line)
        if not piece or len(self._begun) >= LONGEST_LINE:
            self._write(self._begun)
            self._begun = b""
        if not piece:
            self._pipe.close()

    def _write(self, line: bytes) -> None:
        for start in range(0, len(line), LONGEST_LINE):
            part = line[start : start + LONGEST_LINE]
            before, self._left = self._left, self._left - len(part) - 1
            if self._left >= 0:
                text = COLOURS.sub("", part.decode(errors="replace").rstrip("\r"))
                self.last = "".join(c if c.isprintable() else "\ufffd" for c in text)
                self._log(self.last)
            elif before >= 0:
                self.tell(f"it has written {MOST_OUTPUT} bytes; what follows is left out")
