"""A site's data during a run are those with which it began, or the run ends and says so."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import Message
from test_clients_local import TINY, Site
from test_server_rounds import InProcessGrid, clients, run_config, simulated

from clients import local
from clients.digests import CONFIG, ROSTER
from clients.state import DATA, SiteState
from common import files, messages
from common.config.run_config import RunConfig
from common.errors import DataContractError, FedscanError
from common.imaging import bids
from common.messages import EVALUATE, HELLO, TRAIN, Failure
from common.tasks.task import load_task
from server.rounds import federate

pytestmark = pytest.mark.usefixtures("one_thread", "task_identity")

CHANGED = "participants, labels or splits have changed since the run began"
UNREADABLE = "the {} scans that can be read have changed since the run began"
WAY_OUT = "end the run and begin another"
LATER = [(TRAIN, 2, "train"), (EVALUATE, 1, "val"), (EVALUATE, 1, "test")]


def forget() -> None:
    """Forget the loaded scans, as a deployed site does: each message has a process of its own."""
    local._remembered.cache_clear()
    local._remembered_roster.cache_clear()


@pytest.fixture(autouse=True)
def folders(monkeypatch, session_cache, tmp_path) -> None:
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))
    monkeypatch.setenv("FEDSCAN_RECORDS", str(tmp_path / "secret-records"))
    forget()


class Hospital(Site):
    """North, with data of its own that have no column of splits."""

    def __init__(self, folder: Path, cohort: Path) -> None:
        shutil.copytree(cohort / "north", folder / "north")
        super().__init__(RunConfig.from_flower(TINY), folder)
        self.data = folder / "north"
        self.table = self.data / "participants.tsv"
        self.rewrite(lambda row: row.rsplit("\t", 1)[0])
        self.weights = self.start

    def rewrite(self, change: Callable[[str], str]) -> None:
        self.table.write_text("".join(change(row) + "\n" for row in self.rows()))

    def rows(self) -> list[str]:
        return self.table.read_text().splitlines()

    def split_of(self, name: str) -> str:
        return next(
            p.split for p in bids.read_site(self.data, "north").participants if p.id == name
        )

    def some(self, split: str) -> list[bids.Participant]:
        return [p for p in bids.read_site(self.data, "north").participants if p.split == split]

    def joins(self, name: str) -> None:
        """Let somebody join, with a scan."""
        source = self.some("train")[0].scan
        (self.data / name / "anat").mkdir(parents=True)
        shutil.copy(source, self.data / name / "anat" / f"{name}_T1w.nii.gz")
        sex = "M" if self.some("train")[0].label else "F"
        with self.table.open("a") as table:
            table.write(f"{name}\t{sex}\t50\n")

    def answer(self, kind: str, number: int = 0, split: str = "") -> Failure | None:
        forget()
        return messages.failure_in(self.reply(kind, number, split))

    def reply(self, kind: str, number: int = 0, split: str = "") -> Message:
        return self.ask(kind, number, split, self.weights)


@pytest.fixture
def hospital(tmp_path, tiny_cohort) -> Hospital:
    """It has said hello, trained for a round and validated it."""
    found = Hospital(tmp_path / "secret-data", tiny_cohort)
    assert found.answer(HELLO) is None
    assert found.answer(TRAIN, 1, "train") is None
    assert found.answer(EVALUATE, 1, "val") is None
    return found


def assert_refused(failure: Failure | None, *words: str) -> None:
    assert failure is not None
    assert failure.site == "north"
    for word in ("site 'north'", WAY_OUT, *words):
        assert word in failure.error
    for secret in ("secret", "sub-", "/", "\t"):
        assert secret not in failure.error


# What changes in mid-run


def joins(hospital: Hospital) -> None:
    """Newcomers come in until someone has moved from training to another split."""
    before = {p.id: p.split for p in hospital.some("train")}
    for number in range(40):
        hospital.joins(f"sub-new{number}")
        if any(hospital.split_of(name) != "train" for name in before):
            return
    raise AssertionError("nobody moved")


def leaves(hospital: Hospital) -> None:
    hospital.table.write_text("\n".join(hospital.rows()[:-1]) + "\n")


def other_label(hospital: Hospital) -> None:
    first = hospital.rows()[1]
    swapped = first.replace("\tF", "\tX").replace("\tM", "\tF").replace("\tX", "\tM")
    hospital.rewrite(lambda row: swapped if row == first else row)


def other_split(hospital: Hospital) -> None:
    splits = {p.id: p.split for s in ("train", "val", "test") for p in hospital.some(s)}
    moved = next(name for name, split in splits.items() if split == "train")
    splits |= {"participant_id": "split", moved: "test"}
    hospital.rewrite(lambda row: f"{row}\t{splits[row.split()[0]]}")


def scan_is_gone(hospital: Hospital) -> None:
    hospital.some("train")[0].scan.unlink()


@pytest.mark.parametrize("order", LATER, ids=lambda order: order[2])
@pytest.mark.parametrize("change", [joins, leaves, other_label, other_split, scan_is_gone])
def test_participants_who_change_in_mid_run_end_it(hospital, change, order, monkeypatch):
    change(hospital)
    opened = []
    monkeypatch.setattr(
        load_task("classification"), "open_split", lambda *args: opened.append(args)
    )
    assert_refused(hospital.answer(*order), CHANGED)
    assert not opened  # no scan is, before the refusal
    assert SiteState("north", 7).load(1)  # the way back stays open


def test_once_the_data_are_as_before_the_run_goes_on(hospital):
    table = hospital.table.read_text()
    joins(hospital)
    assert_refused(hospital.answer(TRAIN, 2, "train"), CHANGED)
    hospital.table.write_text(table)
    for order in LATER:
        assert hospital.answer(*order) is None


def test_column_of_splits_that_says_the_same_changes_nothing(hospital):
    splits = {p.id: p.split for s in ("train", "val", "test") for p in hospital.some(s)}
    splits["participant_id"] = "split"
    hospital.rewrite(lambda row: f"{row}\t{splits[row.split()[0]]}")
    assert hospital.answer(TRAIN, 2, "train") is None


@pytest.mark.parametrize(("kind", "number", "split"), LATER[:2], ids=["train", "val"])
def test_scan_that_cannot_be_read_in_mid_run_ends_it(hospital, kind, number, split):
    scan = hospital.some(split)[0].scan
    whole = scan.read_bytes()
    scan.write_bytes(b"no scan")
    assert_refused(hospital.answer(kind, number, split), UNREADABLE.format(split))
    scan.write_bytes(whole)
    assert hospital.answer(kind, number, split) is None


def test_scan_that_was_bad_from_the_start_is_left_out_throughout(tmp_path, tiny_cohort):
    hospital = Hospital(tmp_path / "secret-data", tiny_cohort)
    scan = hospital.some("train")[0].scan
    whole = scan.read_bytes()
    scan.write_bytes(b"no scan")
    for order in ((HELLO,), (TRAIN, 1, "train"), LATER[0]):
        assert hospital.answer(*order) is None
    scan.write_bytes(whole)
    assert_refused(hospital.answer(TRAIN, 2, "train"), UNREADABLE.format("train"))


def test_run_that_begins_after_the_change_knows_nothing_of_it(hospital):
    joins(hospital)
    hospital.state.remove()
    assert hospital.answer(HELLO) is None
    assert hospital.answer(TRAIN, 1, "train") is None


# What is kept


def test_answer_to_hello_tells_nothing_of_what_is_kept(hospital):
    kept = json.loads((hospital.state.folder / DATA).read_text())
    assert kept.keys() == {ROSTER, CONFIG, "train", "val"}  # no test scan has been opened
    for kind, number, split in ((HELLO, 0, ""), (TRAIN, 2, "train"), (EVALUATE, 1, "val")):
        told = str(hospital.reply(kind, number, split).content)
        assert not any(digest in told for digest in kept.values())


def test_what_is_kept_goes_with_the_test(hospital):
    assert hospital.answer(EVALUATE, 1, "test") is None
    assert not hospital.state.folder.exists()


def test_record_that_is_lost_ends_the_run(hospital):
    (hospital.state.folder / DATA).unlink()
    for order in ((TRAIN, 1, "train"), *LATER):
        failure = hospital.answer(*order)
        assert "the record of the data with which run 7 began is missing" in failure.error
        assert "start the run anew" in failure.error
        assert "secret" not in failure.error
    assert not (hospital.state.folder / DATA).exists()


def test_simulation_reads_tables_and_scans_as_often_as_its_processes_need(
    tmp_path, tiny_cohort, monkeypatch, in_simulation
):
    """A site stays in its actor's memory: nothing but what the test needs is read anew."""
    loaded, read = [], []
    task = load_task("classification")
    for owner, name, calls in ((task, "open_split", loaded), (local, "roster", read)):
        really = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, r=really, c=calls: (c.append(a[:3]), r(*a))[1])
    config = run_config(tmp_path / "runs", cohort_dir=str(tiny_cohort))
    federate(InProcessGrid(clients(simulated(), config)[0]), config, run_id="run")
    assert len(loaded) == 2 * 3  # two sites, three splits
    assert len(read) == 2 * 2  # at hello, and anew before the test


