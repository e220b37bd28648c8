"""Why a run ended without a result: the cause, as its folder and Flower's log tell it."""

from __future__ import annotations

import re
from pathlib import Path

from common import errors
from common.machine import is_out_of_memory
from common.reading import read_json
from common.run_folder import FAILURE
from simulations.flower_command import START_SECONDS
from simulations.launch import RAY_TOO_SLOW, TOO_SLOW

LOG = "flower.log"

# The end of a traceback, also of one that Ray passes on with its worker's name before each line.
_RAISED = re.compile(
    r"^(?:\([^()\n]*\) ?)?(?:\w+\.)*\w*(?:Error|Exception|Exit)\b:? ?.*$", re.MULTILINE
)
_LOGGED = re.compile(r"^.*\bERROR\b.*$", re.MULTILINE)
_KNOWN = (  # to whoever reads the log
    (
        TOO_SLOW,
        f"Flower's server did not start within {START_SECONDS:.0f} seconds: this machine is "
        "too busy. Try again when fewer programs run",
    ),
    (
        RAY_TOO_SLOW,
        "Ray did not start in time: this machine is too busy. Try again when fewer programs run",
    ),
    (
        "No space left on device",
        "a disk is full: that of --out, of the cache (FEDSCAN_CACHE), of "
        "the sites' records (FEDSCAN_RECORDS) or of TMPDIR. Make room",
    ),
    (
        "AF_UNIX path length",
        "Ray's sockets do not fit below the folder for temporary files: set "
        "TMPDIR to a shorter path",
    ),
)
LESS_MEMORY = (
    "out of memory: lower training.batch-size, data.size or the number of sites that train at once "
    "(--cpus)"
)


def why(folder: Path, log: str) -> str:
    """Say why a run ended without a result.

    Parameters
    ----------
    folder : Path
        The run's.
    log : str
        Flower's.
    """
    if (folder / FAILURE).is_file():
        return _told(read_json(folder / FAILURE), folder)
    where = f"\nFlower's whole log: {folder / LOG}"
    if words := _known(log):
        return words + where
    if cause := first_error(log):
        more = f"\n{LESS_MEMORY}" if is_out_of_memory(RuntimeError(log)) else ""
        told = "the run ended without a result. The first error in Flower's log:"
        return f"{told}\n{cause}{more}{where}"
    end = "\n".join(log.splitlines()[-25:])
    return f"the run ended without a result. The end of Flower's log:\n{end}{where}"


def _known(text: str) -> str:
    return next((words for mark, words in _KNOWN if mark in text), "")


def first_error(log: str) -> str:
    """Return the line of a log that first names an error: what comes later is of its wake.

    The last line of the first traceback, or else the first line of level ERROR; "" without any.
    """
    for pattern in (_RAISED, _LOGGED):
        if found := pattern.search(log):
            return found[0].strip()
    return ""


def _told(failure: dict[str, str], folder: Path) -> str:
    """Put a failure that the run itself has told into words; its traceback only if it explains."""
    who = f"site '{failure['site']}'" if failure["site"] else "the server"
    head = f"{who} failed in {failure['phase']}: {failure['error']}"
    memory = LESS_MEMORY if is_out_of_memory(RuntimeError(failure["error"])) else ""
    if words := memory or _known(failure["error"]):
        return f"{head}\n{words}\nRun folder: {folder}"
    # Of an error of ours the words say what to do; a path through the code would hide them.
    last = (failure["traceback"].strip().splitlines() or [""])[-1]
    kind = getattr(errors, last.partition(":")[0].rpartition(".")[2], None)
    ours = isinstance(kind, type) and issubclass(kind, errors.FedscanError)
    return f"{head}\n{'' if ours else failure['traceback']}Run folder: {folder}"
