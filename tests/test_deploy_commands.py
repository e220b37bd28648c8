"""``fedscan deploy``: what its folders hold, who is let in, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from cryptography import x509
from processes import ROOT, modes_of_others
from typer.testing import CliRunner

from clients.policy import SitePolicy
from common.errors import ConfigError
from simulations.deploy import admission, commands, keys, sums_keys
from simulations.deploy.folders import (
    Federation,
    read_federation,
    write_federation,
    write_further_hospitals,
)

FEDERATION = Federation("coordinator.example", ("north", "south"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_federation(FEDERATION, out := tmp_path / "federation")
    return out


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    keys.make_node_key(folder := tmp_path / "north", "north")
    keys.make_client_request(folder, "north")
    return folder


def deploy(*words: str) -> dict:
    """Run ``fedscan deploy`` and read what it says to machines."""
    done = CliRunner().invoke(commands.app, [*words, "--format", "json"], catch_exceptions=False)
    return json.loads(done.stdout)


def test_a_hospitals_folder_holds_no_key_and_the_federations_certificate(out) -> None:
    for site in FEDERATION.sites:
        folder = out / "hospitals" / site
        assert not any(b"PRIVATE KEY" in one.read_bytes() for one in folder.iterdir())
        authority = (out / "coordinator" / "ca.crt").read_bytes()
        assert (folder / "ca.crt").read_bytes() == authority


def test_folders_are_for_their_owners_eyes(out) -> None:
    assert not modes_of_others(out)


def test_a_hospitals_policy_is_the_default_and_names_every_key(out) -> None:
    file = out / "hospitals" / "north" / "policy.toml"
    assert SitePolicy.read(file) == SitePolicy()
    named = tomllib.loads(re.sub(r"(?m)^#([a-z-]+ = )", r"\1", file.read_text()))
    assert SitePolicy().to_mapping().keys() <= named.keys()


def test_every_command_of_a_folder_stands_on_the_page_of_deployment(out) -> None:
    page = (ROOT / "docs" / "deployment.md").read_text().splitlines()
    for folder in (out / "coordinator", out / "hospitals" / "north"):
        text = (folder / "COMMANDS.md").read_text().partition("To see what goes on")[0]
        blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
        lines = [line for one in blocks for line in one.splitlines() if "south" not in line]
        assert len(lines) > 5
        assert [line for line in lines if line not in page] == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_understands_every_line_of_the_services(out, tmp_path) -> None:
    units = [*out.rglob("*.service")]
    assert len(units) == 4
    for unit in units:
        copy = tmp_path / unit.name
        # Programs and users that are not here are no fault of the file.
        text = re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", unit.read_text())
        copy.write_text(re.sub(r"(?m)^User=.*", "User=root", text))
        told = subprocess.run(
            ["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False
        )
        assert unit.name not in told.stderr, told.stderr


@pytest.mark.parametrize(
    "changes",
    [
        {"host": "a b"},
        {"host": "fl.example.org:443"},
        {"sites": ()},
        {"sites": ("north", "North")},
        {"sites": ("north", "../south")},
        {"sites": ("north", "")},
    ],
)
def test_what_is_no_federation_is_refused_before_anything_is_made(changes) -> None:
    with pytest.raises(ConfigError, match=r"accepted|twice"):
        Federation(**{"host": "coordinator.example", "sites": ("north",)} | changes)


def test_a_coordinator_that_is_known_by_its_address_is_one(tmp_path) -> None:
    write_federation(Federation("2001:db8::1", ("north",), 8443), tmp_path / "federation")
    unit = tmp_path / "federation" / "hospitals" / "north" / "fedscan-supernode.service"
    assert "--superlink [2001:db8::1]:8443 " in unit.read_text()
    assert "server_name _;" in (tmp_path / "federation/coordinator/nginx.conf").read_text()


def test_folders_that_are_there_are_left_as_they_are(out) -> None:
    before = {one: one.read_bytes() for one in out.rglob("*") if one.is_file()}
    with pytest.raises(ConfigError, match="is there already"):
        write_federation(FEDERATION, out)
    assert before == {one: one.read_bytes() for one in out.rglob("*") if one.is_file()}


def test_a_further_hospital_gets_the_same_authority(out, tmp_path) -> None:
    coordinator = out / "coordinator"
    [folder] = write_further_hospitals(["west"], coordinator, tmp_path / "west")
    assert (folder / "ca.crt").read_bytes() == (coordinator / "ca.crt").read_bytes()
    assert read_federation(coordinator).sites == ("north", "south", "west")
    with pytest.raises(ConfigError, match="twice"):
        write_further_hospitals(["West"], coordinator, tmp_path / "again")


def test_an_admitted_certificate_is_on_the_proxys_list_until_it_is_removed(
    out, hospital, tmp_path
) -> None:
    coordinator = out / "coordinator"
    words = ("admit", str(hospital / "north.csr"), str(hospital / "north.pub"))
    told = deploy(*words, "--coordinator", str(coordinator), "--out", str(tmp_path))
    certificate = x509.load_pem_x509_certificate(Path(told["certificate"]).read_bytes())
    assert int(told["serial"], 16) == certificate.serial_number
    assert len(told["serial"]) % 2 == 0
    assert f'"{told["serial"]}" "north";' in (coordinator / "admitted.map").read_text()
    assert told["key_fingerprint"] == keys.key_fingerprint(hospital / "north.pub")
    removed = deploy("remove", "--site", "north", "--coordinator", str(coordinator))
    assert removed["serials"] == [told["serial"]]
    assert (coordinator / "admitted.map").read_text() == ""
    with pytest.raises(ConfigError, match="no certificate of site 'north'"):
        admission.remove(coordinator, "north")


def test_a_renewed_certificate_is_admitted_beside_the_old_one(out, hospital, tmp_path) -> None:
    coordinator, request = out / "coordinator", hospital / "north.csr"
    first = admission.admit(coordinator, request, hospital / "north.pub", tmp_path / "1")
    second = admission.admit(coordinator, request, None, tmp_path / "2")
    listed = (coordinator / "admitted.map").read_text()
    assert first.serial in listed and second.serial in listed
    assert admission.remove(coordinator, "north") == [first.serial, second.serial]


def test_files_of_two_sites_admit_nobody(out, hospital, tmp_path) -> None:
    keys.make_node_key(tmp_path, "south")
    with pytest.raises(ConfigError, match=r"is of site 'north', and .* of site 'south'"):
        admission.admit(
            out / "coordinator", hospital / "north.csr", tmp_path / "south.pub", tmp_path
        )
    assert (out / "coordinator" / "admitted.map").read_text() == ""


def test_a_site_that_is_none_of_the_federations_is_not_admitted(out, tmp_path) -> None:
    request = keys.make_client_request(tmp_path, "west")
    with pytest.raises(ConfigError, match="'west' is none of this federation's, north, south"):
        admission.admit(out / "coordinator", request, None, tmp_path)


def test_a_folder_that_is_no_coordinators_is_refused(hospital, tmp_path) -> None:
    with pytest.raises(ConfigError, match="is no coordinator's folder"):
        admission.admit(tmp_path, hospital / "north.csr", None, tmp_path)


def test_keys_are_made_all_or_none(tmp_path) -> None:
    (tmp_path / "north.csr").write_text("another's")
    with pytest.raises(ConfigError, match=r"north\.csr is there already"):
        deploy("keys", "--site", "north", "--out", str(tmp_path))
    assert [one.name for one in tmp_path.iterdir()] == ["north.csr"]


def test_what_travels_is_told_with_its_fingerprints(tmp_path) -> None:
    told = deploy("keys", "--site", "north", "--out", str(tmp_path))
    assert {Path(one).name for one in told["public"]} == {"north.pub", "north.csr"}
    assert {Path(one).name for one in told["private"]} == {
        "north.key",
        "north-tls.key",
        "north-sums.key",
    }
    assert told["secure_sums"] == f"north:{sums_keys.sums_key(tmp_path, 'north')}"
    assert told["request_fingerprint"] == keys.request_fingerprint(tmp_path / "north.csr")


def test_the_servers_certificate_is_renewed_when_the_old_one_is_moved_away(out) -> None:
    coordinator = out / "coordinator"
    with pytest.raises(ConfigError, match="is there already"):
        deploy("renew", "--coordinator", str(coordinator))
    for name in ("server.key", "server.crt"):
        (coordinator / name).rename(out / name)
    told = deploy("renew", "--coordinator", str(coordinator))
    assert Path(told["certificate"]).read_bytes() != (out / "server.crt").read_bytes()


def test_one_of_host_and_coordinator_is_asked_for(tmp_path) -> None:
    with pytest.raises(ConfigError, match="give one of them"):
        deploy("init", "--sites", "north", "--out", str(tmp_path / "out"))


def test_templates_are_part_of_the_installed_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert "simulations" in wheel["only-include"]
    templates = [one for one in (ROOT / "simulations/deploy/templates").rglob("*") if one.is_file()]
    assert len(templates) >= 9
    told = subprocess.run(
        ["git", "check-ignore", *templates], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert not told.stdout
