"""What the report of one federated run of the classification task says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from statistics import fmean
from typing import Any

from common.metrics_log import WHOLE
from common.run_folder import TOGETHER
from simulations.measures import CLASSIFICATION, measure
from simulations.report import brief, decisions, figures, privacy_blocks, words
from simulations.report.blocks import Block, Section, figure_blocks
from simulations.report.figures import curve_figures
from simulations.report.run_content import (
    MODEL,
    RunContent,
    attendance_table,
    messages_table,
)
from simulations.report.tables import Cell, Head, Table, data_size, duration, told
from simulations.report.words import is_number, mapping, plural, sentence, whole

LEADING = "balanced_accuracy"
TILES = (LEADING, "auroc", "auprc", "loss")
FOOTER = (
    "Made by fedscan report from manifest.json, metrics.jsonl and summary.json of this run folder. "
    "The file is complete in itself and asks the network for nothing."
)


class ClassificationRun(RunContent):
    """See :class:`simulations.report.run_content.RunContent`; there are no pictures."""

    def parts(self, first: Callable[[Any], Section]) -> dict[str, Any]:
        """Return the template's variables: see :meth:`simulations.report.content.Content.parts`."""
        nouns = self.nouns
        title = f"A classifier of {nouns.label} from {nouns.images}, trained by "
        title += plural(len(self.sites), "site")
        return {**super().parts(first), "title": title, "footer": FOOTER}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the study's classes."""
        return self.nouns.classes

    @property
    def tested(self) -> list[str]:
        """Where the model was tested; with secure sums all sites are one."""
        return [WHOLE] if mapping(self.summary.get(TOGETHER)) else self.sites

    def told(self, site: str) -> Mapping[str, Any]:
        """Return what is told of a site's test, or of all sites'."""
        if site == WHOLE:
            return mapping(self.summary.get(TOGETHER))
        return mapping(mapping(self.summary.get("sites")).get(site))

    def value(self, site: str, name: str) -> float | None:
        """Return a measure of a site's test images; None where it is not told."""
        found = self.told(site).get(name)
        return float(found) if is_number(found) else None

    def meaning(self, count: int) -> str:
        """Say over what :meth:`mean` is."""
        if self.tested == [WHOLE]:
            return "mean of all sites by their images (secure sums)"
        return f"mean of {plural(count, 'site')}"

    def mean(self, name: str) -> tuple[float | None, int]:
        """Return the mean over the sites that tell a measure, and how many these are."""
        values = [one for site in self.tested if (one := self.value(site, name)) is not None]
        return (fmean(values) if values else None), len(values)

    def _headline(self) -> str:
        value, count = self.mean(LEADING)
        if value is not None:
            return (
                f"On test {self.nouns.images}, balanced accuracy is {told(LEADING, value)}, "
                f"{self.meaning(count)}; guessing gives {1 / max(2, len(self.classes)):.2f}. The "
                f"model is that of round {whole(self.summary.get('best_round'))} of "
                f"{whole(self.summary.get('rounds'))}."
            )
        if self.summary.get("best_round"):
            return "No site tells how well the model does on its test images."
        return "The run has not been tested: it is under way, or ended early."

    def _tiles(self) -> Iterator[dict[str, str]]:
        for name in TILES:
            value, count = self.mean(name)
            if value is not None:
                note = f"{self.meaning(count)}; {measure(name).better} is better"
                words_ = sentence(measure(name).words)
                yield {"name": words_, "value": told(name, value), "note": note}

    def _notices(self) -> list[str]:
        return []

    def _sections(self) -> Iterator[Section]:
        nouns = self.nouns
        results: list[Block] = [("text", words.NO_TESTS)]
        if shown := self._table():
            judged = words.results("the values of this run", "there are no intervals", nouns)
            results = [("text", judged), ("table", shown)]
            results += [("table", one) for one in self._recalls()]
        yield Section("results", "Results", f"Results on test {nouns.images}", results)
        if shown := [*figure_blocks(self._decisions(), legend=False)]:
            yield Section("classes", "Decisions", "Decisions and probabilities", shown)
        chance = max(2, len(self.classes))
        curves = curve_figures(
            *(self.metrics, lambda _: self.looks, self.described, self.tested),
            {"loss": math.log(chance), LEADING: 1 / chance},
            "The model is the one of the round with the lowest validation loss.",
            nouns.image,
        )
        yield Section(
            *("curves", "Learning curves", ""),
            figure_blocks(curves, words.NO_CURVES, legend=False),
        )
        yield Section("costs", "Bytes and time", "", list(self._costs()))
        if self.attendance:
            shown = attendance_table(self.attendance)
            yield Section("attendance", "Who took part", "", [("table", shown), *self._away()])
        yield from privacy_blocks.of_run(self.summary)
        yield from self._origin()
        yield Section("limits", "Limits", "", [("list", list(self._limits()))])

    def _table(self) -> Table | None:
        """Measures of every site's test images; None where there is none."""
        names = [m for m in CLASSIFICATION if self.mean(m)[0] is not None]
        if not names:
            return None
        rows = []
        for site in self.tested:
            counts = self.counts.get(site, self.told(site))
            row = [Cell(words.place(site), kind="site", scope="row")]
            row += [Cell(whole(counts.get(key))) for key in ("n_train", "n_test")]
            rows.append([*row, *(Cell(told(m, self.value(site, m))) for m in names)])
        heads = [Head("Site", n=False), Head("Training"), Head("Test")]
        heads += [Head(sentence(measure(m).words)) for m in names]
        caption = f"Training, test: number of {self.nouns.images}. –: withheld, or undefined."
        return Table("The model at every site", caption, heads, [[row] for row in rows])

    def _recalls(self) -> Iterator[Table]:
        """Yield the recall of each class at every site, where single classes are told."""
        heads = [one for one in self.classes if self.mean(f"recall.{one}")[0] is not None]
        if not heads:
            return
        rows = [
            [
                Cell(words.place(site), kind="site", scope="row"),
                *(Cell(told("recall", self.value(site, f"recall.{one}"))) for one in heads),
            ]
            for site in self.tested
        ]
        caption = f"Of the test {self.nouns.images} of a class, the share that the model finds."
        columns = [Head("Site", n=False), *map(Head, heads)]
        yield Table("Recall of each class", caption, columns, [[row] for row in rows])

    def _decisions(self) -> Iterator[dict[str, Any]]:
        """Yield confusion matrices and curves of every site that are known."""
        known = mapping(self.details.get("curves"))
        by_site = {site: {MODEL: mapping(known[site])} for site in self.sites if known.get(site)}
        panels = [
            decisions.confusion_panel(
                *(found[MODEL], self.classes, site),
                f"Confusion matrix at {figures.at(site)}",
            )
            for site, found in by_site.items()
        ]
        if drawn := list(filter(None, panels)):
            caption = decisions.confusion_caption(self.nouns, 1)
            yield {"title": "Confusion matrices", "caption": caption, "panels": drawn}
        target = decisions.target_of(self.classes, self.nouns.positive)
        yield from decisions.curve_figures(
            *(by_site, self.looks, target, self.nouns),
            lambda site, _, name: self.value(site, name),
        )

    def _costs(self) -> Iterator[Block]:
        up, down, took = (self.summary.get(k) for k in ("bytes_up", "bytes_down", "seconds"))
        if all(map(is_number, (up, down, took))):
            sent = f"The sites sent {data_size(up)} and were sent {data_size(down)}"
            yield "text", f"{sent}, in {duration(took)} on this machine."
        caption = "Sums over rounds and sites, with the size of one site's message in a round."
        if messages := messages_table(self.metrics, "Bytes by message", caption):
            yield "table", messages

    def _limits(self) -> Iterator[str]:
        nouns = self.nouns
        if self.phantoms:
            yield (
                f"The {nouns.images} are phantoms, with simulated people and devices: nothing is "
                "known from them of patients."
            )
        else:
            yield f"The result is of these sites' {nouns.images} and says nothing of others."
        yield (
            "One run has no interval: fedscan benchmark repeats it, and compares it with training "
            "alone and on pooled data."
        )
        yield from words.disclosed(self.counts)


def first_page(content: ClassificationRun) -> Section:
    """Return the first page."""
    value, count = content.mean(LEADING)
    good = "It has not been tested yet."
    if value is not None:
        good = f"Balanced accuracy {told(LEADING, value)}, {content.meaning(count)}."
        good += " One run has no interval."
    facts = [
        ("What was trained", brief.trained(content.nouns, content.counts, False, None, one=True)),
        ("What it is good for", good),
        ("What it is not for", brief.not_for(content.nouns, content.phantoms, False)),
    ]
    return Section("brief", "In short", "", [("columns", [("", facts)])])
