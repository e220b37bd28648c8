"""Flower's SuperNode as a hospital runs it: its certificate, and how long it sleeps."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization

from clients.gateway import flower_supernode
from clients.gateway.flower_supernode import Pauses, client_context, present_certificate
from simulations.deploy import keys


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """What was slept, in a time that passes by sleeping alone."""
    slept: list[float] = []
    monkeypatch.setattr(flower_supernode.time, "sleep", slept.append)
    monkeypatch.setattr(flower_supernode.time, "monotonic", lambda: sum(slept))
    return slept


def test_after_a_task_the_next_message_is_looked_for_at_once(clock) -> None:
    pauses = Pauses()
    for _ in range(200):
        pauses.sleep(3)
    pauses.sleep(0.5)  # a task's answer is waited for
    pauses.sleep(3)
    assert clock[-2:] == [0.1, 0.1]


def test_a_site_that_nobody_asks_is_as_quiet_as_flowers_own(clock) -> None:
    pauses = Pauses()
    while sum(clock) < 120:
        pauses.sleep(3)
    assert clock == sorted(clock)
    assert clock[-1] == 3
    assert len(clock) < 130  # of which Flower's own loop makes 40


def test_flowers_loop_takes_nothing_else_from_the_module_of_time() -> None:
    from flwr.supernode import start_client_internal

    source = Path(start_client_internal.__file__).read_text()
    called = set(re.findall(r"\btime\.\w.*", source))
    assert called == {"time.sleep(3)", "time.sleep(0.5)"}


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    keys.make_authority(tmp_path)
    request = keys.make_client_request(tmp_path, "north")
    signed = keys.sign_client_certificate(tmp_path, request)
    pem = signed.public_bytes(serialization.Encoding.PEM)
    return keys.write_new(tmp_path / "north.crt", pem), tmp_path / "north-tls.key"


def test_flowers_client_shows_the_certificate_and_verifies_the_server_as_before(
    certificate, tmp_path, monkeypatch
) -> None:
    from flwr.supernode import fleet_http_connection

    given: list[ssl.SSLContext] = []
    loaded: list[tuple[Path, Path]] = []
    monkeypatch.setattr(fleet_http_connection, "FleetHttpClient", None)
    monkeypatch.setattr(
        ssl.SSLContext, "load_cert_chain", lambda self, *files: loaded.append(files)
    )
    real = httpx.Client
    monkeypatch.setattr(
        httpx, "Client", lambda *, verify, **more: given.append(verify) or real(**more)
    )
    present_certificate(*certificate)
    for root in (str(tmp_path / "ca.crt"), (tmp_path / "ca.crt").read_bytes()):
        client = fleet_http_connection.FleetHttpClient.from_server_address(
            "localhost:443", False, root, interceptors=[]
        )
        client.close()
        assert loaded.pop() == certificate
        context = given.pop()
        assert context.verify_mode is ssl.CERT_REQUIRED and context.check_hostname
        assert [one["subject"] for one in context.get_ca_certs()] == [
            ((("commonName", "fedscan federation"),),)
        ]


def test_a_certificate_is_not_shown_without_tls(certificate) -> None:
    with pytest.raises(ValueError, match="needs TLS"):
        client_context(False, *certificate)
