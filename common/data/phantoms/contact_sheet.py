"""Contact sheets of the lesion phantom: its diagnoses, and its hospitals.

``python -m common.data.phantoms.contact_sheet docs`` writes ``lesions-diagnoses.png`` and
``lesions-hospitals.png`` into a folder. A sheet has 256 colours, to stay small.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.data.phantoms.dermatoscopes import DERMATOSCOPES, acquire
from common.data.phantoms.lesion_rendering import render
from common.data.phantoms.lesions import DIAGNOSES, sample_lesion, sample_patient, sample_view
from common.files import write_atomically
from common.imaging.pictures import grid
from common.seeding import derive_seed

SIZE = 100  # pixels a side of one picture
COLUMNS = 8


def picture(diagnosis: str, hospital: str, number: int) -> np.ndarray:
    """Draw an example of a diagnosis at a hospital, uint8 (SIZE, SIZE, 3)."""
    axes = {"diagnosis": diagnosis, "hospital": hospital, "number": number}
    rng = np.random.default_rng(derive_seed(0, purpose="contact sheet", **axes))
    lesion = sample_lesion(sample_patient({diagnosis: 1.0}, rng), diagnosis, rng)
    scope = DERMATOSCOPES[hospital]
    return acquire(render(lesion, SIZE, sample_view(scope.zoom, rng)), scope, rng)


def write_sheets(folder: Path) -> None:
    """Write both sheets: rows are diagnoses, all seen by north, and hospitals."""
    hospitals = list(DERMATOSCOPES)
    by_diagnosis = [[picture(name, "north", k) for k in range(COLUMNS)] for name in DIAGNOSES]
    by_hospital = [[picture(name, hospital, 100) for name in DIAGNOSES] for hospital in hospitals]
    _write(folder / "lesions-diagnoses.png", by_diagnosis, names=DIAGNOSES)
    _write(folder / "lesions-hospitals.png", by_hospital, names=hospitals, captions=DIAGNOSES)


def _write(path: Path, rows: Sequence[Sequence[np.ndarray]], **labels: Sequence[str]) -> None:
    images = [np.stack(row).transpose(0, 3, 1, 2) / 127.5 - 1 for row in rows]
    file = io.BytesIO()
    grid(images, **labels).quantize(256, kmeans=4, dither=0).save(file, "PNG", optimize=True)
    write_atomically(path, file.getvalue())


if __name__ == "__main__":
    write_sheets(Path(sys.argv[1]))
