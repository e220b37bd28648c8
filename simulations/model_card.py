"""What the files of a trained model tell of it: the facts of its model card.

The folder is one of ``fedscan run``, ``federate`` or ``flwr run``, of ``train-gan``, or of one
model of a comparison (``cells/CELL/all``, ``cells/CELL/SITE``), which then has intervals. Nothing
is computed: every number is one of the folder's. No image and no weight is opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.checkpoints import MODEL
from common.errors import ConfigError, FedscanError
from common.metrics_log import WHOLE
from common.reading import read_json
from common.run_folder import LAUNCH, MANIFEST, SUMMARY, TOGETHER
from common.studies.study import Study, read_study
from simulations.folders import in_words
from simulations.measures import ATTACKED, CLASSIFICATION, GENERATION, measure
from simulations.report.provenance import simulated
from simulations.report.words import is_number, mapping, sentence
from simulations.results import read_table
from simulations.resume import way_on

AUTHENTICITY = "authenticity.json"
REMEDY = "Copy the folder again, or name another"
WANTED = (
    "Name the folder of a run, of a training of train-gan, or cells/CELL/all or cells/CELL/SITE of "
    "a comparison, whose training has ended"
)
TASKS = {  # of Hugging Face
    "classification": ("image-classification", "Image classification"),
    "generation": ("unconditional-image-generation", "Image generation"),
}
AUDIT = ("authenticity", "authenticity_held_out", "copies_flagged")  # in a section of their own
OF_DATA = ("ms_ssim_real",)  # whatever the model
MEASURES = {
    "classification": (*CLASSIFICATION, *ATTACKED),
    "generation": tuple(name for name in GENERATION if name not in (*AUDIT, *OF_DATA)),
}
# Hugging Face's names, where it has them. Its FID is of another network's features than ours.
METRICS = {"auroc": "roc_auc", "auprc": "average_precision"}
SPLITS = {"n_train": "training", "n_val": "validation", "n_test": "test"}


@dataclass(frozen=True)
class Score:
    """A measure of the model on the test images of a place; ``low`` and ``high`` of 95 %, or None.

    The place is a site, or "all".
    """

    place: str
    name: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Facts:
    """What is known of a model.

    Parameters
    ----------
    kind : {"run", "train-gan", "comparison"}
        Where it comes from.
    task : str
    study : Study or None
        None where it cannot be read.
    config : mapping
        Flat, of the run; or the generator's training.
    about : mapping
        ``model.json`` or ``gan.json``.
    summary : mapping
        The model's own.
    sites : mapping of str to mapping
        Each site's counts.
    scores : tuple of Score
    repetitions : int
        That the scores are means over; 1 without intervals.
    arm, variant, trained_on : str
        The variant is the comparison's name of it, if it has one.
    classes : mapping of str to mapping
        Site to its test images of each class and its people, where they are told.
    spent : mapping
        ``steps``, ``images_seen``, ``bytes_up``, ``bytes_down``, ``bytes_plain``, ``seconds``.
    phantoms : bool or None
        None where it is not known whose images they are.
    versions : mapping
    source_hash : str
    authenticity : mapping
        As ``fedscan authenticity`` wrote it; may be empty.
    """

    kind: str
    task: str
    study: Study | None
    config: Mapping[str, Any]
    about: Mapping[str, Any]
    summary: Mapping[str, Any]
    sites: Mapping[str, Mapping[str, Any]]
    scores: tuple[Score, ...]
    repetitions: int = 1
    arm: str = "federated"
    variant: str = ""
    trained_on: str = WHOLE
    classes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    spent: Mapping[str, Any] = field(default_factory=dict)
    phantoms: bool | None = None
    versions: Mapping[str, Any] = field(default_factory=dict)
    source_hash: str = ""
    authenticity: Mapping[str, Any] = field(default_factory=dict)

    @property
    def study_name(self) -> str:
        """Name of the study."""
        return self.study.name if self.study else "unknown"

    @property
    def strategy(self) -> str:
        """Name of the strategy; of what is no federation, how it was trained."""
        if self.arm != "federated":
            return self.arm
        return str(self.config.get("strategy.name", "fedavg"))

    @property
    def copying(self) -> dict[str, Mapping[str, Any]]:
        """What each site found of copies of its training images."""
        if self.kind == "train-gan":
            found = mapping(self.summary.get("copying"))
            return {WHOLE: {**found, "copies_flagged": found.get("flagged")}} if found else {}
        if together := mapping(self.summary.get(TOGETHER)):  # of secure sums: of one site or more
            return {WHOLE: together} if "copies_flagged" in together else {}
        told = {
            site: mapping(mapping(one).get("generation"))
            for site, one in mapping(self.summary.get("sites")).items()
        }
        return {site: one for site, one in told.items() if "copies_flagged" in one}


def read_facts(folder: Path, authenticity: Path | None = None) -> Facts:
    """Read the facts of a model.

    Parameters
    ----------
    folder : Path
    authenticity : Path, optional
        Folder with ``authenticity.json``; by default ``authenticity`` in the model's folder, if it
        is there.

    Raises
    ------
    ConfigError
        It is no folder of a trained model, or there is no such result.
    FedscanError
        A file of it cannot be read.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder. {WANTED}")
    with in_words(folder, REMEDY):
        summary, manifest = _read(folder / SUMMARY), _read(folder / MANIFEST)
        of_comparison = folder.parent.parent.name == "cells"
        if not summary or not (manifest or of_comparison):
            inside = sorted(
                one.parent for at in ("*", "cells/*/all") for one in folder.glob(f"{at}/{SUMMARY}")
            )
            hint = f" There is one in {inside[-1]}" if inside else ""
            if not summary and (folder / LAUNCH).is_file():
                hint = f" This run has not ended. {way_on(folder) or 'Begin it anew'}"
            missing = SUMMARY if not summary else MANIFEST
            raise ConfigError(f"{folder}: {missing} is missing. {WANTED}.{hint}")
        about = _read(folder / ("model.json" if (folder / MODEL).is_file() else "gan.json"))
        if "preset" in manifest:
            facts = _trained_gan(summary, manifest, about)
        elif of_comparison:
            facts = _compared(folder, summary, manifest, about)
        else:
            facts = _of_run(folder, summary, manifest, about)
    found = authenticity or folder / "authenticity"
    result = _read(found / AUTHENTICITY)
    if authenticity and not result:
        raise ConfigError(f"--authenticity {found}: it holds no {AUTHENTICITY}")
    return Facts(**{**vars(facts), "authenticity": result})


