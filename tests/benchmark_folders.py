"""Benchmark folders as random models would leave them, and pages as a test reads them."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd

from common.evaluation.classification import classification_metrics
from simulations.results import NUMBERS, TEXTS
from simulations.summary import summarize

MODELS = (("centralized", ""), ("local", ""), ("federated", "fedavg"))
SITES = {"island": 4, "north": 40, "south": 24}  # validation scans
SEXES = ("female", "male")
LESIONS = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")


def make_folder(
    folder: Path,
    *,
    sites: dict[str, int] = SITES,
    models: tuple[tuple[str, str], ...] = MODELS,
    seeds: int = 3,
    rounds: int = 6,
    n_test: int = 24,
    failed: tuple[tuple[str, str, int, str], ...] = (),
    samples: dict[str, np.ndarray] | None = None,
    classes: tuple[str, ...] = SEXES,
    study: str = "brain-sex",
    draws: int = 200,
) -> Path:
    """Write a benchmark's folder as random models would leave it; the statistics are real.

    Of more than two classes the first is positive, the second is the most frequent, the first site
    has no test image of the last, and every second image is of the same person as the one before.
    """
    rng, k = np.random.default_rng(3), len(classes)
    labels = {site: np.arange(n_test) % 2 for site in sites}
    if k > 2:
        frequent = np.repeat(np.arange(k), [4, 10] + [2] * (k - 2))
        labels = {site: np.resize(frequent, n_test) for site in sites}
        labels[next(iter(sites))] = np.resize(frequent[:-2], n_test)
    named, positive = (list(classes), classes[0]) if k > 2 else (None, None)
    rows, predictions = [], {site: [] for site in sites}

    def add(**values: object) -> None:
        blank = {"n": n_test, "seconds": 94.5, "bytes_up": 0, "bytes_down": 0, "status": "done"}
        rows.append({**blank, **values})

    for seed in range(seeds):
        for arm, strategy in models:
            cell = {"arm": arm, "strategy": strategy, "seed": seed}
            status = next((s for *key, s in failed if key == [arm, strategy, seed]), "done")
            if status != "done":
                add(**cell, trained_on="all", tested_on="", split="test", metric="", status=status)
                continue
            if arm == "federated":
                cell |= {"bytes_up": 20_149_200, "bytes_down": 40_970_040}
            for trained_on in sites if arm == "local" else ["all"]:
                spent = {"trained_on": trained_on}
                for number in range(1, rounds + 1):
                    spent |= {"rounds": number, "steps": 40 * number}
                    spent["images_seen"] = 640 * number * (1 if arm == "local" else len(sites))
                    for site in [trained_on] if arm == "local" else sites:
                        skill = number / rounds + 0.1 * rng.normal()
                        curve = {"loss": 0.7 - 0.4 * skill, "balanced_accuracy": 0.5 + 0.3 * skill}
                        for metric, value in curve.items():
                            where = {"tested_on": site, "split": "val", "n": sites[site]}
                            add(**{**cell, **spent, **where, "metric": metric, "value": value})
                for site, truth in labels.items():
                    skill = 0.6 if arm == "local" and site == "island" else 1.8
                    if k == 2:
                        logits = skill * (2 * truth - 1) + rng.normal(size=n_test) * 1.5
                        said = np.stack([0 * logits, logits], axis=1)
                    else:
                        said = 2 * skill * np.eye(k)[truth] + rng.normal(size=(n_test, k))
                    probabilities = np.exp(said) / np.exp(said).sum(axis=1, keepdims=True)
                    told = classification_metrics(truth, probabilities, named, positive)
                    for metric, value in told.items():
                        where = {"tested_on": site, "split": "test"}
                        add(**cell, **spent, **where, metric=metric, value=value)
                    persons = np.arange(n_test) // (1 if k == 2 else 2)
                    columns = {"scan": range(n_test), "person": persons, "label": truth}
                    columns |= {
                        f"probability.{name}": probabilities[:, c] for c, name in enumerate(classes)
                    }
                    key = {k: cell[k] for k in ("arm", "strategy", "seed")}
                    predictions[site].append(
                        pd.DataFrame(columns).assign(**key, trained_on=trained_on)
                    )
    results = pd.DataFrame(rows).reindex(columns=[*TEXTS, *NUMBERS])
    tables = {site: pd.concat(found) for site, found in predictions.items() if found}
    summary = summarize(
        results, tables, poor_site=next(iter(sites)), positive=positive, draws=draws
    )
    manifest = {
        "config": {
            "study": study,
            "task": "classification",
            "data.cohort-dir": "",
            "run.output-dir": "",
            "training.batch-size": 16,
            "training.learning-rate": 1e-3,
        },
        "arms": sorted({arm for arm, _ in models}),
        "strategies": ["fedavg"],
        "repetitions": list(range(seeds)),
        "sites": {s: {"n_train": 4 * n, "n_val": n, "n_test": n_test} for s, n in sites.items()},
        "poor_site": next(iter(sites)),
        "budget": {"steps": 40 * rounds, "batch_size": 16, "centralized_batch": "large"},
        "versions": {"python": "3.11.2", "torch": "2.13.0"},
        "source_hash": "0123456789abcdef" * 4,
        "seconds": 812.4,
        "started": "2026-03-04T05:06:07+00:00",
        "machine": {"cpus": 8, "gpus": [], "processor": "a processor"},
    }
    folder.mkdir(parents=True)
    results.to_csv(folder / "results.csv", index=False)
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    if samples is None:
        samples = {site: rng.random((6, 12, 12), dtype=np.float32) for site in sites}
    if samples:
        np.savez(folder / "samples.npz", **samples)
    return folder


class Page(HTMLParser):
    """What a test asks of the page: every element with its attributes, the visible words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._silent = False
        self.feed(text)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attributes)))
        self._silent = name == "style"

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.words.append(data)

    def handle_endtag(self, name: str) -> None:
        self._silent = False

    def all(self, name: str) -> list[dict[str, str | None]]:
        """Attributes of every element of a name."""
        return [attributes for found, attributes in self.elements if found == name]
