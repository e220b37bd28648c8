"""What the report of a comparison of generators says, all of it from the files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from common.metrics_log import WHOLE
from simulations.generation_statistics import DISTANCES, summarize_generation, summarize_use
from simulations.report import charts, pictures, provenance, tables, words
from simulations.report import generation_figures as drawn
from simulations.report import generation_tables as told
from simulations.report import generation_words as says
from simulations.report.blocks import Block, Section, figure_blocks, numbered
from simulations.report.pictures import Trained
from simulations.report.progress import as_rounds_go_by, curve_figures
from simulations.report.words import is_number, mapping, plural, sentence, true_minus

TILES = {
    "gain_of_data_poor_site": "Federated − alone, at {poor}",
    "loss_against_pooling": "Federated − pooled, over all sites",
}


class GenerationContent:
    """Everything that the page shows; :meth:`parts` gives the template's variables.

    Parameters
    ----------
    results : DataFrame
        Rows of ``results.csv``.
    summary, manifest : mapping
        As in the folder; may lack anything. Scores that are missing are computed from the results.
    samples : mapping of str to (K, R, R) floats
        Site to slices of its training scans; may be empty.
    models : sequence of Trained
        What every training left; may be empty.
    use : DataFrame or None
        Rows of ``use.csv``.
    """

    def __init__(
        self,
        results: pd.DataFrame,
        summary: Mapping[str, Any],
        manifest: Mapping[str, Any],
        samples: Mapping[str, np.ndarray],
        models: Sequence[Trained] = (),
        use: pd.DataFrame | None = None,
    ) -> None:
        plain = {(m.strategy, m.seed): m.summary.get("bytes_plain") for m in models}
        known = {key: float(n) for key, n in plain.items() if is_number(n)}
        computed = summarize_generation(results, manifest, plain_bytes=known)
        kept = {key: value for key, value in summary.items() if value}
        self.summary = computed | {k: v for k, v in kept.items() if mapping(v) or k not in computed}
        self.results, self.manifest = results, manifest
        self.counts = {site: mapping(n) for site, n in mapping(manifest.get("sites")).items()}
        self.scores = {k: mapping(v) for k, v in mapping(self.summary["scores"]).items()}
        found = {*self.scores, *results["tested_on"]} - {"", WHOLE, *self.counts}
        self.sites = [*self.counts, *sorted(found)]
        self.poor = str(manifest.get("poor_site") or "")
        self.places = drawn.shown_places(self.sites, self.poor)
        self.described = {k: mapping(v) for k, v in mapping(self.summary["models"]).items()}
        strategies = {m.get("strategy") for m in self.described.values()} - {"", None}
        several = len(strategies) > 1
        self.looks = {
            name: drawn.model_series(model, several=several)
            for name, model in self.described.items()
        }
        self.samples = {s: np.asarray(samples[s]) for s in self.sites if s in samples}
        self.models, self.use = list(models), use
        self.extractors = pictures.extractors(self.models)
        self.phantoms = mapping(manifest.get("config")).get("data.cohort-dir") == ""
        self.seeds = len(set(results.loc[results["status"] == "done", "seed"].dropna()))
        self.times = words.repetitions(results)
        self.means = f"means over {self.times}" if self.seeds > 1 else "one repetition"
        self.level = words.level(self.summary)
        self.intervals = says.intervals(self.level, self.seeds, self.times)

    def parts(self) -> dict[str, Any]:
        """Return the template's variables, figures and tables numbered in reading order."""
        started = words.day(self.manifest.get("started"))
        return {
            "title": "Federated generation of scans against pooled and local training at "
            f"{plural(len(self.sites), 'site')}",
            "eyebrow": " · ".join(filter(None, ("fedscan benchmark", started, self.times))),
            "headline": self._headline(),
            "tiles": list(self._tiles()),
            "notices": self._notices(),
            "series": [
                {"name": look.name, "key": charts.legend_key(look)} for look in self.looks.values()
            ],
            "sections": numbered(self._sections()),
            "footer": says.COMPARISON_FOOTER,
        }

    def _headline(self) -> list[str]:
        told_ = mapping(self.summary.get("headline"))
        found = [mapping(told_.get(key)) for key in TILES]
        sentences = [true_minus(one["sentence"]) for one in found if is_number(one.get("value"))]
        absent = "This folder holds no pair of generators to compare: see its tables below."
        return sentences or [absent]

    def _tiles(self) -> Iterator[dict[str, str]]:
        headline = mapping(self.summary.get("headline"))
        for key, name in TILES.items():
            found = mapping(headline.get(key))
            metric = str(found.get("metric"))
            if not is_number(found.get("value")) or metric not in DISTANCES:
                continue
            note = f"{drawn.MEASURE_NAMES[metric]}, less is better"
            if is_number(found.get("low")) and is_number(found.get("high")):
                ends = [drawn.told_difference(metric, found[end]) for end in ("low", "high")]
                note += f"; {self.level} interval {ends[0]} to {ends[1]}: {found.get('verdict')}"
            else:
                note += "; no interval"
            value = drawn.told_difference(metric, found["value"])
            yield {"name": name.format(poor=self.poor), "value": value, "note": note}
        if (share := self._share()) is not None:
            yield {
                "name": "Bytes of the federation",
                "value": f"{100 * share:.0f} %",
                "note": "of what G, D and G's average as float32, both ways, every round, would "
                "have taken",
            }
        yield {
            "name": "Repetitions",
            "value": self.times.removesuffix("s").removesuffix(" repetition"),
            "note": "seeds of every arm",
        }

    def _share(self) -> float | None:
        """Of the plain messages' bytes, what the reference strategy has sent."""
        costs = mapping(self.summary.get("costs"))
        found = mapping(costs.get(self._reference())).get("share_of_plain_bytes")
        return found if is_number(found) else None

    def _reference(self) -> str | None:
        """Name of the federated generator that stands for the arm."""
        reference = self.summary.get("reference_strategy")
        federated = (n for n, model in self.described.items() if model.get("arm") == "federated")
        return next((n for n in federated if self.described[n].get("strategy") == reference), None)

    def _notices(self) -> list[str]:
        copies = [mapping(one) for one in self.summary.get("copies") or []]
        flagged = told.flagged_lines(copies, self.looks)
        return [
            *([says.FLAGGED, *flagged] if flagged else []),
            *tables.failed(self.results, self.summary),
        ]

    def _sections(self) -> Iterator[Section]:
        tests = list(self._distances())
        yield Section(
            *("results", "Results", "Distances to real test slices"),
            [
                ("text", says.judged(self.extractors, self.means)),
                *figure_blocks(tests, words.NO_TESTS),
                *self._result_tables(),
            ],
        )
        yield Section("pictures", "Pictures", "", list(self._pictures()))
        curves = list(self._curves())
        yield Section("curves", "Learning curves", "", figure_blocks(curves, says.NO_CURVES))
        if use := self._use():
            yield Section("use", "Use of synthetic scans", "", [("text", says.USE), use])
        elif mapping(self.manifest.get("plan")).get("use") and not self.summary.get("unfinished"):
            yield Section("use", "Use of synthetic scans", "", [("text", says.NO_USE)])
        yield Section("copying", "Copies of scans", "", list(self._copying()))
        yield Section("costs", "Bytes and time", "", list(self._costs()))
        budget = tables.budget_table(
            self.results,
            "Optimizer steps and training images",
            "As counted in the results: steps are those of one participant, images those that the "
            "discriminator saw of all sites that train the model.",
        )
        explained = words.budget(self.manifest, len(self.sites))
        yield Section("budget", "Budgets", "", [("text", explained), ("table", budget)])
        yield provenance.section(self.manifest, self.poor, "Scans a site")
        limits = says.limits(
            phantoms=self.phantoms,
            extractors=self.extractors,
            counts=self.counts,
            seeds=self.seeds,
            budget=mapping(self.manifest.get("budget")) if words.pools(self.manifest) else None,
        )
        yield Section("limits", "Limits", "", [("list", list(limits))])

    def _distances(self) -> Iterator[dict[str, Any]]:
        places = self.places[:2] if self.poor else self.places
        for measure in DISTANCES:
            known = [p for p in places if any(measure in m for m in self._rows(p).values())]
            if not known:
                continue
            axis = drawn.estimate_axis((self._rows(place) for place in known), measure)
            panels = [
                {
                    "site": drawn.heading(place),
                    "note": self._note(place),
                    "svg": drawn.estimates(self._rows(place), self.looks, place, measure, axis),
                }
                for place in known
            ]
            dots = " Small dots: single repetitions." if self.seeds > 1 else ""
            mean = " The mean of the sites' distances." if measure == "kernel_distance" else ""
            yield {
                "title": f"Test {drawn.MEASURE_NAMES[measure]} of every generator",
                "caption": f"{sentence(self.means)}; less is better.{dots} "
                f"{self.intervals} Bars may end at the figure's edge; the "
                f"numbers do not.{' Over all sites:' + mean.lower() if mean else ''}",
                "panels": panels,
            }

    def _rows(self, place: str) -> Mapping[str, Mapping[str, Any]]:
        return {name: mapping(found) for name, found in self.scores.get(place, {}).items()}

    def _note(self, place: str) -> str:
        return words.site(self.counts.get(place, {}), poor=place == self.poor)

    def _result_tables(self) -> Iterator[Block]:
        shown = told.measures_table(
            self.scores,
            self.looks,
            self.places,
            "Every measure on the test slices",
            f"{sentence(self.means)}. {self.intervals} Over all sites the "
            "Fréchet distance is that of all slices together, from merged moments; the other "
            "measures are means of the sites'.",
        )
        if shown:
            yield "table", shown
        differences = told.differences_table(
            mapping(self.summary.get("differences")),
            self.places,
            "Paired differences",
            "Within a repetition, then averaged. A distance below zero: the generator named first "
            "is nearer to real slices. Precision, recall, coverage above zero: it is better. "
            f"{self.intervals}",
        )
        if differences:
            yield "table", differences

    def _pictures(self) -> Iterator[Block]:
        first: dict[tuple[str, str, str], Trained] = {}
        for model in self.models:
            if model.grids:
                first.setdefault((model.arm, model.strategy, model.trained_on), model)
        shown = []
        if real := pictures.real_slices(self.samples):
            alt = f"Real training slices of {', '.join(self.samples)}"
            shown.append({"name": "Real slices", "note": "training scans", "alt": alt, **real})
        for name, key in self.described.items():
            model = first.get((key.get("arm"), key.get("strategy"), key.get("trained_on")))
            if model is None:
                continue
            grid = pictures.embedded(model.grids[model.shown_round], model.root)
            look = self.looks[name].name
            alt = f"Pictures by the generator {look}, as it was tested"
            note = f"seed {model.seed}, round {model.shown_round}"
            shown.append({"name": look, "note": note, "alt": alt, **grid})
        if not shown:
            yield "text", says.NO_PICTURES
            return
        whose = says.real(self.phantoms) if real else ""
        yield (
            "pictures",
            {
                "kind": "grids",
                "title": "Pictures of every generator",
                "caption": "Rows: sex and, where the generator knows it, site; columns: heights "
                f"in mm above the head's centre, of two people. {whose} Pictures "
                "are made from fixed random numbers, none chosen.",
                "pictures": shown,
            },
        )
        key = self.described.get(self._reference(), {})
        federated = first.get((key.get("arm"), key.get("strategy"), key.get("trained_on")))
        if federated and (staged := as_rounds_go_by(federated, "the federated generator")):
            yield staged

    def _curves(self) -> Iterator[dict[str, Any]]:
        yield from curve_figures(
            self.results,
            self.looks,
            self.described,
            self.places,
            f"Lines: {self.means}{'; bands: their range' if self.seeds > 1 else ''}. Logarithmic "
            "axis. The released generator is the one of the round with the lowest Fréchet distance "
            "to validation slices, or kernel distance where they are too few for that; one that a "
            "site trained alone is validated by its own slices.",
        )

    def _use(self) -> Block | None:
        rows = [] if self.use is None else summarize_use(self.use)
        if not rows:
            return None
        repeated = len(set(self.use["seed"]))
        interval = says.intervals(self.level, repeated)
        found = told.use_table(
            rows,
            "Classifiers with and without generated scans",
            f"{plural(repeated, 'repetition')}, on real test scans. {interval} Of amounts that "
            "validation scans chose, each repetition's is told.",
        )
        return ("table", found) if found else None

    def _copying(self) -> Iterator[Block]:
        found = told.copying_table(
            self.scores,
            self.looks,
            self.sites,
            "Copies of training slices",
            f"{sentence(self.means)}; flagged: in how many repetitions. Every generator is tested "
            "against every site's slices, also those it has not been trained on.",
        )
        if found is None:
            yield "text", says.NO_COPYING
            return
        yield "text", says.COPYING
        yield "table", found

    def _costs(self) -> Iterator[Block]:
        found = tables.costs_table(
            self.results,
            len(self.sites),
            "Bytes and time of a repetition",
            "Means over the repetitions that ended well. Bytes are those of all messages of all "
            "sites together, validation included. Times are of this machine; local models of one "
            "repetition are trained one after another.",
        )
        yield "table", found
        if (share := self._share()) is not None:
            yield (
                "text",
                f"The federation sent {100 * share:.1f} % of the bytes that exchanging G, D and "
                "G's average as float32 numbers, both ways in every round, would have taken.",
            )
