"""A report's first page, and its figures and tables as files."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from benchmark_folders import Page, make_folder
from generation_folders import make_comparison, make_run
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from common.errors import ConfigError
from common.imaging.pictures import grid
from simulations.report import document, files
from simulations.report.blocks import Section, numbered
from simulations.report.document import write_report
from simulations.report.files import LATEX, bare, latex, named, to_csv, to_latex
from simulations.report.pictures import Rows
from simulations.report.tables import Cell, Head, Table


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = make_folder(tmp_path_factory.mktemp("files") / "b", seeds=2, rounds=2)
    write_report(out, files=True)
    return out


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text())


@pytest.fixture(scope="module")
def parts(folder: Path) -> dict:
    return document._comparison(folder)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no charts for files, which takes longest."""
    monkeypatch.setattr(files, "drawn_as", lambda figure: {})


def of_people(folder: Path) -> None:
    """Make a comparison one of real people."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["config"]["data.cohort-dir"] = "hospitals"
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_every_figure_and_table_of_the_page_is_a_file(folder: Path, page: Page) -> None:
    for kind, where, suffixes in (
        ("Figure", "figures", {".png", ".svg", ".pdf"}),
        ("Table", "tables", {".csv", ".tex"}),
    ):
        numbers = {int(n) for n in re.findall(rf"{kind} (\d+)\. ", page.text)}
        made = list((folder / where).iterdir())
        assert {int(path.name.split("-")[1]) for path in made} == numbers
        assert {path.suffix for path in made} == suffixes
        assert all(path.stat().st_mode & 0o777 == 0o600 for path in made)


def test_figures_can_be_opened_and_name_their_panels(folder: Path) -> None:
    drawn = next((folder / "figures").glob("*-test-auroc-*.svg"))
    words = " ".join(ElementTree.parse(drawn).getroot().itertext())
    for name in ("All sites", "island", "north", "south", "Federated"):
        assert name in words
    with Image.open(drawn.with_suffix(".png")) as picture:
        picture.load()
        assert picture.width > 2000
        levels = np.asarray(picture.convert("L"))
    assert levels.min() < 60 and levels.max() == 255  # ink on paper


def test_same_files_same_figures(folder: Path) -> None:
    before = {p: p.read_bytes() for p in sorted(folder.glob("*/*")) if p.suffix != ".json"}
    write_report(folder, files=True)
    assert {path: path.read_bytes() for path in before} == before


def test_csv_equals_the_table(folder: Path, parts: dict) -> None:
    tables = [v for one in parts["sections"] for kind, v in one.blocks if kind == "table"]
    assert len(tables) == len(list((folder / "tables").glob("*.csv")))
    for table in tables:
        with (folder / "tables" / f"{named(table.title)}.csv").open(newline="") as file:
            heads, *rows = list(csv.reader(file))
        assert [head for head in heads if not head.endswith(": interval or note")] == [
            head.text for head in table.heads
        ]
        shown = [row for group in table.groups for row in group]
        assert len(rows) == len(shown)
        for row, cells in zip(rows, shown, strict=True):
            found = [value for value in row if value]
            expected = [bare(t) for cell in cells for t in (cell.text, cell.small) if bare(t)]
            assert found[len(found) - len(expected) :] == expected  # after the group's name


def test_numbers_of_a_csv_are_read_by_a_machine() -> None:
    assert [bare(text) for text in ("−0.04", "+0.13", "1\u202f234", "–", "0.50")] == [
        *("-0.04", "0.13", "1234", "", "0.50")
    ]
    assert bare("=HYPERLINK()") == "'=HYPERLINK()"  # no formula of a spreadsheet


HOSTILE = r"\input{x} 50 % & $a_b^c$ #1 ~ {[*]} <b> −"


def test_names_are_no_commands_of_latex() -> None:
    table = Table("Table 3. T", "", [Head("A", n=False), Head("B")], [[[Cell(HOSTILE), Cell("1")]]])
    text = to_latex(table)
    row = next(line for line in text.splitlines() if line.endswith(r" & 1 \\"))
    assert row == latex(HOSTILE) + r" & 1 \\"
    plain = re.sub(r"\\text\w+\{\}|\\[&%$#_{}]|\$-\$|\{[\[\]*]\}", "", row.removesuffix(r" & 1 \\"))
    assert not re.search(r"[\\&%$#_{}~^\[\]*]", plain)
    assert r"\caption{T.}" in text and text.count(r"\toprule") == 1


@given(st.text(st.sampled_from([*LATEX, "a", "é", " ", "-"]) | st.characters(codec="utf-8")))
def test_latex_says_what_the_text_says(text: str) -> None:
    back = {"-{}": "-", **{told: char for char, told in LATEX.items()}}
    tokens = re.compile("|".join(map(re.escape, sorted(back, key=len, reverse=True))))
    assert tokens.sub(lambda one: back[one[0]], latex(text)) == files._one_line(text)


def test_a_table_of_groups_repeats_the_group_in_csv_and_names_it_once_in_latex() -> None:
    group = [[Cell("north", span=2), Cell("a"), Cell("1", "0 to 2")], [Cell("b"), Cell("2")]]
    table = Table("Table 1. T", "", [Head("at"), Head("model"), Head("x")], [group])
    assert to_csv(table).splitlines()[1:] == ["north,a,1,0 to 2", "north,b,2,"]
    assert r"north & a & 1 (0 to 2) \\" in to_latex(table) and r" & b & 2 \\" in to_latex(table)


TABLE = Table("T", "", [Head("A")], [[[Cell("1")]]])
SECTIONS = numbered([Section("one", "One", "", [("table", TABLE)])])


def test_files_of_an_earlier_report_go_and_others_stay(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    old, mine = (tmp_path / "tables" / name for name in ("table-77-old.csv", "mine.csv"))
    old.write_bytes(b"")
    mine.write_bytes(b"")
    files.write_files(tmp_path, SECTIONS, [])
    found = sorted(path.name for path in (tmp_path / "tables").iterdir())
    assert found == ["mine.csv", "table-01-t.csv", "table-01-t.tex"]


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "tables").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="is a link"):
        files.write_files(tmp_path, SECTIONS, [])
    assert not list((tmp_path / "elsewhere").iterdir())


def test_real_peoples_images_are_on_the_page_alone(tmp_path: Path, undrawn: None) -> None:
    rng = np.random.default_rng(1)
    samples = {"island": rng.random((6, 12, 12), dtype=np.float32)}
    made = [
        make_folder(tmp_path / "c", seeds=1, rounds=1, samples=samples, draws=50),
        make_comparison(tmp_path / "g", seeds=2, rounds=12, use=False),
    ]
    for one in made:
        of_people(one)
        text = write_report(one, files=True).read_text()
        images = [
            (base64.b64decode(uri), alt)
            for uri, alt in re.findall(
                r'<img src="data:image/png;base64,([^"]+)"[^>]*alt="([^"]*)"', text
            )
        ]
        written = {path.read_bytes() for path in (one / "figures").glob("*.png")}
        real = {data for data, alt in images if "training" in alt.lower()}
        assert real and not real & written
        assert {data for data, alt in images if data not in real} <= written


def test_pictures_of_a_generator_that_copies_are_on_the_page_alone(
    tmp_path: Path, undrawn: None
) -> None:
    def names(out: Path) -> set[str]:
        text = write_report(out, files=True).read_text()
        written = {
            base64.b64encode(path.read_bytes()).decode() for path in out.glob("figures/*.png")
        }
        found = re.findall(r'<img src="data:image/png;base64,([^"]+)"[^>]*alt="([^"]*)"', text)
        return {alt for data, alt in found if data not in written}

    options = {"seeds": 2, "rounds": 12, "use": False}
    assert not names(make_comparison(tmp_path / "clean", **options))
    local = make_comparison(tmp_path / "local", flagged=(("local", 0, "island"),), **options)
    (alt,) = names(local)
    assert "Local" in alt or "island" in alt
    flagged = (("federated", 1, "north"),)
    federated = names(make_comparison(tmp_path / "federated", flagged=flagged, **options))
    assert any("after round" in one for one in federated)
    assert any("none chosen" in one for one in federated)  # on the first page
    assert not any("entralized" in one or "ocal" in one for one in federated)
    run = make_run(tmp_path / "17")
    assert not names(run)
    summary = json.loads((run / "summary.json").read_text())
    summary["sites"]["north"]["generation"]["copies_flagged"] = 1.0
    (run / "summary.json").write_text(json.dumps(summary))
    assert names(run)
    assert not list((run / "figures").glob("*pictures*.png"))


def test_so_many_of_a_hundred_is_said_of_balanced_accuracy_alone(tmp_path: Path) -> None:
    out = make_folder(tmp_path / "b", seeds=1, rounds=1, draws=50)
    summary = json.loads((out / "summary.json").read_text())
    for model in summary["scores"]["all"].values():
        model["balanced_accuracy"]["mean"] = None
    (out / "summary.json").write_text(json.dumps(summary))
    text = Page(write_report(out).read_text()).text
    first = text[text.index("In short") : text.index("Results at every site")]
    assert "AUROC" in first and "of 100" not in first.lower()


def test_the_first_page_tells_the_main_number_with_its_interval(folder: Path, page: Page) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    one = summary["scores"]["all"]["federated/fedavg"]["balanced_accuracy"]
    mean, low, high = (f"{one[key]:.2f}" for key in ("mean", "low", "high"))
    first = page.text[page.text.index("In short") : page.text.index("Results at every site")]
    assert f"balanced accuracy {mean} (95 % interval {low} to {high})" in first
    assert f"classifies about {round(100 * one['mean'])} correctly" in first
    assert "on 272 scans; tested on 72 others" in first
    assert "no medical device" in first and "simulated" in first


def test_the_first_page_of_generators_tells_distance_and_copies(tmp_path: Path) -> None:
    options = {"seeds": 2, "rounds": 12, "use": False}
    clean = make_comparison(tmp_path / "a", **options)
    text = Page(write_report(clean).read_text()).text
    found = json.loads((clean / "summary.json").read_text())["scores"]["all"]["federated/fedavg"]
    assert f"Fréchet distance {found['frechet_distance']['mean']:.1f} (95 % interval" in text
    assert "None was flagged as copying" in text
    copying = make_comparison(tmp_path / "b", flagged=(("local", 0, "island"),), **options)
    assert "A generator was flagged as copying" in Page(write_report(copying).read_text()).text
    run = Page(write_report(make_run(tmp_path / "17")).read_text()).text
    assert "One run has no interval." in run


def test_a_row_of_each_class_is_cut_out_of_a_grid() -> None:
    classes, sites, side = ("a", "b"), ("north", "south", "west"), 32
    values = np.linspace(-1, 1, 6)
    rows = [np.full((10, 1, side, side), value, np.float32) for value in values]
    names = [f"{one} {site}" for one in classes for site in sites]
    picture = grid(rows, names=names, captions=["9 mm"] * 10)
    cut = np.asarray(Rows(side, classes, sites, "south").of(picture).convert("L"))
    assert cut.shape[0] == picture.height - 4 * 100
    middle = cut.shape[1] - 60
    seen = [int(cut[cut.shape[0] - 150 + 100 * k, middle]) for k in range(2)]
    assert seen == [round((values[k] + 1) * 127.5) for k in (1, 4)]
    other = grid(rows[:2])
    assert Rows(side, classes, sites, "south").of(other) is other


def test_a_picture_in_a_file_is_that_of_the_page(tmp_path: Path, undrawn: None) -> None:
    out = make_comparison(tmp_path / "g", seeds=2, rounds=12, use=False)
    text = write_report(out, files=True).read_text()
    for path in (out / "figures").glob("*-pictures-*.png"):
        assert base64.b64encode(path.read_bytes()).decode() in text
        Image.open(io.BytesIO(path.read_bytes())).load()
