"""Names that a preset leaves open, since they are the study's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from common.studies.sections import HEIGHT
from common.studies.study import Study
from common.studies.vocabulary import normalise


def fill_in(tables: Iterable[dict[str, Any]], study: Study) -> None:
    """Fill in a study's names, in place.

    ``{label}`` is the column of its label, of volumes with the slices' height; ``{positive}`` the
    class that is to be found, or the last; ``{other}`` the first of the others.

    Parameters
    ----------
    tables : iterable of dict
        Run-config values, of the preset and of each variant.
    study : Study
    """
    made = () if study.images.view == "picture" else (HEIGHT,)
    wanted = (normalise(study.label.column), *made)
    kinds = [kind for kind in study.generator.conditions if normalise(kind) in wanted]
    classes = study.label.classes.names
    positive = study.label.positive or classes[-1]
    known = {
        "{label}": ",".join(kinds) or study.label.column,  # refused where it is no condition
        "{positive}": positive,
        "{other}": next(name for name in classes if name != positive),
    }
    for values in tables:
        for key, value in values.items():
            for place, name in known.items() if isinstance(value, str) else ():
                values[key] = value = value.replace(place, name)
