"""What a classification adds to the report: classes one by one, decisions, curves, samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from common.evaluation.classification import OF_EACH_CLASS
from simulations.measures import ATTACKED, CLASSIFICATION, MEMBERSHIP
from simulations.report import decisions, figures, pictures, tables, words
from simulations.report.blocks import Section, figure_blocks
from simulations.report.budget import pools
from simulations.report.tables import Head, Table, estimate, grouped, key_of
from simulations.report.words import mapping, plural, sentence, whole

if TYPE_CHECKING:
    from simulations.report.content import Content

LEADING = "balanced_accuracy"


class ClassificationBlocks:
    """See :class:`simulations.report.content.Blocks`."""

    title = "Federated training against pooled and local training"
    leads = "Results at every site"
    footer = words.FOOTER
    selection = (
        "Every arm keeps the round of its lowest validation loss and is tested with that one."
    )

    def __init__(self, content: Content) -> None:
        self.content = content
        summary = content.summary
        self.classes = tuple(map(str, summary.get("classes") or content.nouns.classes))
        self.positive = str(summary.get("positive") or "")
        known = (*CLASSIFICATION, *ATTACKED)
        self.shown = [m for m in known if m in (summary.get("measures") or ())]
        k = len(self.classes) or 2
        self._chance = {LEADING: 1 / k, "auroc": 0.5, "loss": math.log(k)}
        self.curves = {name: self._chance[name] for name in ("loss", LEADING)}

    def chance(self, name: str) -> float:
        """Return what guessing gives, with even odds."""
        return self._chance.get(name, math.nan)

    def judged(self) -> str:
        """Say how models were tested."""
        content = self.content
        return words.results(content.means, content.intervals, content.nouns) + content.few

    def notices(self) -> list[str]:
        """Return nothing."""
        return []

    def before_curves(self) -> Iterator[Section]:
        """Yield classes, decisions and curves of every site."""
        content = self.content
        blocks = figure_blocks(self._decisions(), legend=False)
        blocks += figure_blocks(self._curves())
        blocks += [("table", one) for one in self._class_tables()]
        if blocks:
            yield Section("classes", "Classes", "Classes, decisions and probabilities", blocks)
        matrix = tables.matrix_table(
            *(content.scores, content.described, content.all_looks, LEADING, content.sites),
            "Test balanced accuracy of every model at every site",
            f"{sentence(content.means)}; shaded from lowest to highest. Framed: at home.",
        )
        crossed = [("text", words.MATRIX), ("table", matrix)]
        yield Section(
            *("matrix", "Every model at every site", ""),
            crossed if matrix else [("text", words.NO_MATRIX)],
        )

    def after_curves(self) -> Iterator[Section]:
        """Yield some training images of every site."""
        content = self.content
        strips = [
            sample_strip(content, site) for site, stack in content.samples.items() if len(stack)
        ]
        shown = {
            "title": f"Sample {content.nouns.images} of every site",
            "caption": words.samples(content.phantoms, content.nouns),
            "pictures": strips,
            "kind": "scans",
        }
        found = ("pictures", shown) if strips else ("text", words.NO_SAMPLES)
        heading = f"What the sites' {content.nouns.images} look like"
        yield Section("samples", sentence(content.nouns.images), heading, [found])

    def limits(self) -> Iterator[str]:
        """Say what the comparison does not show."""
        content = self.content
        budget = mapping(content.manifest.get("budget"))
        yield from words.limits(
            content.nouns,
            phantoms=content.phantoms,
            counts=content.counts,
            repetitions=content.repetitions,
            new_cohorts=content.new_cohorts,
            has_p=content.has_p,
            attacked=MEMBERSHIP in self.shown,
            budget=budget if pools(content.manifest) else None,
        )

    def _class_tables(self) -> Iterator[Table]:
        """A table a site: of every class its images, and recall, F1 and AUROC of every model."""
        content = self.content
        for site in content.sites:
            here, counts = content.scores.get(site, {}), content.summary.get("counts")
            counts = mapping(mapping(counts).get(site))
            looks = {m: look for m, look in content.looks(site).items() if m in here}
            names = [m for m in OF_EACH_CLASS if f"{m}.{(*self.classes, '')[0]}" in
                     (content.summary.get("measures") or ())]  # fmt: skip
            if not names or not looks:
                continue
            groups, absent = {}, []
            for one in self.classes:
                n = mapping(counts.get("images")).get(one)
                if n == 0:
                    absent.append(one)
                    continue
                groups[f"{one} (n = {whole(n)})"] = [
                    [key_of(look), *(estimate(f"{m}.{one}", here[model].get(f"{m}.{one}"))
                                     for m in names)]
                    for model, look in looks.items()
                ]  # fmt: skip
            people = counts.get("persons")
            of = f" of {words.people(people)}" if people else ""
            of += ", the fewest of any repetition" * content.new_cohorts
            lacks = f" No test {content.nouns.image} of {', '.join(absent)}." if absent else ""
            few = words.few({"counts": {site: counts}})
            heads = [Head("Class", n=False), Head("Model", n=False)]
            heads += [Head(sentence(CLASSIFICATION[m].words if m in CLASSIFICATION else m))
                      for m in names]  # fmt: skip
            table = Table(
                f"Classes at {site}",
                f"n: test {content.nouns.images}{of}.{lacks} {sentence(content.means)}; "
                f"{content.small}.{few} AUROC: the class against the rest.",
                heads,
                grouped(groups),
            )
            yield tables.explained(table)

    def _found(self, site: str) -> dict[str, Mapping[str, Any]]:
        """Curves of the models of a site, its own among them."""
        known = mapping(mapping(self.content.summary.get("curves")).get(site))
        return {m: mapping(known.get(m)) for m in self.content.looks(site) if known.get(m)}

    def _decisions(self) -> Iterator[dict[str, Any]]:
        """A figure a site, with the confusion matrix of every model."""
        for site in self.content.sites:
            panels = []
            for model, found in self._found(site).items():
                name = self.content.all_looks[model].name
                said = f"Confusion matrix of {name} at {figures.at(site)}"
                panels.append(decisions.confusion_panel(found, self.classes, name, said))
            if known := list(filter(None, panels)):
                yield {
                    "title": f"Confusion matrices at {site}",
                    "caption": decisions.confusion_caption(
                        self.content.nouns, self.content.repetitions
                    ),
                    "panels": known,
                }

    def _curves(self) -> Iterator[dict[str, Any]]:
        """Yield figures of curves at every site."""
        content = self.content

        def score(site: str, model: str, name: str) -> object:
            found = mapping(content.scores.get(site, {}).get(model)).get(name)
            return mapping(found).get("mean")

        by_site = {site: found for site in content.sites if (found := self._found(site))}
        target = decisions.target_of(self.classes, self.positive)
        yield from decisions.curve_figures(by_site, content.all_looks, target, content.nouns, score)


def sample_strip(content: Content, site: str, most: int | None = None) -> dict[str, Any]:
    """Return some training images of a site side by side; they are private, if of real people."""
    stack, image = content.samples[site][:most], content.nouns.image
    kind = "axial slice" if image == "scan" else "picture"
    where = " through the middle of training scans" if image == "scan" else ", for training,"
    alt = f"{plural(len(stack), kind)}{where} of site {site}"
    about = {"name": site, "note": "", "alt": alt, "private": not content.phantoms}
    return {**about, **pictures.strip(stack)}
