"""Errors that say what was got, what is accepted and the way out.

Two readers see an error. The person who holds the data may know which file and which value is
wrong; the server and everybody behind it may not. ``str(error)`` is for the first, ``error.public``
for the second: it never holds a file name, a participant or a value read from a site's data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def causes(error: BaseException | None, *, hidden: bool = False) -> Iterator[BaseException]:
    """Yield an error and what it followed from, each once: ``raise error from error`` is a ring.

    Parameters
    ----------
    error : BaseException, optional
    hidden : bool
        Go on where ``from None`` has hidden what an error followed from.
    """
    met: set[int] = set()
    while error is not None and id(error) not in met:
        met.add(id(error))
        yield error
        seen = hidden or not error.__suppress_context__
        error = error.__cause__ or (error.__context__ if seen else None)


class FedscanError(Exception):
    """Base of all errors that a user can act on; shown without a traceback.

    Parameters
    ----------
    message : str
        For the eyes of whoever holds the data.
    public : str, optional
        What may leave the site. By default the message itself.
    """

    def __init__(self, message: str, *, public: str | None = None) -> None:
        super().__init__(message)
        self.public = message if public is None else public


class ConfigError(FedscanError):
    """A run configuration or a command line that cannot be used."""


class AnswerError(FedscanError):
    """A site's answer to the server that cannot be used.

    Parameters
    ----------
    site : str
        Name of the site.
    problem : str
        What is wrong with it, and the way out.
    """

    def __init__(self, site: str, problem: str) -> None:
        super().__init__(f"site '{site}': {problem}")
        self.site = site


class AbsentError(FedscanError):
    """A simulated site is away in a round: it answers as if nobody were there."""


class DataContractError(FedscanError):
    """A site's data break the contract on which fedscan reads them.

    Parameters
    ----------
    site : str
        Name of the site.
    problem : str
        What is wrong, in words that hold nothing read from the data.
    where : str
        File, column or voxel, relative to the site's folder. Stays at the site.
    got : str
        The offending value. Stays at the site.
    remedy : str
        What is accepted, or what to do.
    """

    def __init__(
        self, site: str, problem: str, *, where: str = "", got: str = "", remedy: str = ""
    ) -> None:
        place = f"{where}: " if where else ""
        value = f" (got {got})" if got else ""
        advice = f". {remedy}" if remedy else ""
        super().__init__(
            f"site '{site}': {place}{problem}{value}{advice}",
            public=f"site '{site}': {problem}{advice}",
        )
        self.site, self.problem, self.where = site, problem, where
        self.got, self.remedy = got, remedy


class FileError(FedscanError):
    """A file of a folder of results that is there and cannot be used.

    Parameters
    ----------
    path : Path
    problem : str
        What is wrong with it, as a predicate ("is a link"), in words that hold nothing read from
        it.
    remedy : str
        What to do.
    """

    def __init__(self, path: Path, problem: str, remedy: str) -> None:
        # The name may be what a hostile file said; no path of a file is longer.
        shown = "".join(c if c.isprintable() else "\ufffd" for c in str(path)[:4096])
        super().__init__(f"{shown}: {problem}. {remedy}", public=f"a file {problem}. {remedy}")
        self.path, self.problem, self.remedy = path, problem, remedy


class ProvenanceError(FedscanError):
    """Two parties of a run do not run the same code."""


class SecureSumError(FedscanError):
    """A party of a secure sum refuses to go on, since the sum would tell more than the sum."""


class DivergedError(FedscanError, FloatingPointError):
    """Training left the finite numbers: the same run would do so again."""