def metadata(facts: Facts, licence: str = "") -> dict[str, Any]:
    """Return the card's front matter, as Hugging Face specifies it.

    Notes
    -----
    https://github.com/huggingface/hub-docs/blob/main/modelcard.md: ``model-index`` needs of each
    result the task's type, the dataset's type and name, and each metric's type and value.
    """
    task, title = TASKS[facts.task]
    kind = "-".join(dict.fromkeys(filter(None, (facts.strategy, facts.variant))))
    name = f"{facts.study_name}-{facts.task}-{kind}"
    tags = ["fedscan", "medical", facts.study_name, facts.strategy]
    tags += ["federated-learning"] * (facts.arm == "federated")
    tags += ["synthetic-data"] * (facts.phantoms is True)
    places: dict[str, list[Score]] = {}
    for score in facts.scores:
        places.setdefault(score.place, []).append(score)
    results = [
        {
            "task": {"type": task, "name": title},
            "dataset": {
                "type": facts.study_name,
                "name": f"{facts.study_name}, "
                + ("all sites" if place == WHOLE else f"site {printable(place)}"),
                "split": "test",
            },
            "metrics": [
                {"type": METRICS.get(one.name, one.name), "value": one.value, "name": _named(one)}
                for one in scores
            ],
        }
        for place, scores in places.items()
    ]
    return {
        **({"license": licence} if licence else {}),
        "library_name": "fedscan",
        "pipeline_tag": task,
        "tags": list(dict.fromkeys(printable(tag) for tag in tags)),
        "metrics": list(dict.fromkeys(METRICS.get(one.name, one.name) for one in facts.scores)),
        **({"model-index": [{"name": printable(name), "results": results}]} if results else {}),
    }


def printable(text: object) -> str:
    """Return a text from a file in one line, without what no terminal or YAML shows."""
    return "".join(c if c.isprintable() else "\ufffd" for c in str(text))[:200]


def _named(score: Score) -> str:
    words = printable(sentence(measure(score.name).words))
    if score.low is None or score.high is None:
        return words
    return f"{words} (95 % CI {score.low:.4g} to {score.high:.4g})"


def _read(path: Path) -> dict[str, Any]:
    """Read a file that may be missing."""
    try:
        return read_json(path, remedy=REMEDY)
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _study(text: object) -> Study | None:
    try:
        return read_study(str(text))
    except FedscanError:
        return None


def _of_run(folder: Path, summary: dict, manifest: dict, about: dict) -> Facts:
    config = mapping(manifest.get("config"))
    task = _task(str(config.get("task", "classification")))
    study = _study(config.get("study"))
    counts = _counts(manifest.get("sites"), summary.get("sites"))
    return Facts(
        kind="run",
        task=task,
        study=study,
        config=config,
        about=about,
        summary=summary,
        sites=counts,
        scores=tuple(_own_scores(summary, task, study)),
        spent=summary,
        phantoms=simulated(folder, config),
        versions=mapping(manifest.get("versions")),
        source_hash=str(manifest.get("source_hash", "")),
    )


