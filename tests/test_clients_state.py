"""A site's private state outlives its processes, is its owner's alone, and is never half."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clients.state import SiteState
from common import files
from common.errors import FedscanError

ROOT = Path(__file__).parents[1]

# Saves rounds 1 and 2, then is killed in saving round 3: at which write to disk, it is told.
KILLED = """
import os, signal, sys
import torch
from clients.state import SiteState
from common import files

site = SiteState("north", 7)
for number in (1, 2):
    site.save(number, {"moments": torch.full((3,), float(number))})
writes, fsync = 0, os.fsync

def killed(descriptor):
    global writes
    writes += 1
    if writes == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)

os.fsync = killed
site.save(int(sys.argv[2]), {"moments": torch.full((3,), 3.0)})
"""


@pytest.fixture(autouse=True)
def records(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("FEDSCAN_RECORDS", str(tmp_path / "secret-records"))
    return tmp_path / "secret-records"


@pytest.fixture
def site() -> SiteState:
    return SiteState("north", 7)


def state(value: float) -> dict[str, torch.Tensor]:
    return {"moments": torch.full((3,), value), "half": torch.tensor([value]).half()}


def kept(site: SiteState) -> list[str]:
    return sorted(path.name for path in site.folder.iterdir())


def killed_in(write: int, round_number: int) -> None:
    """Run the script above to its violent end."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(write), str(round_number)],
        cwd=ROOT,
        timeout=120,
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def assert_told(error: FedscanError, *words: str) -> None:
    """The server hears what is wrong, and nothing of where."""
    assert all(word in error.public for word in words), error.public
    assert "secret" not in error.public
    assert "/" not in error.public


# From one process to the next


def test_saved_is_loaded(site):
    site.save(1, state(1))
    loaded = SiteState("north", "7").load(1)
    assert list(loaded) == ["half", "moments"]
    for name, value in state(1).items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name], value)


def test_before_the_first_round_there_is_nothing(site, records):
    assert site.load(0) == {}
    assert not records.exists()


def test_empty_state_is_a_state(site):
    site.save(1, {})
    assert site.load(1) == {}


def test_every_number_is_kept(site):
    values = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    site.save(1, {"w": values, "scalar": torch.tensor(3), "none": torch.zeros(0, 2)})
    loaded = site.load(1)
    assert loaded["w"].numpy().tobytes() == values.numpy().tobytes()
    assert loaded["scalar"].item() == 3
    assert loaded["scalar"].shape == ()
    assert loaded["none"].shape == (0, 2)


