"""Whatever a site's policy, ledger, list of apps or a bundle holds: read, or refused in words."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path

import pytest
from hostile import CASES, Case, as_lines, as_toml, hostile, keeps_its_promise
from hypothesis import given
from test_gateway_approvals import PLAIN, archive, installation
from test_gateway_ledger import sent

from clients.gateway.approvals import NAME as APPROVED
from clients.gateway.approvals import Approvals
from clients.gateway.bundle import Bundle, describe
from clients.gateway.chain import verify
from clients.gateway.ledger import Ledger
from clients.gateway.policy import open_policy_text, read_policies
from clients.policy import SitePolicy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gate")


@pytest.fixture(scope="module")
def policy() -> dict:
    return tomllib.loads(open_policy_text(["ab" * 32]))


@hostile
@given(CASES)
def test_any_policy_is_read_or_refused(folder, policy, case: Case):
    path = folder / "policy.toml"
    path.write_bytes(case.tree_or_bytes(policy, as_toml))
    read = case.choice([read_policies, SitePolicy.read])
    keeps_its_promise(lambda: read(path), folder)


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gate") / "ledger.jsonl"
    with Ledger(path, "north") as opened:
        for number in range(1, 4):
            opened.append(sent(number))
    return path.read_bytes()


@hostile
@given(CASES)
def test_any_ledger_is_verified_or_refused(folder, ledger, case: Case):
    path, lines = folder / "ledger.jsonl", [json.loads(line) for line in ledger.splitlines()]
    path.write_bytes(case.tree_or_bytes(lines, as_lines))
    if case.random() < 0.5:
        for finding in keeps_its_promise(lambda: verify(path), folder):
            assert len(finding.words) < 1000 and finding.words.isprintable()
        return

    def opened() -> None:
        with Ledger(path, "north"):
            pass

    keeps_its_promise(opened, folder)


APPROVAL = {
    **{"action": "approved", "hash": "ab" * 32, "name": "fedscan/fedscan", "version": "1"},
    **{"identical": True, "when": "2026-01-01T00:00:00+00:00", "by": "anna", "note": "seen"},
}


@hostile
@given(CASES)
def test_any_list_of_approved_apps_is_read_or_refused(folder, case: Case):
    (folder / APPROVED).write_bytes(case.tree_or_bytes([APPROVAL] * 2, as_lines))
    approvals = Approvals(folder / APPROVED)
    found = keeps_its_promise(approvals.current, folder)
    if isinstance(found, list):
        assert all(one.action == "approved" for one in found)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installation(tmp_path_factory.mktemp("installed"))


@hostile
@given(CASES)
def test_any_bundle_is_described_or_refused(folder, installed, case: Case):
    raw = case.tree_or_bytes([list(pair) for pair in PLAIN.items()], as_archive)
    found = keeps_its_promise(lambda: describe(raw, installed), folder)
    if isinstance(found, Bundle):
        assert found.hash == hashlib.sha256(raw).hexdigest()


def as_archive(files: object) -> bytes:
    """Write pairs of a name and a text, whatever they have become, as an archive."""
    rows = [row for row in files if isinstance(row, list)] if isinstance(files, list) else []
    texts = {str(row[0]).partition("\0")[0][:9999]: str(row[-1]) for row in rows if row}
    texts.pop("", None)  # which zipfile cannot write
    return archive({name: text.encode("utf-8", "replace") for name, text in texts.items()})
