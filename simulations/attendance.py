"""Who took part in which round of a run, and why not, as its folder tells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from common.errors import FileError
from common.participation import Attendance, Outcome, Standing
from common.reading import LARGEST_TABLE, parse_json, read_bytes
from common.run_folder import ATTENDANCE

TYPES = {"round": int, "order": str, "site": str, "outcome": str, "why": str}


def read_attendance(folder: Path) -> list[Attendance]:
    """Read what came of each order; of a run in progress, so far.

    Raises
    ------
    FileNotFoundError, FileError
        There is no such log, or it is not fedscan's: the line is named.
    """
    path, remedy = folder / ATTENDANCE, "Name the folder of a run by fedscan run or federate"
    *lines, _ = read_bytes(path, limit=LARGEST_TABLE, remedy=remedy).split(b"\n")
    found = []
    for number, line in enumerate(lines, 1):
        try:
            values = parse_json(line)
            if not isinstance(values, dict) or values.keys() != TYPES.keys():
                raise ValueError("no line of it")
            if wrong := [k for k, kind in TYPES.items() if not isinstance(values[k], kind)]:
                raise ValueError(f"{wrong[0]} is of another type")
            found.append(Attendance(**{**values, "outcome": Outcome(values["outcome"])}))
        except ValueError as error:
            raise FileError(path, f"line {number} cannot be read ({error})", remedy) from None
    return found


def count_outcomes(found: Iterable[Attendance]) -> dict[tuple[str, str], Counter[Outcome]]:
    """Count outcomes by site and order, sites in order of name, orders as they come in a run."""
    counts: dict[tuple[str, str], Counter[Outcome]] = {}
    for one in found:
        counts.setdefault((one.site, one.order), Counter())[one.outcome] += 1
    orders = {"train": 0, "val": 1, "test": 2}
    return dict(sorted(counts.items(), key=lambda item: (item[0][0], orders.get(item[0][1], 3))))


def reasons(found: Iterable[Attendance]) -> dict[tuple[str, str, Outcome, str], list[int]]:
    """Return the rounds in which a site's answer was not used, by site, order and reason."""
    rounds: dict[tuple[str, str, Outcome, str], list[int]] = {}
    for one in found:
        if one.outcome is not Outcome.USED:
            key = (one.site, one.order, one.outcome, one.why)
            rounds.setdefault(key, []).append(one.round)
    return rounds


def suspended_sites(folder: Path) -> list[str]:
    """Name the sites of a run that are not asked any more, sorted, as its log tells.

    Raises
    ------
    FileError
        As :func:`read_attendance`.
    """
    standing = Standing()
    last: dict[str, Outcome] = {}
    try:
        found = read_attendance(folder)
    except FileNotFoundError:
        return []
    for one in found:
        if one.outcome is not Outcome.SUSPENDED and one.site in standing.suspended:
            standing.readmit(one.site)  # it was asked again
        standing.note(one)
        last[one.site] = one.outcome
    told = {site for site, outcome in last.items() if outcome is Outcome.SUSPENDED}
    return sorted(told | standing.suspended.keys())


def ranges(rounds: Iterable[int]) -> str:
    """Write numbers as ranges: 1-3, 7."""
    parts: list[list[int]] = []
    for number in sorted(set(rounds)):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
