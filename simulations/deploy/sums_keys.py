"""A site's long-term key for secure sums, by which other sites know that it is the one it says."""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from common.errors import ConfigError
from common.files import make_folder
from common.reading import read_bytes
from simulations.deploy.keys import LARGEST, check_site, write_new


def make_sums_key(folder: Path, site: str) -> Path:
    """Make a site's key for secure sums: ``SITE-sums.key``, with which it signs its part.

    Raises
    ------
    ConfigError
        The file is there already.
    """
    key = ed25519.Ed25519PrivateKey.generate()
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return write_new(make_folder(folder) / f"{check_site(site)}-sums.key", pem)


def sums_key(folder: Path, site: str) -> str:
    """Return the public half of a site's key for secure sums, in hexadecimal.

    Raises
    ------
    ConfigError, FileError
        There is none that can be read.
    """
    path = folder / f"{site}-sums.key"
    raw = read_bytes(path, limit=LARGEST, remedy="`fedscan deploy keys` makes it")
    try:
        key = serialization.load_pem_private_key(raw, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path}: accepted is an Ed25519 private key without password") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ConfigError(f"{path}: accepted is an Ed25519 private key without password")
    return key.public_key().public_bytes_raw().hex()
