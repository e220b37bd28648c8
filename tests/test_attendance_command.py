"""`fedscan attendance` fits a terminal, and `readmit` takes suspended sites alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.participation import MOST_UNUSABLE, Outcome
from simulations import console
from simulations.attendance import suspended_sites
from simulations.attendance_command import attendance, readmit

SITES = ("north", "south", "university-hospital-east")


def write_run(folder: Path, outcomes: dict[str, list[Outcome]]) -> Path:
    """A run in progress of which so much came of each site's orders to train."""
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"sites": {name: {} for name in SITES}}))
    rows = [
        {"round": number, "order": "train", "site": site, "outcome": outcome, "why": ""}
        for site, told in outcomes.items()
        for number, outcome in enumerate(told, 1)
    ]
    (folder / "attendance.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


BAD = [Outcome.UNUSABLE] * MOST_UNUSABLE


@pytest.mark.parametrize(
    ("told", "suspended"),
    [
        (BAD, ["south"]),
        ([*BAD, Outcome.SUSPENDED], ["south"]),
        (BAD[1:], []),
        ([*BAD[1:], Outcome.USED, *BAD[1:]], []),
        ([*BAD, Outcome.SUSPENDED, Outcome.USED], []),
    ],
)
def test_suspended_sites_follow_from_the_log(tmp_path, told, suspended):
    run = write_run(tmp_path / "run", {"north": [Outcome.USED], "south": told})
    assert suspended_sites(run) == suspended


def test_a_suspended_site_is_readmitted_and_no_other(tmp_path, capsys):
    run = write_run(tmp_path / "run", {"north": [Outcome.USED], "south": BAD})
    readmit(run, "south")
    assert (run / "readmitted" / "south").is_file()
    assert "asked again" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"'north' is not suspended.* suspended are south"):
        readmit(run, "north")
    assert not (run / "readmitted" / "north").exists()


def test_a_table_of_every_outcome_fits_80_columns(tmp_path, monkeypatch, capsys):
    run = write_run(tmp_path / "run", {name: list(Outcome) for name in SITES})
    monkeypatch.setattr(console, "out", type(console.out)(highlight=False, width=80))
    attendance(run)
    told = capsys.readouterr().out
    header = next(line for line in told.splitlines() if "used" in line)
    assert all(str(kind) in header for kind in Outcome)
    assert max(map(len, told.splitlines()[:6])) <= 80
