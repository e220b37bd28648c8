"""What the report of one federated run of the generation task says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from common.metrics_log import WHOLE
from common.participation import Attendance, Outcome
from common.run_folder import TOGETHER
from simulations.attendance import count_outcomes, ranges, reasons
from simulations.measures import DISTANCES, measure
from simulations.report import charts, people, pictures, privacy_blocks, provenance, words
from simulations.report import generation_words as says
from simulations.report.blocks import Block, Section, figure_blocks, numbered
from simulations.report.figures import curve_figures
from simulations.report.generation_blocks import MEASURES, as_rounds_go_by, copying_table
from simulations.report.looks import look_of
from simulations.report.pictures import Trained
from simulations.report.tables import Cell, Head, Table, data_size, duration, told
from simulations.report.words import is_number, mapping, place, plural, sentence, whole
from simulations.summary import share_of_plain

MODEL = "federated"
ORDERS = {"train": "training", "val": "validation", "test": "test"}
MOST_REASONS = 50
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
    attendance : sequence of Attendance
        What came of each order to each site.
    details : mapping
        What ``sites.json`` says: :mod:`simulations.site_details`; empty where there is none.
    phantoms : bool
        Whether people and devices are simulated.
    """

    def __init__(
        self,
        metrics: pd.DataFrame,
        summary: Mapping[str, Any],
        manifest: Mapping[str, Any],
        model: Trained,
        attendance: Sequence[Attendance] = (),
        *,
        details: Mapping[str, Any] | None = None,
        phantoms: bool = False,
    ) -> None:
        self.details = mapping(details)
        self.metrics, self.summary, self.manifest, self.model = metrics, summary, manifest, model
        self.attendance, self.phantoms = attendance, phantoms
        listed, read = mapping(manifest.get("sites")), mapping(summary.get("sites"))
        self.counts = {  # as the tables list them, then as they could be read
            site: {**mapping(listed.get(site)), **mapping(read.get(site))}
            for site in {**listed, **read}
        }
        found = {*metrics["tested_on"]} - {"", WHOLE, *self.counts}
        self.sites = [*self.counts, *sorted(found)]
        self.config = mapping(manifest.get("config"))
        self.extractors = pictures.extractors([model])
        about = {"arm": "federated", "strategy": model.strategy, "trained_on": WHOLE}
        self.described = {MODEL: about}
        self.looks = {MODEL: look_of(about)}
        self.nouns = words.nouns(self.config)

    @property
    def generates(self) -> bool:
        """Whether the model is a generator."""
        return self.config.get("task") == "generation"

    def parts(self, first: Callable[[RunContent], Section]) -> dict[str, Any]:
        """Return the template's variables: see :meth:`simulations.report.content.Content.parts`."""
        run, seed = self.summary.get("run_id"), self.config.get("run.seed")
        eyebrow = ["fedscan run", f"run {run}" if run else "", f"seed {seed}"]
        return {
            "title": f"A generator of {self.nouns.images}, trained by "
            f"{plural(len(self.sites), 'site')}",
            "eyebrow": " · ".join(filter(None, eyebrow)),
            "headline": [
                words.subject(self.nouns, generation=self.generates, one=True),
                self._headline(),
            ],
            "tiles": list(self._tiles()),
            "notices": self._notices(),
            "series": [
                {"name": one.name, "key": charts.legend_key(one), "look": one}
                for one in self.looks.values()
            ],
            "sections": numbered([first(self), *self._sections()]),
            "footer": says.RUN_FOOTER,
        }

    def _headline(self) -> str:
        found = mapping(self.summary.get("generation"))
        for name in DISTANCES:
            if is_number(found.get(name)):
                value = told(name, found[name])
                return (
                    f"Over all sites, the released generator's {measure(name).words} to real "
                    f"test {self.nouns.made}s is {value}; it is that of round "
                    f"{whole(self.summary.get('best_round'))} of "
                    f"{whole(self.summary.get('rounds'))}."
                )
        if self.summary.get("best_round"):
            return "No site tells how far the released generator is from its test images."
        return "The run has not been tested: it is under way, or ended early."

    def _tiles(self) -> Iterator[dict[str, str]]:
        found = mapping(self.summary.get("generation"))
        for name in TILES:
            if is_number(found.get(name)):
                one = measure(name)
                where = "all sites" if one.pool == "whole" else "mean of sites"
                note = f"{where}; {one.better} is better" if one.better else where
                value = told(name, found[name])
                yield {"name": sentence(one.words), "value": value, "note": note}

    @property
    def copied(self) -> list[str]:
        """Sites whose training images the generator is flagged as copying."""
        return [
            "a site" if site == WHOLE else site  # which, a secure sum does not tell
            for site, found in _measured(self.summary).items()
            if is_number(flag := found.get("copies_flagged")) and flag > 0
        ]

    def _notices(self) -> list[str]:
        lines = [
            f"The generator is flagged as copying training images of {s}." for s in self.copied
        ]
        return [says.FLAGGED, *lines] if lines else []

    def _sections(self) -> Iterator[Section]:
        shown = run_table(
            self.summary,
            "The released generator at every site",
            f"Training, test: number of {self.nouns.images}. Over all sites the Fréchet distance "
            "is that of all together, from merged moments; the other measures are means of the "
            "sites'.",
        )
        results: list[Block] = [
            ("text", says.judged(self.extractors, "those of the run", self.nouns))
        ]
        results.append(("table", shown) if shown else ("text", words.NO_TESTS))
        yield Section("results", "Results", f"Distances to real test {self.nouns.made}s", results)
        grids = as_rounds_go_by(self.model, "the generator", private=bool(self.copied))
        yield Section("pictures", "Pictures", "", [grids or ("text", says.NO_PICTURES)])
        curves = curve_figures(
            *(self.metrics, lambda _: self.looks, self.described, [WHOLE, *self.sites]),
            dict.fromkeys(DISTANCES, math.nan),
            "The released generator is the one of the round with the lowest Fréchet distance over "
            "all sites, or kernel distance where images are too few for that.",
            self.nouns.image,
        )
        yield Section(
            *("curves", "Learning curves", ""),
            figure_blocks(curves, words.NO_CURVES, legend=False),
        )
        yield Section("copying", "Copies of training images", "", list(self._copying()))
        yield Section("costs", "Bytes and time", "", list(self._costs()))
        if self.attendance:
            shown = attendance_table(self.attendance)
            yield Section("attendance", "Who took part", "", [("table", shown), *self._away()])
        yield from privacy_blocks.of_run(self.summary)
        yield from self._origin()
        limits = says.limits(
            self.nouns,
            phantoms=self.phantoms,
            extractors=self.extractors,
            counts=self.counts,
            repetitions=None,
            budget=None,
        )
        yield Section("limits", "Limits", "", [("list", list(limits))])

    def _origin(self) -> Iterator[Section]:
        """Yield who is in the images, configuration and provenance."""
        yield from people.section(mapping(self.details.get("people")), self.counts, self.nouns)
        yield provenance.section(
            self.manifest,
            self.counts,
            "",
            f"{sentence(self.nouns.images)} at every site",
            left_out=("run.output-dir",),
        )

    def _copying(self) -> Iterator[Block]:
        scores = {
            site: {MODEL: {key: _single(value) for key, value in mapping(found).items()}}
            for site, found in _measured(self.summary).items()
        }
        title = "Copies of training images"
        found = copying_table(scores, self.looks, scores, title, "As each site found.")
        if found is None:
            yield "text", says.no_copying(self.nouns)
            return
        yield "text", says.copying(self.nouns)
        yield "table", found

    def _away(self) -> Iterator[Block]:
        lines = [
            f"{site}, {ORDERS.get(order, order)}, round {ranges(rounds)}: {outcome}"
            f"{f' ({why})' if why else ''}."
            for (site, order, outcome, why), rounds in reasons(self.attendance).items()
        ]
        if lines:
            yield "list", lines[:MOST_REASONS]

    def _costs(self) -> Iterator[Block]:
        up, down, took = (self.summary.get(k) for k in ("bytes_up", "bytes_down", "seconds"))
        if all(map(is_number, (up, down, took))):
            sentences = (
                f"The sites sent {data_size(up)} and were sent {data_size(down)}, in "
                f"{duration(took)} on this machine."
            )
            plain = self.summary.get("bytes_plain")
            if is_number(plain) and (share := share_of_plain(up + down, plain)) is not None:
                sentences += (
                    f" That is {100 * share:.1f} % of what exchanging G, D and G's average as "
                    "float32 numbers, both ways in every round, would have taken."
                )
            yield "text", sentences
        caption = "Sums over rounds and sites, with the size of one site's message in a round."
        title = "Bytes by message"
        if messages := messages_table(self.metrics, title, caption):
            yield "table", messages


