"""What is asked of an attack."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MEMBERSHIP, INVERSION, ATTRIBUTES = KINDS = ("membership", "inversion", "attributes")
MOST = 1000  # people a group and site, where nothing else is asked for


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Parameters
    ----------
    run : Path
        Folder of a run or of a training.
    out : Path
        Folder to make.
    kinds : tuple of str
        Of :data:`KINDS`.
    sites : tuple of str
        Of those trained on; all of them where none is named.
    shadows : int
        Shadow models a site, an even number; 0: none.
    count : int
        People a group and site, at most.
    pictures : int
        Of a generator, that people's images are compared with.
    inversions : int
        Images a site that are sought.
    steps : int
        Of each of these searches.
    cohort : Path, optional
        Where the sites' data are, if they are no longer where they were.
    seed : int
    device : str
    """

    run: Path
    out: Path
    kinds: tuple[str, ...] = (MEMBERSHIP,)
    sites: tuple[str, ...] = ()
    shadows: int = 0
    count: int = MOST
    pictures: int = 1000
    inversions: int = 4
    steps: int = 300
    cohort: Path | None = None
    seed: int = 0
    device: str = "auto"
