"""Sentences of the report that follow from numbers, and how numbers become words."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from common.disclosure import MIN_PARTICIPANTS
from common.errors import FedscanError
from common.evaluation.statistics import NO_INTERVAL, REPETITIONS_FOR_P
from common.metrics_log import WHOLE
from common.studies.study import read_study

MOST_NAMES = 8  # of sites or classes, in a sentence
ABSENT, NO_WIDTH = "no interval", "zero-width interval"  # of a number: see `unsure`
EQUAL = "Zero-width interval: all values are equal, which says nothing of chance."
FEW_IMAGES = 20  # a validation split below moves in steps of 5 % of a class and more

MATRIX = (
    "A local model that does well at home and poorly elsewhere has learned its own scanner and "
    "patients; one model for all sites should do well in every column."
)
NO_TESTS = "No model ended well, so there is no test result to show."
NO_CURVES = "The results hold no validation metrics."
NO_MATRIX = "No model ended well, so there is nothing to cross."
NO_SAMPLES = "The folder holds no samples.npz, so there are no training images to show."
FOOTER = (
    "Made by fedscan report from results.csv, summary.json, manifest.json and samples.npz of "
    "this folder. The file is complete in itself and asks the network for nothing."
)


@dataclass(frozen=True)
class Nouns:
    """What the study's images are called, and what it asks of them."""

    image: str = "scan"  # of a person
    made: str = "slice"  # what a generator makes
    label: str = "label"
    classes: tuple[str, ...] = ()
    positive: str = ""

    @property
    def images(self) -> str:
        """The plural."""
        return f"{self.image}s"


def nouns(config: Mapping[str, Any]) -> Nouns:
    """Return the nouns of a run config's study; of one that cannot be read, those of scans."""
    try:
        study = read_study(str(config.get("study", "")))
    except FedscanError:
        return Nouns()
    pictures = study.images.view == "picture"
    image, made = ("picture", "picture") if pictures else ("scan", "slice")
    label = study.label
    return Nouns(image, made, label.column, label.classes.names, label.positive or "")


def place(name: str) -> str:
    """Return where something was tested, to stand above a panel; a site keeps its spelling."""
    return "All sites" if name == WHOLE else name


def repetitions(results: pd.DataFrame) -> str:
    """Say how many repetitions the means are over; "2 to 3" where some arm lost one."""
    done = results[(results["status"] == "done") & (results["split"] == "test")]
    counts = done.groupby(["arm", "strategy", "trained_on"])["seed"].nunique()
    low, high = (int(counts.min()), int(counts.max())) if len(counts) else (0, 0)
    return f"{low} to {high} repetitions" if low < high else plural(high, "repetition")


def results(means: str, intervals: str, nouns: Nouns) -> str:
    """Say how classifiers were tested."""
    return (
        f"Every model is tested once, on {nouns.images} that neither training nor the choice of a "
        f"round has seen. Shown are {means}; {intervals}. Balanced accuracy is the mean recall of "
        f"the classes that the site's test {nouns.images} hold. AUROC needs no threshold; of more "
        "than two classes, it is the mean of each of those against the rest, and F1 their mean."
    )


def intervals(summary: Mapping[str, Any], level: str, shown: str = "bars") -> str:
    """Say what the intervals of the scores were taken over, and how they are shown."""
    records = [
        mapping(record)
        for models in mapping(summary.get("scores")).values()
        for measures in mapping(models).values()
        for record in mapping(measures).values()
    ]
    over = sorted({str(one["over"]) for one in records if one.get("over")})
    if not over:
        return "there are no intervals"
    told = " or ".join(f"over {one}" for one in over)
    if summary.get("new_cohorts"):
        told = told.replace("repetitions", "repetitions, each with people of its own")
    return f"{shown} are {level} intervals {told}"


def unsure(record: Mapping[str, Any]) -> str:
    """Say what keeps a record's interval from telling of chance; nothing where it does tell."""
    mean, low, high = (record.get(key) for key in ("mean", "low", "high"))
    if not is_number(mean):
        return ""
    if not is_number(low) or not is_number(high):
        return ABSENT
    return NO_WIDTH if high - low <= 1e-9 * max(1.0, abs(mean)) else ""


