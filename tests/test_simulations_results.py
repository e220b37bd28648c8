"""Tables of results: read back as they were written."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from common.errors import FileError
from simulations.results import COLUMNS, TEXTS, count_cells, read_table


def test_names_stay_names_and_numbers_become_numbers(tmp_path: Path) -> None:
    row = {**dict.fromkeys(COLUMNS, 3), **dict.fromkeys(TEXTS, "test"), "value": None}
    sites = ["01", "NA", "null", "nan", ""]
    table = pd.DataFrame([{**row, "trained_on": site, "tested_on": site} for site in sites])
    table.to_csv(tmp_path / "results.csv", index=False)
    found = read_table(tmp_path / "results.csv")
    assert list(found["trained_on"]) == list(found["tested_on"]) == sites
    assert list(found["seed"]) == [3] * 5
    assert found["value"].isna().all()


@pytest.mark.parametrize(
    ("text", "words"), [("arm,seed\nlocal,0\n", "lacks the columns"), ("", "No columns")]
)
def test_what_is_no_table_of_results_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "results.csv").write_text(text)
    with pytest.raises(FileError, match=words):
        read_table(tmp_path / "results.csv")


def test_a_number_that_is_not_finite_is_missing(tmp_path: Path) -> None:
    row = {**dict.fromkeys(COLUMNS, "3"), **dict.fromkeys(TEXTS, "test")}
    told = ["inf", "-inf", "1e999", f"1{'0' * 400}", "0.5"]
    pd.DataFrame([{**row, "value": one} for one in told]).to_csv(tmp_path / "t.csv", index=False)
    found = read_table(tmp_path / "t.csv")
    assert list(found["value"].isna()) == [True] * 4 + [False]


def test_a_cell_of_which_one_model_diverged_is_counted_once(tmp_path: Path) -> None:
    ends = [("local", "", 0, "done"), ("local", "", 1, "done"), ("local", "", 1, "diverged")]
    ends += [("federated", "fedavg", 0, "done"), ("federated", "fedavg", 1, "done")]
    found = count_cells(pd.DataFrame(ends, columns=["arm", "strategy", "seed", "status"]))
    assert found["by_model"]["local"] == {"done": 1, "diverged": 1}
    assert found["left_out"] == 1
    assert found["note"] == "1 of 4 cells are not wholly in the means (local: 1 diverged)"
