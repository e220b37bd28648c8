"""``fedscan supernode``: what it refuses before anything starts, and what it hands on."""

from __future__ import annotations

import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args
from processes import fedscan_here

from clients.gateway import gate, supernode, upstream
from clients.gateway.supernode import SuperNode
from common.errors import ConfigError
from common.processes.environment import toml


@pytest.fixture
def node(tmp_path: Path) -> SuperNode:
    policy = tmp_path / "policy.toml"
    policy.write_text("")
    return SuperNode("fl.example.org:443", "north", tmp_path, policy)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"site": "all"}, "site = 'all'"),
        ({"site": "north wing"}, "site = 'north wing'"),
        ({"data_dir": Path("/nowhere")}, "'/nowhere' is not a folder"),
        ({"superlink": "fl.example.org"}, "accepted is HOST:PORT"),
        ({"superlink": "https://fl.example.org:443"}, "accepted is HOST:PORT"),
        ({"superlink": "fl.example.org:70000"}, "accepted is HOST:PORT"),
        ({"root_certificates": Path("/nowhere.crt")}, "--root-certificates /nowhere.crt"),
        ({"root_certificates": Path(__file__)}, "certificates as PEM"),
        ({"private_key": Path("/nowhere.key")}, "--auth-supernode-private-key /nowhere.key"),
        ({"extractor": Path("/nowhere.pt")}, "--extractor /nowhere.pt"),
        ({"policy": Path("/nowhere.toml")}, "--policy /nowhere.toml"),
        ({"client_certificate": Path(__file__)}, "give both or neither"),
        ({"client_certificate": Path(__file__), "client_key": Path(__file__)}, "a certificate and"),
        ({"insecure": True, "private_key": Path(__file__)}, "leave --insecure out"),
    ],
)
def test_what_cannot_work_is_refused_with_its_name(node, changes, expected) -> None:
    with pytest.raises(ConfigError, match=expected):
        replace(node, **changes).check()


def test_command_line_refuses_with_one_clear_message(tmp_path: Path) -> None:
    words = ("--superlink", "127.0.0.1:9091", "--insecure", "--site", "north", "--data-dir", "no")
    (tmp_path / "policy.toml").write_text("")
    for more, expected in ((["--policy", "policy.toml"], "is not a folder"), ([], "--policy FILE")):
        done = fedscan_here("supernode", *words, *more, cwd=tmp_path, cache=tmp_path / "cache")
        assert done.returncode == 2
        assert expected in done.stderr
        assert "Traceback" not in done.stderr


def test_flower_reads_the_node_config_as_it_was_given(node, tmp_path) -> None:
    folder = Path('/data/it\'s "north" = ä\\')
    file = tmp_path / "node.toml"
    node = replace(node, data_dir=folder, extractor=tmp_path / "extractor.pt")
    file.write_text(toml(node.node_config()), encoding="utf-8")
    told = {"site": "north", "data-dir": str(folder), "extractor": str(tmp_path / "extractor.pt")}
    assert parse_config_args([str(file)]) == told


def test_secret_is_for_its_owners_eyes(tmp_path) -> None:
    file = supernode._private_file(tmp_path / "secret", b"secret")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


FLOWER = """
import pathlib, socket, sys, time
with socket.create_server(("127.0.0.1", int(sys.argv[1]))):
    while not pathlib.Path(sys.argv[2]).exists():
        time.sleep(0.05)
    print("INFO :      SuperNode ID: 5", file=sys.stderr, flush=True)
    time.sleep(60)
"""


def test_a_site_is_said_to_be_connected_when_the_superlink_has_taken_it_in(
    node, tmp_path, monkeypatch, caplog, capfd
) -> None:
    told: list[bool] = []
    superlink = tmp_path / "superlink"

    def asked_for_a_task(tasks) -> None:
        told.append("connected to fl.example.org:443" in caplog.text)
        if len(told) == 2:
            superlink.touch()  # from now on it answers
        if told[-1] or len(told) > 40:
            raise KeyboardInterrupt

    command = [sys.executable, "-c", FLOWER]
    monkeypatch.setattr(
        SuperNode, "command", lambda self, port, *_: [*command, str(port), str(superlink)]
    )
    monkeypatch.setattr(upstream.Tasks, "acquire", asked_for_a_task)
    monkeypatch.setattr(gate.Gate, "_prepare_box", lambda self: None)
    monkeypatch.setenv("FEDSCAN_RECORDS", str(tmp_path / "records"))
    with caplog.at_level("INFO", logger="flwr.fedscan"), pytest.raises(KeyboardInterrupt):
        supernode.serve(node)
    assert "Site north: starting" in caplog.text
    assert told[:2] == [False, False] and told[-1]
    assert "SuperNode ID: 5" in capfd.readouterr().err  # Flower's lines are shown as they come
