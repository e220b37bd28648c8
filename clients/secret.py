"""A random text of a site's own, on its own disk."""

from __future__ import annotations

import secrets

from common.errors import FedscanError
from common.files import write_atomically
from common.paths import site_records

SECRET_BYTES = 32


def site_secret(site: str) -> str:
    """Return a random text that the site alone knows, made when it is first needed.

    With it batches and augmentation do not follow from a run's seed, which the server knows.

    Raises
    ------
    FedscanError
        If it cannot be read or written.
    """
    path = site_records(site) / "secret"
    try:
        if not path.exists():
            write_atomically(path, secrets.token_hex(SECRET_BYTES).encode())
        return path.read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        message = f"site '{site}': its secret for seeds cannot be read or made"
        raise FedscanError(f"{message} ({path}: {error})", public=message) from error
