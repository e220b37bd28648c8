"""Keys and certificates of a federation: its authority, the coordinator's server, each hospital.

Three kinds of proof are made here. The *authority* is the federation's own: its certificate tells
hospitals which server is the coordinator's, and the coordinator which machines are hospitals'. A
*node key* tells the SuperLink which SuperNode speaks. A *client key* lets a hospital through the
coordinator's proxy. Private keys are written where they are used, for their owner alone, and never
over a file that is there.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import ConfigError
from common.files import PRIVATE_FILE, make_folder
from common.reading import read_bytes
from common.site_names import ACCEPTED_SITE_NAME, SITE_NAME

AUTHORITY_DAYS, CERTIFICATE_DAYS = 3650, 365
LOCAL = ("localhost", "127.0.0.1")
LARGEST = 64 * 2**10  # bytes of a file that is read here
_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
_PEM, _NO_PASSWORD = serialization.Encoding.PEM, serialization.NoEncryption()


def check_site(site: str) -> str:
    """Return a site's name.

    Raises
    ------
    ConfigError
        It is none.
    """
    if not SITE_NAME.fullmatch(site) or site == "ca":
        raise ConfigError(
            f"site '{site}': accepted are {ACCEPTED_SITE_NAME} and not 'ca', whose files are the "
            "authority's"
        )
    return site


def check_host(host: str) -> str:
    """Return a host name or an address.

    Raises
    ------
    ConfigError
        It is neither.
    """
    if _address(host) is None:
        labels = host.split(".")
        if (
            len(host) > 253
            or not all(map(_LABEL.fullmatch, labels))
            # What looks like an address and is none, as 10.0.0.999, is no name.
            or labels[-1].isdigit()
        ):
            raise ConfigError(
                f"host '{host}': accepted is a name without port, as in fl.example.org, or an "
                "IP address"
            )
    return host


def require_free(folder: Path, *names: str) -> None:
    """See that none of the files is there, before the first of them is made.

    Raises
    ------
    ConfigError
        One is.
    """
    for name in names:
        if (folder / name).exists() or (folder / name).is_symlink():
            raise ConfigError(_there(folder / name))


def write_new(path: Path, content: bytes) -> Path:
    """Write a file for its owner alone, from its first byte on, where there is none yet.

    Raises
    ------
    ConfigError
        There is one.
    """
    make_folder(path.parent)
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE)
    except FileExistsError as error:
        raise ConfigError(_there(path)) from error
    with open(file, "wb") as written:  # noqa: PTH123
        os.fchmod(written.fileno(), PRIVATE_FILE)  # a umask may have taken the owner's rights
        written.write(content)
    return path


def _there(path: Path) -> str:
    return (
        f"{path} is there already, and is never overwritten: choose another folder, or move it away"
    )


def make_authority(folder: Path, name: str = "fedscan federation") -> Path:
    """Make a federation's authority, ``ca.key`` and ``ca.crt``; return the certificate's path.

    Raises
    ------
    ConfigError
        The folder has one.
    """
    require_free(folder, "ca.key", "ca.crt")
    key = ec.generate_private_key(ec.SECP384R1())
    subject = _name(name)
    builder = (
        _certificate(subject, subject, key.public_key(), key.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
    )
    write_new(folder / "ca.key", _private_pem(key))
    signed = builder.sign(key, hashes.SHA384())
    return write_new(folder / "ca.crt", signed.public_bytes(_PEM))


def make_server_certificate(folder: Path, hosts: Sequence[str]) -> Path:
    """Make ``server.key`` and ``server.crt``, signed by the folder's authority.

    Parameters
    ----------
    folder : Path
        Holds ``ca.key`` and ``ca.crt``.
    hosts : sequence of str
        Names and addresses under which the server is reached; the loopback interface's are added.

    Returns
    -------
    Path
        Of the certificate.

    Raises
    ------
    ConfigError
        One of the hosts is none, the folder has no authority, or has a server's certificate.
    """
    require_free(folder, "server.key", "server.crt")
    names = list(dict.fromkeys([*map(check_host, hosts), *LOCAL]))
    key = ec.generate_private_key(ec.SECP384R1())
    addresses = {name: _address(name) for name in names}
    alternatives = [
        x509.DNSName(name) if (address := addresses[name]) is None else x509.IPAddress(address)
        for name in names
    ]
    signed = _signed(
        folder,
        _name(names[0]),
        key.public_key(),
        ExtendedKeyUsageOID.SERVER_AUTH,
        [x509.SubjectAlternativeName(alternatives)],
    )
    write_new(folder / "server.key", _private_pem(key))
    return write_new(folder / "server.crt", signed.public_bytes(_PEM))


def make_node_key(folder: Path, site: str) -> Path:
    """Make the key of a site's SuperNode, ``SITE.key``, and its public half, ``SITE.pub``.

    Returns
    -------
    Path
        Of the private key, in the format that ``flower-supernode`` reads.

    Raises
    ------
    ConfigError
        The site's name cannot be used, or the folder has such a key.
    """
    require_free(folder, f"{check_site(site)}.key", f"{site}.pub")
    key = ec.generate_private_key(ec.SECP384R1())
    written = write_new(
        folder / f"{site}.key",
        key.private_bytes(_PEM, serialization.PrivateFormat.OpenSSH, _NO_PASSWORD),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    write_new(folder / f"{site}.pub", public + f" {site}\n".encode())
    return written


def make_client_request(folder: Path, site: str) -> Path:
    """Make ``SITE-tls.key`` and the request for its certificate, ``SITE.csr``.

    Returns
    -------
    Path
        Of the request.

    Raises
    ------
    ConfigError
        The site's name cannot be used, or the folder has such a key.
    """
    require_free(folder, f"{check_site(site)}-tls.key", f"{site}.csr")
    key = ec.generate_private_key(ec.SECP384R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(_name(site))
    write_new(folder / f"{site}-tls.key", _private_pem(key))
    signed = request.sign(key, hashes.SHA384())
    return write_new(folder / f"{site}.csr", signed.public_bytes(_PEM))


def read_request(path: Path) -> tuple[str, x509.CertificateSigningRequest]:
    """Read a request that a hospital sent; return the site that it names, too.

    Raises
    ------
    ConfigError
        It is no request, was not signed by the key in it, or names no site.
    """
    made_by = "accepted is the SITE.csr that `fedscan deploy keys` wrote at the hospital"
    raw = _read(path, made_by)
    try:
        request = x509.load_pem_x509_csr(raw)
        names = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        valid = request.is_signature_valid and len(names) == len(list(request.subject)) == 1
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path}: {made_by}") from error
    if not valid or not isinstance(request.public_key(), ec.EllipticCurvePublicKey):
        raise ConfigError(f"{path}: {made_by}")
    return check_site(str(names[0].value)), request


def read_node_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Read the public half of a node key that a hospital sent.

    Raises
    ------
    ConfigError
        It is none.
    """
    made_by = "accepted is the SITE.pub that `fedscan deploy keys` wrote at the hospital"
    raw = _read(path, made_by)
    try:
        key = serialization.load_ssh_public_key(raw)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path}: {made_by}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError(f"{path}: {made_by}")
    return key


