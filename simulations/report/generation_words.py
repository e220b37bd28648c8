"""Sentences of reports of generators: how they were judged, and what that does not show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from simulations.report.words import Nouns, disclosed, is_number, listed, plural

FEW_REPETITIONS = 6  # of which one that strays widens an interval much
NO_PICTURES = "The folder holds no grids of pictures, so there are none to show."
FLAGGED = (
    "Pictures that single out one training image were found. Look at the site's look-alikes before "
    "such a generator, or its pictures, leaves anybody's hands:"
)
# Of the extractors that come with fedscan: what each is known not to see (docs/generators.md).
CAVEATS = {
    "fedscan-brain": (
        "The extractor fedscan-brain was trained on phantoms, and sees nothing finer than 64 "
        "pixels: it tells blurred, noisy and displaced heads apart, not every anatomical fault. "
        "For real cohorts judge with a network of your own."
    ),
    "fedscan-skin": (
        "The extractor fedscan-skin was trained on phantoms, and fails its own validation: it does "
        "not see faint blur (1.5 % of a picture's side) and faint noise (SD up to 0.05), blur "
        "hardly lowers its precision, and its distances may miss that a diagnosis, as melanoma, "
        "is never made. Colour weighs much in them. For real cohorts judge with a network of your "
        "own."
    ),
}
COMPARISON_FOOTER = (
    "Made by fedscan report from results.csv, summary.json, manifest.json, samples.npz, use.csv "
    "and the grids of generated pictures in this folder. The file is complete in itself and asks "
    "the network for nothing."
)
RUN_FOOTER = (
    "Made by fedscan report from manifest.json, metrics.jsonl, summary.json and grids of this run "
    "folder. The file is complete in itself and asks the network for nothing."
)
NO_USE = (
    "No classifier has been trained with the pictures yet, as this comparison does at its end. Go "
    "on with fedscan benchmark --resume."
)


def no_copying(nouns: Nouns) -> str:
    """Say that nobody has tested for copies."""
    return f"No site has tested whether a generator copies its training {nouns.made}s."


def copying(nouns: Nouns) -> str:
    """Say how sites test for copies."""
    one = nouns.made
    return (
        f"Each site compares generated pictures with its own training {one}s. Of that it tells: "
        f"authenticity, that of held-out {one}s as well; the median distance to the nearest "
        f"training {one}, of generated pictures and of held-out {one}s; the share of look-alikes "
        "among the generated pictures; and whether the generator is flagged. The look-alikes "
        "themselves stay with it, for its eyes. Authenticity: the share of generated pictures that "
        f"lie further from their nearest training {one} than that {one} from its own nearest one. "
        f"It is to be read beside that of held-out {one}s of other people, which copy nobody: a "
        "share well below theirs is suspicious. A generator is flagged where a generated picture "
        f"singles out one training {one} as no held-out {one} does. One that makes nothing but "
        "noise, as after few rounds, copies nothing and is not flagged: see its precision."
    )


def use(nouns: Nouns, site: str) -> str:
    """Say how classifiers were trained with a site's own and with generated images."""
    many, whose = nouns.images, f"the images of {site}" if site else "one site's images"
    return (
        f"Classifiers, tested on real test images. They are trained with {whose}, "
        "alone or beside synthetic ones, of which as many are taken as its validation "
        f"{many} choose; or on synthetic {many} alone, with the label of the site where they are "
        f"tested. The federated classifier learns from every site's real {many}. It is that of its "
        "best round by validation; the others keep their last weights. Synthetic "
        f"{many} are of use where a row with them is above the one without, by more than the "
        "intervals leave open. A generator has no row where it makes pictures of another size or "
        "lacks labels that a synthetic person needs."
    )


def judged(extractors: Sequence[str], means: str, nouns: Nouns) -> str:
    """Say how the pictures were judged."""
    by = listed(list(extractors)) if extractors else "an extractor that the summaries do not name"
    return (
        f"Each site makes a picture with the labels of each of its test {nouns.made}s, which "
        "neither training nor the choice of a round has seen, and compares both by features of "
        f"{by}. Shown are {means}. Fréchet and kernel distance: less is better. Precision: the "
        "share of pictures among what is real; recall and coverage: the share of what is real "
        "that the pictures reach. Distances of other extractors, or of other numbers of images, "
        "cannot be compared with these."
    )


def intervals(level: str, repetitions: int, *, new_cohorts: bool) -> str:
    """Say what the intervals are."""
    if repetitions < 2:
        return "One repetition has no interval."
    return f"Intervals: {level}, over {plural(repetitions, 'repetition')}" + (
        ", each with people of its own." if new_cohorts else ", not over who was tested."
    )


def limits(
    nouns: Nouns,
    *,
    phantoms: bool,
    extractors: Sequence[str],
    counts: Mapping[str, Mapping[str, Any]],
    repetitions: int | None,
    new_cohorts: bool = False,
    budget: Mapping[str, Any] | None,
) -> Iterator[str]:
    """Say what the numbers do not show; of a comparison, or of one run (``repetitions`` None)."""
    if phantoms:
        yield (
            f"The {nouns.images} are phantoms, with simulated people and devices. What is measured "
            "is how trainings compare under known conditions, not how well anybody's pathology is "
            "drawn."
        )
    else:
        yield (
            f"The result is of these sites' {nouns.images} and says nothing of other hospitals or "
            "devices."
        )
    yield from disclosed(counts)
    usual = "fedscan-skin" if nouns.image == "picture" else "fedscan-brain"
    for name, caveat in CAVEATS.items():
        if any(one.startswith(name) for one in extractors or [usual]):
            yield caveat
    few = {s: n["n_test"] for s, n in counts.items() if is_number(n.get("n_test"))}
    told = ", ".join(f"{site} {n}" for site, n in few.items())
    yield (
        f"Moments of few {nouns.made}s: a Fréchet distance of some hundred is too high, the more "
        "so the fewer they are, also between real and real. Compare models at one place, not "
        f"places with each other{f' (test {nouns.images}: {told})' if told else ''}. Images of one "
        "person are not independent."
    )
    if repetitions is None or repetitions < 2:
        yield (
            "One repetition: there is no interval, and another seed may turn the order of close "
            "numbers around."
        )
    else:
        few = repetitions < FEW_REPETITIONS
        wide = "wide because so few tell little of chance, and they are " if few else ""
        yield (
            f"{plural(repetitions, 'repetition')}: the intervals are {wide}not corrected for the "
            "number of measures and sites. Those of distances are symmetric and may reach below "
            "zero. An interval that includes zero does not show that two generators are equal."
        )
    fixed = "Sites are" if new_cohorts else "Sites and people are"
    yield f"{fixed} fixed: nothing here speaks of other ones."
    if budget is not None:
        small = budget.get("centralized_batch") == "small"
        other = "large" if small else "small"
        pooled = "sites × as many steps" if small else "a batch sites × as large"
        yield (
            "Equal budgets are one reading of a fair comparison: the pooled generator may do "
            f"better or worse under the other one (centralized-batch = {other}). Rounds, steps, "
            "learning rates and the server's step, as they come with fedscan, were chosen for the "
            "federated generator, on another cohort of phantoms. The pooled one takes them as they "
            f"are, with {pooled}, and one that a site trains alone with the site's own batch."
        )
    yield (
        "The federation is simulated on one machine. Bytes are what a network would carry; times "
        "hold no network and no waiting for a hospital."
    )
    yield (
        f"The test for copies does not see parts of a {nouns.made} in an otherwise new picture, or "
        "what the extractor is blind to; a generator that passes it is not proven to keep a secret."
    )
