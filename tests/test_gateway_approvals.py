"""Which apps a site has approved, and what a bundle is said to hold."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import zipfile
from pathlib import Path

import pytest

from clients.gateway.approvals import Approvals
from clients.gateway.bundle import build_installed, describe, read_bundle
from common.errors import ConfigError

PROJECT = """
[project]
name = "fedscan"
version = "0.1.0"
[tool.flwr.app]
publisher = "fedscan"
fab-include = ["common/**/*.py", "server/**/*.py", "clients/**/*.py"]
fab-exclude = ["clients/gateway/**"]
[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "clients.app:app"
[tool.flwr.app.config]
study = "brain-sex"
"""
SOURCES = ("common/a.py", "server/app.py", "clients/app.py", "clients/gateway/gate.py")


def installation(folder: Path) -> Path:
    for name in SOURCES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"# {name}\n")
    (folder / "pyproject.toml").write_text(PROJECT)
    return folder


@pytest.fixture
def installed(tmp_path):
    return installation(tmp_path / "installed")


@pytest.fixture
def approvals(tmp_path):
    return Approvals.beside(tmp_path / "site" / "policy.toml")


def archive(files, **about) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", **about) as made:
        for name, content in files.items():
            made.writestr(name, content)
    return out.getvalue()


# What a bundle holds


def test_bundle_of_this_installation_is_identical_to_it():
    bundle = describe(build_installed())
    assert (bundle.publisher, bundle.name) == ("fedscan", "fedscan")
    assert bundle.identical
    assert bundle.hash == hashlib.sha256(build_installed()).hexdigest()


def test_equal_sources_in_two_folders_give_the_same_bytes(installed, tmp_path):
    other = installation(tmp_path / "elsewhere")
    for name in SOURCES:
        os.utime(other / name, (0, 0))
        (other / name).chmod(0o600)
    (other / "notes.txt").write_text("of no run")
    assert build_installed(installed) == build_installed(other)


def test_other_sources_are_named_by_file(installed, tmp_path):
    theirs = tmp_path / "theirs"
    shutil.copytree(installed, theirs)
    (theirs / "clients/app.py").write_text("import socket\n")
    (theirs / "clients/gateway_x.py").write_text("# looks like the gate's\n")
    (theirs / "common/a.py").unlink()
    (theirs / "common/b.py").write_text("")
    bundle = describe(build_installed(theirs), installed)
    assert bundle.changed == ("clients/app.py",)
    assert bundle.added == ("clients/gateway_x.py", "common/b.py")
    assert bundle.missing == ("common/a.py",)
    assert not bundle.identical


@pytest.mark.parametrize("with_project", [True, False])
def test_a_bundle_that_starts_another_object_is_not_identical(installed, tmp_path, with_project):
    theirs = tmp_path / "theirs"
    shutil.copytree(installed, theirs)
    text = PROJECT.replace("clients.app:app", "common.a:app")
    (theirs / "pyproject.toml").write_text(text)
    if not with_project:
        (installed / "pyproject.toml").unlink()
    assert describe(build_installed(theirs), installed).changed == ("pyproject.toml",)


def test_an_installation_without_its_project_file_says_what_to_do(installed):
    bundle = build_installed(installed)
    (installed / "pyproject.toml").unlink()
    with pytest.raises(ConfigError, match=r"ask for the bundle .*fedscan gate approve FILE.fab"):
        build_installed(installed)
    assert describe(bundle, installed).identical


PLAIN = {"pyproject.toml": PROJECT, "clients/app.py": ""}


def with_name(name: str) -> bytes:
    return archive({**PLAIN, name: "x"})


def twice() -> bytes:
    out = io.BytesIO(archive(PLAIN))
    with zipfile.ZipFile(out, "a") as made, pytest.warns(UserWarning, match="Duplicate"):
        made.writestr("clients/app.py", "other")
    return out.getvalue()


def link() -> bytes:
    entry = zipfile.ZipInfo("common/link.py")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return archive({**PLAIN, entry: "/etc/passwd"})


def bomb() -> bytes:
    return archive({**PLAIN, "common/a.py": b"\0" * (65 * 2**20)}, compression=zipfile.ZIP_DEFLATED)


def lying_bomb() -> bytes:
    """Promise a kilobyte in both headers, and hold 50 MiB."""
    data = bytearray(
        archive({**PLAIN, "z.py": b"\0" * (50 * 2**20)}, compression=zipfile.ZIP_DEFLATED)
    )
    size = (50 * 2**20).to_bytes(4, "little")
    while (at := data.find(size)) >= 0:
        data[at : at + 4] = (1024).to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\3\4" + bytes(100),
        archive({"clients/app.py": ""}),
        archive({"pyproject.toml": "[project"}),
        archive({"pyproject.toml": "tool = 3"}),
        archive({"pyproject.toml": PROJECT.replace('"fedscan"', '"../../home"', 1)}),
        with_name("../out.py"),
        with_name("/etc/cron.d/x"),
        with_name("common//a.py"),
        with_name("common/./a.py"),
        with_name("common\\a.py"),
        with_name("C:/a.py"),
        with_name("common/"),
        with_name("a\nb.py"),
        with_name("CLIENTS/app.py"),
        with_name("clients"),
        link(),
        bomb(),
        lying_bomb(),
        archive({f"common/{n}.py": "" for n in range(5001)}),
        bytes(10 * 2**20 + 1),
    ],
)
def test_what_no_build_makes_is_refused_in_words(installed, content):
    with pytest.raises(ConfigError) as refused:
        describe(content, installed)
    assert "bundle" in str(refused.value)


def test_two_files_of_one_name_are_refused(installed):
    with pytest.raises(ConfigError, match="two files of one name"):
        describe(twice(), installed)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"app.fab: there is no such file"):
        read_bundle(tmp_path / "app.fab")


# The list


def test_nothing_is_approved_without_a_list(approvals):
    assert approvals.current() == []
    assert approvals.find("a" * 64) is None


def test_an_approval_says_what_when_and_by_whom(approvals, installed, monkeypatch):
    monkeypatch.setenv("LOGNAME", "somebody-else")
    bundle = describe(build_installed(installed), installed)
    approvals.approve(bundle, note="seen by the data protection officer\n")
    (one,) = approvals.current()
    assert approvals.find(bundle.hash) == one
    assert (one.name, one.version, one.identical) == ("fedscan/fedscan", "0.1.0", True)
    assert one.note == "seen by the data protection officer "
    assert one.by != "somebody-else"
    assert one.when.endswith("+00:00")


def test_a_revoked_app_is_no_longer_approved_and_the_list_remembers_both(approvals):
    approvals.approve("a" * 64)
    approvals.approve("b" * 64)
    approvals.revoke("aaaaaaaa")
    assert [one.hash[0] for one in approvals.current()] == ["b"]
    assert len(approvals.path.read_text().splitlines()) == 3
    approvals.approve("a" * 64)
    assert [one.hash[0] for one in approvals.current()] == ["b", "a"]


@pytest.mark.parametrize("digest", ["", "c", "a"])
def test_a_revocation_must_mean_one_app(approvals, digest):
    approvals.approve("a" * 63 + "0")
    approvals.approve("a" * 63 + "1")
    with pytest.raises(ConfigError, match="see fedscan gate list"):
        approvals.revoke(digest)


@pytest.mark.parametrize("text", ["a" * 63, "A" * 64, "app.fab", ""])
def test_only_a_whole_hash_is_approved(approvals, text):
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        approvals.approve(text)
    assert not approvals.path.exists()


def test_only_the_sites_user_can_read_the_list(approvals):
    approvals.approve("a" * 64)
    assert stat.S_IMODE(approvals.path.stat().st_mode) == 0o600


@pytest.mark.parametrize("line", ["nothing", "{}", '{"hash": 3}', "[1]"])
def test_a_list_that_cannot_be_read_approves_nothing_and_names_the_line(approvals, line):
    approvals.approve("a" * 64)
    with approvals.path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ConfigError, match="line 2") as refused:
        approvals.find("a" * 64)
    assert refused.value.public == "the list of approved apps cannot be read"
