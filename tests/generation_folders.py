"""Folders of a comparison of generators and of one run, as trainings would leave them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from common.data.dataset import Dataset, InMemory
from common.imaging.pictures import write_grid
from common.imaging.slices import LEVELS_MM
from common.studies.study import load_study
from simulations.report import samples
from simulations.results import NUMBERS, TEXTS
from simulations.summary import summarize

SITES = {"island": 20, "north": 200, "south": 120}  # people; the first is poor
MODELS = (("centralized", "", "all"), ("federated", "fedavg", "all"), ("local", "", "island"))
LEVEL = {"centralized": 5.0, "federated": 7.0, "local": 40.0}  # of the last distances
EXTRACTOR = {"name": "fedscan-brain-r1-p3-v1", "hash": "ab" * 32}
STUDY = load_study("brain-sex")
SEXES = STUDY.label.classes.names
Paint = Callable[[int, np.random.Generator, float], np.ndarray]


def noise(count: int, rng: np.random.Generator, blur: float) -> np.ndarray:
    """Pictures (count, 1, 8, 8) of nothing."""
    del blur
    return rng.uniform(-1, 1, (count, 1, 8, 8)).astype(np.float32)


def write_grids(
    folder: Path, rounds: list[int], rng: np.random.Generator, paint: Paint, sites: list[str]
) -> None:
    names = [f"{sex} {site}".strip() for sex in SEXES for site in sites]
    for number in rounds:
        rows = [paint(10, rng, 1 - number / rounds[-1]) for _ in names]
        path = folder / "grids" / f"round-{number:04d}.png"
        write_grid(path, rows, names=names, captions=samples.captions(STUDY))


def slices(count: int, site: str, rng: np.random.Generator, paint: Paint) -> Dataset:
    """Slices of people, women and men by turns."""
    levels = list(LEVELS_MM)
    images = np.concatenate([paint(len(levels), rng, 0.0) for _ in range(count)])
    conditions = tuple(
        {"sex": SEXES[k % 2], "height": f"{level:g}", "site": site}
        for k in range(count)
        for level in levels
    )
    persons = tuple(f"sub-{k}" for k in range(count) for _ in levels)
    labels = np.repeat(np.arange(count) % 2, len(levels))
    return Dataset(InMemory((images + 1) / 2), labels, persons, conditions)


def measures(arm: str, own: bool, rng: np.random.Generator, progress: float) -> dict[str, float]:
    distance = LEVEL[arm] * (1 if own else 1.5) * (1 + 60 * (1 - progress) ** 2)
    distance *= np.exp(0.04 * rng.normal())
    return {
        "frechet_distance": distance,
        "kernel_distance": distance / 50,
        "precision": float(np.clip(0.9 - distance / 200, 0, 1)),
        "recall": float(np.clip(0.3 - distance / 200, 0, 1)),
    }


def make_comparison(
    folder: Path,
    *,
    sites: dict[str, int] = SITES,
    models: tuple[tuple[str, str, str], ...] = MODELS,
    seeds: int = 3,
    rounds: int = 18,
    flagged: tuple[tuple[str, int, str], ...] = (),
    failed: tuple[tuple[str, int], ...] = (),
    use: bool = True,
    paint: Paint = noise,
) -> Path:
    """Write a comparison's folder; the statistics are real."""
    rng = np.random.default_rng(4)
    rows, evaluated = [], list(range(6, rounds + 1, 6))
    for seed in range(seeds):
        for arm, strategy, trained_on in models:
            cell = {"arm": arm, "strategy": strategy, "seed": seed, "seconds": 321.0 + seed}
            if (arm, seed) in failed:
                rows.append({**cell, "status": "error", "split": "test"})
                continue
            federated = arm == "federated"
            cell |= {"trained_on": trained_on, "status": "done", "bytes_up": 0, "bytes_down": 0}
            members = [trained_on] if arm == "local" else list(sites)

            def add(split: str, place: str, metric: str, value: float, n: int, number: int):
                spent = {"rounds": number, "steps": 20 * number, "images_seen": 480 * number}
                where = {"split": split, "tested_on": place, "metric": metric}
                rows.append({**cell, **spent, **where, "value": value, "n": n})  # noqa: B023

            for number in evaluated:
                for place in [*members, "all"]:
                    found = measures(arm, trained_on == place, rng, number / rounds)
                    if place == "island":  # 20 slices are too few for a covariance
                        del found["frechet_distance"]
                    for metric, value in found.items():
                        if place != "all" or metric == "frechet_distance":
                            n = sites.get(place, sum(sites.values()))
                            add("val", place, metric, value, n, number)
            if federated:
                cell |= {"bytes_up": 45_000_000, "bytes_down": 61_000_000}
            for place in sites:
                for metric, value in measures(arm, trained_on == place, rng, 1).items():
                    add("test", place, metric, value, 300, rounds)
                for metric in ("coverage", "authenticity", "authenticity_held_out"):
                    add("test", place, metric, rng.uniform(0.4, 0.8), 300, rounds)
                flag = float((arm, seed, place) in flagged)
                add("test", place, "copies_flagged", flag, 300, rounds)
                add("test", place, "look_alikes", 0.0, 300, rounds)
            whole = measures(arm, False, rng, 1)
            add("test", "all", "frechet_distance", whole["frechet_distance"], 900, rounds)
            for metric, value in whole.items():
                add("test", "all", f"{metric}_mean", value, 900, rounds)
            name = "-".join(filter(None, (arm, strategy, f"seed{seed}")))
            home = folder / "cells" / name / trained_on
            named = ["island"] if arm == "local" else list(sites)
            write_grids(home, evaluated if seed == 0 else evaluated[-1:], rng, paint, named)
            summary = {"best_round": evaluated[-2], "generation": {"extractor": EXTRACTOR}}
            if federated:
                summary |= {"bytes_plain": 300_000_000, "bytes_up": 45e6, "bytes_down": 61e6}
            (home / "summary.json").write_text(json.dumps(summary))
    results = pd.DataFrame(rows).reindex(columns=[*TEXTS, *NUMBERS])
    manifest = {
        "description": "Does a small hospital gain by joining?",
        "config": {
            "task": "generation",
            "study": "brain-sex",
            "data.cohort-dir": "",
            "gan": "tiny-32",
            "training.batch-size": 8,
        },
        "arms": sorted({arm for arm, _, _ in models}),
        "strategies": ["fedavg"],
        "repetitions": list(range(seeds)),
        "sites": {
            s: {"n_train": int(0.8 * n), "n_val": n - int(0.8 * n), "n_test": 60}
            for s, n in sites.items()
        },
        "poor_site": next(iter(sites)),
        "budget": {"steps": 20 * rounds, "batch_size": 8, "centralized_batch": "large"},
        "versions": {"python": "3.11.2", "torch": "2.13.0"},
        "source_hash": "0123456789abcdef" * 4,
        "seconds": 2812.4,
        "started": "2026-03-04T05:06:07+00:00",
        "machine": {"cpus": 2, "gpus_per_cell": 0.0, "processor": "a processor"},
    }
    plain = {("fedavg", seed): 300e6 for seed in range(seeds)}
    summary = summarize(
        results,
        task="generation",
        poor_site=manifest["poor_site"],
        sites=list(sites),
        plain_bytes=plain,
    )
    folder.mkdir(parents=True, exist_ok=True)
    results.to_csv(folder / "results.csv", index=False)
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    kept = {site: samples.laid_out(slices(4, site, rng, paint), STUDY) for site in sites}
    np.savez(folder / "samples.npz", **kept)
    if use:
        _use(rng, seeds).to_csv(folder / "use.csv", index=False)
    return folder


