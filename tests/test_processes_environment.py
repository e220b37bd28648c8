"""What Flower's and Ray's processes find around them, whatever the user's environment is."""

from __future__ import annotations

import os
import sys
import tempfile

import pytest

from common.errors import ConfigError
from common.processes import environment
from common.processes.environment import (
    neutral_home,
    offline_environment,
    pass_proxies_by,
    require_plain_path,
)

PROXIES = {
    "http_proxy": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://proxy:3128",
    "ALL_PROXY": "socks5://proxy:1080",
    "grpc_proxy": "http://proxy:3128",
}
LONGEST_SOCKET = 107  # bytes of a Unix socket's path
RAY = "/ray/session_2026-11-29_17-36-04_123456_1234567/sockets/plasma_store"


@pytest.fixture
def proxies(monkeypatch):
    for name, value in PROXIES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("no_proxy", "hospital.example")
    monkeypatch.delenv("NO_PROXY", raising=False)


def test_no_proxy_stands_between_processes_of_one_machine(proxies, tmp_path):
    assert not PROXIES.keys() & offline_environment(tmp_path).keys()


def test_a_hospital_keeps_its_proxy_but_not_to_itself(proxies, tmp_path):
    pass_proxies_by()
    found = offline_environment(tmp_path, proxies=True)
    assert found["HTTPS_PROXY"] == PROXIES["HTTPS_PROXY"]
    assert found["no_proxy"] == found["NO_PROXY"] == "hospital.example,127.0.0.1,localhost,::1"
    assert "ALL_PROXY" not in found  # httpx would ask for the package socksio


@pytest.mark.parametrize("length", [10, 22, 23, 27, 60, 200])
def test_rays_sockets_fit_whatever_the_length_of_tmpdir(monkeypatch, tmp_path, length):
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/" + "t" * (length - 1))
    monkeypatch.setattr(environment, "SHORT_FOLDERS", ("/tmp",))
    with neutral_home() as home:
        assert home.is_dir()
        assert len(os.fsencode(home)) + len(RAY) <= LONGEST_SOCKET


def test_a_short_folder_for_temporary_files_is_used(monkeypatch):
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="é") as folder:
        monkeypatch.setattr(tempfile, "gettempdir", lambda: folder)
        with neutral_home() as home:
            assert str(home.parent) == folder
        assert not home.exists()


def test_tmpdir_is_named_where_no_folder_is_short_enough(monkeypatch):
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/" + "t" * 90)
    monkeypatch.setattr(environment, "SHORT_FOLDERS", ())
    with pytest.raises(ConfigError, match="TMPDIR="), neutral_home():
        pass


@pytest.mark.parametrize("path", ["/opt/my env/bin/python", "/opt/a;b/bin/python", "/o/$x/python"])
def test_an_environment_whose_path_ray_would_part_is_refused(monkeypatch, path):
    monkeypatch.setattr(sys, "executable", path)
    with pytest.raises(ConfigError, match=r"Ray cannot start workers .* path holds"):
        require_plain_path()


@pytest.mark.parametrize("path", ["/opt/Überlingen/bin/python3.11", "/opt/env-1_2+a@b/bin/python"])
def test_letters_beyond_ascii_are_no_obstacle(monkeypatch, path):
    monkeypatch.setattr(sys, "executable", path)
    require_plain_path()
