"""A model card tells what the run's files tell, in the format that is asked for, and no more."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from benchmark_folders import make_folder as make_comparison_of_classifiers
from generation_folders import make_comparison, make_run
from tiny_gan import start, toy_slices
from typer.testing import CliRunner

from common.checkpoints import save_model
from common.config.run_config import RunConfig
from common.errors import ConfigError, FedscanError
from common.tasks.classifier_networks import build
from common.training.gan_checkpoint import save_checkpoint
from simulations.cli import app
from simulations.model_card import metadata, read_facts
from simulations.model_card_text import MARK, code, render

HOSTILE = "x`|<img src=//evil.example>](http://evil.example)\n---\n# **{{7*7}}**\u202e\x7f\x00"
SECRET = "/home/someone/hospital/sub-0042"
MEASURES = {"balanced_accuracy": 0.8125, "auroc": 0.9375, "loss": 0.421}
VERSIONS = {"python": "3.11.2", "torch": "2.13.0", "platform": "a-machine-of-ours"}


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def classified(folder: Path, sites: dict[str, dict] | None = None, **changes: Any) -> Path:
    """A run that trained a small classifier."""
    config = RunConfig.from_flower({"data.size": 16, "run.rounds": 2, "training.batch-size": 4})
    model, about = build(config, ()), {"study": "brain-sex", "classifier": "small"}
    about |= {"image_size": 16, "pretrained": False, "adapt": config.model.adapt}
    save_model(folder, model.state_dict(), about)
    counts = {"n_train": 31, "n_val": 12, "n_test": 14, "min_participants": 1}
    sites = sites or {"north": {**counts, **MEASURES}, "island": {**counts, "n_train": 17}}
    flat = {**config.to_flower(), "data.cohort-dir": SECRET, "run.output-dir": SECRET, **changes}
    manifest = {"config": flat, "sites": sites, "versions": VERSIONS, "source_hash": "ab" * 32}
    write(folder / "manifest.json", manifest)
    summary = {"best_round": 2, "bytes_up": 261440, "bytes_down": 653600, "seconds": 28.4}
    write(folder / "summary.json", {**summary, "sites": sites})
    write(folder / "launch.json", {"folders": {site: f"{SECRET}/{site}" for site in sites}})
    return folder


def trained_gan(folder: Path) -> Path:
    """A training of train-gan."""
    save_checkpoint(folder, start(), toy_slices())
    generated = {"frechet_distance": 12.75, "precision": 0.62, "recall": 0.31, "n_real": 20}
    generated["statistics"] = {"ms_ssim": 0.4375}
    copying = {"flagged": True, "reason": "1 picture", "authenticity": 0.55, "look_alikes": 0.0625}
    summary = {"extractor": {"name": "fedscan-brain", "hash": "cd" * 32}, "sites": ["north"]}
    summary |= {"generated": generated, "copying": copying, "steps": 131, "images_seen": 524}
    write(folder / "summary.json", {**summary, "seconds": 3.5})
    config = {"resolution": 16, "batch-size": 4, "seed": 0}
    manifest = {"study": "brain-sex", "preset": "tiny-32", "config": config, "cohort": ""}
    manifest |= {"sites": {"north": {"train_images": 30}}, "versions": VERSIONS}
    write(folder / "manifest.json", {**manifest, "source_hash": "ef" * 32})
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind."""
    at = tmp_path_factory.mktemp("card")
    compared = make_comparison(at / "generators", seeds=2, rounds=12, use=False)
    tested = make_comparison_of_classifiers(at / "classifiers", seeds=2, rounds=2, draws=50)
    found = {
        "generator": compared / "cells" / "federated-fedavg-seed0" / "all",
        "classifier": tested / "cells" / "federated-fedavg-seed0" / "all",
        "own": tested / "cells" / "local-seed0" / "island",
    }
    for model in found.values():
        table = pd.read_csv(model.parents[2] / "results.csv", keep_default_na=False)
        mine = (table["arm"] == model.parent.name.partition("-")[0]) & (table["seed"] == 0)
        model.mkdir(parents=True, exist_ok=True)
        table[mine].to_csv(model.parent / "results.csv", index=False)
        if not (model / "summary.json").exists():
            write(model / "summary.json", {"best_round": 2, "sites": {}})
    return {
        **found,
        "run": classified(at / "run"),
        "generation run": make_run(at / "17"),
        "train-gan": trained_gan(at / "gan"),
    }


KINDS = ("run", "generation run", "train-gan", "generator", "classifier", "own")


def card(folder: Path, licence: str = "") -> tuple[dict, str]:
    """Return a card's front matter and text."""
    facts = read_facts(folder)
    text = render(facts, metadata(facts, licence))
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


