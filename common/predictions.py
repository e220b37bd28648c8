"""What a model said of each test scan: a table that stays on the site's side."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.files import write_atomically


def save_predictions(path: Path, labels: np.ndarray, probabilities: np.ndarray) -> None:
    """Write a CSV of scan, label and probability, in the order of the split.

    Parameters
    ----------
    path : Path
    labels : (N,) integers
    probabilities : (N,) floats
        Of class 1; written so that reading gives the same float.
    """
    lines = [
        f"{scan},{label},{probability!r}\n"
        for scan, (label, probability) in enumerate(
            zip(labels.tolist(), probabilities.tolist(), strict=True)
        )
    ]
    write_atomically(path, ("scan,label,probability\n" + "".join(lines)).encode())
