"""The group ``privacy``: what a run promises of a single person, by default nothing.

What it means, and against whom it helps: docs/privacy.md.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

from pydantic import Field

from common.config.groups import Data, Group, Model, Training
from common.settings import NonNegative


class Privacy(Group):
    """Differentially private training at each site, by DP-SGD."""

    prefix: ClassVar[str] = "privacy."

    epsilon: NonNegative = Field(
        0.0,
        le=1000,
        description="ε of a whole run for each person whom a site trains on; 0: no differential "
        "privacy",
    )
    delta: float = Field(
        0.0, ge=0, lt=1, description="δ, at most 1 / people; 0: 1 / (10 · people of the site)"
    )
    max_norm: float = Field(
        1.0, gt=0, le=1e6, description="length to which one person's gradient is clipped"
    )
    images_a_person: int = Field(
        4,
        ge=1,
        le=4096,
        description="most images of one person in an optimizer step; training.batch-size is the "
        "expected number of people in it",
    )

    @property
    def is_on(self) -> bool:
        """Whether a run trains with DP-SGD."""
        return self.epsilon > 0

    def faults(self, task: str, data: Data, model: Model, training: Training) -> list[str]:
        """Say what in a run's configuration cannot be accounted for.

        What is computed of all of a site's people, and enters its training beside their gradients,
        makes one person change the gradients of the others; and what shifts its decisions changes
        the metrics that it reports.
        """
        if not self.is_on:
            return [
                f"privacy.{key.replace('_', '-')} has no effect without privacy.epsilon: leave it "
                "out"
                for key in ("delta", "max_norm", "images_a_person")
                if getattr(self, key) != type(self).model_fields[key].default
            ]
        if task != "classification":
            return ["privacy.epsilon is for task 'classification' so far: leave it out"]
        given: tuple[tuple[str, object, Collection[object], str], ...] = (
            ("training.balance", training.balance, ("weights", "batches"), "'none'"),
            ("training.loss", training.loss, ("logit-adjusted",), "'cross-entropy' or 'focal'"),
            ("training.absent-classes", training.absent_classes, ("mask",), "'keep'"),
            ("data.harmonize", data.harmonize, ("landmarks",), "'none'"),
            ("model.adapt", model.adapt, ("center", "statistics", "threshold"), "'none'"),
            ("model.classifier", model.classifier, ("gan-features",), "another"),
        )
        found = [
            f"{key} = {value!r} follows from the people that a site trains on, and privacy.epsilon "
            f"accounts for their gradients alone: set {accepted}"
            for key, value, refused, accepted in given
            if value in refused
        ]
        if training.local_epochs:
            found.append(
                "training.local-epochs: with privacy.epsilon people are drawn by chance, and there "
                "are no epochs: set training.local-steps"
            )
        return found
