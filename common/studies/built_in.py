"""What the studies that come with fedscan are about, for a list of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.studies.study import built_in_studies, load_study


@dataclass(frozen=True)
class StudySummary:
    """A line in the list of studies.

    Parameters
    ----------
    name, storage : str
    classes : tuple of str
    about : str
        One sentence.
    """

    name: str
    storage: str
    classes: tuple[str, ...]
    about: str


def summarise_studies() -> list[StudySummary]:
    """Summarise the built-in studies; the comment at the top of each file is its sentence."""
    found = []
    for name in built_in_studies():
        study = load_study(name)
        about = []
        for line in (Path(__file__).parent / f"{name}.toml").read_text("utf-8").splitlines():
            if not line.startswith("#"):
                break
            about.append(line.lstrip("# "))
        found.append(
            StudySummary(name, study.images.storage, study.label.classes.names, " ".join(about))
        )
    return found