@pytest.mark.parametrize("kind", KINDS)
def test_the_front_matter_is_yaml_with_all_that_is_required(folders, kind: str) -> None:
    front, body = card(folders[kind], "apache-2.0")
    assert front == metadata(read_facts(folders[kind]), "apache-2.0")
    assert front["license"] == "apache-2.0" and front["library_name"] == "fedscan"
    assert all(isinstance(tag, str) for tag in front["tags"])
    (model,) = front["model-index"]
    assert model["name"] and model["results"]
    for one in model["results"]:
        assert one["task"]["type"] == front["pipeline_tag"]
        assert one["dataset"]["type"] and one["dataset"]["name"]
        assert one["metrics"]
        for metric in one["metrics"]:
            assert metric["type"] in front["metrics"] and isinstance(metric["value"], float | int)
    for title in ("Data", "Training", "Results", "Limits", "How to load", "Provenance"):
        assert body.count(f"\n## {title}\n") == 1
    assert ("## Copies of training images" in body) == (kind in KINDS[1:4])


def test_no_licence_is_made_up(folders) -> None:
    assert "license" not in card(folders["run"])[0]


def numbers_of(value: object) -> set[float]:
    """Collect every number in JSON, or in a table, also those in its texts."""
    if isinstance(value, dict):
        return set().union(*(numbers_of(one) for pair in value.items() for one in pair))
    if isinstance(value, list):
        return set().union(*map(numbers_of, value))
    if isinstance(value, str):
        return set(map(float, re.findall(r"\d+(?:\.\d+)?", value)))
    return {float(value)} if isinstance(value, int | float) else set()


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_is_one_of_the_files(folders, kind: str) -> None:
    folder = folders[kind]
    read = [folder, folder.parent, folder.parents[2]]
    known = numbers_of([json.loads(p.read_text()) for at in read for p in at.glob("*.json")])
    known |= numbers_of([p.read_text() for at in read for p in at.glob("*.csv")])
    front, body = card(folder)
    for one in front["model-index"][0]["results"]:
        assert all(metric["value"] in known for metric in one["metrics"])
    tables = "\n".join(line for line in body.splitlines() if line.startswith(("|", "- ")))
    told = re.sub(
        r"`[^`]*`|\d+ (kB|MB|GB|s|min)\b|\d+\.\d+ [kMG]B|[\d.]+ %|0\.05|64 pixels", "", tables
    )
    rounded = {f"{one:.{digits}f}" for one in map(abs, known) for digits in range(4)}
    found = re.findall(r"(?<![\w.-])\d+(?:\.\d+)?", told.replace("\u202f", ""))
    assert found and set(found) <= rounded


def test_intervals_are_those_of_the_comparison(folders) -> None:
    root = folders["classifier"].parents[2]
    summary = json.loads((root / "summary.json").read_text())
    one = summary["scores"]["all"]["federated/fedavg"]["balanced_accuracy"]
    front, body = card(folders["classifier"])
    mean, low, high = (f"{one[key]:.2f}" for key in ("mean", "low", "high"))
    assert f"{mean} ({low} to {high})" in body
    assert "over 2 repetitions of this training" in body
    named = front["model-index"][0]["results"][0]["metrics"][0]["name"]
    assert named == f"Balanced accuracy (95 % CI {one['low']:.4g} to {one['high']:.4g})"
    own = summary["scores"]["north"]["local at island"]["balanced_accuracy"]["mean"]
    (result,) = [
        r
        for r in card(folders["own"])[0]["model-index"][0]["results"]
        if r["dataset"]["name"] == "brain-sex, site north"
    ]
    assert result["metrics"][0]["value"] == own  # island's own model, not north's
    assert "there is no interval" in card(folders["run"])[1]


def test_no_measure_of_pairs_is_better_when_less_and_that_of_real_images_is_not_the_models(
    tmp_path: Path,
) -> None:
    folder = trained_gan(tmp_path / "gan")
    summary = json.loads((folder / "summary.json").read_text())
    summary["generated"]["statistics"] |= {"ms_ssim_real": 0.375}
    write(folder / "summary.json", summary)
    front, body = card(folder)
    (line,) = [line for line in body.splitlines() if line.startswith("Less is better")]
    assert "Fréchet distance" in line and "MS-SSIM" not in line
    (result,) = front["model-index"][0]["results"]
    types = {one["type"] for one in result["metrics"]}
    assert "ms_ssim" in types and "ms_ssim_real" not in types


def test_recall_of_the_class_to_be_found_is_told(tmp_path: Path) -> None:
    measured = {"balanced_accuracy": 0.5, "recall.MEL": 0.625, "recall.NV": 0.875}
    folder = classified(tmp_path / "run", {"north": measured}, study="skin-lesions")
    front, body = card(folder)
    types = [one["type"] for one in front["model-index"][0]["results"][0]["metrics"]]
    assert types == ["balanced_accuracy", "recall.MEL"]
    assert "recall of `MEL`" in body


