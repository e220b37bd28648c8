"""Files as chance or malice leaves them, and what every reader of such files promises.

A case is a number from hypothesis, and all that follows from it: which of the valid files is taken,
and what becomes of its bytes (:meth:`Case.damaged`) or, before they are written, of what they tell
(:meth:`Case.altered`).
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
from random import Random
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from common.errors import FedscanError

SECRET = "kept-elsewhere"  # a name of what no reader opens
LONGEST_WORDS = 20_000  # characters of an error
MOST_BYTES = 64 * 2**20  # of memory that a small file may take
MOST_SECONDS = 1.0  # of processor time

# The same cases in every run: whoever breaks a promise is the first to see it.
hostile = settings(
    max_examples=400,
    phases=[Phase.generate],  # a number has no simpler one
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


def nested(depth: int) -> list[Any]:
    """Return lists in lists."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


DROP, TWICE, NUMBER, TEXT = object(), object(), object(), object()
VALUES = (
    *(None, True, False, "", [], {}, [[]], {"": None}, ["a", "a"], [1, "a"]),
    *(DROP, DROP, DROP, TWICE, TWICE, NUMBER, NUMBER, TEXT, TEXT, TEXT),
    *(0, -1, 1, 2, 1.5, 2**31, -(2**63), 2**63, 2**64, 10**30, 1e308, 1e-320, -0.0),
    *(math.nan, math.inf, -math.inf, nested(40), nested(70), list(range(3000)), "9" * 400),
    *("\0", "\n", "\x1b[31mred", "\u202e", "a\u2028b", "=1+1", "nan", "-1", "<b>&", "{{ 1 }}"),
    *(f"../{SECRET}", f"/{SECRET}", f"..\\{SECRET}", "x" * 3000, "x" * 70_000, "a b=c", ".."),
)


class Case(Random):
    """One case: draws that follow from a number.

    Parameters
    ----------
    number : int
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __repr__(self) -> str:
        return f"Case({self.number})"

    def damaged(self, raw: bytes, most: int = 4) -> bytes:
        """Make up to so many edits to bytes."""
        data = bytearray(raw)
        for _ in range(self.randint(1, most)):
            at, size = self.randint(0, len(data)), self.choice([1, 4, 30, 300])
            piece = self.choice(PIECES) if self.random() < 0.7 else self.randbytes(size)
            match self.choice(["turn", "write", "insert", "insert", "drop", "repeat", "cut"]):
                case "turn" if at < len(data):
                    data[at] ^= 1 << self.randrange(8)
                case "write":
                    data[at : at + len(piece)] = piece
                case "insert":
                    data[at:at] = piece
                case "drop":
                    del data[at : at + size]
                case "repeat":
                    data[at:at] = data[at : at + size]
                case "cut":
                    del data[at:]
        return bytes(data)

    def altered(self, tree: Any, most: int = 3) -> Any:
        """Replace, remove or repeat what stands at some places of a tree of dicts and lists."""
        tree = {"": copy.deepcopy(tree)}
        for _ in range(self.randint(1, most)):
            if not (spots := list(_spots(tree))):
                break
            holder, key = self.choice(spots)
            value = self.choice(VALUES)
            if value is TWICE and isinstance(holder, list):
                holder.append(copy.deepcopy(holder[key]))
            elif value is TWICE:
                holder[f"{key}-"] = copy.deepcopy(holder[key])
            elif value is DROP:
                del holder[key]
            elif value is NUMBER:
                holder[key] = self.choice([self.randint(-(2**70), 2**70), self.gauss(0, 1e3)])
            elif value is TEXT:
                points = [self.choice([0x7F, 0x2FF, 0xD7FF]) for _ in range(self.randint(1, 20))]
                holder[key] = "".join(chr(self.randint(0, most)) for most in points)
            else:
                holder[key] = copy.deepcopy(value)
        return tree.get("")

    def tree_or_bytes(self, tree: Any, write: Callable[[Any], bytes]) -> bytes:
        """Alter a tree before it is written, its bytes afterwards, or both."""
        how = self.randrange(4)
        raw = write(tree if how == 0 else self.altered(tree))
        return raw if how > 1 else self.damaged(raw)


CASES = st.integers(0, 2**64 - 1).map(Case)


def _spots(tree: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    for key in keys:
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _spots(tree[key])


def as_json(tree: Any) -> bytes:
    """Write a tree as Python does, NaN and halves of pairs included."""
    return json.dumps(tree).encode()


def as_lines(rows: object) -> bytes:
    """Write rows, whatever they have become, as a line of JSON each."""
    return b"".join(as_json(row) + b"\n" for row in (rows if isinstance(rows, list) else [rows]))


def as_toml(tree: object) -> bytes:
    """Write a tree as TOML, whose inline values look like those of JSON."""
    return b"".join(_lines(tree, "")) if isinstance(tree, dict) else repr(tree).encode()


def _lines(tree: dict, prefix: str) -> list[bytes]:
    inner = {key: one for key, one in tree.items() if isinstance(one, dict)}
    lines = [f"{_key(k)} = {_value(v)}\n".encode() for k, v in tree.items() if k not in inner]
    for key, one in inner.items():
        name = f"{prefix}{_key(key)}"
        lines += [f"[{name}]\n".encode(), *_lines(one, f"{name}.")]
    return lines


def _key(key: object) -> str:
    return json.dumps(str(key))


def _value(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return "''" if value is None else str(value).lower()


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
    for last in (False, True):  # at its first call a reader imports what it needs
        memory, began = _peak(reset=True), time.process_time()
        with watched(folder) as seen:
            try:
                found = read()
            except errors as error:
                found = error
        seconds, memory = time.process_time() - began, _peak() - memory
        if last or not (seen or seconds >= MOST_SECONDS or memory >= most_bytes):
            break
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
