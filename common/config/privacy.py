"""The group ``privacy``: what a run promises of a person and of a hospital, by default nothing.

What it means, and against whom it helps: docs/privacy.md and docs/secure-sums.md.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

from pydantic import Field

from common.config.groups import Data, Group, Model, Run, Strategy, Training
from common.settings import NonNegative

FEWEST_SITES = 3  # in a secure sum: of two, each knows the other's part when it sees the sum


class Privacy(Group):
    """Differential privacy, of people and of sites, and secure sums over sites."""

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

    central_epsilon: NonNegative = Field(
        0.0,
        le=1000,
        description="ε of a whole run for each site, by noise that the server adds to the sum of "
        "updates; 0: none",
    )
    central_delta: float = Field(
        0.0, ge=0, lt=1, description="δ for each site, at most 1 / sites; 0: 1 / (10 · sites)"
    )
    central_norm: float = Field(
        1.0,
        gt=0,
        le=1e6,
        description="length to which the server clips a site's update of a round, where it adds "
        "noise",
    )
    secure_sums: bool = Field(
        False,
        description="whether updates, losses and metrics leave sites in secure sums alone: the "
        "server learns the sum over sites, and no site's part in it",
    )
    max_change: float = Field(
        0.5,
        gt=0,
        le=1e6,
        description="with secure sums: largest change of a weight in a round; a site whose change "
        "is larger sends nothing",
    )
    max_images: int = Field(
        10_000,
        ge=1,
        le=1_000_000,
        description="with secure sums: most images of a site, which everybody knows",
    )

    @property
    def is_on(self) -> bool:
        """Whether a run trains with DP-SGD."""
        return self.epsilon > 0

    @property
    def is_central(self) -> bool:
        """Whether the server adds noise."""
        return self.central_epsilon > 0

    def faults(
        self,
        task: str,
        run: Run,
        data: Data,
        model: Model,
        training: Training,
        strategy: Strategy,
    ) -> list[str]:
        """Say what in a run's configuration cannot be accounted for, or has no effect."""
        found = self._idle("epsilon", ("delta", "max_norm", "images_a_person"))
        found += self._idle("central_epsilon", ("central_delta", "central_norm"))
        if self.is_on:
            found += self._of_people(task, data, model, training)
        if self.is_central:
            found += self._of_sites(run, model, strategy)
        return found

    def _idle(self, switch: str, keys: Collection[str]) -> list[str]:
        if getattr(self, switch):
            return []
        return [
            f"{_key(key)} has no effect without {_key(switch)}: leave it out"
            for key in keys
            if getattr(self, key) != type(self).model_fields[key].default
        ]

    def _of_people(self, task: str, data: Data, model: Model, training: Training) -> list[str]:
        """Say what DP-SGD does not cover.

        What is computed of all of a site's people, and enters its training beside their gradients,
        makes one person change the gradients of the others; and what shifts its decisions changes
        the metrics that it reports.
        """
        of_classifiers: tuple[tuple[str, object, Collection[object], str], ...] = (
            ("training.balance", training.balance, ("weights", "batches"), "'none'"),
            ("training.loss", training.loss, ("logit-adjusted",), "'cross-entropy' or 'focal'"),
            ("training.absent-classes", training.absent_classes, ("mask",), "'keep'"),
            ("model.adapt", model.adapt, ("center", "statistics", "threshold"), "'none'"),
            ("model.classifier", model.classifier, ("gan-features",), "another"),
        )
        given = [("data.harmonize", data.harmonize, ("landmarks",), "'none'")]
        found = [
            f"{key} = {value!r} follows from the people that a site trains on, and privacy.epsilon "
            f"accounts for their gradients alone: set {accepted}"
            for key, value, refused, accepted in (
                *(of_classifiers if task == "classification" else ()),
                *given,
            )
            if value in refused
        ]
        if training.local_epochs:
            found.append(
                "training.local-epochs: with privacy.epsilon people are drawn by chance, and there "
                "are no epochs: set training.local-steps"
            )
        return found

    def _of_sites(self, run: Run, model: Model, strategy: Strategy) -> list[str]:
        """Say what lets a site change more than its own clipped update."""
        refused = (
            (
                strategy.weighting != "uniform",
                f"strategy.weighting = '{strategy.weighting}': images are told without noise, and "
                "a site's weight would follow from them: set 'uniform'",
            ),
            (
                strategy.most_norm != type(strategy).model_fields["most_norm"].default,
                "strategy.most-norm has no effect, since updates are clipped to "
                "privacy.central-norm: leave it out",
            ),
            (
                model.classifier == "gan-features",
                "model.classifier = 'gan-features': variances of its features travel beside the "
                "weights, without noise: choose another",
            ),
            (
                run.patience > 0 or run.evaluate_every < run.rounds,
                "run.evaluate-every, run.patience: validation would choose the round, and what it "
                "says of a site has no noise: leave both out, and the last round is the result",
            ),
        )
        return [f"privacy.central-epsilon: {why}" for is_so, why in refused if is_so]

    def faults_of_sums(self, transport: str, run: Run, data: Data, strategy: Strategy) -> list[str]:
        """Say what in a run's configuration does not go with secure sums."""

        def changed(group: Group, *keys: str) -> list[str]:
            known = type(group).model_fields
            return [
                f"{group.prefix}{key.replace('_', '-')}"
                for key in keys
                if getattr(group, key) != known[key].default
            ]

        if not self.secure_sums:
            return [
                f"{key} has no effect without privacy.secure-sums: leave it out"
                for key in changed(self, "max_change", "max_images")
            ]
        found = [
            f"{key} looks at the updates of single sites, which privacy.secure-sums hides: leave "
            "it out"
            for key in changed(strategy, "most_share", "most_norm")
        ]
        if transport == "int8":
            found.append(
                "privacy.secure-sums sends 32 bits a weight, and transport = 'int8' rounds an "
                "update by its site's own largest change: accepted is 'float32' or 'float16'"
            )
        if self.central_epsilon:
            found.append(
                "privacy.central-epsilon clips each site's update at the server, which "
                "privacy.secure-sums hides: leave one of them out"
            )
        if data.unlabelled:
            found.append(
                "privacy.secure-sums is for sites that all learn: leave data.unlabelled out"
            )
        if 0 < run.min_replies < FEWEST_SITES:
            found.append(
                f"run.min-replies = {run.min_replies}: a secure sum is over {FEWEST_SITES} sites "
                f"or more: accepted is 0 (all sites) or {FEWEST_SITES} and more"
            )
        return found


def _key(field: str) -> str:
    return f"privacy.{field.replace('_', '-')}"