def test_views_and_gradients_are_saved_as_their_numbers(site):
    site.save(1, {"w": torch.arange(6.0, requires_grad=True).reshape(2, 3).T})
    assert site.load(1)["w"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_loaded_tensors_outlive_their_file(site):
    site.save(1, {"w": torch.arange(10_000.0)})
    loaded = site.load(1)["w"]
    for path in site.folder.rglob("*.safetensors"):
        path.write_bytes(b"\0" * path.stat().st_size)
    site.remove()
    assert torch.equal(loaded, torch.arange(10_000.0))


@pytest.mark.parametrize("write", [1, 2])  # the tensors, then the sidecar that names them
def test_killed_in_a_new_round_the_one_before_is_loaded_by_another_process(site, write):
    killed_in(write, 3)
    assert torch.equal(site.load(2)["moments"], torch.full((3,), 2.0))
    assert torch.equal(site.load(1)["moments"], torch.full((3,), 1.0))
    with pytest.raises(FedscanError, match=r"round 3 of run 7 is missing.*there: 1, 2"):
        site.load(3)
    site.save(3, state(3))  # the order is repeated
    assert torch.equal(site.load(3)["moments"], torch.full((3,), 3.0))
    site.save(4, state(4))
    site.save(5, state(5))
    assert kept(site) == ["round-4", "round-5"]  # and what the killed one left is gone
    assert all(len(list(folder.iterdir())) == 2 for folder in site.folder.iterdir())


def test_killed_in_repeating_a_round_its_first_answer_stays(site):
    killed_in(2, 2)
    assert torch.equal(site.load(2)["moments"], torch.full((3,), 2.0))


# For the owner's eyes only


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_the_owner_may_look(site, records, umask):
    before = os.umask(umask)
    try:
        site.save(1, state(1))
        site.save(2, state(2))
    finally:
        os.umask(before)
    below = list((records / "north" / "state").rglob("*"))
    assert len(below) == 1 + 2 + 4
    for path in [records / "north" / "state", *below]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_folder_that_was_open_to_others_is_closed(site):
    site.folder.mkdir(parents=True)
    site.folder.chmod(0o777)
    site.save(1, state(1))
    assert stat.S_IMODE(site.folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "run_id",
    ["../x", "..", ".", "", "a/b", "/etc", "a\\b", "7\n", "x" * 65, "r\u00fcn", "7 8", "\u0663"],
)
def test_hostile_run_id_is_refused(run_id, records):
    with pytest.raises(FedscanError, match="is refused") as caught:
        SiteState("north", run_id)
    assert_told(caught.value, "site 'north'", "digits, letters and -")
    assert "\n" not in str(caught.value)
    assert not records.exists()


@pytest.mark.parametrize("run_id", [0, 2**64 - 1, "7", "run-7-B", "x" * 64])
def test_plain_run_id_names_a_folder(run_id, records):
    assert SiteState("north", run_id).folder == records / "north" / "state" / str(run_id)


def test_rounds_are_counted(site):
    for number in (-1, 0):
        with pytest.raises(FedscanError, match=f"round {number} has no state"):
            site.save(number, {})
    with pytest.raises(FedscanError, match="round -1 has no state"):
        site.load(-1)


# Which rounds are kept


def test_last_two_rounds_are_kept(site):
    for number in range(1, 12):
        site.save(number, state(number))
    assert kept(site) == ["round-10", "round-11"]
    for number in (10, 11):
        assert torch.equal(site.load(number)["moments"], torch.full((3,), float(number)))


def test_repeated_order_starts_from_the_same_state(site):
    for number in (1, 2, 3):
        site.save(number, state(number))
    site.save(3, state(33))
    assert torch.equal(site.load(2)["moments"], torch.full((3,), 2.0))
    assert torch.equal(site.load(3)["moments"], torch.full((3,), 33.0))
    assert len(list((site.folder / "round-3").iterdir())) == 2


def test_newer_rounds_are_a_past_that_is_redone(site):
    for number in (4, 5):
        site.save(number, state(number))
    site.save(4, state(44))
    assert kept(site) == ["round-4"]
    with pytest.raises(FedscanError, match="round 5 of run 7 is missing"):
        site.load(5)


def test_site_that_sat_out_some_rounds_keeps_its_last_one(site):
    site.save(2, state(2))
    (site.folder / "round-4").mkdir()  # killed there before anything was written
    site.save(7, state(7))
    assert kept(site) == ["round-2", "round-7"]


def test_what_is_not_ours_is_left_alone(site):
    site.save(1, state(1))
    (site.folder / "round-007").mkdir()
    (site.folder / "notes.txt").write_text("keep")
    site.save(2, state(2))
    assert kept(site) == ["notes.txt", "round-007", "round-1", "round-2"]


def test_round_that_cannot_be_removed_does_not_fail_the_next(site, monkeypatch, caplog):
    for number in (1, 2):
        site.save(number, state(number))
    really = shutil.rmtree
    monkeypatch.setattr("clients.state.shutil.rmtree", full_disk)
    site.save(3, state(3))
    assert "north: the state of round 1 could not be removed" in caplog.text
    assert "secret" not in caplog.text
    assert torch.equal(site.load(3)["moments"], torch.full((3,), 3.0))
    monkeypatch.setattr("clients.state.shutil.rmtree", really)
    site.save(4, state(4))
    assert kept(site) == ["round-3", "round-4"]


# What goes wrong


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/secret/path")


def test_missing_round_is_told_with_a_way_out(site):
    site.save(4, state(4))
    with pytest.raises(FedscanError) as caught:
        site.load(3)
    assert_told(caught.value, "site 'north'", "round 3", "run 7", "Restore", "anew")
    assert str(site.folder) in str(caught.value)
    assert "there: 4" in str(caught.value)


def test_run_that_was_never_here_is_told(site):
    with pytest.raises(FedscanError) as caught:
        site.load(2)
    assert_told(caught.value, "round 2", "missing")
    assert "there: none" in str(caught.value)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(b"\0"), lambda p: p.write_text("{}")])
