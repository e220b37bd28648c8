"""Tables of results: read back as they were written."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from simulations.results import COLUMNS, TEXTS, read_table


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
    with pytest.raises(ValueError, match=words):
        read_table(tmp_path / "results.csv")
