"""A report's figures and tables as files, for papers: PNG, SVG and PDF, CSV and LaTeX.

They are those of the page, under its numbers. Pictures are the page's, but for real training images
of people and what a generator that was flagged as copying has made: those are on the page alone.
"""

from __future__ import annotations

import base64
import io
import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

from common.errors import ConfigError
from common.files import write_atomically
from simulations.report.blocks import Section
from simulations.report.charts import PAPER, SOFT, STYLE, WIDTH, Canvas, shortened
from simulations.report.looks import COLOURS, DASHES, Series
from simulations.report.tables import Cell, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES, TABLES = "figures", "tables"
OURS = re.compile(r"(figure|table)-\d{2,}[a-z0-9-]*\.(png|svg|pdf|csv|tex)")
NUMBERED = re.compile(r"(Figure|Table) (\d+)\. (.*)", re.S)
COLUMNS = 3  # of a sheet
GAP, TITLE, KEYS = 30, 38, 22  # points: between panels; above each; a line of the legend
KEY, LETTER = 72, 6.2  # points of a legend's key with its gaps, and of a letter beside it
BROAD = 40  # letters of a panel's title
LONGEST = 56  # letters of a panel's note
METADATA: Mapping[str, Mapping[str, Any]] = {  # by suffix: without what differs from day to day
    ".png": {"Software": None},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}
DPI, MOST_PIXELS = 200, 12_000  # of a side
LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", '"': r"\textquotedbl{}"},
    **{
        "−": "$-$",
        "×": r"$\times$",
        "±": r"$\pm$",
        "–": r"\textendash{}",
        "\u202f": r"\,",
        "\u00a0": "~",
    },
    **{"[": "{[}", "]": "{]}", "*": "{*}"},  # after a row's end they would be its options
}


def write_files(folder: Path, sections: Iterable[Section], series: Sequence[Series]) -> None:
    """Write ``figures/`` and ``tables/`` into a report's folder.

    Files of an earlier report are removed; others there stay.

    Parameters
    ----------
    folder : Path
    sections : iterable of Section
        Numbered.
    series : sequence of Series
        Of the legend.

    Raises
    ------
    ConfigError
        One of the two is a link.
    """
    for where in (FIGURES, TABLES):
        if (folder / where).is_symlink():
            raise ConfigError(f"{folder / where} is a link, which is not followed. Remove it")
    made: dict[Path, bytes] = {}
    for kind, value in chain.from_iterable(section.blocks for section in sections):
        if kind == "table":
            name = Path(TABLES, named(value.title))
            made[name.with_suffix(".csv")] = to_csv(value).encode()
            made[name.with_suffix(".tex")] = to_latex(value).encode()
        elif kind == "figure" and value["panels"]:
            name = Path(FIGURES, named(value["title"]))
            drawn = drawn_as(sheet(value["panels"], series if value.get("keyed") else ()))
            made |= {name.with_suffix(suffix): data for suffix, data in drawn.items()}
        elif kind == "pictures":
            shown = [one for one in value["pictures"] if not one.get("private")]
            for number, one in enumerate(shown, 1):
                name = f"{named(value['title'])}-{number:02d}.png"
                made[Path(FIGURES, name)] = base64.b64decode(one["uri"].partition(",")[2])
    for path in [*folder.glob(f"{FIGURES}/*"), *folder.glob(f"{TABLES}/*")]:
        if OURS.fullmatch(path.name) and path.relative_to(folder) not in made:
            path.unlink()
    for path, data in made.items():
        write_atomically(folder / path, data)


def named(title: str) -> str:
    """Return a file's name without ending: ``figure-03-test-auroc-of-every-model``."""
    kind, number, words = NUMBERED.fullmatch(title).groups()  # type: ignore[union-attr]
    plain = normalize("NFKD", words.lower()).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    return f"{kind.lower()}-{int(number):02d}-{slug[:60]}".rstrip("-")