def _measured(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return what each site has measured; of secure sums the mean of all sites."""
    if together := mapping(summary.get(TOGETHER)):
        return {WHOLE: together}
    told = {s: mapping(one).get("generation") for s, one in mapping(summary.get("sites")).items()}
    return {site: mapping(found) for site, found in told.items() if found}


def _single(value: object) -> dict[str, Any]:
    """Return a run's number in the form of one over repetitions."""
    if isinstance(value, bool):
        value = int(value)
    return {"mean": value, "values": {"0": value}} if is_number(value) else {}


def run_table(summary: Mapping[str, Any], title: str, caption: str) -> Table | None:
    """Measures of one run's generator at each site and over all; None where there is none."""
    groups, together = [], mapping(summary.get(TOGETHER))  # of secure sums
    for site, about in mapping({} if together else summary.get("sites")).items():
        counts, found = mapping(about), mapping(mapping(about).get("generation"))
        groups.append(_run_row(site, found, counts.get("n_train"), counts.get("n_test")))
    if found := mapping(summary.get("generation")):
        counts = [mapping(about) for about in mapping(summary.get("sites")).values()]
        counts = [together] if together else counts
        totals = [_total(counts, key) for key in ("n_train", "n_test")]
        groups.append(_run_row(place(WHOLE), found, *totals))
    heads = [Head("Tested at", n=False), Head("Training"), Head("Test")]
    heads += [Head(sentence(measure(m).words)) for m in MEASURES]
    return Table(title, caption, heads, [[row] for row in groups]) if groups else None


def attendance_table(found: Sequence[Attendance]) -> Table:
    """Return how often each site's answers were used, by order and outcome."""
    counts = count_outcomes(found)
    shown = [kind for kind in Outcome if any(number[kind] for number in counts.values())]
    rows = [
        [
            Cell(site, kind="", scope="row"),
            Cell(ORDERS.get(order, order), kind=""),
            *(Cell(str(number[kind] or "–")) for kind in shown),
        ]
        for (site, order), number in counts.items()
    ]
    heads = [Head("Site", n=False), Head("Order", n=False), *(Head(sentence(k)) for k in shown)]
    caption = "Number of orders, by what came of them."
    return Table("Answers of each site", caption, heads, [rows])


def messages_table(metrics: pd.DataFrame, title: str, caption: str) -> Table | None:
    """Bytes of one run by kind of message; None where none is known."""
    sent = metrics[metrics["metric"].str.match(r"bytes-(up|down)-")]
    if sent.empty:
        return None
    kinds = sent["metric"].str.extract(r"bytes-(?P<way>up|down)-(?P<kind>.+)")
    sums = sent.assign(**kinds).groupby(["kind", "way"])["value"].agg(["sum", "count"])
    rows = []
    for kind in sorted(set(kinds["kind"]), reverse=True):
        row = [Cell(sentence(kind), kind="", scope="row")]
        for way in ("up", "down"):
            if (kind, way) not in sums.index:
                row.append(Cell("–"))
                continue
            total, count = sums.loc[(kind, way)]
            each = f"{data_size(total / count)} a message" if total else ""
            row.append(Cell(data_size(total), each))
        rows.append(row)
    heads = [Head("Message", n=False), Head("Sent by sites"), Head("Sent to sites")]
    return Table(title, caption, heads, [rows])


def _run_row(name: str, found: Mapping[str, Any], n_train: Any, n_test: Any) -> list[Cell]:
    row = [Cell(name, kind="site", scope="row"), Cell(whole(n_train)), Cell(whole(n_test))]
    return row + [Cell(told(m, found.get(m))) for m in MEASURES]


def _total(counts: Sequence[Mapping[str, Any]], key: str) -> int | None:
    values = [one.get(key) for one in counts]
    return sum(values) if values and all(map(is_number, values)) else None