def _trained_gan(summary: dict, manifest: dict, about: dict) -> Facts:
    listed = mapping(manifest.get("sites"))
    generated = mapping(summary.get("generated"))
    generated = {**generated, **mapping(generated.get("statistics"))}
    scores = (
        Score(WHOLE, m, generated[m]) for m in MEASURES["generation"] if is_number(generated.get(m))
    )
    return Facts(
        kind="train-gan",
        task="generation",
        study=_study(manifest.get("study")),
        config=mapping(manifest.get("config")),
        about=about,
        summary=summary,
        sites={site: {"n_train": mapping(n).get("train_images")} for site, n in listed.items()},
        scores=tuple(scores),
        arm="centralized" if len(listed) > 1 else "local",
        trained_on=WHOLE if len(listed) > 1 else next(iter(listed), WHOLE),
        spent={key: summary.get(key) for key in ("steps", "images_seen", "seconds")},
        phantoms=manifest.get("cohort") == "",
        versions=mapping(manifest.get("versions")),
        source_hash=str(manifest.get("source_hash", "")),
    )


def _compared(folder: Path, summary: dict, manifest: dict, about: dict) -> Facts:
    """Of one model of a comparison: means and intervals over its repetitions."""
    root, cell, name = folder.parents[2], folder.parent.name, folder.name
    whole, result = _read(root / MANIFEST), _read(root / SUMMARY)
    if not whole or not result:
        raise ConfigError(f"{root}: the comparison has not ended: go on with --resume")
    arm, _, strategy = cell.rpartition("-seed")[0].partition("-")
    model = f"{arm}/{strategy}" if strategy else arm
    config = mapping(manifest.get("config")) or mapping(whole.get("config"))
    task, study = _task(str(config.get("task", "classification"))), _study(config.get("study"))
    scores = []
    for place, models in mapping(result.get("scores")).items():
        elsewhere = arm == "local" and place != name
        found = models.get(f"{model} at {name}" if elsewhere else model)
        scores += _estimates(place, mapping(found), _measures(task, study))
    trained = mapping(whole.get("sites"))
    rows = read_table(root / "cells" / cell / "results.csv", root, remedy=REMEDY)
    mine = rows[(rows["trained_on"] == name) & (rows["split"] == "test")]
    columns = ("steps", "images_seen", "bytes_up", "bytes_down", "seconds")
    spent = {key: float(mine[key].max()) for key in columns if mine[key].notna().any()}
    images = _counts(trained, result.get("images"))
    return Facts(
        kind="comparison",
        task=task,
        study=study,
        config=config,
        about=about,
        summary=summary,
        sites=_counts(images, summary.get("sites")),
        scores=tuple(scores),
        repetitions=len(result.get("repetitions") or []),
        arm=arm,
        variant=strategy,
        trained_on=name,
        classes=mapping(result.get("counts")),
        spent={**spent, "bytes_plain": summary.get("bytes_plain")},
        phantoms=mapping(whole.get("config")).get("data.cohort-dir") == "",
        versions=mapping(whole.get("versions")),
        source_hash=str(about.get("source_hash") or whole.get("source_hash", "")),
    )


def _measures(task: str, study: Study | None) -> tuple[str, ...]:
    """Return what the card tells: of a classifier also the recall of the class to be found."""
    positive = study.label.positive if study and task == "classification" else None
    return (*MEASURES[task], *([f"recall.{positive}"] if positive else ()))


def _task(name: str) -> str:
    if name not in TASKS:
        raise ConfigError(f"task '{printable(name)}': accepted is one of {', '.join(TASKS)}")
    return name


def _counts(*told: object) -> dict[str, dict[str, Any]]:
    """Bring together what several files say of each site; the later is the better known."""
    kept = (*SPLITS, "min_participants")
    counts: dict[str, dict[str, Any]] = {}
    for one in map(mapping, told):
        for site, found in one.items():
            mine = counts.setdefault(str(site), {})
            mine |= {k: v for k, v in mapping(found).items() if k in kept and is_number(v)}
    return counts


def _own_scores(summary: Mapping[str, Any], task: str, study: Study | None) -> Iterator[Score]:
    """Yield a single run's: of each site, and of a generator over all of them."""
    if task == "generation":
        places = {WHOLE: summary.get("generation")}
        places |= {s: mapping(one).get("generation") for s, one in _sites(summary)}
    else:
        places = {**dict(_sites(summary)), WHOLE: summary.get(TOGETHER)}  # of secure sums
    names = _measures(task, study)
    for place, found in places.items():
        one = mapping(found)
        yield from (Score(place, m, one[m]) for m in names if is_number(one.get(m)))


def _sites(summary: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return list(mapping(summary.get("sites")).items())


def _estimates(place: str, found: Mapping[str, Any], names: Sequence[str]) -> Iterator[Score]:
    for name in names:
        one = mapping(found.get(name))
        if is_number(one.get("mean")):
            ends = [one[end] if is_number(one.get(end)) else None for end in ("low", "high")]
            yield Score(place, name, one["mean"], *ends)