def sheet(panels: Sequence[Mapping[str, Any]], series: Sequence[Series] = ()) -> Figure:
    """Draw a figure's panels side by side, with their titles and a legend of the series."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = min(COLUMNS, len(panels))
    rows = [panels[k : k + columns] for k in range(0, len(panels), columns)]
    heights = [TITLE + max(one["svg"].height for one in row) + GAP for row in rows]
    wide = columns * (WIDTH + GAP) + GAP
    names = [shortened(one.name, LONGEST) for one in series]
    beside = max(1, int((wide - GAP) // (KEY + LETTER * max(map(len, names), default=0))))
    keyed = KEYS * math.ceil(len(names) / beside)
    high = sum(heights) + GAP + keyed
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(wide / 72, high / 72), facecolor="white")
        if series:
            keys = [
                Line2D([], [], color=COLOURS[one.colour], marker=one.marker, markersize=7,
                       markeredgecolor=PAPER, linestyle=(0, DASHES[one.dash] or ()),
                       label=name) for one, name in zip(series, names, strict=True)
            ]  # fmt: skip
            figure.legend(
                handles=keys,
                loc="upper left",
                bbox_to_anchor=(GAP / wide, 1 - GAP / 3 / high),
                ncols=beside,
                handlelength=3,
                frameon=False,
                borderpad=0,
                borderaxespad=0,
            )
        top = float(GAP + keyed)
        for row, height in zip(rows, heights, strict=True):
            for column, one in enumerate(row):
                left = GAP + column * (WIDTH + GAP)
                at = {"x": left / wide, "va": "top", "ha": "left"}
                title, *rest = textwrap.wrap(str(one["site"]), BROAD) or [""]
                figure.text(y=1 - top / high, s=title, weight="bold", fontsize=14, **at)
                note = shortened(" ".join([*rest, str(one["note"])]), LONGEST)
                figure.text(y=1 - (top + 18) / high, s=note, color=SOFT, **at)
                one["svg"].draw(Canvas(figure, left, top + TITLE))
            top += height
    return figure


def drawn_as(figure: Figure) -> dict[str, bytes]:
    """Return a figure as PNG, SVG and PDF by suffix; the same figure gives the same bytes."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        found = {}
        for suffix, metadata in METADATA.items():
            stream = io.BytesIO()
            dpi = min(DPI, MOST_PIXELS / max(figure.get_size_inches()))
            figure.savefig(stream, format=suffix[1:], dpi=dpi, metadata=metadata)
            found[suffix] = stream.getvalue()
    return found


def texts(table: Table) -> tuple[list[str], list[list[list[Cell]]]]:
    """Return a table's headings and its groups of rows, all as long as the headings."""
    groups = []
    for group in table.groups:
        spanned = [cell for cell in group[0] if cell.span]
        groups.append([[*(spanned if k else ()), *row] for k, row in enumerate(group)])
    return [head.text for head in table.heads], groups


def to_csv(table: Table) -> str:
    """Return a table as CSV: numbers bare, what stands small beside them in a column of its own."""
    import pandas as pd

    heads, groups = texts(table)
    rows = [row for group in groups for row in group]
    columns: list[tuple[str, list[str]]] = []
    for k, head in enumerate(heads):
        columns.append((head, [bare(row[k].text) for row in rows]))
        if any(row[k].small for row in rows):
            columns.append((f"{head}: interval or note", [bare(row[k].small) for row in rows]))
    values = [list(row) for row in zip(*(column for _, column in columns), strict=True)]
    return pd.DataFrame(values, columns=[name for name, _ in columns]).to_csv(index=False)


def bare(text: str) -> str:
    """Return a cell's text for a machine: a number as Python reads it, nothing for a dash."""
    from common.files import as_text

    number = text.replace("−", "-").replace("\u202f", "").removeprefix("+")
    if re.fullmatch(r"-?\d+(\.\d+)?", number):
        return number
    return "" if text == "–" else as_text(_one_line(text))


def to_latex(table: Table) -> str:
    """Return a table for LaTeX with the package booktabs; names in it are escaped."""
    heads, groups = texts(table)
    kinds = "".join("r" if head.n else "l" for head in table.heads)
    title = NUMBERED.fullmatch(table.title)
    lines = [
        r"\begin{table}",
        rf"\caption{{{latex(title[3] if title else table.title)}.}}",
        rf"\begin{{tabular}}{{{kinds}}}",
        r"\toprule",
        " & ".join(map(latex, heads)) + r" \\",
        *chain.from_iterable((r"\midrule", *_latex_rows(group)) for group in groups),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_rows(group: Sequence[Sequence[Cell]]) -> Iterator[str]:
    for k, row in enumerate(group):
        cells = [
            ""
            if cell.span and k
            else latex(cell.text) + f" ({latex(cell.small)})" * bool(cell.small)
            for cell in row
        ]
        yield " & ".join(cells) + r" \\"


def latex(text: str) -> str:
    """Escape a text for LaTeX, in one line."""
    told = "".join(LATEX.get(char, char) for char in _one_line(text))
    return re.sub("-(?=-)", "-{}", told)  # two hyphens would be set as a dash


def _one_line(text: str) -> str:
    kept = "".join(c if c.isprintable() or c in "\u202f\u00a0" else " " for c in text)
    return re.sub("[ ]+", " ", kept).strip()
