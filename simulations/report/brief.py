"""The first page: what was trained, what it is good for, what not, with a picture, for clinicians.

Of models it tells the one that the comparison is about: the federated one of the reference strategy
where there is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from common.metrics_log import WHOLE
from simulations.measures import DISTANCES, measure
from simulations.report import pictures, words
from simulations.report.blocks import Block, Section
from simulations.report.classification_blocks import sample_strip
from simulations.report.generation_blocks import copying_models
from simulations.report.pictures import Picture, Trained
from simulations.report.tables import told
from simulations.report.words import MOST_NAMES, Nouns, is_number, mapping, plural, whole

if TYPE_CHECKING:
    from simulations.report.content import Content
    from simulations.report.run_content import RunContent

MOST_SITES = 3  # with a strip of their own
SAMPLES = 3


def of_comparison(content: Content) -> Section:
    """Return the first page of a comparison."""
    nouns, generation = content.nouns, content.task == "generation"
    facts = [
        ("What was trained", _of_repetitions(content, generation)),
        ("What it is good for", _good(content, generation)),
        ("What it is not for", not_for(nouns, content.phantoms, generation)),
    ]
    shown = _generated(content) if generation else _strips(content)
    whose = words.whose(content.phantoms, nouns) if content.samples else ""
    return _section(facts, shown, whose, "brief" if generation else "scans")


def of_run(content: RunContent) -> Section:
    """Return the first page of one run of a generator."""
    nouns, found = content.nouns, mapping(content.summary.get("generation"))
    name = next((m for m in DISTANCES if is_number(found.get(m))), "")
    good = "It has not been tested yet."
    if name:
        good = (
            f"The {measure(name).words} of its {nouns.made}s to real test {nouns.made}s is "
            f"{told(name, found[name])}; 0 is a perfect likeness. One run has no interval."
        )
    facts = [
        ("What was trained", trained(nouns, content.counts, True, None, one=True)),
        ("What it is good for", good),
        ("What it is not for", not_for(nouns, content.phantoms, True)),
    ]
    model = content.model
    private = bool(content.copied)
    shown = _grid(model, f"Generated {nouns.made}s", private=private) if model.grids else []
    return _section(facts, shown, "")


def _section(
    facts: list[tuple[str, str]], shown: Iterable[Picture], whose: str, kind: str = "brief"
) -> Section:
    blocks: list[Block] = [("columns", [("", facts)])]
    if found := list(shown):
        title = " and ".join(dict.fromkeys(one["kind"] for one in found)).capitalize()
        about = {"title": title, "caption": whose, "pictures": found, "kind": kind}
        blocks.insert(0, ("pictures", about))
    return Section("brief", "In short", "", blocks)


def trained(
    nouns: Nouns,
    counts: Mapping[str, Mapping[str, Any]],
    generation: bool,
    people: int | None,
    *,
    one: bool = False,
) -> str:
    """Say what was trained, one network or more, where, on how many images of how many people."""
    who, s = ("A network that", "s") if one else ("Networks that", "")
    if generation:
        what = f"{who} make{s} {nouns.made}s ({'a generator' if one else 'generators'})"
    else:
        does = "classifies" if one else "classify"
        what = f"{who} {does} {nouns.label}{_few(nouns.classes)} from {nouns.images}"
    train, test = (
        sum(n[key] for n in counts.values() if is_number(n.get(key)))
        for key in ("n_train", "n_test")
    )
    of = f" of {words.people(people)}" if people else ""
    if not train + test:  # secure sums hide the numbers of each site
        return f"{what}, at {plural(len(counts), 'site')}{_few(tuple(counts))}."
    return (
        f"{what}, at {plural(len(counts), 'site')}{_few(tuple(counts))}, on {whole(train)} "
        f"{nouns.images}; tested on {whole(test)} others{of}."
    )


def _of_repetitions(content: Content, generation: bool) -> str:
    text = trained(content.nouns, content.counts, generation, _people(content))
    if content.new_cohorts and content.repetitions > 1:
        text += f" Repeated {content.repetitions} times, each time with other people."
    return text


def _few(names: tuple[str, ...]) -> str:
    return f" ({', '.join(names)})" if 0 < len(names) <= MOST_NAMES else ""


def _people(content: Content) -> int | None:
    people = [mapping(n).get("persons") for n in mapping(content.summary.get("counts")).values()]
    return sum(people) if people and all(map(is_number, people)) else None


def _good(content: Content, generation: bool) -> str:
    model, name, found = _main(content)
    if not found:
        return "No model ended well, so nothing is known."
    nouns, look = content.nouns, content.all_looks[model].name
    interval = "no interval"
    if is_number(found.get("low")) and is_number(found.get("high")):
        ends = " to ".join(told(name, found[end]) for end in ("low", "high"))
        interval = f"{content.level} interval {ends}"
    number = f"{told(name, found['mean'])} ({interval})"
    if not generation:
        chance = content.blocks.chance(name)
        text = f"{look}: {measure(name).words} {number}, mean of the sites; guessing gives "
        text += f"{chance:.2f}."
        if name == "balanced_accuracy":  # of no other measure it follows
            right = round(100 * found["mean"])
            text += f" Of 100 {nouns.images} in which all classes are equally frequent, it "
            text += f"classifies about {right} correctly."
        return text
    copies = "A generator was flagged as copying training images: see above."
    if not content.summary.get("copies"):
        copies = f"None was flagged as copying training {nouns.images}."
    if not any("copies_flagged" in m for at in content.scores.values() for m in at.values()):
        copies = "Nobody has tested for copies."
    return (
        f"{look}: {measure(name).words} {number} to real test {nouns.made}s, over all sites; 0 is "
        f"a perfect likeness. {copies}"
    )


def _main(content: Content) -> tuple[str, str, Mapping[str, Any]]:
    """Return the model that the page is about, its leading measure and that of all sites."""
    here = content.scores.get(WHOLE, {})
    reference = f"federated/{content.summary.get('reference_strategy')}"
    for model in dict.fromkeys([reference, *content.all_looks]):
        for name in content.summary["leading"]:
            found = mapping(mapping(here.get(model)).get(name))
            if model in content.all_looks and is_number(found.get("mean")):
                return model, name, found
    return "", "", {}


def not_for(nouns: Nouns, phantoms: bool, generation: bool) -> str:
    """Say what no model here is for."""
    lines = ["For research only: no medical device, and no basis for a decision about a patient."]
    if phantoms:
        lines.append(f"The {nouns.images} are simulated: of patients, nothing is known from them.")
    else:
        lines.append("Nothing is known of other hospitals, devices or patients.")
    if generation:
        lines.append(
            f"Generated {nouns.made}s show no patient: never keep or pass them on unmarked."
        )
    return " ".join(lines)


def _strips(content: Content) -> Iterable[Picture]:
    """Some training images of the first sites."""
    kind = f"training {content.nouns.images}"
    for site, stack in list(content.samples.items())[:MOST_SITES]:
        if len(stack):
            yield {**sample_strip(content, site, SAMPLES), "kind": kind}


def _generated(content: Content) -> Iterable[Picture]:
    """Real training images beside generated ones, one row for each class."""
    made = content.nouns.made
    classes = content.nouns.classes
    full = {s: stack for s, stack in content.samples.items() if len(stack)}
    site = max(full, key=lambda s: content.counts.get(s, {}).get("n_train") or 0, default="")
    rows = None
    if site:
        if real := pictures.real_images({site: full[site]}, content.config):
            alt = f"Real training {made}s of {site}, a row for each class"
            about = {"name": f"Real {made}s", "note": site, "alt": alt}
            yield {**about, "kind": f"real {made}s", "private": not content.phantoms, **real}
        sites = tuple(content.counts)
        rows = pictures.Rows(full[site].shape[1], classes, sites, site)
    model, *_ = _main(content)
    private = model in copying_models(content.summary)
    key = tuple(content.described.get(model, {}).get(k) for k in ("arm", "strategy", "trained_on"))
    for one in content.models:
        if one.grids and (one.arm, one.strategy, one.trained_on) == key:
            yield from _grid(one, f"Generated {made}s", rows, private=private)
            return


def _grid(
    model: Trained, name: str, rows: pictures.Rows | None = None, *, private: bool
) -> list[Picture]:
    grid = pictures.embedded(model.grids[model.shown_round], model.root, rows)
    note = f"round {model.shown_round}"
    about = {"name": name, "note": note, "alt": f"{name}, none chosen", "private": private}
    return [{**about, "kind": name.lower(), **grid}]
