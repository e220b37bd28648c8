"""Files as chance or malice leaves them, and what every reader of such files promises.

A case is a list of edits, drawn by hypothesis and made to a valid file: of bytes (:func:`damaged`)
or, before it is written, of what the file tells (:func:`altered`).
"""

from __future__ import annotations

import copy
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from common.errors import FedscanError

SECRET = "kept-elsewhere"  # a name of what no reader opens
LONGEST_WORDS = 20_000  # characters of an error
MOST_BYTES = 64 * 2**20  # of memory that a small file may take
MOST_SECONDS = 1.0  # of processor time

# The same cases in every run: whoever breaks a promise is the first to see it.
hostile = settings(
    max_examples=2000,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)

PIECES = (
    *(b"\0", b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\xff\xff\xff\xff\xff\xff\xff\x7f"),
    *(b"\0" * 64, b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\xf0\x9f\x98", b"\x1b[31m"),
    *(b"\n", b"\r", b"\t", b",", b";", b'"', b"'", b"\\", b"[", b"]", b"{", b"}", b":", b"=", b"."),
    *(b"NaN", b"-Infinity", b"1e999", b"-1", b"9" * 5000, b"null", b"true", b"\\ud800", b"\\u0000"),
    *(b"[" * 3000, b'{"a":' * 3000, b"a." * 2000, b"x" * 70_000, b",\t;" * 5000, b"\n" * 5000),
    *(b"../" * 3 + SECRET.encode(), b"/" + SECRET.encode(), "\u202e\u2028é".encode()),
)
# Kinds of edit, with a place in the file, 0 to 1, a length and what is written there.
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["turn", "write", "insert", "insert", "drop", "repeat", "cut"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
        st.sampled_from(PIECES) | st.binary(min_size=1, max_size=12),
    ),
    min_size=1,
    max_size=5,
)


def damaged(raw: bytes, edits: list[tuple[str, float, int, bytes]]) -> bytes:
    """Make edits to bytes."""
    data = bytearray(raw)
    for kind, place, number, piece in edits:
        at = int(place * len(data))
        if kind == "turn" and data:
            data[at] ^= 1 << number % 8
        elif kind == "write":
            data[at : at + len(piece)] = piece
        elif kind == "insert":
            data[at:at] = piece
        elif kind == "drop":
            del data[at : at + number]
        elif kind == "repeat":
            data[at:at] = data[at : at + number]
        elif kind == "cut":
            del data[at:]
    return bytes(data)


def nested(depth: int) -> list[Any]:
    """Return lists in lists."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


DROP, TWICE = object(), object()
VALUES = (
    *(None, True, False, "", [], {}, DROP, DROP, TWICE, [[]], {"": None}, ["a", "a"], [1, "a"]),
    *(0, -1, 1, 2, 1.5, 2**31, -(2**63), 2**63, 2**64, 10**30, 1e308, 1e-320, -0.0),
    *(math.nan, math.inf, -math.inf, nested(40), nested(70), list(range(3000)), "9" * 400),
    *("\0", "\n", "\x1b[31mred", "\u202e", "a\u2028b", "=1+1", "nan", "-1", "<b>&", "{{ 1 }}"),
    *(f"../{SECRET}", f"/{SECRET}", f"..\\{SECRET}", "x" * 3000, "x" * 70_000, "a b=c", ".."),
)
# A place among the nodes of a tree, and what is put there; mostly one of those above.
ALTERATIONS = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(VALUES)
        | st.integers(-(2**70), 2**70)
        | st.floats()
        | st.text(max_size=20)
        | st.lists(st.integers(-9, 9), max_size=4),
    ),
    min_size=1,
    max_size=3,
)


def altered(tree: Any, alterations: list[tuple[float, Any]]) -> Any:
    """Replace, remove or repeat what stands at some places of a tree of dicts and lists."""
    tree = {"": copy.deepcopy(tree)}
    for place, value in alterations:
        spots = list(_spots(tree))
        holder, key = spots[int(place * len(spots))]
        if value is DROP and holder is not tree:
            del holder[key]
        elif value is TWICE and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        elif value is TWICE and holder is not tree:
            holder[str(key) + "-"] = copy.deepcopy(holder[key])
        elif value not in (DROP, TWICE):
            holder[key] = copy.deepcopy(value)
    return tree[""]


def _spots(tree: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    for key in keys:
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _spots(tree[key])


def as_json(tree: Any) -> bytes:
    """Write a tree as Python does, NaN and halves of pairs included."""
    return json.dumps(tree).encode()


def keeps_its_promise(
    read: Callable[[], object],
    folder: Path,
    *,
    errors: tuple[type[Exception], ...] = (FedscanError,),
    most_bytes: int = MOST_BYTES,
) -> object:
    """Read, and return what was found or the error.

    The promise: something valid, or one of the errors, in words that are printable and not endless;
    soon, in little memory, with no file opened for writing outside of the folder, none read that is
    named :data:`SECRET`, and nothing unpickled or started.
    """
    found: object
    memory, began = _peak(reset=True), time.process_time()
    with watched(folder) as seen:
        try:
            found = read()
        except errors as error:
            found = error
    seconds, memory = time.process_time() - began, _peak() - memory
    assert not seen, seen
    assert seconds < MOST_SECONDS, f"{seconds} s"
    assert memory < most_bytes, f"{memory / 2**20:.0f} MiB"
    if isinstance(found, Exception):
        for words in (str(found), getattr(found, "public", "no more")):
            assert 0 < len(words) <= LONGEST_WORDS, len(words)
            assert all(c.isprintable() or c == "\n" for c in words), ascii(words[:500])
    return found


# Memory


def _peak(*, reset: bool = False) -> int:
    """Return the most bytes of resident memory so far, of all time or since the last reset."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:  # no Linux, or not allowed: then memory is not looked at
        return 0
    return 1024 * int(status.split("VmHWM:", 1)[1].split(None, 1)[0])


# Files: what Python opens is told to a hook that cannot be removed, and so is set once.

_watched: list[tuple[str, list[str]]] = []
_NEVER = frozenset(
    ["subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"]
    + ["socket.connect", "pickle.find_class"]
)
_CHANGES = frozenset(
    f"os.{name}" for name in ("mkdir", "remove", "rename", "rmdir", "link", "symlink", "truncate")
)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watched or not (event == "open" or event in _NEVER or event in _CHANGES):
        return
    inside, seen = _watched[-1]
    named = isinstance(arguments[0], str | bytes | os.PathLike)
    name = os.fsdecode(arguments[0]) if named else ""
    changes = event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    outside = changes and named and not os.path.abspath(name).startswith(inside)  # noqa: PTH100
    if event in _NEVER or outside or Path(name).name == SECRET:
        seen.append(f"{event} {arguments!r}")


@contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """Note what is opened, changed or started that is no business of a reader of a folder."""
    if not getattr(sys, "hostile_hook", False):
        sys.addaudithook(_hook)
        sys.hostile_hook = True
    seen: list[str] = []
    _watched.append((str(folder), seen))
    try:
        yield seen
    finally:
        _watched.pop()
