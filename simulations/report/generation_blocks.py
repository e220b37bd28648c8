"""What generators add to the report: pictures, copies of training images, use of synthetic ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from common.metrics_log import WHOLE
from simulations.measures import DISTANCES, measure
from simulations.report import generation_words as says
from simulations.report import pictures, words
from simulations.report.blocks import Block, Section
from simulations.report.budget import pools
from simulations.report.generation_tables import classes_table, speed_table
from simulations.report.looks import Series
from simulations.report.pictures import Trained
from simulations.report.tables import Cell, Head, Table, estimate, grouped, key_of
from simulations.report.words import is_number, mapping, place, plural, sentence
from simulations.results import CHOSEN
from simulations.tested import LOCAL, summarize_use

if TYPE_CHECKING:
    from simulations.report.content import Content

MEASURES = (
    *("frechet_distance", "kernel_distance", "precision", "recall", "coverage"),
    *("density", "ms_ssim", "ms_ssim_real"),
)
OF_USE = ("balanced_accuracy", "auroc", CHOSEN)


class GenerationBlocks:
    """See :class:`simulations.report.content.Blocks`."""

    footer = says.COMPARISON_FOOTER
    curves = dict.fromkeys(DISTANCES, math.nan)
    selection = (
        "The released generator is the one of the round with the lowest Fréchet distance to "
        "validation images, or kernel distance where they are too few for that; one that a site "
        "trained alone is validated by its own."
    )
    shown = MEASURES

    def __init__(self, content: Content) -> None:
        self.content = content
        nouns = content.nouns
        self.title = f"Federated generation of {nouns.images} against pooled and local training"
        self.leads = f"Distances to real test {nouns.made}s"
        self.extractors = pictures.extractors(content.models)

    def chance(self, name: str) -> float:
        """Return NaN: nobody guesses a picture."""
        return math.nan

    def judged(self) -> str:
        """Say how generators were tested."""
        return says.judged(self.extractors, self.content.means, self.content.nouns)

    def notices(self) -> list[str]:
        """Name generators that copy."""
        copies = [mapping(one) for one in self.content.summary.get("copies") or []]
        flagged = flagged_lines(copies, self.content.all_looks)
        return [says.FLAGGED, *flagged] if flagged else []

    def before_curves(self) -> Iterator[Section]:
        """Yield the pictures."""
        yield Section("pictures", "Pictures", "", list(self._pictures()))

    def after_curves(self) -> Iterator[Section]:
        """Yield what the pictures are good for, and what they copy."""
        content, heading = self.content, "Use of synthetic images"
        nouns, costs = content.nouns, mapping(content.summary.get("costs"))
        if classes := classes_table(
            *(content.scores, content.all_looks, [WHOLE, *content.sites], nouns.classes),
            "Each class by itself",
            f"{sentence(content.means)}. Pictures that a generator was told to make of a class, "
            f"against the test {nouns.images} of that class.",
        ):
            yield Section("classes", "Classes", "Each class by itself", [("table", classes)])
        reach = content.summary.get("reach")
        if speed := speed_table(
            *(costs, content.all_looks, reach if is_number(reach) else 0.0),
            "Speed of training",
            "Means over repetitions, of whole trainings, validations and tests included; trainings "
            "ran side by side. Images are those that all sites showed the discriminator. Only "
            "generators that the same validation images judged can be compared by a distance.",
        ):
            yield Section("speed", "Speed", "Speed of training", [("table", speed)])
        if use := self._use():
            yield Section(
                "use", heading, "", [("text", says.use(nouns, content.poor)), ("table", use)]
            )
        elif mapping(content.manifest.get("plan")).get("use") and not content.summary.get(
            "unfinished"
        ):
            yield Section("use", heading, "", [("text", says.NO_USE)])
        found = copying_table(
            *(content.scores, content.all_looks, content.sites),
            "Copies of training images",
            f"{sentence(content.means)}; flagged: in how many repetitions. Every generator is "
            "tested against every site's images, also those it has not been trained on.",
        )
        blocks: list[Block] = [("text", says.copying(nouns)), ("table", found)]
        absent: list[Block] = [("text", says.no_copying(nouns))]
        yield Section("copying", "Copies of training images", "", blocks if found else absent)

    def limits(self) -> Iterator[str]:
        """Say what the numbers do not show."""
        content = self.content
        budget = mapping(content.manifest.get("budget"))
        return says.limits(
            content.nouns,
            phantoms=content.phantoms,
            extractors=self.extractors,
            counts=content.counts,
            repetitions=content.repetitions,
            new_cohorts=content.new_cohorts,
            budget=budget if pools(content.manifest) else None,
        )

    def _pictures(self) -> Iterator[Block]:
        content, nouns = self.content, self.content.nouns
        first: dict[tuple[str, str, str], Trained] = {}
        for model in content.models:
            if model.grids:
                first.setdefault((model.arm, model.strategy, model.trained_on), model)
        shown, copying = [], copying_models(content.summary)
        if real := pictures.real_images(content.samples, content.config):
            alt = f"Real training {nouns.made}s of {', '.join(content.samples)}"
            about = {"name": f"Real {nouns.made}s", "note": f"training {nouns.images}"}
            shown.append({**about, "alt": alt, "private": not content.phantoms, **real})
        for name, key in content.described.items():
            model = first.get((key.get("arm"), key.get("strategy"), key.get("trained_on")))
            if model is None:
                continue
            grid = pictures.embedded(model.grids[model.shown_round], model.root)
            look = content.all_looks[name].name
            alt = f"Pictures by the generator {look}, as it was tested"
            note = f"seed {model.seed}, round {model.shown_round}"
            about = {"name": look, "note": note, "alt": alt, "private": name in copying}
            shown.append({**about, **grid})
        if not shown:
            yield "text", says.NO_PICTURES
            return
        whose = words.whose(content.phantoms, nouns) if real else ""
        columns = (
            "heights in mm above the head's centre, of two people"
            if nouns.image == "scan"
            else "different images"
        )
        yield (
            "pictures",
            {
                "kind": "grids",
                "title": "Pictures of every generator",
                "caption": f"Rows: {nouns.label} and, where the generator knows it, site; columns: "
                f"{columns}. {whose} Pictures are made from fixed random numbers, none chosen.",
                "pictures": shown,
            },
        )
        reference = str(content.summary.get("reference_strategy"))
        federated = first.get(("federated", reference, WHOLE))
        private = f"federated/{reference}" in copying
        if federated and (
            staged := as_rounds_go_by(federated, "the federated generator", private=private)
        ):
            yield staged

    def _use(self) -> Table | None:
        use = self.content.use
        if use is None or use.empty:
            return None
        repeated = len(set(use["seed"]))
        new = self.content.new_cohorts
        intervals = says.intervals(self.content.level, repeated, new_cohorts=new)
        return use_table(
            summarize_use(use),
            "Classifiers with and without generated images",
            f"{plural(repeated, 'repetition')}, on real test images. "
            f"{intervals} Of amounts that validation images "
            "chose, each repetition's is told.",
        )


def copying_models(summary: Mapping[str, Any]) -> set[str]:
    """Name the models that a site has flagged as copying its training images.

    Their pictures may show patients: the page has them, files to be passed on do not.
    """
    found = set()
    for one in map(mapping, summary.get("copies") or []):
        model = str(one.get("model"))
        found.add(f"{LOCAL} at {one.get('site')}" if model == LOCAL else model)
    return found


def as_rounds_go_by(model: Trained, who: str, *, private: bool) -> Block | None:
    """Return the grids of some rounds, the first and the last among them."""
    shown = []
    for stage in pictures.stages(model):
        grid = pictures.embedded(model.grids[stage], model.root)
        seed = "" if model.seed is None else f"seed {model.seed}"
        released = "the released one" if stage == model.summary.get("best_round") else ""
        note = ", ".join(filter(None, (seed, released)))
        alt = f"Pictures by {who} after round {stage}"
        about = {"name": f"Round {stage}", "note": note, "alt": alt, "private": private}
        shown.append({**about, **grid})
    if not shown:
        return None
    about = {
        "kind": "grids",
        "title": f"Pictures of {who} as rounds go by",
        "caption": "The same random numbers in every round, so a place in the grid is the same "
        "imagined person.",
    }
    return "pictures", {**about, "pictures": shown}


def copying_table(
    scores: Mapping[str, Any],
    looks: Mapping[str, Series],
    sites: Iterable[str],
    title: str,
    caption: str,
) -> Table | None:
    """Whether a generator copies a site's training images; None where no site tested it."""
    groups: dict[str, list[list[Cell]]] = {}
    for site in sites:
        groups[site] = []
        for model, look in looks.items():
            found = mapping(mapping(scores.get(site)).get(model))
            if not {"authenticity", "copies_flagged"} & {
                m for m, one in found.items() if is_number(mapping(one).get("mean"))
            }:
                continue
            flags = list(mapping(mapping(found.get("copies_flagged")).get("values")).values())
            up = sum(1 for flag in flags if is_number(flag) and flag > 0)
            row = [key_of(look)]
            for name in ("authenticity", "authenticity_held_out"):
                row.append(estimate(name, found.get(name)))
            row.append(Cell(f"{up} of {len(flags)}" if flags else "not judged"))
            groups[site].append(row)
    names = ("Authenticity", "Of held-out images", "Flagged as copying")
    heads = [Head("Training images of", n=False), Head("Generator", n=False), *map(Head, names)]
    found = grouped(groups)
    return Table(title, caption, heads, found) if found else None


