"""Reports of generators: whole, told in words, without a scan that does not belong there."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from bars import Told
from benchmark_folders import Page
from browser import Browser
from generation_folders import SITES, STUDY, make_comparison, make_run, noise, slices
from PIL import Image

from common.config.run_config import RunConfig
from common.data.dataset import Dataset, InMemory
from common.errors import FedscanError
from common.files import write_json
from common.metrics_log import Row
from common.studies.study import load_study
from simulations import benchmark, collect, compare, console, estimate, federate
from simulations.plan import Plan, load_plan
from simulations.preset_files import presets
from simulations.report import charts, document, generation_words, looks, pictures, samples
from simulations.report.document import read_results, write_report
from simulations.schedule import end_cell


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_comparison(tmp_path_factory.mktemp("generation") / "comparison")


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(write_report(folder).read_text())


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "17")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def real_images(stacks: dict[str, np.ndarray]) -> dict | None:
    return pictures.real_images(stacks, {"study": "brain-sex"})


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_every_part_that_was_promised_is_there(page: Page) -> None:
    headings = {a["id"] for a in page.all("h2")}
    expected = ("brief", "results", "pictures", "curves", "speed", "use", "copying", "costs")
    assert headings == {*expected, "budget", "provenance", "limits"}
    assert "At island, joining lowered the Fréchet distance by" in page.text
    assert "Over all sites together, the Fréchet distance was" in page.text
    assert "Intervals: 95 %, over 3 repetitions, not over who was tested." in page.text
    assert "35.3 % of the bytes" in page.text
    assert "fedscan-brain-r1-p3-v1 (abababababab)" in page.text
    assert "Too few validation scans for it at island" in page.text
    for limit in ("The scans are phantoms", "was trained on phantoms", "Moments of few slices"):
        assert limit in page.text


def test_classifiers_and_hyperparameters_are_told_as_they_are(page: Page) -> None:
    assert "Synthetic participants chosen" in page.text
    assert "synthetic_participants" not in page.text
    assert "the others keep their last weights" in page.text
    assert "were chosen for the federated generator, on another cohort of phantoms" in page.text
    assert "with a batch sites × as large" in page.text
    assert "the share of look-alikes" in page.text and "median distance" in page.text


def test_every_grid_names_its_seed(page: Page) -> None:
    assert page.text.count("seed 0, round 12") == 3
    assert "Pictures of every generator. " in page.text


def test_cells_before_and_after_that_failed_are_noticed(copy: Path) -> None:
    lost = [{"arm": "use", "seed": 1, "status": "error"}]
    lost.append({"arm": "pretraining", "seed": 0, "status": "timeout"})
    rewrite(copy / "summary.json", unfinished=lost)
    page = Page(write_report(copy).read_text())
    assert "Not every training ended well" in page.text
    assert "Use of synthetic images, seed 1: error." in page.text
    assert "Pretraining, seed 0: timeout." in page.text


def test_the_configuration_shows_what_variants_override(copy: Path) -> None:
    variants = {
        "int8": {"transport": "int8", "model.extractor": "/home/someone/net.pt"},
        "b": {"x": 1},
    }
    differing = {"int8": variants["int8"], "use": {"classifier": "slices"}, "plain": {}}
    plan = {"variants": variants, "pretrained": ["int8"]}
    rewrite(copy / "manifest.json", plan=plan, differing=differing)
    text = Page(write_report(copy).read_text()).text
    assert "int8 transport = int8, model.extractor = net.pt, features of the pretraining" in text
    assert "use classifier = slices" in text
    assert "plain nothing" in text
    assert "someone" not in text


def test_figures_and_tables_are_numbered_in_reading_order(page: Page) -> None:
    for kind, count in (("Figure", 8), ("Table", 8)):
        numbers = re.findall(rf"{kind} (\d+)\. ", page.text)
        assert numbers == [str(k + 1) for k in range(count)]
    assert len(page.all("table")) == 8


def test_pictures_are_real_ones_every_arm_and_rounds(folder: Path, page: Page) -> None:
    alts = [str(a["alt"]) for a in page.all("img")]
    assert alts[:2] == [
        "Real training slices of north, a row for each class",
        "Generated slices, none chosen",
    ]
    assert alts[2] == "Real training slices of island, north, south"
    assert [alt for alt in alts if "as it was tested" in alt] == [
        f"Pictures by the generator {name}, as it was tested"
        for name in ("Centralized", "Local only (of island)", "Federated (FedAvg)")
    ]
    rounds = [int(alt.split()[-1]) for alt in alts if "after round" in alt]
    assert rounds == [6, 12, 18]
    assert all(str(a["src"]).startswith("data:image/png;base64,") for a in page.all("img"))
    assert page.all("script") == []
    assert write_report(folder).read_bytes() == write_report(folder).read_bytes()


def test_distances_are_told_in_words(page: Page) -> None:
    told = [str(a["aria-label"]) for a in page.all("svg") if a.get("role") == "img"]
    shown = [words for words in told if words.startswith("Test Fréchet distance, logarithmic")]
    assert len(shown) == 4  # all sites together and each
    assert re.search(r"Local only \(of island\) \d+\.\d, interval \d+\.\d to \d+\.\d", shown[0])
    curves = [
        words for words in told if words.startswith("Validation kernel distance at site island")
    ]
    assert len(curves) == 1
    assert "Local only ends at" in curves[0]
    whole = next(words for words in told if "Validation Fréchet distance at all sites" in words)
    assert "Local only" not in whole  # it is validated at its own site alone


def test_generators_that_copy_are_named_with_the_site(tmp_path: Path) -> None:
    flagged = (("local", 0, "island"), ("local", 1, "island"))
    folder = make_comparison(tmp_path / "c", seeds=2, rounds=12, flagged=flagged)
    page = Page(write_report(folder).read_text())
    line = "Local only: flagged as copying training images of island in 2 repetitions"
    assert line in page.text
    assert "2 of 2" in page.text
    notice = next(words for words in page.words if "flagged as copying" in words)
    assert "sub-" not in page.text and "north" not in notice


def test_nothing_of_the_sites_own_side_gets_in(copy: Path) -> None:
    before = write_report(copy).read_bytes()
    picture = Image.fromarray(np.full((8, 8), 77, np.uint8))
    for place in ("sites/island/federated-fedavg-seed0/all", "cells/federated-fedavg-seed0/all"):
        (copy / place).mkdir(parents=True, exist_ok=True)
        picture.save(copy / place / "look-alikes.png")
    assert write_report(copy).read_bytes() == before


def test_a_name_in_a_table_is_no_way_out_of_the_folder(folder: Path, copy: Path) -> None:
    grids = copy.parent / "elsewhere" / "grids"
    grids.mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(grids / "round-0001.png")
    table = pd.read_csv(copy / "results.csv", keep_default_na=False)
    for name in ("../../../elsewhere", "..", str(grids.parent), ""):
        changed = table.assign(trained_on=table["trained_on"].replace("island", name))
        changed.to_csv(copy / "results.csv", index=False)
        models = pictures.trained_models(copy, read_results(copy))
        assert {model.trained_on for model in models} == {"all"}
    known = pictures.trained_models(folder, read_results(folder))
    assert {model.trained_on for model in known} == {"all", "island"}


@pytest.mark.parametrize("name", ["samples.npz", "use.csv", "cells"])
def test_missing_parts_are_left_out(copy: Path, name: str) -> None:
    path = copy / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = Page(write_report(copy).read_text())
    alts = [str(a["alt"]) for a in page.all("img")]
    assert any("Real" in alt for alt in alts) == (name != "samples.npz")
    assert any("Pictures by" in alt for alt in alts) == (name != "cells")
    assert ("Use of synthetic images" in page.text) == (name != "use.csv")
    if name == "use.csv":
        rewrite(copy / "manifest.json", plan={"use": {"task": "classification"}})
        assert generation_words.NO_USE in Page(write_report(copy).read_text()).text


def test_an_empty_summary_is_computed_from_the_results(copy: Path, page: Page) -> None:
    (copy / "summary.json").write_text("{}")
    (copy / "cells" / "federated-fedavg-seed0" / "all" / "summary.json").write_text("{}")
    again = Page(write_report(copy).read_text())
    assert len(again.all("table")) == len(page.all("table"))
    assert "At island, joining lowered the Fréchet distance by" in again.text
    (copy / "manifest.json").write_text(json.dumps({"config": {"task": "generation"}}))
    assert "Distances to real test slices" in Page(write_report(copy).read_text()).text


def test_a_broken_picture_is_named_and_a_missing_one_left_out(copy: Path) -> None:
    paths = list(copy.glob("cells/centralized-seed0/all/grids/*.png"))
    for path in paths:
        path.write_bytes(b"no picture")
    with pytest.raises(FedscanError, match=r"round-\d+\.png: is no whole PNG\. Delete it"):
        write_report(copy)
    for path in copy.glob("cells/centralized-*/all/grids/*.png"):
        path.unlink()
    alts = [str(a["alt"]) for a in Page(write_report(copy).read_text()).all("img")]
    assert not any("Centralized" in alt for alt in alts)
    assert any("Federated" in alt for alt in alts)


def test_results_without_distances_do_not_break_it(copy: Path) -> None:
    table = pd.read_csv(copy / "results.csv", keep_default_na=False)
    kept = table[table["metric"].isin(["precision", "recall"])]
    kept.to_csv(copy / "results.csv", index=False)
    (copy / "summary.json").write_text("{}")
    page = Page(write_report(copy).read_text())
    assert "has no Fréchet distance at island" in page.text
    assert "no validation metrics" in page.text
    assert "No site has tested whether" in page.text


def test_one_repetition_and_failed_cells(tmp_path: Path) -> None:
    failed = (("centralized", 0),)
    folder = make_comparison(tmp_path / "c", seeds=1, rounds=12, failed=failed, use=False)
    page = Page(write_report(folder).read_text())
    assert "there are no intervals" in page.text
    assert "Centralized, seed 0: error." in page.text
    assert "no interval, as there is 1 repetition" in page.text
    everything = tuple((arm, 0) for arm in ("centralized", "federated", "local"))
    folder = make_comparison(tmp_path / "d", seeds=1, rounds=12, failed=everything, use=False)
    assert "No model ended well" in Page(write_report(folder).read_text()).text


def test_scans_of_people_are_called_so(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    config = {**manifest["config"], "data.cohort-dir": "/home/someone/hospitals"}
    rewrite(copy / "manifest.json", config={**config, "extractor": "/home/someone/net.pt"})
    page = Page(write_report(copy).read_text())
    assert "shown only on the machine that holds them" in page.text
    assert "someone" not in page.text


def test_real_slices_keep_their_place_and_stand_upright() -> None:
    data = slices(5, "north", np.random.default_rng(0), noise)
    stack = samples.laid_out(data, STUDY)
    rows = samples.rows(stack, STUDY)
    men = data.take(np.flatnonzero(data.labels == 1)[:10])
    np.testing.assert_allclose(rows["male"], 2 * men - 1, atol=1e-6)
    one = data.subset([k for k, name in enumerate(data.persons) if name == "sub-0"])
    alone = samples.rows(samples.laid_out(one, STUDY), STUDY)
    assert list(alone) == ["female"]  # of one woman, the second's places are air
    assert (alone["female"][5:] == -1).all() and alone["female"][:5].max() > 0
    assert samples.rows(stack[:7], STUDY) == {}
    # As in every samples.npz: the front right pixel lies at the end of both axes.
    np.testing.assert_allclose(stack[0, -1, -1], data.take([0])[0, 0, 0, -1], atol=1e-6)


def test_real_pictures_keep_their_class_and_colour() -> None:
    study = load_study("skin-lesions")
    images = np.random.default_rng(0).random((5, 3, 8, 8), dtype=np.float32)
    labels, persons = np.array([0, 1, 1, 1, 7]), ("a", "b", "b", "c", "a")
    stack = samples.laid_out(Dataset(InMemory(images), labels, persons), study)
    assert stack.shape == (8 * samples.PICTURES, 8, 8, 3)
    rows = samples.rows(stack, study)
    assert list(rows) == ["MEL", "NV", "SCC"]
    np.testing.assert_allclose(rows["NV"][:2], 2 * images[[1, 3]] - 1, atol=1e-6)  # two people


def test_of_many_people_no_more_pictures_are_read_than_shown(monkeypatch) -> None:
    study, many = load_study("skin-lesions"), 20_000
    data = Dataset(
        InMemory(np.ones((many, 3, 2, 2), np.float32)),
        np.zeros(many, np.int64),
        tuple(f"p{k}" for k in range(many)),
    )
    read: list[int] = []
    monkeypatch.setattr(Dataset, "take", lambda self, index: read.extend(index) or [1.0])
    samples.laid_out(data, study)
    assert read == list(range(samples.PICTURES))


def test_a_run_counts_images_and_not_people(run_folder: Path) -> None:
    text = Page(write_report(run_folder).read_text()).text
    assert "Training, test: number of scans." in text
    assert "(test scans: island 60, north 60, south 60)" in text
    assert "people tested" not in text


def of_skin(run: Path, extractor: str) -> Path:
    rewrite(run / "manifest.json", config={"task": "generation", "study": "skin-lesions"})
    summary = json.loads((run / "summary.json").read_text())
    summary["generation"]["extractor"]["name"] = extractor
    (run / "summary.json").write_text(json.dumps(summary))
    return run


@pytest.mark.parametrize("name", ["fedscan-skin-r1", "fedscan-brain-r1", "own.pt"])
def test_each_default_extractor_has_its_own_caveat(name: str, tmp_path: Path) -> None:
    text = Page(write_report(of_skin(make_run(tmp_path / "17"), name)).read_text()).text
    for known in ("fedscan-skin", "fedscan-brain"):
        told = f"The extractor {known} was trained on phantoms" in text
        assert told == name.startswith(known)


def test_generators_of_pictures_are_told_of_in_the_studys_words(tmp_path: Path) -> None:
    run = of_skin(make_run(tmp_path / "17"), "fedscan-skin-r1")
    visible = Page(write_report(run).read_text()).text.lower()
    assert "its own training pictures" in visible
    for word in ("slices?", "scans?", "heads?"):
        assert not re.search(rf"\b{word}\b", visible), word
    assert "synthetic pictures are of use" in generation_words.use(
        generation_words.Nouns("picture", "picture"), "island"
    ).replace("Synthetic", "synthetic")


def test_stages_hold_the_first_the_last_and_the_released() -> None:
    grids = {6 * k: Path("x") for k in range(1, 41)}
    model = pictures.Trained("federated", "fedavg", 0, "all", {"best_round": 126}, grids)
    found = pictures.stages(model)
    assert found[0] == 6 and found[-1] == 240 and 126 in found
    assert len(found) <= pictures.STAGES + 1
    assert pictures.stages(pictures.Trained("federated", "", 0, "all")) == []


def test_real_slices_are_a_picture() -> None:
    stack = samples.laid_out(slices(4, "north", np.random.default_rng(0), noise), STUDY)
    found = real_images({"north": stack, "south": stack})
    picture = Image.open(io.BytesIO(base64.b64decode(found["uri"].partition(",")[2])))
    assert picture.size == (found["width"], found["height"])
    assert picture.mode == "L"
    assert real_images({}) is None
    assert real_images({"north": stack[:6]}) is None


def test_a_run_has_a_report_of_its_own(run_folder: Path) -> None:
    page = Page(write_report(run_folder).read_text())
    assert {a["id"] for a in page.all("h2")} >= {"results", "pictures", "curves", "copying"}
    assert "it is that of round 12 of 12" in page.text
    assert "35.0 %" in page.text
    rounds = [str(a["alt"]).split()[-1] for a in page.all("img")]
    assert rounds == ["chosen", "3", "6", "9", "12"]
    for site in SITES:
        assert any(
            f"at site {site} over 12 rounds" in str(a.get("aria-label")) for a in page.all("svg")
        )


def test_a_run_under_way_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "17", ended=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"round": 13, "si')  # a line being written
    page = Page(write_report(folder).read_text())
    assert "has not been tested" in page.text
    assert len(page.all("img")) == 1 + 4


def test_a_copying_run_is_noticed(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "17")
    summary = json.loads((folder / "summary.json").read_text())
    summary["sites"]["island"]["generation"]["copies_flagged"] = 1.0
    (folder / "summary.json").write_text(json.dumps(summary))
    text = Page(write_report(folder).read_text()).text
    assert "The generator is flagged as copying training images of island." in text
    assert "training images of north." not in text


def test_rounds_without_validation_count_as_well() -> None:
    config = RunConfig.from_flower({"task": "generation", "run.rounds": 5, "run.evaluate-every": 2})
    rows, bar = [], Told()

    def add(number: int, site: str, split: str, name: str, value: float) -> None:
        rows.append(Row(number, site, split, name, value, 10, 1.0))
        federate._show_new_rounds(rows, bar, config)

    add(1, "north", "train", "p", 0.0)
    assert bar.done == 1
    add(2, "north", "train", "p", 0.0)
    add(2, "north", "val", "kernel_distance", 0.25)
    assert bar.done == 1  # the whole is not yet there
    add(2, "all", "val", "frechet_distance", 12.345)
    assert bar.done == 2
    assert bar.always == ["validation: Fréchet distance 12.35; kernel distance north 0.250"] or (
        bar.always == ["validation: Fréchet distance 12.34; kernel distance north 0.250"]
    )
    for number in (3, 4, 5):
        rows.append(Row(number, "north", "train", "p", 0.0, 10, 1.0))
    for number in (4, 5):
        rows.append(Row(number, "all", "val", "kernel_distance_mean", 0.1, 10, 1.0))
        rows.append(Row(number, "north", "val", "kernel_distance", 0.1, 10, 1.0))
    federate._show_new_rounds(rows, bar, config)
    assert bar.done == 5
    assert bar.always[-1] == "validation: kernel distance north 0.100"


@pytest.mark.parametrize("telling", [[], ["north"]])
def test_a_site_that_tells_nothing_leaves_a_gap_in_report_and_terminal(
    tmp_path: Path, telling: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    folder = make_run(tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    for site, about in summary["sites"].items():
        about["rounds_lost"] = 0 if site in telling else 3
        if site not in telling:
            del about["generation"]
    if not telling:
        del summary["generation"]
        summary["selected_by"] = "last round"
    (folder / "summary.json").write_text(json.dumps(summary))
    text = Page(write_report(folder).read_text()).text
    assert ("No site tells how far" in text) is (not telling)
    lines = io.StringIO()
    monkeypatch.setattr(console, "out", Console(file=lines, width=160))
    console.show_run(summary)
    assert re.search(r"island .*–", lines.getvalue())
    assert (
        "Site 'island': it was away, or its answers were not used in 3 of 12 rounds"
        in lines.getvalue()
    )
    assert ("the model is that of the last round" in lines.getvalue()) is (not telling)


def test_the_terminal_shows_distances(
    folder: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    lines = io.StringIO()
    monkeypatch.setattr(console, "out", Console(file=lines, width=160))
    summary = json.loads((folder / "summary.json").read_text())
    summary["copies"] = [{"model": "local at island", "seed": 2, "site": "island"}]
    compare.show(summary)
    told = lines.getvalue()
    assert "Fréchet distance on test images" in told
    assert "local at island, repetition 2: flagged as copying" in told
    assert "the Fréchet distance was" in told
    console.show_run(json.loads((run_folder / "summary.json").read_text()))
    assert re.search(r"all +│ +340 │ +180 │", lines.getvalue())


def shown_run(monkeypatch: pytest.MonkeyPatch, **sites: dict) -> str:
    from rich.console import Console

    lines = io.StringIO()
    monkeypatch.setattr(console, "out", Console(file=lines, width=160))
    counts = {"n_train": 9, "n_test": 9}
    about = {"best_round": 1, "rounds": 2, "seconds": 3.0}
    console.show_run({**about, "sites": {s: {**counts, **found} for s, found in sites.items()}})
    return lines.getvalue()


def test_the_table_of_a_run_says_why_it_has_dashes(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {"balanced_accuracy": 0.5, "auroc": 0.5, "sensitivity_at_90_specificity": 0.5}
    told = shown_run(monkeypatch, north=whole, island={}, south={"rounds_lost": 1})
    assert "–: withheld by island; no answer from south" in told
    told = shown_run(
        *(monkeypatch,),
        north={**whole, "auroc": None, "sensitivity_at_90_specificity": None},
        south={**whole, "sensitivity_at_90_specificity": None},
    )
    assert "–: test images of one class only at north; no test image of the positive class" in told
    assert "–" not in shown_run(monkeypatch, north=whole)


def test_the_table_of_a_run_has_no_column_that_its_study_does_not_measure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = shown_run(monkeypatch, north={"balanced_accuracy": 0.5, "auroc": 0.5})
    assert "sens." not in told and "–" not in told


def test_the_terminal_asks_only_what_was_compared(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    lines = io.StringIO()
    monkeypatch.setattr(console, "out", Console(file=lines, width=160))
    summary = json.loads((folder / "summary.json").read_text())
    pooling = summary["headline"]["loss_against_pooling"]["sentence"]
    compare.show(summary)
    assert pooling in lines.getvalue()
    lines.truncate(0)
    del summary["cells"]["by_model"]["centralized"]
    compare.show(summary)
    assert pooling not in lines.getvalue()
    assert summary["headline"]["gain_of_data_poor_site"]["sentence"] in lines.getvalue()


def test_an_estimate_counts_who_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "step_seconds", lambda config, sites: 0.1)
    monkeypatch.setattr(estimate, "usable_cpus", lambda: 1)
    run = {"task": "generation", "run.rounds": 10, "training.local-steps": 10}
    for local, trainings in (("all", 3), ("poor", 1)):
        plan = Plan(arms=["local"], local=local, run=run)
        seconds = estimate.estimate_seconds(plan, 3, {"run.min-sites": 3})
        assert seconds == pytest.approx(10 * trainings + estimate.CELL_OVERHEAD)


def test_an_estimate_takes_scans_of_both_sexes_for_a_batch_of_one() -> None:
    run = {"training.batch-size": 1, "run.rounds": 1, "training.local-steps": 1}
    plan = load_plan("gan-domain-adaptation", {"strategies": ["untrained-frozen"]}, run)
    config = plan.config(plan.cells()[0], {"run.min-sites": 2})
    assert config.model.adapt == "center"
    assert estimate.step_seconds(config, 2) > 0


def test_an_estimate_counts_every_classifier_of_a_use_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "step_seconds", lambda config, sites: 0.1)
    monkeypatch.setattr(estimate, "usable_cpus", lambda: 1)
    run = {"task": "generation", "run.rounds": 10, "training.local-steps": 10}
    use = {"task": "classification", "run.rounds": 2, "training.local-steps": 5}
    base, arms = {"run.min-sites": 3}, ["local", "federated"]
    with_, without = (
        estimate.estimate_seconds(Plan(arms=arms, run=run, use=one), 3, base) for one in (use, {})
    )
    # Federated at three sites; real; amounts; balanced; sites.
    classifiers = 3 + 1 + 2 * 4 + 2 + 2 * 3
    messages = estimate.FEDERATED_OVERHEAD + estimate.ROUND_OVERHEAD * 2 * 3
    assert with_ - without == pytest.approx(classifiers + messages)


@pytest.mark.parametrize("task", ["classification", "generation"])
def test_a_real_step_is_timed(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(estimate.PROBE_STEPS, task, 1)
    size = {"data.size": 16} if task == "classification" else {}
    config = RunConfig.from_flower({"task": task, "training.batch-size": 4, **size})
    assert estimate.step_seconds(config, 2) > 0


def test_a_comparison_of_generators_collects_no_predictions(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(
        repetitions=2, local="poor", run={"task": "generation"}, use={"task": "classification"}
    )
    sites = {site: tmp_path / site for site in SITES}
    made = benchmark.Benchmark(plan, sites, {"run.min-sites": 3}, tmp_path / "out")
    table = pd.read_csv(folder / "results.csv")
    for cell in plan.cells():
        mine = (table["arm"] == cell.arm) & (table["seed"] == cell.seed)
        made._cell(cell).mkdir(parents=True)
        table[mine].to_csv(made._cell(cell) / "results.csv", index=False)
        (made._cell(cell) / "all").mkdir()
        write_json(made._cell(cell) / "all" / "summary.json", {"bytes_plain": 212e6})
    first, second = plan.stages()[-1]
    made._cell(first).mkdir(parents=True)
    use = pd.read_csv(folder / "use.csv").query("seed == 0")
    use.to_csv(made._cell(first) / "results.csv", index=False)
    write_json(made._cell(first) / "status.json", {"status": "done"})
    end_cell(made._cell(second), second, "error", "why")
    shutil.copy(folder / "manifest.json", tmp_path / "out" / "manifest.json")
    task = SimpleNamespace(
        open_split=lambda site, *_: slices(4, site, np.random.default_rng(0), noise)
    )
    monkeypatch.setattr(collect, "load_task", lambda name: task)
    made._collect()
    out = tmp_path / "out"
    assert list(out.rglob("predictions.csv")) == []
    summary = json.loads((out / "summary.json").read_text())
    assert summary["repetitions"] == [0, 1]
    assert summary["costs"]["federated/fedavg"]["share_of_plain_bytes"] == pytest.approx(0.5)
    assert set(pd.read_csv(out / "use.csv")["seed"]) == {0}
    assert summary["use"][0]["row"] == "local real only"
    assert summary["unfinished"] == [{"arm": "use", "seed": 1, "status": "error"}]
    (made._cell(second) / "status.json").unlink()  # not yet done is not failed
    made._collect()
    assert json.loads((out / "summary.json").read_text())["unfinished"] == []
    assert (out / "samples.npz").stat().st_mode & 0o777 == 0o600
    with np.load(out / "samples.npz") as kept:
        assert {name: stack.shape for name, stack in kept.items()} == {
            f"site {site}": (20, 8, 8) for site in SITES
        }


@pytest.mark.parametrize("preset", presets())
def test_no_two_models_of_a_comparison_look_alike(preset):
    plan = load_plan(preset, {}, {})
    models = [("centralized", ""), ("local", "")]
    models += [("federated", name) for name in {*plan.strategies, *plan.variants}]
    models += [("centralized", name) for name in plan.pooled]
    models += [("local", name) for name in plan.alone]
    found = [looks.series(*model) for model in models]
    assert len({(one.colour, one.marker, one.dash) for one in found}) == len(found)
    assert len({(one.marker, one.dash) for one in found}) == len(found)  # in grey, too
    assert len({charts.legend_key(one) for one in found}) == len(found)


def test_a_report_is_its_owners_alone(folder, run_folder):
    for made in (folder, run_folder):
        assert write_report(made).stat().st_mode & 0o777 == 0o600


def test_damaged_samples_are_told(tmp_path):
    np.savez_compressed(tmp_path / "samples.npz", **{"site north": np.zeros((2, 8, 8))})
    whole = (tmp_path / "samples.npz").read_bytes()
    told = 0
    for place, byte in enumerate(whole):
        spoilt = whole[:place] + bytes([byte ^ 255]) + whole[place + 1 :]
        (tmp_path / "samples.npz").write_bytes(spoilt)
        try:  # read all the same, or told in words: nothing else
            document._read_samples(tmp_path)
        except FedscanError as error:
            told += "Delete it to report without images" in str(error)
    assert told > 10


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_quiet_and_whole_in_a_browser(
    browser: Browser, folder: Path, run_folder: Path, width: int, scheme: str
) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.ask("Emulation.setDeviceMetricsOverride", **size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.ask("Emulation.setEmulatedMedia", features=[feature])
    for made in (folder, run_folder):
        report = write_report(made)
        browser.open(report)
        assert browser.requests() == [report.as_uri()]
        assert browser.complaints() == []
        page_width = "document.documentElement.{}Width"
        wide, window = (browser.evaluate(page_width.format(k)) for k in ("scroll", "client"))
        assert wide == window > 0.9 * width
        seen = "[...document.images].filter(i => i.complete && i.naturalWidth > 0).length"
        assert browser.evaluate(seen) == len(Page(report.read_text()).all("img"))
        enlarged = "[...document.images].filter(i => i.width > i.naturalWidth).length"
        assert browser.evaluate(enlarged) == 0
        paper = str(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert (sum(map(int, re.findall(r"\d+", paper))) < 200) == (scheme == "dark")


def test_a_comparison_can_be_read_before_its_pictures_are_used(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(
        repetitions=2, local="poor", run={"task": "generation"}, use={"task": "classification"}
    )
    made = benchmark.Benchmark(plan, dict.fromkeys(SITES, tmp_path), {}, tmp_path / "out")
    monkeypatch.setattr(made, "_begin", lambda resume: None)
    happened: list[str] = []
    monkeypatch.setattr(made, "_schedule", lambda cells: happened.append(f"{len(cells)} cells"))
    monkeypatch.setattr(made, "_collect", lambda: happened.append("collected"))
    made.run(resume=False)
    assert happened == ["6 cells", "collected", "2 cells", "collected"]
