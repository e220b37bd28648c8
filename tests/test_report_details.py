"""What a report says of decisions, people and doubtful intervals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmark_folders import MODELS, Page, make_folder
from sklearn.metrics import precision_recall_curve
from test_report_classification_run import SITES, make_run

from common.config.run_config import RunConfig
from common.evaluation.curves import RECALLS, describe
from common.predictions import save_predictions
from common.studies.study import load_study
from simulations.launch import Resources
from simulations.people import people_of
from simulations.report import brief, budget, charts, tables, tiles, words
from simulations.report.blocks import Section
from simulations.report.classification_blocks import ClassificationBlocks
from simulations.report.content import Content
from simulations.report.document import fill, read_results, write_report
from simulations.report.people import people_table
from simulations.resume import Launch
from simulations.site_details import DETAILS, keep_details

HEADER = "image,patient_id,lesion_id,diagnosis,age,gender,split"
ROWS = (
    *("a,1,1,MEL,40,F,train", "b,1,2,NV,40,F,train", "c,2,3,NV,60,M,train"),
    *("d,3,4,NV,n/a,,train", "e,4,5,MEL,50,M,val", "f,5,6,NV,30,F,test"),
)


def lesions(folder: Path) -> Path:
    """Write a site of six pictures of five people; nobody opens them."""
    (folder / "images").mkdir(parents=True)
    for row in ROWS:
        (folder / "images" / f"{row[0]}.png").write_bytes(b"")
    rows = [row.replace(",", ".png,", 1) for row in ROWS]
    (folder / "lesions.csv").write_text("\n".join([HEADER, *rows]))
    return folder


@pytest.mark.parametrize("n", [5, 40, 300])
def test_precision_is_the_best_at_every_recall_that_a_threshold_reaches(n: int) -> None:
    rng = np.random.default_rng(n)
    labels = np.append([0, 1], rng.integers(0, 2, n))
    score = np.round(rng.random(n + 2) * 0.6 + 0.4 * labels, 1)
    found = describe([(labels, np.stack([1 - score, score], axis=1))], target=1)["pr"]
    precision, recall, _ = precision_recall_curve(labels, score)
    reached = [(v, precision[m].max()) for r, v in zip(RECALLS, found, strict=True)
               if (m := np.isclose(recall, r)).any()]  # fmt: skip
    assert reached
    assert np.allclose(*zip(*reached, strict=True), atol=1e-4)


def test_the_precision_of_guessing_is_the_share_of_the_class() -> None:
    labels = np.repeat([0, 1], [9, 3])
    found = describe([(labels, np.full((12, 2), 0.5))], target=1)
    assert found["pr"] == [0.25] * len(RECALLS)
    assert found["chance"] == 0.25


def test_people_are_counted_once_and_images_each(tmp_path: Path) -> None:
    found = people_of(load_study("skin-lesions"), "north", lesions(tmp_path / "north"))["train"]
    assert (found["people"], found["images"]) == (3, 4)
    assert found["sex"] == {"female": 1, "male": 1, "unknown": 1}
    assert found["age"]["mean"] == 50 and found["age"]["people"] == 2
    assert (found["classes"]["MEL"], found["classes"]["NV"], found["classes"]["SCC"]) == (1, 3, 0)


def test_numbers_of_fewer_people_than_a_site_tells_of_are_withheld(tmp_path: Path) -> None:
    study = load_study("skin-lesions")
    people = {"north": people_of(study, "north", lesions(tmp_path / "north"), least=3)}
    train, val = people["north"]["train"], people["north"]["val"]
    assert train["people"] == 3 and val["people"] is None
    assert train["sex"] == dict.fromkeys(("female", "male", "unknown"))
    assert train["classes"]["NV"] == 3 and train["classes"]["MEL"] is None and "age" not in train
    nouns = words.Nouns("picture", "picture", "diagnosis")
    table = people_table(people, {"north": {"min_participants": 3}}, nouns)
    told = [cell.text for row in table.groups[0] for cell in row]
    assert "< 3" in told and not {"1", "2"} & set(told)


def run_with_sites(folder: Path, monkeypatch: pytest.MonkeyPatch, records: Path) -> Path:
    """Make a run whose sites have kept predictions, one of them of one class."""
    monkeypatch.setenv("FEDSCAN_RECORDS", str(records))
    run = make_run(folder)
    config = RunConfig.from_flower({"study": "brain-sex"})
    Launch(config, Resources(2), dict.fromkeys(SITES, folder)).write(run)
    rng = np.random.default_rng(0)
    for site, labels in {"north": np.arange(60) % 2, "island": np.zeros(60, int)}.items():
        probabilities = np.clip(0.3 * labels + rng.random(60) * 0.7, 0, 1)
        path = records / site / run.name / "predictions.csv"
        path.parent.mkdir(parents=True)
        people = [str(number) for number in range(60)]
        save_predictions(path, labels, probabilities, people, ("female", "male"))
    return run


def test_a_run_shows_what_its_sites_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_with_sites(tmp_path / "17", monkeypatch, tmp_path / "records")
    keep_details(run)
    page = Page(write_report(run).read_text())
    images = [one["aria-label"] for one in page.all("svg") if "aria-label" in one]
    for site in SITES:
        assert any(one.startswith(f"Confusion matrix at site {site}") for one in images)
        assert any(one.startswith(f"Calibration at site {site}") for one in images)
    for title in ("ROC curves", "Precision-recall curves"):
        assert any(one.startswith(f"{title} at site north") for one in images)
        assert not any(one.startswith(f"{title} at site island") for one in images)
    assert "Without island: no test scan of male, or test scans of one class only." in page.text


def test_secure_sums_tell_of_no_single_sites_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_with_sites(tmp_path / "17", monkeypatch, tmp_path / "records")
    launch = Launch.read(run)
    replace(launch, config=launch.config.replace({"privacy.secure-sums": True})).write(run)
    keep_details(run)  # also where all have withheld the test, and the summary has no sum
    assert not (run / DETAILS).exists()


def test_curves_of_few_people_are_withheld(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with_sites(tmp_path / "17", monkeypatch, tmp_path / "records")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["sites"]["north"]["min_participants"] = 31  # each class has 30
    (run / "manifest.json").write_text(json.dumps(manifest))
    keep_details(run)
    assert set(json.loads((run / DETAILS).read_text())["curves"]) == {"island"}


def test_no_site_of_equal_ones_is_called_poor() -> None:
    assert not words.data_poor("a", {"a": {"n_train": 35}, "b": {"n_train": 36}})
    assert words.data_poor("a", {"a": {"n_train": 16}, "b": {"n_train": 160}})
    assert not words.data_poor("a", {"b": {"n_train": 160}})


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.4, 0.6, ""), (0.5, 0.5, "zero-width interval"), (None, None, "no interval")],
)
def test_an_interval_that_tells_nothing_is_marked(
    low: float | None, high: float | None, said: str
) -> None:
    note = "no interval: fewer than 5 test people of male" if low is None else None
    record = {"mean": 0.5, "low": low, "high": high, "note": note}
    assert words.unsure(record) == said
    assert tables.estimate("auroc", record).small == (said or "0.40 to 0.60")
    row = charts.Estimate("a", "", "fedavg", "o", 0.5, low or 0.5, high or 0.5, unsure=said)
    drawn = charts.estimates((row,), charts.Axis("AUROC", (0, 1)), "Test")
    assert said in drawn


def test_cards_have_the_sign_of_tables(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "b", rounds=1, draws=20)
    read = [json.loads((folder / f"{name}.json").read_text()) for name in ("summary", "manifest")]
    content = Content(read_results(folder), *read, {}, blocks=ClassificationBlocks)
    cards = {card["name"]: card for card in tiles.of_comparison(content)}
    for where, contrast in (("island", "federated - local"), ("all", "federated - centralized")):
        found = content.differences[where][contrast]["balanced_accuracy"]
        place = "all sites" if where == "all" else where
        card = cards[f"{tables.contrast_name(contrast)}, {place}"]
        assert card["value"] == tables.told("balanced_accuracy", found["mean"], signed=True)
        assert tables.told("balanced_accuracy", found["low"], signed=True) in card["note"]
        assert "above zero: federation is better" in card["note"]


def test_wide_tables_say_that_they_scroll() -> None:
    blocks = [
        ("table", tables.Table("T", "", [tables.Head(str(k)) for k in range(n)], []))
        for n in (3, 7)
    ]
    empty = dict.fromkeys(("eyebrow", "title", "footer"), "")
    empty |= {key: [] for key in ("headline", "tiles", "notices", "series")}
    narrow, wide = Page(fill({**empty, "sections": [Section("s", "S", "", blocks)]})).all("div")
    assert "wide" not in narrow["class"].split()
    assert "wide" in wide["class"].split() and wide["data-columns"] == "7"


@pytest.mark.parametrize(
    ("contrast", "said"),
    [
        ("federated - local", "Federated − local"),
        ("fedprox - fedavg", "FedProx − FedAvg"),
        ("epsilon-16 - no-noise", "epsilon-16 − no-noise"),
        ("epsilon-16 - local/no-noise", "epsilon-16 − local (no-noise)"),
        ("epsilon-16 - local/epsilon-16", "epsilon-16: federated − local"),
    ],
)
def test_a_variant_keeps_the_spelling_of_its_preset(contrast: str, said: str) -> None:
    assert tables.contrast_name(contrast).replace("\u00a0", " ") == said


def test_models_stand_in_the_order_of_the_legend(tmp_path: Path) -> None:
    noisy = [("federated", f"epsilon-{k}") for k in (1, 16, 2, 8)]
    models = (*noisy, ("federated", "another"), *MODELS)
    folder = make_folder(tmp_path / "b", models=models, seeds=1, rounds=1, draws=20)
    read = [json.loads((folder / f"{name}.json").read_text()) for name in ("summary", "manifest")]
    content = Content(read_results(folder), *read, {}, blocks=ClassificationBlocks)
    legend = [one["look"].name for one in content.parts(brief.of_comparison)["series"]]
    assert [look.name for look in content.looks("all").values()] == legend
    assert [name.rpartition("-")[2] for name in legend if "epsilon" in name] == [
        *("16)", "8)", "2)", "1)")
    ]


def test_bytes_that_nobody_counted_are_not_none(tmp_path: Path) -> None:
    """Federations within one process send no messages."""
    results = read_results(make_folder(tmp_path / "b", seeds=1, rounds=1, draws=20))
    results["bytes_up"] = 0
    rows = tables.costs_table(results, 3, "", "").groups[0]
    told = {row[0].text: (row[3].text, row[3].small) for row in rows}
    assert told["Federated (FedAvg)"] == ("–", "not counted")
    assert told["Local only"] == told["Centralized"] == ("none", "")


def test_variants_that_are_adapted_in_another_way_are_named() -> None:
    variants = {"raw": {"model.adapt": "none"}, "usual": {"training.learning-rate": 0.1}}
    manifest = {"config": {"model.adapt": "threshold"}, "differing": variants}
    said = budget.in_words(manifest, 3)
    assert "Not so: 'raw'." in said and "usual" not in said
