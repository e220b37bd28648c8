"""What a page is made of: sections of blocks, which the template knows by their kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

# "text": str; "list": of str; "table": tables.Table; "columns": pairs of heading and facts;
# "figure": title, caption, panels (site, note, svg: a charts.Chart), whether it needs a legend
# (keyed) and whether one stands above on the page;
# "pictures": title, caption, kind (its CSS class), pictures (name, note, uri, width, height, alt,
# and whether it is private: real people's).
Block = tuple[str, Any]


@dataclass(frozen=True)
class Section:
    """A part of the page with its anchor, its name in the contents and, where longer, a heading."""

    id: str
    name: str
    title: str
    blocks: Sequence[Block]

    @property
    def heading(self) -> str:
        """What stands above the section."""
        return self.title or self.name


def figure_blocks(
    found: Iterable[Mapping[str, Any]], absent: str = "", *, legend: bool = True
) -> list[Block]:
    """Return figures as blocks, a legend above the first, or a sentence where there is none."""
    blocks: list[Block] = [
        ("figure", {**one, "legend": legend and not index, "keyed": legend})
        for index, one in enumerate(found)
    ]
    return blocks or ([("text", absent)] if absent else [])


def numbered(sections: Iterable[Section]) -> list[Section]:
    """Number figures and tables in reading order, in front of their titles."""
    counts = {"Figure": 0, "Table": 0}
    found = []
    for section in sections:
        blocks: list[Block] = []
        for kind, value in section.blocks:
            what = {"figure": "Figure", "pictures": "Figure", "table": "Table"}.get(kind)
            if what:
                counts[what] += 1
                name = f"{what} {counts[what]}. "
                if what == "Table":
                    value = replace(value, title=name + value.title)
                else:
                    value = {**value, "title": name + value["title"]}
            blocks.append((kind, value))
        found.append(replace(section, blocks=blocks))
    return found