def test_nothing_of_the_machine_or_of_people_gets_in(folders) -> None:
    for folder in folders.values():
        facts = read_facts(folder)
        text = render(facts, metadata(facts))
        for secret in (SECRET, "someone", "sub-", "a-machine-of-ours", str(folder), "/tmp"):
            assert secret not in text


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    sites = {HOSTILE: {"n_train": 5, **MEASURES}}
    changes = {"strategy.name": HOSTILE, "training.loss": HOSTILE, "study": HOSTILE}
    folder = classified(tmp_path / "run", sites, **changes)
    front, body = card(folder)
    outside = re.sub(r"```.*?```|`[^`\n]*`", "", body, flags=re.S)
    assert "evil" not in outside and "7*7" not in outside and "<img" not in outside
    assert [line for line in body.splitlines() if line.startswith("#")] == [
        "# Classifier of the study `unknown`",
        *(f"## {one}" for one in ("Data", "Training", "Results", "Privacy", "Limits")),
        *("## How to load", "## Provenance"),
    ]
    assert front["model-index"][0]["results"][0]["dataset"]["name"].isprintable()
    assert code("`") != "```" and "`" not in code("a`b")[1:-1]


def test_counts_of_few_people_are_not_told(tmp_path: Path) -> None:
    counts = {"n_train": 31, "n_val": 3, "n_test": 14, "min_participants": 10}
    body = card(classified(tmp_path / "run", {"north": counts}))[1]
    assert "| `north` | 31 | fewer than 10 | 14 |" in body
    assert "the sites withheld them" in body
    assert "model-index" not in card(tmp_path / "run")[0]


def test_phantoms_are_called_so_and_only_where_that_is_known(tmp_path: Path) -> None:
    simulated = classified(tmp_path / "a", **{"data.cohort-dir": ""})
    assert "on phantoms" in card(simulated)[1]
    (simulated / "launch.json").unlink()  # as of a federation of hospitals
    body = card(simulated)[1]
    assert "phantoms" not in body and "the sites' own" in body


def test_copies_and_authenticity_are_told(folders, tmp_path: Path) -> None:
    assert "| all sites | **flagged as copying** | 0.55 |" in card(folders["train-gan"])[1]
    assert "| `north` | not flagged |" in card(folders["generation run"])[1]
    flat = {"verdict": "memorizes", "auroc": 0.8312, "low": 0.71, "high": 0.92}
    each = {"verdict": "memorizes", "auroc": {"mean": 0.8312, "low": 0.71, "high": 0.92}}
    for found in (flat, {"spaces": {"w": each}}):
        write(tmp_path / "authenticity.json", found)
        facts = read_facts(folders["train-gan"], tmp_path)
        text = render(facts, metadata(facts))
        assert "| `W` | `memorizes` | 0.83 (0.71 to 0.92) |" in text
    with pytest.raises(ConfigError, match="authenticity"):
        read_facts(folders["train-gan"], tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["run", "train-gan"])
def test_the_lines_that_load_it_work(folders, kind: str) -> None:
    body = card(folders[kind])[1]
    (lines,) = re.findall(r"```python\n(.*?)```", body, flags=re.S)
    shown = "assert images.shape == (4, 1, 16, 16)"
    if kind == "run":
        shown = "import torch; assert model(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 2)"
    command = [sys.executable, "-c", f"{lines}\n{shown}"]
    subprocess.run(command, cwd=folders[kind], check=True, timeout=300)


def ask(*words: object) -> str:
    done = CliRunner().invoke(app, ["model-card", *map(str, words)], catch_exceptions=False)
    return done.output


def test_a_file_of_another_is_not_replaced(tmp_path: Path) -> None:
    folder = classified(tmp_path / "run")
    readme = folder / "README.md"
    assert ask(folder).strip() == str(readme) and MARK in readme.read_text()
    ask(folder)  # its own
    readme.write_text("mine\n")
    with pytest.raises(ConfigError, match="was not written by this command"):
        ask(folder)
    assert readme.read_text() == "mine\n"
    ask(folder, "--force")
    assert MARK in readme.read_text()


def test_json_is_the_front_matter(tmp_path: Path) -> None:
    folder, out = classified(tmp_path / "run"), tmp_path / "card.md"
    told = json.loads(ask(folder, "--out", out, "--format", "json", "--license", "mit"))
    assert told == metadata(read_facts(folder), "mit") and out.is_file()
    with pytest.raises(ConfigError, match="--license"):
        ask(folder, "--license", "my: own\n")


def test_a_folder_without_a_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        read_facts(tmp_path / "nowhere")
    run = classified(tmp_path / "runs" / "17")
    with pytest.raises(ConfigError, match=re.escape(str(run))):
        read_facts(tmp_path / "runs")
    (run / "summary.json").write_text("[")
    with pytest.raises(FedscanError, match=r"summary\.json"):
        read_facts(run)