def node_key_site(path: Path) -> str:
    """Return the site that the comment of a public node key names; nothing where it has none."""
    read_node_key(path)
    _, _, comment = _read(path, "").decode(errors="replace").strip().partition(" ")
    return comment.partition(" ")[2]


def sign_client_certificate(folder: Path, request: Path) -> x509.Certificate:
    """Sign a hospital's request with the folder's authority, for a year, as a client's alone.

    Nothing of the request but the site's name and the public key gets into the certificate.

    Raises
    ------
    ConfigError
        As :func:`read_request`, or the folder has no authority.
    """
    site, asked = read_request(request)
    usage = ExtendedKeyUsageOID.CLIENT_AUTH
    return _signed(folder, _name(site), asked.public_key(), usage, [])


def key_fingerprint(path: Path) -> str:
    """Return a public node key's fingerprint, as ``ssh-keygen -lf`` shows it."""
    wire = base64.b64decode(
        read_node_key(path)
        .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        .split()[1]
    )
    return "SHA256:" + base64.b64encode(hashlib.sha256(wire).digest()).decode().rstrip("=")


def request_fingerprint(path: Path) -> str:
    """Return a request's fingerprint, as of ``openssl req -outform DER -in FILE | sha256sum``."""
    der = read_request(path)[1].public_bytes(serialization.Encoding.DER)
    return hashlib.sha256(der).hexdigest()


def _signed(
    folder: Path,
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    usage: x509.ObjectIdentifier,
    extensions: Sequence[x509.ExtensionType],
) -> x509.Certificate:
    made_by = "accepted are an authority's ca.key and ca.crt: `fedscan deploy init` makes them"
    key_file, certificate_file = (_read(folder / name, made_by) for name in ("ca.key", "ca.crt"))
    try:
        private = serialization.load_pem_private_key(key_file, None)
        authority = x509.load_pem_x509_certificate(certificate_file)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{folder}: {made_by}") from error
    builder = (
        _certificate(subject, authority.subject, key, authority.public_key(), CERTIFICATE_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(private, hashes.SHA384())


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuers: ec.EllipticCurvePublicKey,
    days: int,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuers), critical=False)
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, _NO_PASSWORD)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _read(path: Path, remedy: str) -> bytes:
    return read_bytes(path, limit=LARGEST, remedy=remedy)
