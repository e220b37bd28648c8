"""Who is in the images: people, classes, sex and age of each site's splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from simulations.report.blocks import Section
from simulations.report.tables import Cell, Head, Table, grouped
from simulations.report.words import Nouns, is_number, mapping, sentence, whole

SPLITS = {"train": "Training", "val": "Validation", "test": "Test"}
SEX, AGE = "sex", "age"


def section(
    people: Mapping[str, Any],
    counts: Mapping[str, Mapping[str, Any]],
    nouns: Nouns,
    *,
    first: bool = False,
) -> Iterator[Section]:
    """Yield the section of a run or a comparison in which anything is known of the people.

    Parameters
    ----------
    people : mapping
        Site to split to what :func:`simulations.people.people_of` says.
    counts : mapping
        What else is known of each site: ``min_participants``.
    nouns : Nouns
    first : bool
        Whether they are those of the first repetition of several.
    """
    if table := people_table(people, counts, nouns, first=first):
        heading = "Who was trained and tested on"
        yield Section("people", "People", heading, [("table", table)])


def people_table(
    people: Mapping[str, Any],
    counts: Mapping[str, Mapping[str, Any]],
    nouns: Nouns,
    *,
    first: bool = False,
) -> Table | None:
    """Return a table of each site's splits; None where nothing is known."""
    known = {
        site: {split: mapping(mapping(found).get(split)) for split in SPLITS}
        for site, found in people.items()
        if mapping(found)
    }
    every = [split for found in known.values() for split in found.values()]
    if not every:
        return None
    named = any("people" in one for one in every)
    several = not named or any(one.get("people") != one.get("images") for one in every)
    sexes = [] if nouns.label == SEX else _kinds(every, SEX)
    classes, aged = _kinds(every, "classes"), any(one.get(AGE) for one in every)
    groups = {}
    for site, found in known.items():
        least = mapping(counts.get(site)).get("min_participants", 1)
        groups[site] = [
            [
                Cell(name, kind="", scope="row"),
                *([_count(found[split], "people", least)] * named),
                *([_count(found[split], "images", least)] * several),
                *(_count(mapping(found[split].get(SEX)), one, least) for one in sexes),
                *([_age(found[split])] * aged),
                *(_count(mapping(found[split].get("classes")), one, least) for one in classes),
            ]
            for split, name in SPLITS.items()
        ]
    heads = [Head("Site", n=False), Head("Split", n=False)]
    heads += [Head("People")] * named + [Head(sentence(nouns.images))] * several
    heads += [Head(sentence(one)) for one in sexes] + [Head("Age, years")] * aged
    heads += [Head(one) for one in classes]
    of = f"Columns of {nouns.label}: {nouns.images}. " if several else ""
    years = "Age: mean (SD). " if aged else ""
    caption = f"{of}{years}As the sites' tables list them, before any {nouns.image} was opened."
    caption += " Of the first repetition." if first else ""
    title = f"People and {nouns.images} of each split"
    return Table(title, caption, heads, grouped(groups))


def _kinds(every: list[Mapping[str, Any]], key: str) -> list[str]:
    """Name the classes or sexes of which any split has somebody, or may have."""
    found = dict.fromkeys(name for one in every for name in mapping(one.get(key)))
    return [one for one in found if any(mapping(split.get(key)).get(one) != 0 for split in every)]


def _count(found: Mapping[str, Any], key: str, least: object) -> Cell:
    if key not in found:
        return Cell("–")
    value = found[key]
    return Cell(whole(value) if is_number(value) else f"< {whole(least)}")


def _age(found: Mapping[str, Any]) -> Cell:
    age = mapping(found.get(AGE))
    if not is_number(age.get("mean")):
        return Cell("–")
    spread = f" ({age['sd']:.0f})" if is_number(age.get("sd")) else ""
    lacking = ""
    people, known = found.get("people"), age.get("people")
    if is_number(people) and is_number(known) and known < people:
        lacking = f"known of {whole(known)}"
    return Cell(f"{age['mean']:.0f}{spread}", lacking)
