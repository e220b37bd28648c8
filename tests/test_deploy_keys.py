"""Keys and certificates of a federation: what they prove, to whom, and who can read them."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.cli.supernode.register import try_load_public_key
from processes import modes_of_others

from common.errors import FedscanError
from simulations.deploy import keys


@pytest.fixture
def coordinator(tmp_path: Path) -> Path:
    keys.make_authority(folder := tmp_path / "coordinator")
    keys.make_server_certificate(folder, ["coordinator.example", "10.0.0.1"])
    return folder


def client(coordinator: Path, folder: Path, site: str) -> tuple[Path, Path]:
    request = keys.make_client_request(folder, site)
    signed = keys.sign_client_certificate(coordinator, request)
    pem = signed.public_bytes(serialization.Encoding.PEM)
    return keys.write_new(folder / f"{site}.crt", pem), folder / f"{site}-tls.key"


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """Let two ends agree without a network, or raise what one of them has against the other."""
    one, two, three, four = (ssl.MemoryBIO() for _ in range(4))
    ends = [
        server.wrap_bio(one, two, server_side=True),
        client.wrap_bio(three, four, server_hostname=name),
    ]
    done = [False, False]
    for _ in range(10):
        for number, end in enumerate(ends):
            try:
                end.do_handshake()
                done[number] = True
            except ssl.SSLWantReadError:
                pass
        one.write(four.read())
        three.write(two.read())
    assert all(done)
    for end in ends:  # a server of TLS 1.3 judges the client's certificate after its own end
        with pytest.raises(ssl.SSLWantReadError):
            end.read(1)


def server_context(coordinator: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(coordinator / "server.crt", coordinator / "server.key")
    context.load_verify_locations(coordinator / "ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(coordinator: Path, *certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=coordinator / "ca.crt")
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python 3.13 does by default
    if certificate:
        context.load_cert_chain(*certificate)
    return context


@pytest.mark.parametrize("name", ["coordinator.example", "10.0.0.1", "127.0.0.1", "localhost"])
def test_a_hospital_and_the_coordinator_prove_themselves_to_each_other(
    coordinator, tmp_path, name
) -> None:
    certificate = client(coordinator, tmp_path / "north", "north")
    handshake(server_context(coordinator), client_context(coordinator, *certificate), name)


def test_a_hospital_without_a_certificate_or_with_another_authoritys_is_refused(
    coordinator, tmp_path
) -> None:
    keys.make_authority(other := tmp_path / "other")
    strange = client(other, tmp_path / "north", "north")
    for certificate in ((), strange):
        with pytest.raises(ssl.SSLError):
            handshake(
                server_context(coordinator),
                client_context(coordinator, *certificate),
                "coordinator.example",
            )


def test_a_hospitals_certificate_makes_no_server(coordinator, tmp_path) -> None:
    certificate = client(coordinator, tmp_path / "north", "coordinator.example")
    server = server_context(coordinator)
    server.load_cert_chain(*certificate)
    with pytest.raises(ssl.SSLError):
        handshake(server, client_context(coordinator), "coordinator.example")


def test_a_certificate_is_its_sites_for_a_year_whatever_the_request_asks_for(
    coordinator, tmp_path
) -> None:
    request = keys.make_client_request(tmp_path / "north", "north")
    signed = keys.sign_client_certificate(coordinator, request)
    assert signed.subject.rfc4514_string() == "CN=north"
    assert (signed.not_valid_after_utc - signed.not_valid_before_utc).days == 365
    assert not signed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_flower_takes_the_keys_of_a_node(tmp_path) -> None:
    private = keys.make_node_key(tmp_path, "north")
    key = serialization.load_ssh_private_key(private.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert try_load_public_key(tmp_path / "north.pub")


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_fingerprint_of_a_node_key_is_the_one_that_ssh_shows(tmp_path) -> None:
    keys.make_node_key(tmp_path, "north")
    public = tmp_path / "north.pub"
    shown = subprocess.run(["ssh-keygen", "-lf", public], capture_output=True, check=True)
    assert keys.key_fingerprint(public) in shown.stdout.decode()


def test_everything_is_for_its_owners_eyes(coordinator, tmp_path) -> None:
    keys.make_node_key(tmp_path / "north", "north")
    keys.make_client_request(tmp_path / "north", "north")
    assert not modes_of_others(coordinator) and not modes_of_others(tmp_path / "north")


def test_no_key_is_ever_overwritten(coordinator) -> None:
    before = (coordinator / "ca.key").read_bytes()
    with pytest.raises(FedscanError, match=r"ca\.key is there already"):
        keys.make_authority(coordinator)
    assert (coordinator / "ca.key").read_bytes() == before


@pytest.mark.parametrize("site", ["", "all", "ca", "../north", "north wing", "a" * 65])
def test_what_is_no_name_of_a_site_gets_no_key(tmp_path, site) -> None:
    for make in (keys.make_node_key, keys.make_client_request):
        with pytest.raises(FedscanError, match="accepted are"):
            make(tmp_path, site)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "host", ["", "a b", "fl.example.org:443", "https://a", "-a", "10.0.0.999", "a;b", "*"]
)
def test_what_is_no_host_gets_no_certificate(tmp_path, host) -> None:
    keys.make_authority(tmp_path)
    with pytest.raises(FedscanError, match=r"accepted is a name without port"):
        keys.make_server_certificate(tmp_path, [host])


def test_a_request_that_cannot_be_used_is_refused_with_its_name(coordinator, tmp_path) -> None:
    request = keys.make_client_request(tmp_path, "north")
    changed = x509.load_pem_x509_csr(request.read_bytes()).public_bytes(serialization.Encoding.DER)
    (tmp_path / "bad.csr").write_bytes(b"-----BEGIN CERTIFICATE REQUEST-----\n")
    (tmp_path / "der.csr").write_bytes(changed)
    (tmp_path / "large.csr").write_bytes(bytes(100_000))
    (tmp_path / "link.csr").symlink_to(coordinator / "ca.key")
    for name in ("bad", "der", "large", "link"):
        with pytest.raises(FedscanError, match=f"{name}.csr"):
            keys.sign_client_certificate(coordinator, tmp_path / f"{name}.csr")
