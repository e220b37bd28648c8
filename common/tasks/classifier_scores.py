"""What a study's classifier is measured by."""

from __future__ import annotations

import numpy as np

from common.evaluation.classification import classification_metrics
from common.studies.study import Study


def score(study: Study, labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Return the metrics of predictions; those of single classes where there are more than two."""
    return classification_metrics(labels, predictions, *told_of(study)[1:])


def told_of(study: Study) -> tuple[int, tuple[str, ...] | None, str | None]:
    """Return how many classes there are, those told of by name, and the one to be found."""
    names = study.label.classes.names
    if len(names) == 2 and not study.label.positive:
        return 2, None, None
    return len(names), names, study.label.positive or None
