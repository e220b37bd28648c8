"""What the report of one federated run of the generation task says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from common.metrics_log import WHOLE
from simulations.generation_statistics import share_of_plain
from simulations.report import charts, pictures, provenance, words
from simulations.report import generation_figures as drawn
from simulations.report import generation_tables as told
from simulations.report import generation_words as says
from simulations.report.blocks import Block, Section, figure_blocks, numbered
from simulations.report.pictures import Trained
from simulations.report.progress import as_rounds_go_by, curve_figures
from simulations.report.tables import data_size, duration
from simulations.report.words import is_number, mapping, plural, whole

MODEL = "federated"
TILES = ("frechet_distance", "kernel_distance", "precision", "recall")


class RunContent:
    """Everything that the page shows; :meth:`parts` gives the template's variables.

    Parameters
    ----------
    metrics : DataFrame
        Rows of ``metrics.jsonl`` with the columns of ``results.csv``.
    summary, manifest : mapping
        As in the folder; may lack anything.
    model : Trained
        The run's grids.
    """

    def __init__(
        self,
        metrics: pd.DataFrame,
        summary: Mapping[str, Any],
        manifest: Mapping[str, Any],
        model: Trained,
    ) -> None:
        self.metrics, self.summary, self.manifest, self.model = metrics, summary, manifest, model
        known = mapping(manifest.get("sites")) or mapping(summary.get("sites"))
        self.counts = {site: mapping(n) for site, n in known.items()}
        found = {*metrics["tested_on"]} - {"", WHOLE, *self.counts}
        self.sites = [*self.counts, *sorted(found)]
        self.config = mapping(manifest.get("config"))
        self.extractors = pictures.extractors([model])
        about = {"arm": "federated", "strategy": model.strategy, "trained_on": WHOLE}
        self.described = {MODEL: about}
        self.looks = {MODEL: drawn.model_series(about, several=False)}

    def parts(self) -> dict[str, Any]:
        """Return the template's variables, figures and tables numbered in reading order."""
        run, seed = self.summary.get("run_id"), self.config.get("run.seed")
        eyebrow = ["fedscan run", f"run {run}" if run else "", f"seed {seed}"]
        return {
            "title": f"A generator of scans, trained by {plural(len(self.sites), 'site')}",
            "eyebrow": " · ".join(filter(None, eyebrow)),
            "headline": [self._headline()],
            "tiles": list(self._tiles()),
            "notices": self._notices(),
            "series": [{"name": one.name, "key": charts.legend_key(one)} for one in self._looks()],
            "sections": numbered(self._sections()),
            "footer": says.RUN_FOOTER,
        }

    def _looks(self) -> list[charts.Series]:
        return list(self.looks.values())

    def _headline(self) -> str:
        found = mapping(self.summary.get("generation"))
        for measure in TILES[:2]:
            if is_number(found.get(measure)):
                value = drawn.told(measure, found[measure])
                return (
                    f"Over all sites, the released generator's {drawn.MEASURE_NAMES[measure]} to "
                    f"real test slices is {value}; it is that of round "
                    f"{whole(self.summary.get('best_round'))} of "
                    f"{whole(self.summary.get('rounds'))}."
                )
        if self.summary.get("best_round"):
            return "No site tells how far the released generator is from its test slices."
        return "The run has not been tested: it is under way, or ended early."

    def _tiles(self) -> Iterator[dict[str, str]]:
        found = mapping(self.summary.get("generation"))
        for measure in TILES:
            if is_number(found.get(measure)):
                name = drawn.MEASURE_NAMES[measure]
                less = measure in TILES[:2]
                where = "all sites" if measure == TILES[0] else "mean of sites"
                note = f"{where}; {'less' if less else 'more'} is better"
                value = drawn.told(measure, found[measure])
                yield {"name": words.sentence(name), "value": value, "note": note}

    def _notices(self) -> list[str]:
        sites = [
            site
            for site, about in mapping(self.summary.get("sites")).items()
            if mapping(mapping(about).get("generation")).get("copies_flagged") in (1, 1.0, True)
        ]
        lines = [f"The generator is flagged as copying training slices of {s}." for s in sites]
        return [says.FLAGGED, *lines] if lines else []

    def _sections(self) -> Iterator[Section]:
        shown = told.run_table(
            self.summary,
            "The released generator at every site",
            "Training: people. Over all sites the Fréchet distance is that of all slices together, "
            "from merged moments; the other measures are means of the sites'.",
        )
        results: list[Block] = [("text", says.judged(self.extractors, "those of the run"))]
        results.append(("table", shown) if shown else ("text", words.NO_TESTS))
        yield Section("results", "Results", "Distances to real test slices", results)
        grids = as_rounds_go_by(self.model, "the generator")
        yield Section("pictures", "Pictures", "", [grids or ("text", says.NO_PICTURES)])
        places = drawn.shown_places(self.sites, "")
        caption = (
            "Logarithmic axis. The released generator is the one of the round with the lowest "
            "Fréchet distance over all sites, or kernel distance where slices are too few for that."
        )
        curves = curve_figures(
            *(self.metrics, self.looks, self.described, places, caption),
        )
        yield Section(
            *("curves", "Learning curves", ""),
            figure_blocks(curves, says.NO_CURVES, legend=False),
        )
        yield Section("copying", "Copies of scans", "", list(self._copying()))
        yield Section("costs", "Bytes and time", "", list(self._costs()))
        yield provenance.section(
            self.manifest,
            "",
            "Scans a site",
            left_out=("run.output-dir",),
        )
        phantoms = self.config.get("data.cohort-dir") == ""
        limits = says.limits(
            phantoms=phantoms,
            extractors=self.extractors,
            counts=self.counts,
            seeds=None,
            budget=None,
        )
        yield Section("limits", "Limits", "", [("list", list(limits))])

    def _copying(self) -> Iterator[Block]:
        scores = {
            site: {MODEL: {key: _single(value) for key, value in mapping(found).items()}}
            for site, about in mapping(self.summary.get("sites")).items()
            if (found := mapping(about).get("generation"))
        }
        title = "Copies of training slices"
        found = told.copying_table(scores, self.looks, scores, title, "As each site found.")
        if found is None:
            yield "text", says.NO_COPYING
            return
        yield "text", says.COPYING
        yield "table", found

    def _costs(self) -> Iterator[Block]:
        up, down, took = (self.summary.get(k) for k in ("bytes_up", "bytes_down", "seconds"))
        if all(map(is_number, (up, down, took))):
            told_ = (
                f"The sites sent {data_size(up)} and were sent {data_size(down)}, in "
                f"{duration(took)} on this machine."
            )
            plain = self.summary.get("bytes_plain")
            if is_number(plain) and (share := share_of_plain(up + down, plain)) is not None:
                told_ += (
                    f" That is {100 * share:.1f} % of what exchanging G, D and G's average as "
                    "float32 numbers, both ways in every round, would have taken."
                )
            yield "text", told_
        caption = "Sums over rounds and sites, with the size of one site's message in a round."
        title = "Bytes by message"
        if messages := told.messages_table(self.metrics, title, caption):
            yield "table", messages


def _single(value: object) -> dict[str, Any]:
    """Return a run's number in the form of one over repetitions."""
    if isinstance(value, bool):
        value = int(value)
    return {"mean": value, "values": {"0": value}} if is_number(value) else {}
