"""What the report says: headline, figures with captions, tables, limits, all from the files.

Words follow from what was run: one repetition is called one, an interval is named with what it
was resampled over, and phantoms are called phantoms.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from simulations.contrasts import QUESTIONS
from simulations.report import charts, figures, provenance, tables, words
from simulations.report.blocks import Section, figure_blocks
from simulations.report.figures import METRIC_NAMES, signed_number
from simulations.report.tables import MEAN_OVER_SITES, Table
from simulations.report.words import is_number, listed, mapping, plural, sentence, whole

LEADING = ("balanced_accuracy", "auroc")
CURVES = ("loss", "balanced_accuracy")
TILES = {
    "gain_of_data_poor_site": "Gain of the data-poor site: federated − local",
    "loss_against_pooling": "Loss against pooling: centralized − federated",
}


class Content:
    """Everything that the page shows; :meth:`parts` gives the template's variables.

    Parameters
    ----------
    results : DataFrame
        Rows of ``results.csv``.
    summary, manifest : mapping
        As in the folder; may lack anything.
    samples : mapping of str to (K, S, S) floats
        Site to slices of its training scans; may be empty.
    """

    def __init__(
        self,
        results: pd.DataFrame,
        summary: Mapping[str, Any],
        manifest: Mapping[str, Any],
        samples: Mapping[str, np.ndarray],
    ) -> None:
        self.results, self.summary, self.manifest = results, summary, manifest
        self.scores = tables.scores_frame(summary, results)
        self.differences = tables.differences_frame(summary)
        self.config = mapping(manifest.get("config"))
        self.counts = {site: mapping(n) for site, n in mapping(manifest.get("sites")).items()}
        self.sites = [*self.counts, *sorted(set(results["tested_on"]) - {"", *self.counts})]
        self.poor = str(manifest.get("poor_site") or summary.get("poor_site") or "")
        self.samples = {s: np.asarray(samples[s]) for s in self.sites if s in samples}
        self.phantoms = self.config.get("data.cohort-dir") == ""
        seeds = results.loc[results["status"] == "done", "seed"].dropna()
        self.seeds = sorted(set(seeds.astype(int)))
        self.times = words.repetitions(results)
        self.means = f"means over {self.times}" if len(self.seeds) > 1 else "one repetition"
        self.level = words.level(summary)
        self._intervals = words.intervals(self.scores, self.level)

    def parts(self) -> dict[str, Any]:
        """Return the template's variables, figures and tables numbered in reading order."""
        place = plural(len(self.sites), "site")
        started = words.day(self.manifest.get("started"))
        return {
            "title": f"Federated training against pooled and local training at {place}",
            "eyebrow": " · ".join(filter(None, ("fedscan benchmark", started, self.times))),
            "headline": self._headline(),
            "tiles": list(self._tiles()),
            "notices": tables.failed(self.results, self.summary),
            "series": [
                {"name": one.name, "key": charts.legend_key(one)}
                for one in figures.series_of(self.results)
            ],
            "sections": list(self._sections(itertools.count(1), itertools.count(1))),
            "footer": words.FOOTER,
        }

    def _sections(self, figure: Iterator[int], table: Iterator[int]) -> Iterator[Section]:
        comparisons = list(self._comparisons(figure))
        yield Section(
            *("results", "Results", "Results at every site"),
            [
                ("text", words.results(self.means, self._intervals)),
                *figure_blocks(comparisons, words.NO_TESTS),
                *figure_blocks(self._differences(figure), legend=False),
                *(("table", one) for one in self._result_tables(table)),
            ],
        )
        curves = list(self._curves(figure))
        yield Section("curves", "Learning curves", "", figure_blocks(curves, words.NO_CURVES))
        matrix = self._matrix(table)
        crossed = [("text", words.MATRIX), ("table", matrix)]
        yield Section(
            *("matrix", "Every model at every site", ""),
            crossed if matrix else [("text", words.NO_MATRIX)],
        )
        scans = {
            "title": f"Figure {next(figure)}. Sample scans of every site",
            "caption": words.scans(self.phantoms),
            "pictures": [self._scan(site) for site in self.samples if len(self.samples[site])],
            "kind": "scans",
        }
        shown = ("pictures", scans) if scans["pictures"] else ("text", words.NO_SCANS)
        yield Section("scans", "Scans", "What the sites' scans look like", [shown])
        costs = tables.costs_table(
            self.results,
            len(self.sites),
            f"Table {next(table)}. Bytes and time of a repetition",
            "Means over the repetitions that ended well. Bytes are model updates and metrics of "
            "all sites together. Times are of this machine; a local repetition trains every "
            "site's model, one after another.",
        )
        yield Section("costs", "Bytes and time", "", [("table", costs)])
        budget = tables.budget_table(
            self.results,
            f"Table {next(table)}. Optimizer steps and training images",
            "As counted in the results. Steps are those of one participant; images of a model are "
            "summed over the sites that train it, a repetition's over its models.",
        )
        told = words.budget(self.manifest, len(self.sites))
        yield Section("budget", "Budgets", "", [("text", told), ("table", budget)])
        yield provenance.section(self.manifest, self.poor, f"Table {next(table)}. Scans a site")
        limits = words.limits(
            phantoms=self.phantoms,
            counts=self.counts,
            seeds=len(self.seeds),
            has_p=bool(self.differences["p"].notna().any()),
            budget=mapping(self.manifest.get("budget")) if words.pools(self.manifest) else None,
        )
        yield Section("limits", "Limits", "", [("list", list(limits))])

    def _headline(self) -> list[str]:
        told = mapping(self.summary.get("headline"))
        arms = set(self.results["arm"])
        sentences = []
        for key, needed in QUESTIONS.items():
            found = mapping(told.get(key)).get("sentence")
            if found and needed <= arms:
                sentences.append(words.true_minus(found))
        alone = f"This folder holds no comparison of the arms: it is of {listed(sorted(arms))}."
        absent = "The summary holds no headline: compare the arms site by site below."
        return sentences or [absent if len(arms) > 1 else alone]

    def _tiles(self) -> Iterator[dict[str, str]]:
        told = mapping(self.summary.get("headline"))
        for key, name in TILES.items():
            found = mapping(told.get(key))
            if not is_number(found.get("value")):
                continue
            note = f"balanced accuracy{self._of_reference()}"
            if is_number(found.get("low")) and is_number(found.get("high")):
                span = f"{signed_number(found['low'])} to {signed_number(found['high'])}"
                zero = "excludes" if found.get("excludes_zero") else "includes"
                note += f"; {self.level} interval {span}, {zero} zero"
            yield {"name": name, "value": signed_number(found["value"]), "note": note}
        tested = [whole(n.get("n_test")) for n in self.counts.values()]
        yield {
            "name": "Repetitions",
            "value": self.times.removesuffix("s").removesuffix(" repetition"),
            "note": f"test scans a site: {', '.join(tested)}" if tested else "of every arm",
        }

    def _of_reference(self) -> str:
        """Say which strategy stands for the federated arm, where there are several."""
        rows = self.results[self.results["arm"] == "federated"]
        reference = self.summary.get("reference_strategy")
        if not reference or rows["strategy"].nunique() < 2:
            return ""
        return f" of {figures.series('federated', str(reference)).name}"

    def _comparisons(self, number: Iterator[int]) -> Iterator[dict[str, Any]]:
        if not np.isfinite(self.scores["mean"]).any():
            return
        for metric in LEADING:
            shown = self.scores[self.scores["metric"] == metric]
            if shown.empty:
                continue
            tests = self.results[
                (self.results["split"] == "test") & (self.results["metric"] == metric)
            ]
            own = tests[(tests["arm"] != "local") | (tests["trained_on"] == tests["tested_on"])]
            values = pd.concat([shown["mean"], shown["low"], shown["high"], own["value"]])
            limits = figures.axis_limits(values, metric)
            name, panels = METRIC_NAMES[metric], []
            for site in self.sites:
                note = words.site(self.counts.get(site, {}), poor=site == self.poor)
                drawn = figures.comparison(self.results, self.scores, site, metric, limits)
                panels.append({"site": site, "note": note, "svg": drawn})
            dots = " Small dots: single repetitions." if len(self.seeds) > 1 else ""
            yield {
                "title": f"Figure {next(number)}. Test {name} of every arm, by site",
                "caption": f"{sentence(self.means)}; {self._intervals}.{dots} Dotted line: chance. "
                "The local model is the site's own.",
                "panels": panels,
            }

    def _differences(self, number: Iterator[int]) -> Iterator[dict[str, Any]]:
        shown = self.differences[self.differences["metric"] == LEADING[0]]
        shown = shown[np.isfinite(shown["mean"])]
        if shown.empty:
            return
        limits = figures.difference_limits(pd.concat([shown[k] for k in ("mean", "low", "high")]))
        panels = []
        for contrast, rows in shown.groupby("contrast", sort=False):
            name = tables.contrast_name(contrast)
            drawn = figures.differences(rows, LEADING[0], limits)
            panels.append({"site": name, "note": "", "svg": drawn})
        yield {
            "title": f"Figure {next(number)}. Paired differences between arms",
            "caption": "Right of zero: the arm named first is better. Both arms of a pair are "
            "measured on the same resampled scans and repetitions, so these intervals, not the "
            f"overlap of those above, tell the arms apart. Diamond: {MEAN_OVER_SITES}, each site "
            "counting once.",
            "panels": panels,
        }

    def _curves(self, number: Iterator[int]) -> Iterator[dict[str, Any]]:
        for metric in CURVES:
            rows = self.results[
                (self.results["split"] == "val")
                & (self.results["metric"] == metric)
                & (self.results["status"] == "done")
            ]
            if rows.empty:
                continue
            limits = figures.axis_limits(rows["value"], metric)
            panels = []
            for site in self.sites:
                n = self.counts.get(site, {}).get("n_val")
                note = plural(n, "validation scan") if n is not None else ""
                drawn = figures.learning_curve(self.results, site, metric, limits)
                panels.append({"site": site, "note": note, "svg": drawn})
            band = "; bands: their range" if len(self.seeds) > 1 else ""
            log = " Logarithmic axis." if metric == "loss" else ""
            name = METRIC_NAMES[metric]
            yield {
                "title": f"Figure {next(number)}. Validation {name} over the rounds",
                "caption": f"Lines: {self.means}{band}.{log} Every arm keeps the round "
                "of its lowest validation loss and is tested with that one.",
                "panels": panels,
            }

    def _result_tables(self, number: Iterator[int]) -> Iterator[Table]:
        if np.isfinite(self.scores["mean"]).any():
            yield tables.scores_table(
                self.scores,
                self.sites,
                f"Table {next(number)}. Every metric on the test scans",
                f"{sentence(self.means)}; {self._intervals}. Less is better for the "
                "calibration error and the cross-entropy, more for the rest.",
            )
        if np.isfinite(self.differences["mean"]).any():
            notes = sorted({str(n) for n in self.differences["note"].dropna() if n})
            p = "p: Wilcoxon's signed-rank test over repetitions, not corrected for the number of "
            p = f"{p}metrics and sites. " if self.differences["p"].notna().any() else ""
            yield tables.differences_table(
                self.differences,
                f"Table {next(number)}. Paired differences on the test scans",
                f"Means over repetitions with {self.level} bootstrap intervals. {p}"
                + (f"Note: {'; '.join(notes[:4])}." if notes else ""),
            )

    def _matrix(self, number: Iterator[int]) -> Table | None:
        title = f"Table {next(number)}. Test balanced accuracy of every model at every site"
        caption = f"{sentence(self.means)}; shaded from lowest to highest. Framed: at home."
        return tables.matrix_table(self.results, LEADING[0], self.sites, title, caption)

    def _scan(self, site: str) -> dict[str, Any]:
        uri, width, height = figures.scan_strip(self.samples[site])
        count = plural(len(self.samples[site]), "axial slice")
        alt = f"{count} through the middle of training scans of site {site}"
        return {"name": site, "note": "", "uri": uri, "width": width, "height": height, "alt": alt}
