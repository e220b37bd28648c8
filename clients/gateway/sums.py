"""A hospital's part in secure sums: its gate's, by the long-term key that its owner keeps.

The run's code gives its update to the gate in the clear, which judges it as any other; what leaves
is masked. So a site that sends nonsense, or more than its bounds, is stopped before the sum, where
nobody could see whose it was.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from clients.gateway.policy import SumsPolicy
from clients.state import SiteState
from clients.sums import Summand
from common.errors import ConfigError, FileError
from common.reading import read_bytes

CREDENTIALS = "CREDENTIALS_DIRECTORY"  # where systemd lays a service's secrets
LARGEST_KEY = 64 * 2**10  # bytes


def key_file(site: str, policy: Path) -> Path:
    """Return where a site's private key for secure sums is: a credential, or beside the policy."""
    given = os.environ.get(CREDENTIALS, "")
    name = f"{site}-sums.key"
    return Path(given) / name if given and (Path(given) / name).exists() else policy.parent / name


def summand_of(state: SiteState, policy: SumsPolicy, key: Path) -> Summand:
    """Return a site in secure sums.

    Parameters
    ----------
    state : SiteState
        The gate's, of the run.
    policy : SumsPolicy
    key : Path

    Raises
    ------
    ConfigError
        The policy names nobody, or a key that is none; or the site's own cannot be read. The public
        words name neither file nor key.
    """
    site = state.site
    if not policy.sites:
        raise ConfigError(
            f"site '{site}': the run asks for secure sums, and the site's policy names no sites "
            "under [secure-sums]: ask the site to name them, with their keys"
        )
    known = {}
    for entry in policy.sites:
        name, _, text = entry.partition(":")
        try:
            known[name] = Ed25519PublicKey.from_public_bytes(bytes.fromhex(text))
        except ValueError:
            problem = f"site '{site}': its policy names a key under [secure-sums] that is none"
            raise ConfigError(f"{problem}: {entry[:100]!r}", public=problem) from None
    problem = f"site '{site}': its key for secure sums cannot be read"
    try:
        own = load_pem_private_key(read_bytes(key, limit=LARGEST_KEY), None)
    except (OSError, FileError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{problem}: {key}: {error}", public=problem) from error
    if not isinstance(own, Ed25519PrivateKey):
        raise ConfigError(f"{problem}: {key}: it is no Ed25519 key", public=problem)
    return Summand(state, own, known, policy.fewest)
