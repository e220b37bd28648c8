"""The report: whole, escaped, the same for the same files, quiet in a browser."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from benchmark_folders import LESIONS, MODELS, SITES, Page, make_folder
from browser import Browser
from PIL import Image
from rich.console import Console

from common.errors import ConfigError, FedscanError
from simulations import compare, console
from simulations.report import budget, charts, figures, looks, pictures, tables, words
from simulations.report.document import read_results, write_report
from simulations.report.tables import data_size, duration, told

HOSTILE = "<img src=x onerror=alert(1)>&'\"{{ 7*7 }}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("report") / "benchmark")


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(write_report(folder).read_text())


def words_of_images(page: Page) -> list[str]:
    return [str(a["aria-label"]) for a in page.all("svg") if a.get("role") == "img"]


def test_every_part_that_was_promised_is_there(page: Page) -> None:
    headings = {a["id"] for a in page.all("h2")}
    assert headings == {
        "brief",
        "results",
        "curves",
        "matrix",
        "samples",
        "classes",
        "costs",
        "budget",
        "provenance",
        "limits",
    }
    assert "At island, balanced accuracy was" in page.text
    assert "95 % intervals over people and repetitions" in page.text
    assert "3 repetitions" in page.text
    assert "224 kB a site and round" not in page.text  # 20 149 200 bytes in 6 rounds of 3 sites:
    assert "1.12 MB a site and round" in page.text
    assert "0123456789abcdef" * 4 in page.text
    assert "phantoms" in page.text
    assert "island has 4" in page.text


def test_every_figure_is_told_in_words(page: Page) -> None:
    for attributes in page.all("svg"):
        labelled = attributes.get("role") == "img" and attributes.get("aria-label")
        assert labelled or attributes.get("aria-hidden") == "true"
    images = words_of_images(page)
    # Two metrics at three sites and all, two curves at three, two contrasts; three confusion
    # matrices, a ROC, a precision-recall and a calibration curve a site.
    assert len(images) == 2 * 4 + 2 * 3 + 2 + 3 * (3 + 3)
    assert all(re.search(r"\d\.\d\d|\d%", words) for words in images)
    scans = page.all("img")
    assert len(scans) == 3 + 3  # on the first page, and among the rest
    assert all("training scans of site" in str(a["alt"]) for a in scans)


def test_headings_and_tables_are_in_order(page: Page) -> None:
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert len(page.all("caption")) == len(page.all("table")) == 6
    assert all(a.get("scope") for a in page.all("th"))
    assert page.all("html")[0]["lang"] == "en"
    assert any(a.get("name") == "viewport" for a in page.all("meta"))
    for kind, count in (("Figure", 13), ("Table", 6)):
        numbers = re.findall(rf"{kind} (\d+)\. ", page.text)
        assert numbers == [str(k + 1) for k in range(count)]


def test_nothing_points_outside_the_file(folder: Path, page: Page) -> None:
    text = re.sub(r"data:image/png;base64,[^\"]*", "", (folder / "report.html").read_text())
    assert not re.search(r"(https?:)?//\w", text)
    assert "url(" not in text
    assert "@import" not in text
    policy = next(a for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert str(policy["content"]).startswith("default-src 'none'")
    assert not page.all("script")
    for name in ("src", "href"):
        targets = [str(a[name]) for _, a in page.elements if a.get(name)]
        assert all(target.startswith(("data:", "#")) for target in targets)


def test_same_files_same_bytes(folder: Path) -> None:
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    samples = {HOSTILE: np.zeros((2, 8, 8), np.float32)}
    folder = make_folder(tmp_path / "b", sites={HOSTILE: 4, "north": 8}, seeds=1)
    np.savez(folder / "samples.npz", **samples)
    manifest = json.loads((folder / "manifest.json").read_text())
    for key in ("source_hash", "started", "description"):
        manifest[key] = HOSTILE
    manifest["config"][HOSTILE] = HOSTILE
    manifest["versions"] = {HOSTILE: HOSTILE}
    manifest["machine"] = {HOSTILE: [HOSTILE]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    table = pd.read_csv(folder / "results.csv", keep_default_na=False)
    table["strategy"] = table["strategy"].replace("fedavg", HOSTILE)
    table.loc[0, "status"] = HOSTILE
    table.to_csv(folder / "results.csv", index=False)
    page = Page(write_report(folder).read_text())
    assert len(page.all("img")) == 2  # the strip of scans, twice; no other
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert page.text.count(HOSTILE) >= 10


def test_na_is_a_name_and_no_missing_value(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "b", sites={"NA": 4, "north": 8}, seeds=1)
    assert set(read_results(folder)["tested_on"]) == {"NA", "north"}
    assert "At NA, " in Page(write_report(folder).read_text()).text


def test_one_arm_alone(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "b", models=(("local", ""),), seeds=1, samples={})
    page = Page(write_report(folder).read_text())
    assert "no comparison of the arms: it is of local" in page.text
    assert "Paired differences" not in page.text
    assert "no samples.npz" in page.text
    assert len(words_of_images(page)) == 2 * 4 + 2 * 3 + 3 * (1 + 3)


def test_variants_have_their_names_and_one_stands_for_federation(tmp_path: Path) -> None:
    models = (("local", ""), ("federated", "scratch"), ("federated", "gan-frozen"))
    text = Page(write_report(make_folder(tmp_path / "b", models=models, seeds=2)).read_text()).text
    assert "From scratch − GAN, frozen".replace(" ", " ") in text
    assert "balanced accuracy of Federated (GAN, frozen)" in text
    assert "Federated − centralized" not in text  # no such arm


def test_one_repetition_is_called_one(tmp_path: Path) -> None:
    page = Page(write_report(make_folder(tmp_path / "b", seeds=1)).read_text())
    assert "means over" not in page.text
    assert "95 % intervals over people" in page.text
    assert "One repetition: the intervals" in page.text


def test_failed_cells_are_told_and_left_out(tmp_path: Path) -> None:
    failed = (("federated", "fedavg", 1, "diverged"), ("centralized", "", 0, "timeout"))
    folder = make_folder(tmp_path / "b", failed=failed)
    page = Page(write_report(folder).read_text())
    assert "Federated (FedAvg), seed 1: diverged." in page.text
    assert "Centralized, seed 0: timeout." in page.text
    assert "means over 2 to 3 repetitions" in page.text
    assert page.text.count("2 of 3") == 2


def test_all_cells_failed(tmp_path: Path) -> None:
    failed = tuple((*model, seed, "error") for model in MODELS for seed in range(3))
    page = Page(write_report(make_folder(tmp_path / "b", failed=failed)).read_text())
    assert "there is no test result to show" in page.text
    assert words_of_images(page) == []


def test_a_summary_without_parts_leaves_them_out(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "b")
    (folder / "summary.json").write_text("{}")
    (folder / "manifest.json").write_text("{}")
    page = Page(write_report(folder).read_text())
    assert "intervals over repetitions" in page.text  # the results hold no predictions
    assert len(words_of_images(page)) == 2 * 4 + 2 * 3 + 2


@pytest.mark.parametrize("name", ["results.csv", "summary.json", "manifest.json"])
def test_a_missing_or_broken_file_is_named(folder: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "b")
    (copy / name).write_text("[]\n")
    with pytest.raises(FedscanError, match=re.escape(name)):
        write_report(copy)
    (copy / name).unlink()
    (copy / "report.html").unlink()
    with pytest.raises(FedscanError, match=f"holds no {re.escape(name)}"):
        write_report(copy)
    assert not (copy / "report.html").exists()
    with pytest.raises(ConfigError, match="does not exist"):
        write_report(tmp_path / "nowhere")


def test_who_names_the_wrong_folder_is_told_the_right_one(tmp_path: Path) -> None:
    (tmp_path / "17").mkdir()
    (tmp_path / "17" / "metrics.jsonl").write_text("")
    with pytest.raises(ConfigError, match=re.escape(f"Give {tmp_path / '17'}")):
        write_report(tmp_path)
    (tmp_path / "cells").mkdir()
    with pytest.raises(ConfigError, match="the comparison has not ended"):
        write_report(tmp_path)


def test_scans_of_people_are_called_so(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "b")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["config"]["data.cohort-dir"] = "/home/someone/hospitals"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    page = Page(write_report(copy).read_text())
    assert "shown only on the machine that holds them" in page.text
    assert "synthetic" not in page.text
    assert "someone" not in page.text


AXIS = charts.Axis("AUROC", (0.5, 1.0))


def estimate(*values: float, low: float, high: float) -> charts.Estimate:
    mean = float(np.mean(values))
    return charts.Estimate("Local only", "", "local", "^", mean, low, high, values)


def test_positions_follow_values() -> None:
    drawn = charts.estimates((estimate(0.6, 0.8, low=0.5, high=1.0),), AXIS, "Test AUROC")
    root = ElementTree.fromstring(drawn)
    assert root.attrib["aria-label"] == "Test AUROC. Local only 0.70, interval 0.50 to 1.00."
    uses = [(float(e.attrib["x"]), e.attrib["style"]) for e in root.iter("use") if "x" in e.attrib]
    dots = [x for x, style in uses if "opacity" in style]
    left, *_, right = sorted(
        x for x, style in uses if "--local" in style and "opacity" not in style
    )
    assert [(x - left) / (right - left) for x in dots] == pytest.approx([0.2, 0.6], abs=1e-4)


def test_a_chart_has_no_colour_of_its_own_and_no_id_twice(folder: Path) -> None:
    page = write_report(folder).read_text()
    svgs = re.findall(r"<svg.*?</svg>", page, flags=re.S)
    assert not any(re.search(r"#[0-9a-f]{6}\b", svg) for svg in svgs)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for svg in svgs:
        ElementTree.fromstring(svg)
        assert set(re.findall(r'href="#([^"]+)"', svg)) <= set(re.findall(r' id="([^"]+)"', svg))


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("", []),
        ("of island", ["of island"]),
        ("untrained, frozen", ["untrained,", "frozen"]),
        ("private-discriminators", ["private-", "discriminato…"]),
        ("universitaetsklinikum", ["universitaet…"]),
        ("one two three four five six seven", ["one two three", "four five si…"]),
    ],
)
def test_long_names_take_two_lines_and_no_more(name: str, lines: list[str]) -> None:
    assert charts.two_lines(name) == lines


def test_figures_are_pure() -> None:
    rows = (estimate(0.6, 0.8, low=0.5, high=1.0),)
    first = charts.estimates(rows, AXIS, "x")
    charts.estimates.cache_clear()
    assert charts.estimates(rows, AXIS, "x") == first


def test_arms_differ_in_marker_and_dash() -> None:
    found = [looks.series(*model) for model in (*MODELS, ("federated", "fedprox"))]
    for key in ("marker", "dash", "colour"):
        assert len({getattr(look, key) for look in found}) == len(found)


def test_limits_hold_what_they_show() -> None:
    def limits(*means: float) -> tuple[float, float]:
        scores = [{str(k): {"auroc": {"mean": value}} for k, value in enumerate(means)}]
        return figures.estimate_axis(scores, "auroc", 0.5).limits

    assert limits(0.83, 0.97) == (0.4, 1.0)
    assert limits(0.3) == (0.3, 1.0)
    assert limits() == (0.4, 1.0)
    low, high = figures.curve_axis(pd.Series([0.1, 7.0]), "loss", 0.7).limits
    assert 0 < low < 0.1 and high > 7.0
    record = {"mean": 0.1, "low": -0.13, "high": 0.19}
    low, high = figures.difference_limits({"north": {"a - b": {"auroc": record}}}, "auroc")
    assert low < -0.13 and high > 0.19


@pytest.mark.parametrize("colour", [False, True])
def test_samples_stand_upright(colour: bool) -> None:
    """The front right voxel, or the upper right pixel, is at the top right of the picture."""
    slices = np.zeros((1, 8, 8, 3) if colour else (1, 8, 8))
    slices[0, 7, 7] = [1.0, 0.5, 0.0] if colour else 1.0
    strip = pictures.strip(slices)
    picture = Image.open(io.BytesIO(base64.b64decode(strip["uri"].partition(",")[2])))
    assert picture.size == (strip["width"], strip["height"]) == (32, 32)
    assert picture.getpixel((31, 0)) == ((255, 128, 0) if colour else 255)
    assert not np.any(picture.getpixel((0, 0))) and not np.any(picture.getpixel((31, 31)))


@pytest.fixture(scope="module")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    samples = {site: rng.random((4, 8, 8, 3), dtype=np.float32) for site in SITES}
    options = {"classes": LESIONS, "study": "skin-lesions", "seeds": 2, "rounds": 2, "n_test": 48}
    folder = tmp_path_factory.mktemp("lesions") / "b"
    return make_folder(folder, samples=samples, draws=100, **options)


def test_many_classes_are_told_one_by_one(lesions: Path) -> None:
    page = Page(write_report(lesions).read_text())
    for site in SITES:
        assert f"Classes at {site}" in page.text
    for kind in ("Confusion matrix of", "ROC curves at", "Calibration at"):
        assert any(words.startswith(kind) for words in words_of_images(page))
    matrix = next(w for w in words_of_images(page) if w.startswith("Confusion matrix of"))
    assert re.search(r"Rightly recognised: MEL \d+%, NV \d+%", matrix)
    assert "ROC curves of MEL" in page.text  # the positive class
    assert "MEL (n = " in page.text and "of 24 people" in page.text


def test_what_is_not_measured_says_why(lesions: Path) -> None:
    page = Page(write_report(lesions).read_text())
    assert "SCC (n = 0)" not in page.text
    assert page.text.count("No test picture of SCC.") == 1  # at island; of a row, nothing


def test_classes_of_few_people_are_named_once_a_table(lesions: Path) -> None:
    text = Page(write_report(lesions).read_text()).text
    few = "No interval: fewer than 5 test people of MEL, BCC, AK, BKL, DF, VASC at island"
    assert text.count(few) == 1 + 2 + 1  # in the text, Tables 1 and 2, the classes of island
    assert "(no interval: fewer than 5 test people of" in text  # the headline
    assert "federation is better; no interval" in text  # its tile
    assert "excludes zero" not in text


def test_tables_have_no_bars_and_nobody_is_a_person_there(lesions: Path) -> None:
    text = Page(write_report(lesions).read_text()).text
    for table in re.findall(r"Table \d+\..*?AUROC", text):
        assert "bars are" not in table
    assert "small numbers are 95 % intervals over people and repetitions" in text
    assert "persons" not in text
    assert "the classes that the site's test pictures hold" in text


def test_a_site_that_is_in_no_mean_is_named_beside_it(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "b", seeds=2, rounds=2)
    table = pd.read_csv(folder / "results.csv", keep_default_na=False)
    table.loc[(table["metric"] == "auroc") & (table["tested_on"] == "island"), "value"] = np.nan
    table.to_csv(folder / "results.csv", index=False)
    (folder / "summary.json").write_text("{}")
    page = Page(write_report(folder).read_text())
    # A panel of Figure 2; three models in Table 1; two differences in Table 2.
    assert page.text.count("without island") == 1 + 3 + 2
    assert page.text.count("test images of one class only") == 3 + 2
    assert "has no defined" not in page.text


def test_the_terminal_says_what_its_table_leaves_out(
    lesions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = io.StringIO()
    monkeypatch.setattr(console, "out", Console(file=lines, width=160))
    summary = json.loads((lesions / "summary.json").read_text())
    for model in ("centralized", "local"):
        summary["scores"]["all"][model]["balanced_accuracy"]["note"] = "without island"
    compare.show(summary)
    assert "\nall: without island (centralized, local)\n" in lines.getvalue()
    few = "fewer than 5 test people of MEL, BCC, AK, BKL, DF, VASC, SCC"
    assert f"\nnorth: no interval: {few}\n" in lines.getvalue()


def test_no_table_of_a_terminal_cuts_a_name_or_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = io.StringIO()
    monkeypatch.setattr(console, "out", Console(file=lines, width=80))
    models = (*MODELS, *(("federated", f"epsilon-{k}") for k in (16, 8, 4)))
    for count in (3, 6):
        folder = make_folder(
            tmp_path / str(count), models=models[:count], seeds=2, rounds=1, draws=20
        )
        compare.show(json.loads((folder / "summary.json").read_text()))
        shown = lines.getvalue().partition("At island")[0]
        lines.seek(lines.truncate(0))
        assert max(map(len, shown.splitlines())) <= 80
        assert len(re.findall(r"\d\.\d\d to \d\.\d\d", shown)) == 4 * count
        names = ["/".join(filter(None, model)) for model in models[:count]]
        assert all(re.search(rf"(?<![\w/]){name}(?![\w/-])", shown) for name in names)


def test_the_table_of_a_run_cuts_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = io.StringIO()
    monkeypatch.setattr(console, "out", Console(file=lines, width=80))
    site = {"n_train": 12345, "n_test": 6789} | dict.fromkeys(console.CLASSIFICATION, 0.123)
    about = {"best_round": 100, "rounds": 100, "seconds": 99.0}
    console.show_run({**about, "sites": {"university-hospital-of-somewhere": site, "b": site}})
    shown = lines.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    assert [shown.count(number) for number in ("12345", "6789", "0.123")] == [2, 2, 6]


def test_notes_stand_once_each() -> None:
    notes = [
        "p needs at least 6 repetitions, there are 2; a",
        "p needs at least 6 repetitions, there are 2",
    ]
    notes.append("b; without island")
    found = {str(k): {"a - b": {"f1": {"mean": 0.1, "note": n}}} for k, n in enumerate(notes)}
    assert tables.notes(found, ["f1"]) == ["a", "b", "p needs at least 6 repetitions, there are 2"]


def test_a_curve_is_told_by_the_measured_sensitivity(lesions: Path) -> None:
    """The curve lies on straight lines between few thresholds, the measure does not."""
    summary = json.loads((lesions / "summary.json").read_text())
    told = words_of_images(Page(write_report(lesions).read_text()))
    found = next(one for one in told if one.startswith("ROC curves at site island"))
    for model in ("centralized", "local"):
        score = summary["scores"]["island"][model]["sensitivity_at_90_specificity"]["mean"]
        assert f"sensitivity at 90 % specificity {score:.2f}" in found


def test_a_site_without_a_curve_is_named(lesions: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(lesions, tmp_path / "b")
    summary = json.loads((copy / "summary.json").read_text())
    for model in summary["curves"]["island"].values():
        model["roc"] = None
    (copy / "summary.json").write_text(json.dumps(summary))
    text = Page(write_report(copy).read_text()).text
    why = "no test picture of MEL, or test pictures of one class only"
    assert f"ROC curves of MEL. Dotted line: guessing. Without island: {why}." in text


def test_without_predictions_the_study_tells_the_classes(lesions: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(lesions, tmp_path / "b")
    (copy / "summary.json").write_text("{}")
    text = Page(write_report(copy).read_text()).text
    assert "Classes at north" in text and "MEL (n = –)" in text


def test_a_class_may_be_called_like_mathematics() -> None:
    drawn = charts.confusion(((1, 0), (0, 1)), ("$^$", "$x$"), "Confusion matrix")
    assert "$^$" in drawn and "$x$" in drawn


def test_words_are_the_studys(lesions: Path) -> None:
    page = Page(write_report(lesions).read_text())
    visible = page.text.lower()
    assert "test pictures" in visible and "how well diagnosis is recognised" in visible
    for word in ("scans", "sex", "slice", "brain"):
        assert not re.search(rf"\b{word}\b", visible), word


def test_pictures_are_in_colour(lesions: Path) -> None:
    first = Page(write_report(lesions).read_text()).all("img")[0]
    picture = Image.open(io.BytesIO(base64.b64decode(str(first["src"]).partition(",")[2])))
    assert picture.mode == "RGB"
    assert "pictures, for training, of site" in str(first["alt"])


def test_sizes_and_times_read_well() -> None:
    assert [data_size(n) for n in (0, 999, 1000, 224_000, 20_149_200, 999_800)] == [
        "none",
        "999 B",
        "1.00 kB",
        "224 kB",
        "20.1 MB",
        "1.00 MB",
    ]
    assert [duration(s) for s in (94.5, 812, 7200)] == ["94 s", "14 min", "2.0 h"]
    assert told("auroc", -0.034, signed=True) == "−0.03"
    assert told("auroc", -0.001, signed=True) == "0.00"


@pytest.mark.browser
def test_the_browser_hears_of_errors_and_requests(browser: Browser, tmp_path: Path) -> None:
    """Without this, silence below would prove nothing."""
    page = tmp_path / "loud.html"
    page.write_text("<img src='http://127.0.0.1:9/x.png'><script>throw Error('loud')</script>")
    browser.open(page)
    assert browser.requests() == [page.as_uri(), "http://127.0.0.1:9/x.png"]
    assert any("exceptionDetails" in complaint for complaint in browser.complaints())


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_quiet_and_whole_in_a_browser(
    browser: Browser, folder: Path, page: Page, width: int, scheme: str
) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.ask("Emulation.setDeviceMetricsOverride", **size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.ask("Emulation.setEmulatedMedia", features=[feature])
    report = write_report(folder)
    browser.open(report)
    assert browser.requests() == [report.as_uri()]
    assert browser.complaints() == []
    page_width = "document.documentElement.{}Width"  # wider than the window: one has to pan
    wide, window = (browser.evaluate(page_width.format(kind)) for kind in ("scroll", "client"))
    assert wide == window > 0.9 * width
    drawn = "[...document.querySelectorAll('svg.figure')].filter(f => f.clientHeight > 50).length"
    assert browser.evaluate(drawn) == len(words_of_images(page))
    seen = "[...document.images].filter(i => i.complete && i.naturalWidth > 0).length"
    assert browser.evaluate(seen) == len(page.all("img"))
    paper = str(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (sum(map(int, re.findall(r"\d+", paper))) < 200) == (scheme == "dark")


@pytest.mark.browser
def test_hostile_names_do_nothing_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    report = write_report(make_folder(tmp_path / "b", sites={HOSTILE: 4, "north": 8}, seeds=1))
    browser.open(report)
    assert browser.requests() == [report.as_uri()]
    assert browser.complaints() == []


@pytest.mark.browser
def test_prints(browser: Browser, folder: Path) -> None:
    browser.open(write_report(folder))
    printed = browser.ask("Page.printToPDF", preferCSSPageSize=True, printBackground=False)
    assert base64.b64decode(printed["data"])[:5] == b"%PDF-"


UNEQUAL = {
    "arms": ["local", "federated"],
    "strategies": ["plain", "short", "as-long"],
    "config": {"run.rounds": 20, "training.local-steps": 20},
    "budget": {"steps": 400, "batch_size": 16, "centralized_batch": "large"},
    "plan": {
        "variants": {
            "plain": {"training.learning-rate": 0.1},
            "short": {"training.local-steps": 10},
            "as-long": {"run.rounds": 40, "training.local-steps": 10},
            "not-compared": {"training.local-steps": 1},
        },
        "pretrained": ["short", "not-compared"],
    },
}


class TestBudget:
    def test_what_is_not_equal_is_said_and_of_what_is_not_compared_nothing(self) -> None:
        told = budget.in_words(UNEQUAL, 3)
        assert told == (
            "A site's model makes 400 optimizer steps of 16 images each, whether it trains alone "
            "or federated. Not so 'short': 200 steps. Features of 'short' were trained before, by "
            "a federation of generators that no count, time or size here holds."
        )

    def test_equal_arms_have_no_exception(self) -> None:
        arms = ["centralized", "local", "federated"]
        told = budget.in_words({**UNEQUAL, "arms": arms, "strategies": ["plain"]}, 3)
        assert "Not so" not in told and "trained before" not in told
        assert "centralized-batch = large" in told

    def test_variants_are_of_the_federated_arm(self) -> None:
        told = budget.in_words({**UNEQUAL, "arms": ["local"]}, 3)
        assert "Not so" not in told and "trained before" not in told

    @pytest.mark.parametrize("adapt", ["threshold", "statistics", "center"])
    def test_how_a_model_is_fitted_to_each_site_is_said(self, adapt: str) -> None:
        assert f"(model.adapt = {adapt})" in budget.in_words({"config": {"model.adapt": adapt}}, 3)
        assert "model.adapt" not in budget.in_words({"config": {"model.adapt": "none"}}, 3)

    def test_limits_speak_of_pooling_where_it_is_compared(self) -> None:
        about = {"phantoms": True, "counts": {}, "repetitions": 5, "has_p": False}
        about |= {"new_cohorts": True}
        assert "centralized" not in " ".join(words.limits(words.Nouns(), **about, budget=None))
        assert "centralized-batch = small" in " ".join(
            words.limits(words.Nouns(), **about, budget={})
        )

    def test_limits_say_only_of_few_repetitions_that_they_are_few(self) -> None:
        about = {"phantoms": True, "counts": {}, "has_p": False, "budget": None}
        for count, few in ((2, True), (5, True), (8, False)):
            told = " ".join(
                words.limits(words.Nouns(), **about, repetitions=count, new_cohorts=True)
            )
            assert ("so few repetitions" in told) == few

    def test_limits_tell_whether_repetitions_had_people_of_their_own(self) -> None:
        about = {"phantoms": False, "counts": {}, "has_p": True, "budget": None, "repetitions": 6}
        new, same = (
            " ".join(words.limits(words.Nouns(), **about, new_cohorts=one)) for one in (True, False)
        )
        assert "p-values speak of other people and trainings" in new and "the same scans" not in new
        assert "on these test scans alone" in same and "tests on the same scans" in same

    def test_no_p_is_told_as_zero(self) -> None:
        found = [tables._p_value(p) for p in (2 / 4096, 0.0006, 0.03125, float("nan"))]
        assert found == ["< 0.001", "0.001", "0.031", "–"]

    def test_a_manifest_that_lacks_parts_is_told_of_as_far_as_it_goes(self) -> None:
        assert "optimizer steps of training.batch-size images" in budget.in_words({}, 3)
        assert "Not so" not in budget.in_words({**UNEQUAL, "config": {}}, 3)
