"""Names for people that nobody without the site's key can connect with them.

A pseudonym is a keyed hash (HMAC-SHA256 [1]_): the same person gets the same one under the same
key, in another run too, and a list of all patient numbers does not undo it. Whoever holds the key
can: it stays with the site, in a file that its owner alone can read, and never beside what is made.

References
----------
.. [1] RFC 2104, https://www.rfc-editor.org/rfc/rfc2104
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

from common.errors import ConfigError
from common.files import write_atomically

SHORTEST, LONGEST = 16, 1024  # bytes of a key
_DIGITS = 16  # of a pseudonym, 64 bits: two of a million people share one in 1 of 37 million tries


class Pseudonyms:
    """Pseudonyms under one key.

    Parameters
    ----------
    key : bytes
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, *identity: str) -> str:
        """Sixteen hexadecimal digits for what identifies someone, part by part."""
        parts = b"".join(
            len(raw).to_bytes(8, "big") + raw
            for raw in (part.encode("utf-8", "surrogatepass") for part in identity)
        )
        return hmac.new(self._key, parts, hashlib.sha256).hexdigest()[:_DIGITS]


def load_key(path: Path) -> bytes:
    """Read a site's key, or make a random one if there is no such file.

    Raises
    ------
    ConfigError
        It can be read by others, is too short or too long, or cannot be read or made.
    """
    remedy = "Name another file with --key, or leave the option out"
    try:
        if not path.exists():
            _make(path)
        return _read(path, remedy)
    except OSError as error:
        problem = "the key of pseudonyms cannot be read or made"
        raise ConfigError(f"'{path}': {problem}: {error.strerror}. {remedy}") from error


def _make(path: Path) -> None:
    """Put a random key in place, whole, unless another process was faster."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        write_atomically(new, secrets.token_bytes(32))
        with contextlib.suppress(FileExistsError):
            os.link(new, path)
    finally:
        new.unlink(missing_ok=True)


def _read(path: Path, remedy: str) -> bytes:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"'{path}' is no regular file. {remedy}")
        if status.st_mode & 0o077:
            raise ConfigError(
                f"'{path}': others can read the key of pseudonyms. Run `chmod 600` on it, or, if "
                "someone may have read it, name another file with --key"
            )
        key = file.read(LONGEST + 1)
    if not SHORTEST <= len(key) <= LONGEST:
        raise ConfigError(
            f"'{path}': a key of {len(key)} bytes: accepted are {SHORTEST} to {LONGEST}. {remedy}"
        )
    return key