def test_damaged_state_is_told_and_never_loaded(site, suffix, damage):
    site.save(1, state(1))
    (path,) = site.folder.rglob(f"*{suffix}")
    damage(path)
    with pytest.raises(FedscanError) as caught:
        site.load(1)
    assert_told(caught.value, "site 'north'", "round 1", "damaged", "Restore", "anew")


def test_tensors_that_are_gone_are_told(site):
    site.save(1, state(1))
    for path in site.folder.rglob("*.safetensors"):
        path.unlink()
    with pytest.raises(FedscanError, match="damaged") as caught:
        site.load(1)
    assert_told(caught.value, "damaged")


@pytest.mark.parametrize(
    ("name", "run", "number"), [("south", 7, 1), ("north", 8, 1), ("north", 7, 2)]
)
def test_state_of_another_is_not_taken(site, name, run, number):
    site.save(1, state(1))
    other = SiteState(name, run)
    other.folder.mkdir(parents=True, exist_ok=True)
    (site.folder / "round-1").rename(other.folder / f"round-{number}")
    with pytest.raises(FedscanError, match="another site's, run's or round's") as caught:
        other.load(number)
    assert_told(caught.value, "another's")


def test_full_disk_is_told_and_what_was_kept_stays(site, monkeypatch):
    for number in (1, 2):
        site.save(number, state(number))
    monkeypatch.setattr(files.os, "fsync", full_disk)
    for number in (2, 3):
        with pytest.raises(FedscanError) as caught:
            site.save(number, state(33))
        assert_told(caught.value, f"round {number} cannot be saved", "No space left", "make room")
    monkeypatch.undo()
    assert kept(site) == ["round-1", "round-2"]
    assert torch.equal(site.load(2)["moments"], torch.full((3,), 2.0))


def test_folder_that_cannot_be_made_is_told(site, records):
    records.write_text("a file where the folder should be")
    with pytest.raises(FedscanError) as caught:
        site.save(1, state(1))
    assert_told(caught.value, "site 'north'", "cannot be saved", "allow reading and writing")


def test_folder_that_may_not_be_read_is_told(site, monkeypatch):
    def forbidden(_: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/secret/path")

    site.save(1, state(1))
    monkeypatch.setattr(Path, "is_file", forbidden)
    with pytest.raises(FedscanError) as caught:
        site.load(1)
    assert_told(caught.value, "round 1 cannot be read", "Permission denied")


# The end of a run


def test_removed_state_leaves_nothing(site, records):
    site.save(1, state(1))
    site.save(2, state(2))
    site.remove()
    assert list(records.iterdir()) == []
    assert site.load(0) == {}
    site.remove()  # once more is no error
    site.save(1, state(1))
    assert torch.equal(site.load(1)["half"], state(1)["half"])


def test_removing_touches_no_other_run_and_no_prediction(site, records):
    other = SiteState("north", 8)
    site.save(1, state(1))
    other.save(1, state(8))
    (records / "north" / "7.csv").write_text("predictions")
    site.remove()
    assert torch.equal(other.load(1)["half"], state(8)["half"])
    other.remove()
    assert [path.name for path in (records / "north").iterdir()] == ["7.csv"]


def test_state_that_cannot_be_removed_is_told(site, monkeypatch):
    site.save(1, state(1))
    monkeypatch.setattr("clients.state.shutil.rmtree", full_disk)
    with pytest.raises(FedscanError) as caught:
        site.remove()
    assert_told(caught.value, "site 'north'", "cannot be removed")


def test_site_that_was_away_from_the_best_round_keeps_an_earlier_state_for_it(records):
    state = SiteState("north", 7)
    for number, best in ((1, 0), (2, 0), (4, 3), (5, 3), (6, 3)):
        state.save(number, {"a": torch.full((2,), float(number))}, keep=best)
    assert state.last(3) == 2
    assert torch.equal(state.load(2)["a"], torch.full((2,), 2.0))
    assert state.last(6) == 6
    assert sorted(int(p.name.split("-")[1]) for p in state.folder.glob("round-*")) == [2, 5, 6]