def repeated(manifest: Mapping[str, Any]) -> str:
    """Say what varies from one repetition to the next."""
    told = manifest.get("repeated")
    return f"{sentence(told)}." if isinstance(told, str) and told else ""


def few(summary: Mapping[str, Any]) -> str:
    """Say where there is no interval, as too few people of a class were tested."""
    found = {s: mapping(n).get("few") for s, n in mapping(summary.get("counts")).items()}
    told = [f"{', '.join(map(str, names))} at {site}" for site, names in found.items() if names]
    return f" {sentence(NO_INTERVAL)}{'; '.join(told)}." if told else ""


def level(summary: Mapping[str, Any]) -> str:
    """Return the intervals' level as a percentage."""
    found = summary.get("level")
    return f"{100 * found:.3g} %" if is_number(found) else "95 %"


def data_poor(site: str, counts: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a site trains on at most half as many images as the one with the most."""
    known = {name: n["n_train"] for name, n in counts.items() if is_number(n.get("n_train"))}
    return site in known and 2 * known[site] <= max(known.values())


def subject(nouns: Nouns, *, generation: bool, one: bool = False) -> str:
    """Say what is learned from what, by one model or more, in one sentence."""
    who, s = ("The model", "s") if one else ("The models", "")
    if generation:
        given = f", given {nouns.label}" if nouns.classes else ""
        return f"{who} generate{s} {nouns.made}s{given}."
    of = f" ({', '.join(nouns.classes)})" if 0 < len(nouns.classes) <= MOST_NAMES else ""
    does = "classifies" if one else "classify"
    return f"{who} {does} {nouns.label}{of} from {nouns.images}."


def site(counts: Mapping[str, Any], images: str, *, poor: bool) -> str:
    """Return a panel's note: whether the site is the data-poor one, and how many images it has."""
    known = [
        f"{whole(counts[key])} {word}"
        for key, word in (("n_train", "training"), ("n_test", "test"))
        if counts.get(key) is not None
    ]
    return " · ".join(["data-poor"] * poor + ([f"{' and '.join(known)} {images}"] if known else []))


def samples(phantoms: bool, nouns: Nouns) -> str:
    """Return the caption of sample images."""
    middle = (
        "Middle axial slices of a few training scans"
        if nouns.image == "scan"
        else ("A few training pictures")
    )
    upright = "; front is up, left is left" if nouns.image == "scan" else ""
    seen = (
        f"{middle} as the models get them, after preparation{upright}. What differs from site to "
        "site is devices and patients: the domain shift. "
    )
    return seen + whose(phantoms, nouns)


def whose(phantoms: bool, nouns: Nouns) -> str:
    """Say whose images are shown."""
    if phantoms:
        return f"The {nouns.images} are synthetic: no person is shown."
    return (
        f"These are training {nouns.images}, shown only on the machine that holds them: keep this "
        f"file as you keep the {nouns.images}. To pass it on, delete samples.npz and run fedscan "
        "report again."
    )


def disclosed(counts: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Say that numbers over few people are shown, unless every site withholds them."""
    least = [n.get("min_participants", 1) for n in counts.values()]
    if not least or any(not is_number(n) or n < MIN_PARTICIPANTS for n in least):
        yield (
            "Numbers over few people are shown, since simulated sites have one owner "
            "(min-participants is 1). A deployed hospital by default withholds metrics, losses and "
            f"statistics over fewer than {MIN_PARTICIPANTS} people, and rounds are selected "
            "without them."
        )


def limits(
    nouns: Nouns,
    *,
    phantoms: bool,
    counts: Mapping[str, Mapping[str, Any]],
    repetitions: int,
    new_cohorts: bool,
    has_p: bool,
    attacked: bool = False,
    budget: Mapping[str, Any] | None,
) -> Iterator[str]:
    """Say what the comparison does not show."""
    if phantoms:
        yield (
            f"The {nouns.images} are phantoms, with simulated people and devices. What is measured "
            f"here is how the arms compare under known conditions, not how well {nouns.label} is "
            "recognised in patients."
        )
    else:
        yield (
            f"The result is of these sites' {nouns.images} and says nothing of other hospitals or "
            "devices."
        )
    yield from disclosed(counts)
    few = {s: n["n_val"] for s, n in counts.items() if is_number(n.get("n_val"))}
    few = {s: n for s, n in few.items() if n < FEW_IMAGES}
    if few:
        told = ", ".join(f"{s} has {whole(n)}" for s, n in few.items())
        yield (
            f"Few validation {nouns.images}: {told}. Curves there are coarse, and a local "
            "model's round is chosen on them alone, which is part of what having little data means."
        )
    if repetitions <= 1:
        yield (
            "One repetition: the intervals are over people only and do not hold the chance of "
            "initial weights and batches."
        )
    elif not new_cohorts:
        yield (
            f"Every repetition trains and tests on the same {nouns.images}: how much the choice of "
            "people to train on matters is not in the intervals."
        )
    yield (
        "Sites are fixed: the intervals speak of other people at these sites and of other "
        "repetitions, not of other sites."
    )
    if has_p:
        alone = f"chance in training on these test {nouns.images} alone, not of other people"
        yield (
            f"p-values speak of {'other people and trainings' if new_cohorts else alone}, and are "
            "not corrected for the number of sites and metrics. There is none for the scores "
            "themselves, only for paired differences."
        )
    elif repetitions < REPETITIONS_FOR_P:
        yield (
            "No p-values are computed: with so few repetitions no rank test can tell a difference "
            "from chance. The intervals of the paired differences are the evidence."
        )
    if budget is not None:
        other = "large" if budget.get("centralized_batch") == "small" else "small"
        yield (
            "Equal budgets are one reading of a fair comparison: the centralized arm may do better "
            f"or worse under the other one (centralized-batch = {other})."
        )
    yield (
        "All arms share one set of hyperparameters, but for what a variant changes; each arm tuned "
        "for itself might do better."
    )
    yield (
        "The federation is simulated on one machine. Bytes are what a network would carry; times "
        "hold no network and no waiting for a hospital."
    )
    if attacked:
        yield (
            "Privacy is measured by one attack, on the released model: a stronger one, or one on "
            "the updates that leave a site, may learn more."
        )
    else:
        yield (
            "Accuracy is compared, not privacy: that images stay at their site does not show what "
            "could be learned from the updates that leave it."
        )


def day(started: object) -> str:
    """Return the date of a time stamp in ISO 8601, else nothing."""
    text = started if isinstance(started, str) else ""
    try:
        return pd.Timestamp(text).date().isoformat() if text else ""
    except ValueError:
        return ""


def mapping(value: object) -> Mapping[str, Any]:
    """Return the value if it is a mapping, else an empty one: files may lack a part."""
    return value if isinstance(value, Mapping) else {}


def is_number(value: object) -> bool:
    """Whether a value from JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def people(count: object) -> str:
    """Return a number of people: 1 person, 3 people."""
    return f"{whole(count)} {'person' if count == 1 else 'people'}"


def plural(count: object, word: str) -> str:
    """Return a count with its word: 1 site, 3 sites."""
    return f"{whole(count)} {word}{'' if count == 1 else 's'}"


def listed(values: object) -> str:
    """Return the items of a list in one line, or a dash."""
    if isinstance(values, list | tuple) and values:
        return ", ".join(str(value) for value in values)
    return "–"


def whole(value: object) -> str:
    """Return a whole number with thin spaces between thousands, or a dash."""
    try:
        return f"{int(value):,}".replace(",", "\u202f")  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        return "–"


def true_minus(words: object) -> str:
    """Write a true minus, as everywhere on the page; a summary's is for any terminal."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", str(words))


def sentence(words: str) -> str:
    """Begin with a capital."""
    return words[:1].upper() + words[1:]