# The record itself


@pytest.fixture
def state() -> SiteState:
    return SiteState("north", 7)


def test_record_is_kept_and_grows(state):
    state.require_same_data({ROSTER: "a"}, begins=True)
    state.require_same_data({"train": "b"})
    state.save(1, {})
    state.save(2, {})
    state.save(3, {})
    other = SiteState("north", "7")
    other.require_same_data({ROSTER: "a", "train": "b"})
    for name, words in ((ROSTER, CHANGED), ("train", UNREADABLE.format("train"))):
        with pytest.raises(DataContractError, match=words) as caught:
            other.require_same_data({name: "c"}, begins=True)
        assert "/" not in caught.value.public
    assert json.loads((state.folder / DATA).read_text()) == {ROSTER: "a", "train": "b"}


def test_record_is_written_once(state, monkeypatch):
    state.require_same_data({ROSTER: "a"}, begins=True)
    monkeypatch.setattr("clients.state.write_atomically", None)
    state.require_same_data({ROSTER: "a"})


def test_only_the_owner_may_look(state):
    before = os.umask(0)
    try:
        state.require_same_data({ROSTER: "a"}, begins=True)
    finally:
        os.umask(before)
    assert stat.S_IMODE((state.folder / DATA).stat().st_mode) == 0o600
    for folder in (state.folder, state.folder.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("damage", [b"", b"[1]", b"\xff", b"7", b"[" * 100_000])
def test_damaged_record_is_told(state, damage):
    state.require_same_data({ROSTER: "a"}, begins=True)
    (state.folder / DATA).write_bytes(damage)
    with pytest.raises(FedscanError, match="is damaged") as caught:
        state.require_same_data({ROSTER: "a"}, begins=True)
    assert "site 'north'" in caught.value.public
    assert "start the run anew" in caught.value.public
    assert "/" not in caught.value.public


def test_full_disk_is_told(state, monkeypatch):
    def full_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/secret/path")

    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(FedscanError, match="cannot be saved") as caught:
        state.require_same_data({ROSTER: "a"}, begins=True)
    assert "No space left" in caught.value.public
    assert "secret" not in caught.value.public
