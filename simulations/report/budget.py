"""What equal budgets mean in a comparison, and where they are not equal, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from simulations.report.words import is_number, mapping, whole

_ADAPTED = {
    "threshold": "Wherever a model is judged, of whatever arm, its decision threshold is fitted to "
    "the site's own training images (model.adapt = threshold).",
    "statistics": "Wherever a model is judged, of whatever arm, it is normalized by statistics of "
    "the site's own training images (model.adapt = statistics).",
    "center": "Every model works with features from which the mean over the site's own training "
    "images was taken (model.adapt = center).",
}


def in_words(manifest: Mapping[str, Any], sites: int) -> str:
    """Say what equal budgets mean in this comparison, and where they are not equal."""
    known = mapping(manifest.get("budget"))
    steps, batch = known.get("steps"), known.get("batch_size")
    told = f"{whole(steps)} optimizer steps" if is_number(steps) else "optimizer steps"
    images = f"{whole(batch)} images" if is_number(batch) else "training.batch-size images"
    parts = [f"A site's model makes {told} of {images} each, whether it trains alone or federated."]
    parts += _unequal(manifest)
    parts += _adapted(manifest)
    if pools(manifest):
        parts.append(_pooled_budget(known, sites))
    return " ".join(parts)


def _adapted(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Say how models are adapted to a site, and which variants are adapted in another way."""
    usual = mapping(manifest.get("config")).get("model.adapt")
    variants = mapping(manifest.get("differing"))
    if told := _ADAPTED.get(str(usual)):
        yield told
        other = [n for n, v in variants.items() if mapping(v).get("model.adapt", usual) != usual]
        if other:
            yield f"Not so: {', '.join(map(repr, other))}."


def pools(manifest: Mapping[str, Any]) -> bool:
    """Whether pooling is compared."""
    return "centralized" in (manifest.get("arms") or ["centralized"])


def _unequal(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Tell of variants that train for longer or shorter than the rest, or were trained before."""
    config, plan = mapping(manifest.get("config")), mapping(manifest.get("plan"))
    variants, keys = mapping(plan.get("variants")), ("run.rounds", "training.local-steps")
    federated = "federated" in (manifest.get("arms") or ["federated"])
    compared = (manifest.get("strategies") or []) if federated else []
    for name in compared:
        own = {**config, **mapping(variants.get(name))}
        counts = [[values.get(key) for key in keys] for values in (config, own)]
        if not all(is_number(count) for pair in counts for count in pair):
            continue
        usual, steps = map(math.prod, counts)
        if steps != usual:
            yield f"Not so '{name}': {whole(steps)} steps."
    if before := [f"'{name}'" for name in compared if name in (plan.get("pretrained") or [])]:
        yield (
            f"Features of {', '.join(before)} were trained before, by a federation of generators "
            "that no count, time or size here holds."
        )


def _pooled_budget(known: Mapping[str, Any], sites: int) -> str:
    if known.get("centralized_batch") == "small":
        return (
            f"The centralized model saw as many images as all {sites} sites together, in batches "
            f"of the same size and so with {sites} times as many optimizer steps "
            "(centralized-batch = small). The other reading, large, keeps the steps equal too and "
            "makes the batches larger."
        )
    return (
        "The centralized model makes as many steps, with batches as large as all "
        f"{sites} sites' together, so that it sees as many images as they do: equal optimizer "
        "steps and equal images (centralized-batch = large). The other reading, "
        "centralized-batch = small, keeps the batch size and multiplies the steps: equal images "
        "only. A site with few images passes over them more often than the others."
    )
