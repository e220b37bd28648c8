"""What the report of a comparison says, of whatever task and study, all from its files.

Headline, figures, tables, budgets, provenance and limits are the same for every task; a task adds
its own blocks (:class:`Blocks`). Words follow from what was run: one repetition is called one, an
interval is named with what it was taken over, and phantoms are called phantoms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd

from common.metrics_log import WHOLE
from simulations.contrasts import QUESTIONS, at_home, is_home
from simulations.measures import MEMBERSHIP, measure
from simulations.report import (
    budget,
    charts,
    figures,
    people,
    privacy_blocks,
    provenance,
    tables,
    tiles,
    words,
)
from simulations.report.blocks import Block, Section, figure_blocks, numbered
from simulations.report.looks import Series, in_order, look_of, series_of
from simulations.report.pictures import Trained
from simulations.report.words import is_number, listed, mapping, place, plural, sentence
from simulations.summary import summarize


class Blocks(Protocol):
    """What a task adds to the report of a comparison."""

    title: str  # of the comparison
    leads: str  # heading of the results
    footer: str
    curves: Mapping[str, float]  # measures over the rounds, with their chance level
    selection: str  # by what a round is chosen
    shown: Sequence[str]  # measures of tables

    def chance(self, name: str) -> float:
        """Return what guessing gives; NaN where nothing does."""

    def judged(self) -> str:
        """Say how models were tested."""

    def notices(self) -> list[str]:
        """Return lines that stand before everything else."""

    def before_curves(self) -> Iterator[Section]:
        """Yield sections that follow the results."""

    def after_curves(self) -> Iterator[Section]:
        """Yield sections that follow the learning curves."""

    def limits(self) -> Iterator[str]:
        """Say what the numbers do not show."""


class Content:
    """Everything that the page shows; :meth:`parts` gives the template's variables.

    Parameters
    ----------
    results : DataFrame
        Rows of ``results.csv``.
    summary, manifest : mapping
        As in the folder; may lack anything. What the summary lacks is computed from the results.
    samples : mapping of str to (K, S, S) or (K, S, S, 3) floats
        Site to some of its training images; may be empty.
    models : sequence of Trained
        What every training left; may be empty.
    use : DataFrame or None
        Rows of ``use.csv``.
    blocks : callable
        Given this object, what the task adds.
    """

    def __init__(
        self,
        results: pd.DataFrame,
        summary: Mapping[str, Any],
        manifest: Mapping[str, Any],
        samples: Mapping[str, np.ndarray],
        models: Sequence[Trained] = (),
        use: pd.DataFrame | None = None,
        *,
        blocks: Callable[[Content], Blocks],
    ) -> None:
        self.results, self.manifest, self.models, self.use = results, manifest, list(models), use
        self.config = mapping(manifest.get("config"))
        self.task = str(self.config.get("task", "classification"))
        self.nouns = words.nouns(self.config)
        used = mapping(summary.get("images"))  # of what the manifest found listed
        listed = mapping(manifest.get("sites"))
        self.counts = {site: mapping(used.get(site)) or mapping(n) for site, n in listed.items()}
        self.poor = str(manifest.get("poor_site") or summary.get("poor_site") or "")
        self.scarce = self.poor if words.data_poor(self.poor, self.counts) else ""
        self.summary = self._completed(summary)
        self.scores = {
            where: {m: mapping(found) for m, found in mapping(models).items()}
            for where, models in mapping(self.summary["scores"]).items()
        }
        self.differences = mapping(self.summary["differences"])
        found = {*self.scores, *results["tested_on"]} - {"", WHOLE, *self.counts}
        self.sites = [*self.counts, *sorted(found)]
        poor = [site for site in self.sites if site == self.scarce]
        self.places = [WHOLE, *poor, *(site for site in self.sites if site not in poor)]
        described = {k: mapping(v) for k, v in mapping(self.summary["models"]).items()}
        self.described = {k: described[k] for k in in_order(described)}
        self._looks = {name: look_of(model) for name, model in self.described.items()}
        self.samples = {s: np.asarray(samples[s]) for s in self.sites if s in samples}
        self.phantoms = self.config.get("data.cohort-dir") == ""
        self.new_cohorts = bool(self.summary.get("new_cohorts"))
        self.repetitions = len(set(results.loc[results["status"] == "done", "seed"].dropna()))
        self.times = words.repetitions(results)
        self.means = f"means over {self.times}" if self.repetitions > 1 else "one repetition"
        self.level = words.level(self.summary)
        self.intervals = words.intervals(self.summary, self.level)
        self.few = words.few(self.summary)
        self.small = words.intervals(self.summary, self.level, "small numbers")
        self.blocks = blocks(self)

    def _completed(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        needed = ("scores", "differences", "models", "leading", "headline")
        if all(summary.get(key) for key in needed):
            return dict(summary)
        plain = {(m.strategy, m.seed): m.summary.get("bytes_plain") for m in self.models}
        computed = summarize(
            self.results,
            new_cohorts=bool(self.manifest.get("new_cohorts")),
            task=self.task,
            poor_site=self.poor,
            sites=list(self.counts),
            reference_strategy=str(self.manifest.get("reference") or ""),
            contrasts=self.manifest.get("contrasts") or [],
            classes=self.nouns.classes,
            positive=self.nouns.positive or None,
            plain_bytes={key: float(n) for key, n in plain.items() if is_number(n)},
        )
        return computed | {key: value for key, value in summary.items() if value}

    def looks(self, where: str) -> dict[str, Series]:
        """Return the models of a place: a site's own model stands for all local ones, if any."""
        here = self.scores.get(where, {})
        own = {one for one in self._looks if is_home(one)}
        own &= {*here, *(at_home(m) for m, one in self.described.items()
                         if one.get("trained_on") == where != WHOLE)}  # fmt: skip
        return {
            name: look
            for name, look in self._looks.items()
            if (name in own or not is_home(name)) and at_home(name) not in own - {name}
        }

    @property
    def all_looks(self) -> dict[str, Series]:
        """Every model, a place's own included."""
        return self._looks

    def parts(self, first: Callable[[Content], Section]) -> dict[str, Any]:
        """Return the template's variables, figures and tables numbered in reading order.

        ``first`` makes the first section, which is a page of its own.
        """
        started = words.day(self.manifest.get("started"))
        shown = series_of(self.results)
        return {
            "title": f"{self._title()} at {plural(len(self.sites), 'site')}",
            "eyebrow": " · ".join(filter(None, ("fedscan benchmark", started, self.times))),
            "headline": self._headline(),
            "tiles": list(tiles.of_comparison(self)),
            "notices": [*self.blocks.notices(), *tables.failed(self.results, self.summary)],
            "series": [
                {"name": one.name, "key": charts.legend_key(one), "look": one} for one in shown
            ],
            "sections": numbered([first(self), *self._sections()]),
            "footer": self.blocks.footer,
        }

    def _title(self) -> str:
        """Name what is compared."""
        arms = {*self.results["arm"]}
        if arms >= {"federated", "local", "centralized"}:
            return self.blocks.title
        if arms == {"federated"}:
            return "Strategies of federated training"
        return f"{sentence(' and '.join(sorted(arms)))} training"

    def _headline(self) -> list[str]:
        told, arms = mapping(self.summary.get("headline")), set(self.results["arm"])
        sentences = [
            words.true_minus(found)
            for key, needed in QUESTIONS.items()
            if (found := mapping(told.get(key)).get("sentence")) and needed <= arms
        ]
        alone = f"This folder holds no comparison of the arms: it is of {listed(sorted(arms))}."
        subject = words.subject(self.nouns, generation=self.task == "generation")
        return [subject, *(sentences or [alone])]

    def share(self) -> float | None:
        """Of the plain messages' bytes, what the reference strategy has sent."""
        name = f"federated/{self.summary.get('reference_strategy')}"
        share = mapping(mapping(self.summary.get("costs")).get(name)).get("share_of_plain_bytes")
        return share if is_number(share) else None

    def _sections(self) -> Iterator[Section]:
        yield Section(
            *("results", "Results", self.blocks.leads),
            [
                ("text", " ".join([self.blocks.judged(), words.repeated(self.manifest)]).strip()),
                *figure_blocks(self._comparisons(), words.NO_TESTS, legend=False),
                *figure_blocks(self._differences(), legend=False),
                *self._result_tables(),
            ],
        )
        yield from privacy_blocks.of_comparison(self)
        yield from self.blocks.before_curves()
        band = "; bands: their range" if self.repetitions > 1 else ""
        curves = figures.curve_figures(
            *(self.results, self.looks, self.described, self.places, self.blocks.curves),
            f"Lines: {self.means}{band}. {self.blocks.selection}",
            self.nouns.image,
        )
        shown = figure_blocks(curves, words.NO_CURVES)
        yield Section("curves", "Learning curves", "", shown)
        yield from self.blocks.after_curves()
        yield Section("costs", "Bytes and time", "", list(self._costs()))
        spent = tables.budget_table(
            self.results,
            "Optimizer steps and training images",
            "As counted in the results. Steps are those of one participant; images of a model are "
            "summed over the sites that train it, a repetition's over its models.",
        )
        told = budget.in_words(self.manifest, len(self.sites))
        yield Section("budget", "Budgets", "", [("text", told), ("table", spent)])
        which = ", first repetition" if self.new_cohorts else ""
        title = f"{sentence(self.nouns.images)} at every site{which}"
        known = mapping(self.summary.get("people"))
        several = self.new_cohorts and self.repetitions > 1
        yield from people.section(known, self.counts, self.nouns, first=several)
        yield provenance.section(self.manifest, self.counts, self.scarce, title)
        yield Section("limits", "Limits", "", [("list", list(self.blocks.limits()))])

    def _comparisons(self) -> Iterator[dict[str, Any]]:
        for name in self.summary["leading"]:
            known = {where: here for where in self.places if (here := self._drawn(where, name))}
            if not known:
                continue
            axis = figures.estimate_axis(known.values(), name, self.blocks.chance(name))
            panels = []
            for where, here in known.items():
                note = words.site(
                    self.counts.get(where, {}), self.nouns.images, poor=where == self.scarce
                )
                note = note or _without(name, here.values())
                drawn = figures.comparison(here, self.looks(where), where, name, axis)
                panels.append(figures.panel(place(where), note, drawn))
            dots = " Small dots: single repetitions." if self.repetitions > 1 else ""
            chance = " Dotted line: guessing." if np.isfinite(axis.chance) else ""
            less = " Less is better." if measure(name).less_is_better else ""
            hollow = _hollow(mapping(one.get(name)) for h in known.values() for one in h.values())
            yield {
                "title": f"Test {measure(name).words} of every model",
                "caption": f"{sentence(self.means)}; {self.intervals}.{dots}{chance}{hollow}"
                f"{less} At a site, the local model is the site's own, if it has one. Bars may end "
                "at the figure's edge; the numbers do not.",
                "panels": panels,
            }

    def _drawn(self, where: str, name: str) -> dict[str, Mapping[str, Any]]:
        here = self.scores.get(where, {})
        return {
            model: here[model]
            for model in self.looks(where)
            if is_number(mapping(mapping(here.get(model)).get(name)).get("mean"))
        }

    def _differences(self) -> Iterator[dict[str, Any]]:
        for name in self.summary["leading"]:
            limits = figures.difference_limits(self.differences, name)
            contrasts = {  # not every one is told over all sites
                contrast: None
                for where in [*self.places[1:], WHOLE]
                for contrast, found in mapping(self.differences.get(where)).items()
                if is_number(mapping(mapping(found).get(name)).get("mean"))
            }
            if not contrasts:
                continue
            by_place = {where: mapping(self.differences.get(where)) for where in self.places}
            better = {"less": "Left", "more": "Right"}.get(measure(name).better)
            side = f"{better} of zero: the arm named first is better. " if better else ""
            hollow = _hollow(
                mapping(mapping(by_place[where].get(c)).get(name))
                for where in self.places
                for c in contrasts
            )
            hollow = f"{hollow.strip()} " if hollow else ""
            yield {
                "title": f"Paired differences in {measure(name).words}",
                "caption": f"{side}{hollow}Both arms of a pair are measured in the same "
                "repetitions and on the same images, so these intervals, not the overlap of those "
                "above, say whether the arms differ.",
                "panels": [
                    figures.panel(
                        tables.contrast_name(contrast),
                        _without(name, [mapping(by_place[WHOLE]).get(contrast)], "All sites "),
                        figures.differences(by_place, contrast, name, limits),
                    )
                    for contrast in contrasts
                ],
            }
            return

    def _result_tables(self) -> Iterator[Block]:
        pooled = " Of all sites: what was measured over all of them together, else their mean."
        if MEMBERSHIP in self.blocks.shown:
            pooled += (
                f" {sentence(measure(MEMBERSHIP).words)}: people in training against test people."
            )
        shown = tables.scores_table(
            {
                w: {m: here[m] for m in self.looks(w) if m in here}
                for w, here in self.scores.items()
            },
            *(self._looks, self.places, self.blocks.shown),
            f"Every measure on the test {self.nouns.images}",
            f"{sentence(self.means)}; {self.small}.{self.few}{pooled}",
        )
        if shown:
            yield "table", tables.explained(shown)
        names = self.summary["leading"] if self.task == "classification" else self.blocks.shown
        has_p, notes = self.has_p, tables.notes(self.differences, names)
        p = "p: Wilcoxon's signed-rank test over repetitions, not corrected for the number of "
        p = f"{p}measures and sites. " if has_p else ""
        differences = tables.differences_table(
            *(self.differences, self.places, names),
            "Paired differences",
            f"Within a repetition, then averaged, with {self.level} intervals.{self.few} {p}"
            + (f"Note: {'; '.join(notes[:4])}." if notes else ""),
        )
        if differences:
            yield "table", tables.explained(differences)

    @property
    def has_p(self) -> bool:
        """Whether any difference has a p-value."""
        return any(
            is_number(mapping(one).get("p"))
            for contrasts in self.differences.values()
            for found in mapping(contrasts).values()
            for one in mapping(found).values()
        )

    def _costs(self) -> Iterator[Block]:
        found = tables.costs_table(
            self.results,
            len(self.sites),
            "Bytes and time of a repetition",
            "Means over the repetitions that ended well. Bytes are those of all messages of all "
            "sites together. Times are of this machine; a local repetition trains its models one "
            "after another.",
        )
        yield "table", found
        if (share := self.share()) is not None:
            yield (
                "text",
                f"The federation sent {100 * share:.1f} % of the bytes that exchanging G, D and "
                "G's average as float32 numbers, both ways in every round, would have taken.",
            )


def _hollow(records: Iterable[Mapping[str, Any]]) -> str:
    """Say what hollow marks of a figure mean, if it has any."""
    why = [word for word in dict.fromkeys(map(words.unsure, records)) if word]
    return f" Hollow: {' or '.join(why)}." if why else ""


def _without(name: str, models: Iterable[object], where: str = "") -> str:
    """Say which sites are not in models' mean over sites, as a panel's note."""
    found = tables.without(mapping(mapping(one).get(name)) for one in models)
    return where + ", ".join(found) if found else ""
