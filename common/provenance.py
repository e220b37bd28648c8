"""What ran: a hash of the sources, the versions underneath, and a check that both sides agree.

The check finds accidents, such as two releases in one run. It is no guard against whoever submits a
run: Flower sends the code that a site executes, this check with it.
"""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from importlib import metadata
from pathlib import Path

from common.errors import ProvenanceError

PACKAGES = ("common", "server", "clients")
NOT_SENT = ("clients/gateway/", "common/processes/")  # fab-exclude of pyproject.toml
LIBRARIES = ("fedscan", "flwr", "torch", "ray", "numpy", "nibabel", "scipy", "scikit-learn")


@cache
def source_hash(root: Path | None = None, packages: tuple[str, ...] = PACKAGES) -> str:
    """Hash the sources that decide a run's result: .py and .toml of common, server and clients.

    What Flower does not send to a site is left out (:data:`NOT_SENT`).

    Parameters
    ----------
    root : Path, optional
        Folder that holds the packages. By default the one that this module was imported from, so
        a client that imports another checkout's code gives itself away.
    packages : tuple of str
        Which packages below it.

    Returns
    -------
    str
        64 hexadecimal digits of SHA-256 over relative paths and contents, in order of path.
    """
    digest = hashlib.sha256()
    for name, path in sources(root, packages).items():
        digest.update(name.encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def sources(root: Path | None = None, packages: tuple[str, ...] = PACKAGES) -> dict[str, Path]:
    """List the files of :func:`source_hash`, by their paths below the root."""
    root = root or Path(__file__).parents[1]
    found = {}
    for package in packages:
        files = [path for kind in ("*.py", "*.toml") for path in (root / package).rglob(kind)]
        found |= {path.relative_to(root).as_posix(): path for path in sorted(files)}
    return {name: path for name, path in found.items() if not name.startswith(NOT_SENT)}


def require_same_source(theirs: str, who: str) -> None:
    """Refuse to work with a party that runs other sources.

    Raises
    ------
    ProvenanceError
        With both hashes, abbreviated, and what to do.
    """
    ours = source_hash()
    if theirs != ours:
        raise ProvenanceError(
            f"{who} runs other fedscan sources ({theirs[:12] or 'none'}) than this process "
            f"({ours[:12]}). Start the SuperLink and every SuperNode from one release, outside "
            "any folder that holds another copy of fedscan"
        )


def versions() -> dict[str, str]:
    """Versions of Python, the platform and the libraries that a result depends on."""
    found = {"python": platform.python_version(), "platform": platform.platform(terse=True)}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
