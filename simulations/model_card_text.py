"""A model card as Hugging Face shows it: front matter in YAML, then sections in Markdown.

Whatever comes from a file stands in code spans, in which Markdown knows no markup.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from common.config.run_config import OF_SLICES
from common.extensions import is_extension
from common.metrics_log import WHOLE
from simulations.measures import measure
from simulations.model_card import SPLITS, Facts, printable
from simulations.model_card_markup import code, table, yaml
from simulations.model_card_privacy import of_privacy
from simulations.report.generation_words import CAVEATS
from simulations.report.tables import data_size, duration, told
from simulations.report.words import is_number, mapping, plural, sentence, whole

MARK = "<!-- Made by fedscan model-card, which may write this file again. -->"
SETTINGS = {  # of a run, in the order shown
    "run.rounds": "rounds",
    "training.local-steps": "local steps a round",
    "training.local-epochs": "local epochs a round",
    "training.batch-size": "batch size",
    "training.learning-rate": "learning rate",
    "training.weight-decay": "weight decay",
    "training.loss": "loss",
    "strategy.weighting": "weighting of sites",
    "transport": "transport",
    "model.classifier": "classifier",
    "model.gan": "preset of the networks",
    "data.size": "pixels or voxels a side",
    "run.seed": "seed",
}
OF_CLASSIFIER = (
    *("model.classifier", "data.size", "training.loss"),
    *("training.weight-decay", "training.learning-rate"),
)
OF_GAN = {
    "resolution": "pixels a side",
    "batch-size": "batch size",
    "kimg": "thousand images",
    "generator-learning-rate": "learning rate of the generator",
    "discriminator-learning-rate": "learning rate of the discriminator",
    "r1-gamma": "weight of R1",
    "augment": "augmentation",
    "seed": "seed",
}
LIBRARIES = ("fedscan", "python", "torch", "flwr", "numpy", "scipy", "scikit-learn", "nibabel")
LIMITS = (
    "For research only. It is no medical device, has not been assessed as one, and no decision "
    "about a patient may rest on it.",
)
GENERATED = (
    "Generated images show no patient and prove nothing of one. Mark them as generated wherever "
    "they are kept or shown.",
    "The test for copies does not see parts of an image in an otherwise new one. A generator that "
    "passes it is not proven to keep a secret.",
)


def render(facts: Facts, front: Mapping[str, Any]) -> str:
    """Return the whole card.

    Parameters
    ----------
    facts : Facts
    front : mapping
        The front matter: :func:`simulations.model_card.metadata`.
    """
    sections = {
        "": _what(facts),
        "Data": _data(facts),
        "Training": _training(facts),
        "Results": _results(facts),
        **({"Copies of training images": _copies(facts)} if facts.task == "generation" else {}),
        "Privacy": of_privacy(facts),
        "Limits": [*(f"- {one}" for one in _limits(facts))],
        "How to load": _loading(facts),
        "Provenance": _provenance(facts),
    }
    blocks = ["\n".join(["---", *yaml(front), "---", "", MARK])]
    for title, lines in sections.items():
        text = "\n".join(lines)
        blocks.append(f"## {title}\n\n{text}" if title else text)
    return "\n\n".join(blocks) + "\n"


def _what(facts: Facts) -> list[str]:
    made = {"classification": "classifier", "generation": "generator"}[facts.task]
    how = {
        "federated": f"by federated learning (strategy {code(facts.strategy)})",
        "centralized": "on the pooled images of all sites",
    }.get(facts.arm, f"on the images of one site, {code(facts.trained_on)}, alone")
    lines = [f"# {sentence(made)} of the study {code(facts.study_name)}", ""]
    lines.append(f"A {made} of {_images(facts)}, trained {how}. Hospitals: {_named_sites(facts)}.")
    if facts.variant not in ("", facts.strategy):
        lines[-1] += f" In its comparison it is called {code(facts.variant)}."
    if facts.study:
        label = facts.study.label
        named = ", ".join(map(code, label.classes.names))
        lines[-1] += f" Classes of {code(label.column)}: {named}."
    return lines


def _images(facts: Facts) -> str:
    if facts.study is None:
        return "images"
    pictures = facts.study.images.view == "picture"
    return "pictures" if pictures else "scans" if facts.task == "classification" else "slices"


def _named_sites(facts: Facts) -> str:
    names = list(facts.sites)
    return f"{plural(len(names), 'site')} ({', '.join(map(code, names))})"


def _data(facts: Facts) -> list[str]:
    kind = {
        True: "The images are phantoms: simulated people and devices.",
        False: "The images are those of a cohort that the user has given.",
        None: "The images are the sites' own.",
    }[facts.phantoms]
    rows = []
    for site, counts in facts.sites.items():
        least = counts.get("min_participants", 1)
        rows.append([code(site), *(_count(counts.get(key), least) for key in SPLITS)])
    lines = [kind, "", *table(["site", *(f"{split} images" for split in SPLITS.values())], rows)]
    rows = []
    for site, found in facts.classes.items():
        least = mapping(facts.sites.get(site)).get("min_participants", 1)
        people = _count(mapping(found).get("persons"), least)
        images = mapping(mapping(found).get("images"))
        each = ", ".join(f"{code(name)} {_count(n, least)}" for name, n in images.items())
        rows.append([code(site), people, each])
    if rows:
        lines += ["", *table(["site", "test people", "test images of each class"], rows)]
    return lines


def _count(value: object, least: object) -> str:
    """Tell a count as a site would: none of few people, where it withholds what is over these."""
    if not is_number(value):
        return "not told"
    few = is_number(least) and 0 < value < least
    return f"fewer than {whole(least)}" if few else whole(value)


def _training(facts: Facts) -> list[str]:
    lines = [f"- strategy: {code(facts.strategy)}"] if facts.arm == "federated" else []
    if facts.kind == "train-gan":
        settings = OF_GAN
    else:
        left = OF_CLASSIFIER if facts.task == "generation" else ("model.gan",)
        left = (*left, "strategy.weighting", "transport") if facts.arm != "federated" else left
        settings = {k: v for k, v in SETTINGS.items() if k not in left}
    for key, words in settings.items():
        if (value := facts.config.get(key)) not in (None, "", 0, 0.0) or key.endswith("seed"):
            lines.append(f"- {words}: {code(value)}")
    spent = {**facts.spent, **_generation(facts.summary)}
    for key, words in (("steps", "optimizer steps"), ("images_seen", "images seen in training")):
        if is_number(spent.get(key)):
            lines.append(f"- {words}: {whole(spent[key])}")
    if is_number(facts.summary.get("best_round")):
        lines.append(f"- released: the weights of round {whole(facts.summary['best_round'])}")
    sent = [facts.spent.get(key) for key in ("bytes_up", "bytes_down")]
    if all(map(is_number, sent)) and any(sent):
        lines.append(f"- bytes: {data_size(sent[0])} sent by sites, {data_size(sent[1])} to sites")
    if is_number(facts.spent.get("seconds")):
        lines.append(f"- time: {duration(facts.spent['seconds'])} on the machine of the run")
    return lines


def _generation(summary: Mapping[str, Any]) -> dict[str, Any]:
    found = mapping(summary.get("generation"))
    return {key: found[key] for key in ("images_seen",) if is_number(found.get(key))}


def _results(facts: Facts) -> list[str]:
    if not facts.scores:
        return ["The run's files tell no measures: the sites withheld them, or had too few images."]
    places = list(dict.fromkeys(one.place for one in facts.scores))
    names = list(dict.fromkeys(one.name for one in facts.scores))
    found = {(one.place, one.name): one for one in facts.scores}
    rows = []
    for place in places:
        row = ["all sites" if place == WHOLE else code(place)]
        for name in names:
            one = found.get((place, name))
            text = told(name, one.value) if one else "–"
            if one and one.low is not None and one.high is not None:
                text += f" ({told(name, one.low)} to {told(name, one.high)})"
            row.append(text)
        rows.append(row)
    return [
        _judged(facts),
        "",
        *table(["test images of", *map(_heading, names)], rows),
        *_less(names),
    ]


def _heading(name: str) -> str:
    kind, _, one = name.partition(".")
    return f"{measure(kind).words} of {code(one)}" if one else measure(name).words


def _judged(facts: Facts) -> str:
    if facts.kind == "comparison":
        times = plural(facts.repetitions, "repetition")
        text = f"On images that no training has seen, over {times} of this training."
        if any(one.low is not None for one in facts.scores):
            text += " In brackets: 95 % confidence intervals."
    else:
        text = "On images that no training has seen, of one training: there is no interval."
    if extractor := _extractor(facts):
        name, digest = printable(extractor.get("name")), printable(extractor.get("hash"))[:12]
        text += (
            f" Distances are of features of {code(name)} (hash {code(digest)}); those of another "
            "extractor, or of other numbers of images, cannot be compared with them."
        )
    return text


def _extractor(facts: Facts) -> Mapping[str, Any]:
    summary = facts.summary
    found = mapping(summary.get("extractor"))
    return found or mapping(mapping(summary.get("generation")).get("extractor"))


def _less(names: Sequence[str]) -> list[str]:
    less = [measure(name).words for name in names if measure(name).less_is_better]
    return ["", f"Less is better: {', '.join(less)}."] if less else []


def _copies(facts: Facts) -> list[str]:
    verdicts = {True: "**flagged as copying**", False: "not flagged", None: "not judged"}
    kept = ("authenticity", "authenticity_held_out", "look_alikes")
    rows = []
    for site, found in facts.copying.items():
        flag = found.get("copies_flagged")
        verdict = verdicts[None if flag is None else bool(flag)]
        numbers = [told(key, found.get(key)) for key in kept]
        rows.append(["all sites" if site == WHOLE else code(site), verdict, *numbers])
    heads = ["training images of", "verdict", "authenticity", "of held-out images"]
    lines = [*table([*heads, "share of look-alikes"], rows)] if rows else ["Not tested."]
    if facts.authenticity:
        lines += [
            "",
            "Distances of training images and of held-out images to their projections into the "
            "generator (`fedscan authenticity`). At an AUROC of 0.5 they do not differ.",
            "",
            *table(["space", "verdict", "AUROC (95 % CI)"], list(_authenticity(facts))),
        ]
    return lines


def _authenticity(facts: Facts) -> Iterator[list[str]]:
    """Yield one row for each latent space, or a single one where the result has no spaces."""
    found = facts.authenticity
    for space, one in (mapping(found.get("spaces")) or {"W": found}).items():
        result = mapping(one)
        auroc = mapping(result.get("auroc")) or {**result, "mean": result.get("auroc")}
        text = f"{auroc['mean']:.2f}" if is_number(auroc.get("mean")) else "–"
        if is_number(auroc.get("low")) and is_number(auroc.get("high")):
            text += f" ({auroc['low']:.2f} to {auroc['high']:.2f})"
        yield [code(str(space).upper()), code(result.get("verdict")), text]


def _limits(facts: Facts) -> Iterator[str]:
    yield from LIMITS
    if facts.phantoms:
        yield (
            "It was trained and tested on phantoms: its results say nothing of patients, and it is "
            "not made for their images."
        )
    else:
        yield "Its results say nothing of other hospitals, devices or patients."
    if facts.repetitions < 2:
        yield "One repetition: another seed may give other numbers."
    if facts.task == "generation":
        yield from GENERATED
        name = str(_extractor(facts).get("name", ""))
        yield from (caveat for one, caveat in CAVEATS.items() if name.startswith(one))
    withheld = [site for site in facts.sites if not any(s.place == site for s in facts.scores)]
    if withheld and facts.kind == "run":
        yield f"Measures that {', '.join(map(code, withheld))} withheld are not in the table."


def _loading(facts: Facts) -> list[str]:
    start = ["With fedscan installed, in the model's folder:", "", "```python"]
    if facts.task == "generation":
        return [
            *start,
            "from common.training.gan_sampling import load_generator, sample",
            "",
            'generator, about = load_generator(".")',
            "images = sample(generator, 4, seed=0)  # NumPy, (4, channels, side, side), in [-1, 1]",
            "```",
        ]
    about = facts.about
    apart = about.get("at-sites") or is_extension(str(about.get("classifier")))  # its constants
    strict = "strict=False" if apart else "strict=True"
    values = ['"study": about["study"]', '"model.classifier": about["classifier"]']
    if about.get("classifier") in OF_SLICES:
        values += [
            '"model.gan": about["gan"]',
            '"model.gan-changes": about["gan_changes"]',
            '"model.heights": about["heights"]',
        ]
    else:
        values.append('"data.size": about["image_size"]')
    values.append('"model.adapt": about["adapt"]')
    if about.get("pretrained"):
        values.append('"model.normalization": "frozen"')
    sites = tuple(sorted(facts.sites)) if about.get("classifier") == "gan-features" else ()
    lines = [
        *start,
        "from pathlib import Path",
        "",
        "from common.checkpoints import read_model",
        "from common.config.run_config import RunConfig",
        "from common.tasks.classifier_networks import build",
        "",
        'about, weights = read_model(Path("."))',
        "config = RunConfig.from_flower(",
        "    {",
        *(f"        {value}," for value in values),
        "    }",
        ")",
        f"model = build(config, {sites!r})",
        f"model.load_state_dict(weights, {strict})",
        "model.eval()  # images in [0, 1] to logits of " + 'about["classes"]',
        "```",
    ]
    if about.get("at-sites"):
        lines += ["", "The sites have kept a part of the network: here it is as it began."]
    if about.get("adapt") not in (None, "none"):
        lines += [
            "",
            f"At a site it was tested after adaptation to it (`model.adapt` = "
            f"{code(about['adapt'])}); these weights are those before.",
        ]
    return lines


def _provenance(facts: Facts) -> list[str]:
    lines = [
        f"- {name} {code(facts.versions[name])}" for name in LIBRARIES if name in facts.versions
    ]
    if facts.source_hash:
        lines.append(f"- hash of the sources: {code(facts.source_hash)}")
    return lines or ["The files do not tell."]