def use_table(rows: Sequence[Mapping[str, Any]], title: str, caption: str) -> Table | None:
    """Classifiers by what they were trained on; None where there is none."""
    metrics = [m for m in OF_USE if any(row["metric"] == m for row in rows)]
    metrics += sorted({row["metric"] for row in rows} - set(metrics))
    found = {(row["site"], row["row"], row["metric"]): row for row in rows}
    groups: dict[str, list[list[Cell]]] = {}
    for site, name in dict.fromkeys((row["site"], row["row"]) for row in rows):
        line = [Cell(sentence(name), kind="", scope="row")]
        line += [estimate(metric, found.get((site, name, metric))) for metric in metrics]
        groups.setdefault(place(site), []).append(line)
    heads = [Head("Tested at", n=False), Head("Trained on", n=False)]
    heads += [Head(sentence(measure(m).words)) for m in metrics]
    return Table(title, caption, heads, grouped(groups)) if groups else None


def flagged_lines(copies: Iterable[Mapping[str, Any]], looks: Mapping[str, Series]) -> list[str]:
    """Say which generators copy training images of which sites: names of both, nothing else."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for one in copies:
        seeds.setdefault((str(one.get("model")), str(one.get("site"))), []).append(one.get("seed"))
    return [
        f"{looks[model].name if model in looks else model}: flagged as copying training images of "
        f"{site} in {plural(len(which), 'repetition')} (seed{'s' * (len(which) > 1)} "
        f"{', '.join(map(str, which))})."
        for (model, site), which in seeds.items()
    ]
