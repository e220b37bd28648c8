"""What a BIDS data set's ``.bidsignore`` takes out of it, by patterns as of ``.gitignore``."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from common.site_files import read_text

FILE = ".bidsignore"

_MOST_BYTES = 2**14


def read_ignored(root: Path, site: str) -> Callable[[str], bool]:
    """Return what tells of a path, relative to the data set, whether it is ignored.

    A pattern with a slash before its end is matched from the top of the data set, another one at
    any depth; what lies in an ignored folder is ignored; a later pattern that begins with ``!``
    takes a path back in.

    Raises
    ------
    DataContractError
        The file cannot be read.
    """
    if not os.path.lexists(root / FILE):
        return lambda path: False
    text = read_text(root / FILE, _MOST_BYTES, root=root, site=site, strict=False)
    rules = [_rule(line) for raw in text.splitlines() if (line := raw.strip()) and line[0] != "#"]

    def ignored(path: str) -> bool:
        names = [path, *map(str, PurePosixPath(path).parents)][:-1]
        found = False
        for negated, pattern in rules:
            if any(pattern.fullmatch(name) for name in names):
                found = not negated
        return found

    return ignored


def _rule(line: str) -> tuple[bool, re.Pattern[str]]:
    """Whether a line takes back in, and its pattern of a whole path."""
    negated = line.startswith("!")
    body = line.removeprefix("!").rstrip("/")
    anchored = "/" in body
    body = body.removeprefix("/")
    if body.startswith("**/"):
        anchored, body = False, body.removeprefix("**/")
    pattern = fnmatch.translate(body)  # its * also matches a slash
    return negated, re.compile(pattern if anchored else rf"(?:.*/)?{pattern}")
