"""A progress bar that a test can read."""

from __future__ import annotations


class Told:
    """A bar that keeps what it is told."""

    def __init__(self) -> None:
        self.done, self.notes, self.always, self.lines = 0, [], [], []

    def advance(self, count: int = 1, note: str = "", *, always: bool = False) -> None:
        self.done += count
        self.notes.append(note)
        self.always += [note] if always else []

    def tell(self, line: str) -> None:
        self.lines.append(line)