def _use(rng: np.random.Generator, seeds: int) -> pd.DataFrame:
    named = {"local real only": 0.74, "local real + federated GAN": 0.8, "federated GAN only": 0.71}
    chosen = [
        {
            **{"seed": seed, "row": "local real + federated GAN", "site": "island"},
            **{"metric": "synthetic_participants", "value": 32.0, "n": 4},
        }
        for seed in range(seeds)
    ]
    tested = [
        {
            **{"seed": seed, "row": row, "site": "island", "metric": metric},
            **{"value": level + 0.02 * rng.normal(), "n": 60},
        }
        for seed in range(seeds)
        for row, level in named.items()
        for metric in ("balanced_accuracy", "auroc")
    ]
    return pd.DataFrame(tested + chosen)


def make_run(folder: Path, *, rounds: int = 12, paint: Paint = noise, ended: bool = True) -> Path:
    """Write a run's folder, of a run that ended or is under way."""
    rng = np.random.default_rng(5)
    lines, evaluated = [], list(range(3, rounds + 1, 3))

    def log(number: int, site: str, split: str, name: str, value: float, n: int) -> None:
        row = {"round": number, "site": site, "split": split, "name": name, "value": value}
        lines.append({**row, "n": n, "seconds": float(number)})

    for number in range(1, rounds + 1):
        for site in SITES:
            log(number, site, "train", "p", 0.01 * number, 80)
            log(number, site, "train", "bytes-down-train", 900_000, 0)
            log(number, site, "train", "bytes-up-train", 800_000, 0)
        if number in evaluated:
            for site in SITES:
                for name, value in measures("federated", True, rng, number / rounds).items():
                    log(number, site, "val", name, value, 100)
                log(number, site, "val", "bytes-down-evaluate", 400_000, 0)
                log(number, site, "val", "bytes-up-evaluate", 4_000, 0)
            whole = measures("federated", False, rng, number / rounds)
            log(number, "all", "val", "frechet_distance", whole["frechet_distance"], 300)
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    counts = {s: {"n_train": n, "n_val": 8, "n_test": 60, "left_out": 0} for s, n in SITES.items()}
    config = {"task": "generation", "study": "brain-sex", "data.cohort-dir": ""}
    config |= {"strategy.name": "fedavg", "run.seed": 0}
    manifest = {"run_id": "17", "config": config, "sites": counts, "source_hash": "01" * 32}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    write_grids(folder, evaluated, rng, paint, list(SITES))
    if ended:
        found = {**measures("federated", True, rng, 1), "coverage": 0.5, "authenticity": 0.6}
        found |= {"authenticity_held_out": 0.6, "copies_flagged": 0.0, "extractor": EXTRACTOR}
        summary = {
            **{"run_id": "17", "strategy": "fedavg", "seed": 0, "rounds": rounds},
            **{"best_round": evaluated[-1], "seconds": 120.0, "bytes_plain": 200e6},
            **{"bytes_up": 30e6, "bytes_down": 40e6, "generation": found},
            "sites": {site: {**counts[site], "generation": found} for site in SITES},
        }
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder
