"""Work on DICOM files in a process of its own: at some damaged bytes GDCM ends the one it is in.

Each process has at most one such helper, started when it is first needed; after a death, another.
What comes back from it are bytes, of which nothing is executed.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import resource
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from common.data.dicom_files import UNDECODABLE, UnusableError

MOST_SECONDS = 600.0  # of one answer: a damaged file may keep a decoder busy for ever
MOST_MEMORY = 16 * 2**30  # bytes of addresses
_YIELDS, _ENDS, _REFUSES = b"+", b".", b"!"
_numbers = itertools.count()
_helpers: list[tuple[Any, Connection]] = []


def is_risky(syntax: Any) -> bool:
    """Whether pixels of a transfer syntax would be decoded by GDCM."""
    from pydicom.pixels import get_decoder

    try:
        return "gdcm" in get_decoder(syntax).available_plugins
    except NotImplementedError:
        return False


def apart(work: Callable[..., Iterator[bytes]], *arguments: object) -> Iterator[bytes]:
    """Yield what a function of a module yields in another process, one after the other.

    Only one such work can be under way: a later one ends an earlier one.

    Raises
    ------
    UnusableError
        The work has raised it, or any other error, or has ended its process.
    """
    number = next(_numbers)
    request: tuple[object, ...] = (number, work, arguments)
    while True:
        try:
            if not _helpers:
                _helpers.append(_start())
            connection = _helpers[0][1]
            connection.send(request)
            if not connection.poll(MOST_SECONDS):
                raise EOFError
            answer = connection.recv_bytes()
        except (EOFError, OSError) as error:
            _stop()
            raise UnusableError(UNDECODABLE) from error
        kind, content = answer[:1], answer[1:]
        if kind == _REFUSES:
            raise UnusableError(content.decode())
        if kind == _ENDS:
            return
        yield content
        request = (number, None, ())


def _start() -> tuple[Any, Connection]:
    context = multiprocessing.get_context("spawn")  # safe whatever threads the caller has
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _stop() -> None:
    while _helpers:
        process, connection = _helpers.pop()
        connection.close()
        process.kill()
        process.join()


def _serve(connection: Connection) -> None:
    """Answer until the other end is closed."""
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # what a library says of a file that it cannot read
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    most = MOST_MEMORY if hard == resource.RLIM_INFINITY else min(MOST_MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    current, results = -1, iter(())
    with contextlib.suppress(EOFError, OSError):
        while True:
            number, work, arguments = connection.recv()
            try:
                if work is not None:
                    current, results = number, work(*arguments)
                if number != current:
                    raise UnusableError(UNDECODABLE)
                connection.send_bytes(_YIELDS + next(results))
            except StopIteration:
                connection.send_bytes(_ENDS)
            except UnusableError as error:
                connection.send_bytes(_REFUSES + error.reason.encode())
            except Exception:
                connection.send_bytes(_REFUSES + UNDECODABLE.encode())
