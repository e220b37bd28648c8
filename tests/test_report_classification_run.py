"""The report of one run of a classifier, from the files of its folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer

from common.metrics_log import MetricsLog, Row
from simulations import run_commands
from simulations.report.document import write_report

SITES = {"north": 160, "island": 16}
LOSS = {"north": 0.4, "island": 0.6}


def make_run(folder: Path, *, study: str = "brain-sex", ended: bool = True) -> Path:
    """Write the folder of a run, as the server does."""
    folder.mkdir()
    counts = {s: {"n_train": n, "n_val": 8, "n_test": 60, "left_out": 0} for s, n in SITES.items()}
    config = {"task": "classification", "study": study, "data.cohort-dir": ""}
    config |= {"strategy.name": "fedavg", "run.seed": 0}
    manifest = {"run_id": folder.name, "config": config, "sites": counts}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    MetricsLog(folder / "metrics.jsonl").append(
        [
            Row(number, site, split, name, value / number, 8, float(number))
            for number in (1, 2)
            for site, value in LOSS.items()
            for split, name in (("train", "loss"), ("val", "loss"), ("val", "balanced_accuracy"))
        ]
    )
    if ended:
        found = {"north": {"balanced_accuracy": 0.9, "auroc": 0.95}, "island": {"loss": 0.5}}
        found["island"] |= {"balanced_accuracy": 0.7, "auroc": None}
        if study == "skin-lesions":
            found["north"] |= {"recall.MEL": 0.625, "recall.NV": 0.875}
        summary = {"run_id": folder.name, "strategy": "fedavg", "rounds": 2, "best_round": 1}
        summary |= {"seconds": 12.0, "bytes_up": 3e6, "bytes_down": 4e6}
        summary["sites"] = {site: {**counts[site], **found[site]} for site in SITES}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.mark.parametrize("study", ["brain-sex", "skin-lesions"])
def test_it_says_first_what_is_classified_from_what(tmp_path: Path, study: str) -> None:
    text = write_report(make_run(tmp_path / "17", study=study)).read_text()
    what = {"brain-sex": "sex from scans", "skin-lesions": "diagnosis from pictures"}[study]
    assert f"A classifier of {what}, trained by 2 sites" in text
    assert "balanced accuracy is 0.80, mean of 2 sites" in text
    assert ("Recall of each class" in text) == (study == "skin-lesions")
    assert text.count("<svg") >= 4  # of two measures a panel a site
    assert not re.search(r"\bnan\b", text, flags=re.I)


def test_of_a_run_under_way_it_says_so(tmp_path: Path) -> None:
    text = write_report(make_run(tmp_path / "17", ended=False)).read_text()
    assert "has not been tested" in text


def test_a_report_that_fails_is_a_warning_and_the_run_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder = make_run(tmp_path / "17")
    summary = json.loads((folder / "summary.json").read_text())

    def broken(*_: object, **__: object) -> Path:
        raise ZeroDivisionError("no numbers")

    monkeypatch.setattr("simulations.federate.federate", lambda *_, **__: (folder, summary))
    monkeypatch.setattr("simulations.report.document.write_report", broken)
    shown: list[str] = []
    monkeypatch.setattr(typer, "echo", shown.append)
    from tiny import run_config

    run_commands._show(run_config({}), run_commands.Format.json)
    assert json.loads(shown[0]) == summary and len(shown) == 1
    assert "could not be drawn (no numbers)" in capsys.readouterr().err
