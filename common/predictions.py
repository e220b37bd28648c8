"""What a model said of each test image: a table that stays on the site's side."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.files import write_atomically

PROBABILITY = "probability."  # begins the column of each class


def save_predictions(
    path: Path,
    labels: np.ndarray,
    probabilities: np.ndarray,
    persons: Sequence[str],
    classes: Sequence[str],
) -> None:
    """Write a CSV of scan, person, label and the probability of each class, as in the split.

    Persons are numbered as they come: no name is written.

    Parameters
    ----------
    path : Path
    labels : (N,) integers
    probabilities : (N, K) floats, or of two classes (N,) of class 1
        Written so that reading gives the same float.
    persons : sequence of N str
    classes : sequence of K str
    """
    if probabilities.ndim == 1:
        probabilities = np.stack([1 - probabilities, probabilities], axis=1)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(persons))}
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["scan", "person", "label", *(f"{PROBABILITY}{name}" for name in classes)])
    rows = zip(labels.tolist(), probabilities.tolist(), persons, strict=True)
    for scan, (label, row, name) in enumerate(rows):
        writer.writerow([scan, numbers[name], label, *map(repr, row)])
    write_atomically(path, text.getvalue().encode())
