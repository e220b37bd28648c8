"""Who may take part in a federation: certificates that the proxy lets through, and those no more.

The proxy takes a certificate of the federation's authority only if its serial number stands in the
coordinator's ``admitted.map``. To remove a hospital is to take its lines away: there is no list of
revoked certificates that could be out of date.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from common.errors import ConfigError
from common.files import write_atomically
from simulations.deploy import keys
from simulations.deploy.folders import read_federation

ADMITTED = "admitted.map"
_LINE = re.compile(r'"(?P<serial>[0-9A-F]+)" "(?P<site>[^"]+)"; # until (?P<until>[0-9-]+)')


@dataclass(frozen=True)
class Admission:
    """A hospital that was let in.

    Parameters
    ----------
    site : str
    certificate : Path
        The file that goes back to the hospital.
    serial : str
    until : str
        The day on which the certificate ends.
    request_fingerprint : str
    key_fingerprint : str, optional
        Of the node key, where one was given.
    others : int
        Certificates of the same hospital that are admitted as well.
    """

    site: str
    certificate: Path
    serial: str
    until: str
    request_fingerprint: str
    key_fingerprint: str | None = None
    others: int = 0


def admit(coordinator: Path, request: Path, node_key: Path | None, out: Path) -> Admission:
    """Sign a hospital's request, and let its certificate through the proxy.

    Parameters
    ----------
    coordinator : Path
        The coordinator's folder.
    request : Path
        ``SITE.csr``, as the hospital sent it.
    node_key : Path, optional
        ``SITE.pub``, which the hospital sent too; left out where a certificate is renewed.
    out : Path
        Folder for the certificate, ``SITE.crt``.

    Raises
    ------
    ConfigError
        One of the files is not what it should be, they are of two sites, the federation has no such
        site, or there is a certificate in ``out``.
    """
    site, _ = keys.read_request(request)
    federation = read_federation(coordinator)
    if site not in federation.sites:
        raise ConfigError(
            f"{request}: site '{site}' is none of this federation's, {', '.join(federation.sites)}:"
            " `fedscan deploy init --coordinator` makes further ones"
        )
    if node_key and (named := keys.node_key_site(node_key)) not in ("", site):
        raise ConfigError(f"{request} is of site '{site}', and {node_key} of site '{named}'")
    others = sum(f'"{site}"' in line for line in admitted_lines(coordinator))
    certificate = keys.sign_client_certificate(coordinator, request)
    digits = f"{certificate.serial_number:X}"
    serial = digits.zfill(len(digits) + len(digits) % 2)  # whole bytes, as nginx tells it
    until = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
    written = keys.write_new(
        out / f"{site}.crt", certificate.public_bytes(serialization.Encoding.PEM)
    )
    lines = [*admitted_lines(coordinator), f'"{serial}" "{site}"; # until {until}']
    _write_lines(coordinator, lines)
    return Admission(
        site,
        written,
        serial,
        until,
        keys.request_fingerprint(request),
        keys.key_fingerprint(node_key) if node_key else None,
        others,
    )


def remove(coordinator: Path, site: str) -> list[str]:
    """Let no certificate of a site through the proxy any more; return their serial numbers.

    Raises
    ------
    ConfigError
        None was let through.
    """
    keys.check_site(site)
    read_federation(coordinator)
    kept, gone = [], []
    for line in admitted_lines(coordinator):
        found = _LINE.fullmatch(line)
        if found and found["site"] == site:
            gone.append(found["serial"])
        else:
            kept.append(line)
    if not gone:
        raise ConfigError(f"{coordinator / ADMITTED}: no certificate of site '{site}' is admitted")
    _write_lines(coordinator, kept)
    return gone


def admitted_lines(coordinator: Path) -> list[str]:
    """Return the lines of the list of certificates that the proxy lets through."""
    return (coordinator / ADMITTED).read_text().splitlines()


def _write_lines(coordinator: Path, lines: list[str]) -> None:
    write_atomically(coordinator / ADMITTED, "".join(f"{line}\n" for line in lines).encode())
