"""What each task is measured by: which numbers lead, which way is better, how they are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from common.evaluation.classification import OF_EACH_CLASS, metric_names
from common.tasks.generation_classes import OF_A_CLASS
from simulations.results import CHOSEN


@dataclass(frozen=True)
class Measure:
    """One number of a test.

    Parameters
    ----------
    words : str
        Its name in a sentence.
    better : {"more", "less", ""}
        "" where neither is: such a measure tells of the data, or has to be read beside another.
    pool : str
        What it is over all sites: "mean" of the sites', "whole" where only one that was measured
        over all of them will do, "any" where the largest of the sites' counts.
    digits : tuple of int
        Decimals of values below 10, from 10 and from 100 on.
    bounds : (float, float), optional
        Ends of its scale, where it has two.
    """

    words: str
    better: str = "more"
    pool: str = "mean"
    digits: tuple[int, int, int] = (2, 2, 2)
    bounds: tuple[float, float] | None = (0.0, 1.0)

    @property
    def less_is_better(self) -> bool:
        """Whether lower values are better ones."""
        return self.better == "less"

    def places(self, value: float) -> int:
        """Decimals with which a value of this size is told."""
        return self.digits[0 if abs(value) < 10 else 1 if abs(value) < 100 else 2]


@dataclass(frozen=True)
class Judged:
    """How a task's models are judged.

    Parameters
    ----------
    leading : tuple of str
        Measures of figures and headlines; of headlines the first that both models have.
    beside : tuple of str
        Measures that a headline tells as well, where they have intervals.
    measures : dict of str to Measure
    """

    leading: tuple[str, ...]
    beside: tuple[str, ...]
    measures: dict[str, Measure]


CLASSIFICATION = {
    "balanced_accuracy": Measure("balanced accuracy"),
    "auroc": Measure("AUROC"),
    "auprc": Measure("AUPRC"),
    "sensitivity_at_90_specificity": Measure("sensitivity at 90 % specificity"),
    "f1": Measure("F1"),
    "calibration_error": Measure("calibration error", "less"),
    "loss": Measure("cross-entropy (nats)", "less", bounds=None),
}
GENERATION = {
    "frechet_distance": Measure("Fréchet distance", "less", "whole", (2, 1, 0), None),
    "kernel_distance": Measure("kernel distance", "less", digits=(3, 1, 1), bounds=None),
    "precision": Measure("precision"),
    "recall": Measure("recall"),
    "coverage": Measure("coverage"),
    "density": Measure("density", bounds=None),
    "ms_ssim": Measure("MS-SSIM of pairs", ""),
    "ms_ssim_real": Measure("MS-SSIM of pairs of real images", ""),
    "authenticity": Measure("authenticity", ""),
    "authenticity_held_out": Measure("authenticity of held-out images", ""),
    "copies_flagged": Measure("flagged as copying", "less", "any"),
}
MEMBERSHIP = "membership_auroc"
ATTACKED = {MEMBERSHIP: Measure("AUROC of membership", "less")}  # where models were attacked
OF_CLASSES = (*OF_EACH_CLASS, *OF_A_CLASS)
OTHERS = {CHOSEN: Measure("synthetic participants chosen", "", digits=(0, 0, 0), bounds=None)}
DISTANCES = ("frechet_distance", "kernel_distance")


def judged(
    task: str,
    classes: Sequence[str] = (),
    positive: str | None = None,
    *,
    each: bool = False,
    attacked: bool = False,
) -> Judged:
    """Return how a task's models are judged.

    Parameters
    ----------
    task : str
    classes : sequence of str
    positive : str, optional
    each : bool
        Whether single classes have measures of their own.
    attacked : bool
        Whether models were attacked, and :data:`ATTACKED` is known.
    """
    if task == "generation":
        single = [f"{name}.{one}" for one in classes for name in OF_A_CLASS] if each else []
        measures = GENERATION | {name: measure(name) for name in single}
        return Judged(DISTANCES, ("recall", "precision"), measures)
    names = metric_names(max(2, len(classes)), classes if each else None, positive)
    names = [*names, *ATTACKED] if attacked else names
    return Judged(("balanced_accuracy", "auroc"), (), {name: measure(name) for name in names})


def measure(name: str) -> Measure:
    """Return what is known of a measure, also of one of a single class, as ``recall.MEL``."""
    known = {**CLASSIFICATION, **GENERATION, **ATTACKED, **OTHERS}
    kind, _, one = name.partition(".")
    if one and kind in OF_CLASSES:
        return replace(known.get(kind, Measure(kind)), words=f"{measure(kind).words} of {one}")
    return known.get(name, Measure(name, bounds=None))
